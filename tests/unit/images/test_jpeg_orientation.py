"""The orientation of a JPEG file is the one that cv2 applies, whatever stands in its APP1 segments."""

from __future__ import annotations

import random
import struct

import cv2
import numpy as np
import pytest

from mlcls.images.decoding import decode_image, find_orientation, turn
from mlcls.images.encoded_image import open_image
from support.image_samples import forbid_cv2, with_cv2

# No two of its eight orientations are alike.
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 10, 3), np.uint8), (40, 24))
FILE = cv2.imencode(".jpg", PICTURE)[1].tobytes()


def segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content


def exif(*tags: tuple[int, int, int, int], order: str = "<", name: bytes = b"Exif\0\0") -> bytes:
    """An APP1 segment whose TIFF directory has the given (tag, type, count, value) entries."""
    entries = b"".join(struct.pack(order + "HHIHH", *tag, 0) for tag in tags)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return segment(name + start + entries + bytes(4))


def insert(segments: bytes) -> bytes:
    return FILE[:2] + segments + FILE[2:]


XMP = segment(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
# As a photo site writes it.
RENAMED_XMP = segment(b"XMP\0://ns.adobe.com/xap/1.0/\0<?xpacket begin")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation(value: int, order: str) -> None:
    segments = exif((0x0112, 3, 1, value), order=order) + XMP
    data = insert(segments)
    jpeg = open_image(data).jpeg
    assert jpeg is not None
    assert find_orientation(jpeg.app1) == value
    np.testing.assert_array_equal(turn(with_cv2(FILE), value), with_cv2(data))
    np.testing.assert_array_equal(decode_image(data), with_cv2(data))


@pytest.mark.parametrize(
    "segments",
    [
        b"",
        exif((0x0110, 3, 1, 6)),
        XMP,
        XMP + exif((0x0112, 3, 1, 6)),  # cv2 reads the first segment alone
        RENAMED_XMP + exif((0x0112, 3, 1, 6)),
        segment(b""),
        exif((0x0112, 3, 1, 6)).replace(b"II*", b"xx*"),
        exif((0x0112, 3, 1, 6), name=b"Xxif\0\0"),
        exif((0x0112, 4, 1, 6)),
        exif((0x0112, 3, 1, 9)),
        segment(b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"),  # cut off
    ],
)
def test_whatever_stands_there(segments: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cv2, and without decoding the picture by cv2 as well."""
    data = insert(segments)
    expected = with_cv2(data)
    forbid_cv2(data, monkeypatch)
    np.testing.assert_array_equal(decode_image(data), expected)


def test_random_damage() -> None:
    """A thousand directories with a few bytes changed or cut off, one or two to a file."""
    choose = random.Random(5)
    seen = set()
    for _ in range(1000):
        segments = b""
        for _ in range(choose.choice([1, 1, 2])):
            directory = exif((0x0112, 3, 1, choose.randrange(10)), order=choose.choice("<>"))[4:]
            content = bytearray(directory[: choose.choice([len(directory), choose.randrange(len(directory))])])
            for _ in range(choose.choice([0, 0, 1, 3])):
                if content:
                    content[choose.randrange(len(content))] = choose.choice([0, 1, 3, 6, 8, choose.randrange(256)])
            segments += segment(bytes(content))
        data = insert(segments)
        np.testing.assert_array_equal(decode_image(data), with_cv2(data), err_msg=repr(segments))
        seen.add(find_orientation(segments))
    assert seen == set(range(1, 9))
