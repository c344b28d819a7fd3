"""What an image costs is known from its header, and limited before anything is decoded."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest
import simplejpeg
from PIL import Image

from mlcls.errors import ImageError
from mlcls.images.cost import MEMORY_PER_PIXEL, estimate_cost
from mlcls.images.decoding import decode_image
from mlcls.images.encoded_image import check_image, open_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from support.image_samples import encode, make_png, oriented

SMALL = Image.new("RGB", (64, 64), (90, 120, 30))
SOF = {False: b"\xff\xc0", True: b"\xff\xc2"}


def jpeg(
    height: int, width: int, scans: int = 0, between: bytes = b"", picture: Image.Image = SMALL, **options: Any
) -> bytes:
    """Return a JPEG file of a few hundred bytes that says that it is large; scans: its last one is there again."""
    data = bytearray(encode(picture, "JPEG", progressive=scans > 0, **options))
    at = data.index(SOF[scans > 0])
    struct.pack_into(">HH", data, at + 5, height, width)
    if not scans:
        return bytes(data)
    last = data.rindex(b"\xff\xda")
    further = scans - data.count(b"\xff\xda")
    return bytes(data[:-2] + (between + data[last:-2]) * further + data[-2:])


def sequential_scans(height: int, width: int, scans: int) -> bytes:
    """A baseline file whose three components lie in scans of their own, which libjpeg reads as often as they come."""
    data = jpeg(height, width)
    at = data.index(b"\xff\xda")
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + b"\x12\x34"
    return data[:at] + scan * scans + b"\xff\xd9"


def tiff(tags: Mapping[int, int], content: bytes = b"") -> bytes:
    """A little-endian TIFF file with a directory of numbers."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def tiff_of(height: int, width: int, samples: int, bits: int, compression: int = 5, **more: Any) -> bytes:
    return tiff({256: width, 257: height, 258: bits, 259: compression, 277: samples}, **more)


def gif(height: int, width: int) -> bytes:
    """A GIF file with a screen of 64 x 64 and a larger frame."""
    data = bytearray(encode(SMALL.quantize(4), "GIF"))
    struct.pack_into("<HH", data, data.index(b"\x2c\0\0\0\0") + 5, width, height)
    return bytes(data)


HIDDEN_END = b"\xff\xfe\0\x04\xff\xd9"  # a comment that contains an end marker
MILLION = ImageSettings(max_pixels=1_000_000)

BOMBS: dict[str, tuple[bytes, ImageSettings, str, str]] = {
    "100 scans": (jpeg(8000, 8000, 100), DEFAULT_IMAGE_SETTINGS, "too_much_work", "at most 2 s of work to decode it, "),
    "scans after a hidden end": (jpeg(8000, 8000, 100, HIDDEN_END), DEFAULT_IMAGE_SETTINGS, "too_much_work", "at most"),
    "101 scans after a hidden end": (
        jpeg(64, 64, 101, HIDDEN_END),
        DEFAULT_IMAGE_SETTINGS,
        "too_complex",
        "a JPEG fil",
    ),
    "sequential scans": (sequential_scans(8000, 8000, 90), DEFAULT_IMAGE_SETTINGS, "too_much_work", "at most 2 s"),
    "segments between scans": (
        jpeg(64, 64, 12, b"\xff\xfe\0\2" * 5000),
        DEFAULT_IMAGE_SETTINGS,
        "too_complex",
        "a JPEG file of at most 4096 segments between its scans",
    ),
    "CMYK progressive": (
        jpeg(8000, 7000, 10, picture=SMALL.convert("CMYK")),
        DEFAULT_IMAGE_SETTINGS,
        "too_much_memory",
        "at most 576 MB of memory to decode it, this JPEG file of height 8000, width 7000 takes about 672 MB",
    ),
    "AVIF": (encode(Image.new("RGB", (900, 900)), "AVIF"), MILLION, "too_much_memory", "at most 9 MB of memory"),
    "GIF": (gif(8000, 8000), DEFAULT_IMAGE_SETTINGS, "too_much_memory", "at most 576 MB of memory"),
    "GIF whose frame is larger than its screen": (
        gif(9000, 9000),
        DEFAULT_IMAGE_SETTINGS,
        "too_many_pixels",
        "at most",
    ),
    "TIFF of 16 bits": (tiff_of(6000, 6000, 4, 16), DEFAULT_IMAGE_SETTINGS, "too_much_memory", "at most 576 MB"),
    "TIFF in LZMA": (tiff_of(6500, 6500, 3, 8, 34925), DEFAULT_IMAGE_SETTINGS, "too_much_memory", "at most 576 MB"),
    "TIFF of many samples": (
        tiff_of(3000, 3000, 900, 8),
        DEFAULT_IMAGE_SETTINGS,
        "format_not_supported",
        "a kind of TIFF",
    ),
    "TIFF whose tiles are much larger than the picture": (
        tiff({256: 20_000, 257: 20, 258: 8, 277: 3, 322: 16, 323: 4096}),
        DEFAULT_IMAGE_SETTINGS,
        "too_much_memory",
        "at most 576 MB",
    ),
    "TIFF of JPEG strips with many scans": (
        tiff_of(6000, 6000, 3, 8, 7, content=jpeg(6000, 6000, 90)),
        DEFAULT_IMAGE_SETTINGS,
        "too_much_work",
        "at most 2 s of work",
    ),
    "TIFF with two widths": (
        tiff({256: 60_000, 257: 60_000}).replace(b"\2\0", b"\4\0", 1)[:34] + tiff({256: 10, 257: 10})[10:],
        DEFAULT_IMAGE_SETTINGS,
        "side_too_long",
        "sides of at most 20000 pixels, got height 60000, width 60000",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, settings, reason, words = BOMBS[name]
    for library, function in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg"), (Image.Image, "load")):
        monkeypatch.setattr(library, function, lambda *_, **__: pytest.fail("a decoder was called"))
    assert len(data) < 60_000
    with pytest.raises(ImageError) as raised:
        decode_image(data, settings)
    assert raised.value.reason == reason, str(raised.value)
    assert str(raised.value).startswith(f"image: expected {words}")


@pytest.mark.parametrize(
    "data",
    [
        jpeg(6000, 8000, exif=oriented(6)),
        jpeg(4000, 6000, 10),
        jpeg(4000, 6000, 10, subsampling="4:4:4", exif=oriented(6)),
        jpeg(8000, 8000),
        jpeg(6000, 8000, 10),
        make_png(3000, 4000, b""),
        make_png(8000, 8000, b"", interlaced=1),
        tiff_of(6000, 8000, 3, 8),
        tiff_of(6000, 8000, 3, 8, 7, content=encode(SMALL, "JPEG") * 50),
        gif(6000, 8000),
    ],
    ids=lambda data: f"{data[:4]!r}",
)
def test_ordinary_pictures_are_far_from_the_limits(data: bytes) -> None:
    check_image(open_image(data), DEFAULT_IMAGE_SETTINGS)


@pytest.mark.parametrize("scans", [10, 20, 100])
def test_scans_are_counted_as_libjpeg_reads_them(scans: int) -> None:
    """The last one reads one component; what comes after the end does not count."""
    plain, more = (open_image(jpeg(64, 64, count)) for count in (10, scans))
    assert more.scans - plain.scans == scans - 10
    assert plain.scans == pytest.approx(8)
    assert open_image(jpeg(64, 64, 10) + jpeg(64, 64, 100)).scans == plain.scans
    assert open_image(jpeg(64, 64, 10, b"\xff\xfe\0\x08\xff\xda\xff\xda\xff\xda")).scans == plain.scans
    assert open_image(jpeg(64, 64)).scans == 0


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG turned": ("RGB", "JPEG", {"exif": oriented(6)}),
    "JPEG progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": "4:4:4"}),
    "JPEG progressive CMYK": ("CMYK", "JPEG", {"progressive": True}),
    "PNG": ("RGBA", "PNG", {}),
    "WebP": ("RGBA", "WEBP", {"lossless": True}),
    "BMP": ("RGB", "BMP", {}),
    "GIF": ("P", "GIF", {}),
    "AVIF": ("RGBA", "AVIF", {"subsampling": "4:4:4", "exif": oriented(6), "speed": 10}),
    "TIFF": ("RGB", "TIFF", {}),
    "TIFF deflate": ("CMYK", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF LZMA": ("RGB", "TIFF", {"compression": "lzma", "exif": oriented(6)}),
    "TIFF LZMA CMYK": ("CMYK", "TIFF", {"compression": "lzma"}),
    "TIFF JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
}

# Prints by how many bytes decoding and resizing raise the peak of a process that has decoded that kind before.
PEAK = """
import sys
from pathlib import Path
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ImageTransform
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
small, large = (Path(path).read_bytes() for path in sys.argv[1:])
one = (1.0, 1.0, 1.0)
transform = ImageTransform(448, 448, "pil", "BILINEAR", 1.0, one, one)
preprocess(small, transform)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
preprocess(large, transform)
print(status("VmHWM:") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_memory_than_was_estimated(kind: str, tmp_path: Path) -> None:
    """Plus the bytes of the file, and a little."""
    mode, name, options = KINDS[kind]
    paths = [tmp_path / "small", tmp_path / "large"]
    for path, side in zip(paths, (64, 3000), strict=True):
        path.write_bytes(encode(Image.new("RGB", (side, side), (90, 120, 30)).convert(mode), name, **options))
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    # a thread for each core would have memory of its own
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"}
    )
    data = paths[1].read_bytes()
    allowed = estimate_cost(open_image(data)).memory_bytes + 2 * len(data) + 8_000_000
    assert 9_000_000 * 6 < int(run.stdout) < allowed


def test_the_limit_of_memory_is_that_of_the_largest_plain_jpeg() -> None:
    cost = estimate_cost(open_image(jpeg(8000, 8000, exif=oriented(6))))
    assert cost.memory_bytes == MEMORY_PER_PIXEL * DEFAULT_IMAGE_SETTINGS.max_pixels
    assert cost.work_s > cost.pixels_s + cost.bytes_s
    assert cost.pixels_s > cost.bytes_s > 0
