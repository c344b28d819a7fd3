"""A page of a TIFF file is sent as it is in the file: copied to a file of its own, not decoded."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from mlcls_client.inputs.tiff import TiffDocument
from support.image_samples import TiffTags, encode, make_tiff_pages

RANDOM = np.random.default_rng(4)


def picture(mode: str) -> Image.Image:
    """A random picture of a size of its own."""
    height, width = (int(side) for side in RANDOM.integers(60, 90, 2))
    image = Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "I;16":
        return Image.fromarray(RANDOM.integers(0, 65536, (height, width), dtype=np.uint16))
    return image.quantize(60) if mode == "P" else image.convert(mode)


def read_pages(data: bytes) -> list[bytes]:
    document = TiffDocument(io.BytesIO(data))
    return [document.read(index) for index in range(document.page_count)]


@pytest.mark.parametrize("big_tiff", [False, True])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "lzma"])
def test_each_page_has_the_pixels_of_a_file_of_its_own(compression: str, big_tiff: bool) -> None:
    modes = ["RGB", "L"] if compression == "jpeg" else ["RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "LA"]
    pages = [picture(mode) for mode in modes]
    options = {"compression": compression, "big_tiff": big_tiff}
    alone = [decode_image(encode(page.copy(), "TIFF", **options)) for page in pages]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)
    copies = read_pages(data)
    assert len(copies) == len(pages)
    assert sum(map(len, copies)) < 1.1 * len(data)
    for copy, expected in zip(copies, alone, strict=True):
        assert len(read_pages(copy)) == 1
        np.testing.assert_array_equal(decode_image(copy), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_strips_tiles_and_both_byte_orders(order: str) -> None:
    pixels = RANDOM.integers(0, 256, (32, 32), dtype=np.uint8)
    tiles = [pixels[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16)]
    size: TiffTags = {256: 32, 257: 32, 258: 8}
    pages: list[tuple[TiffTags, list[bytes]]] = [
        (size | {322: 16, 323: 16}, tiles),
        (size, [pixels[:16].tobytes(), pixels[16:].tobytes()]),
        (size | {278: 32}, [pixels.tobytes()]),
    ]
    copies = read_pages(make_tiff_pages(pages, order))
    assert len(copies) == 3
    for copy in copies:
        assert len(copy) < 1.5 * pixels.size
        np.testing.assert_array_equal(decode_image(copy)[:, :, 0], pixels)


def two_pages(tags: TiffTags | None = None) -> bytes:
    """A file of two different gray pages, the first of which has some more tags."""
    first, second = (RANDOM.integers(0, 256, 384, dtype=np.uint8).tobytes() for _ in range(2))
    return make_tiff_pages([((tags or {}) | {258: 8}, [first]), ({258: 8}, [second])])


@pytest.mark.parametrize(("tag", "kind"), [(279, 99), (273, 11)], ids=["sizes of no type", "offsets of type FLOAT"])
def test_a_page_with_unusual_tags_is_the_whole_file_with_this_page_first(tag: int, kind: int) -> None:
    data = two_pages()
    usual, unusual = (struct.pack("<HHI", tag, each, 1) for each in (4, kind))
    copies = read_pages(data.replace(usual, unusual))
    assert [len(copy) for copy in copies] == [len(data)] * 2
    for copy, page in zip(copies, read_pages(data), strict=True):
        np.testing.assert_array_equal(decode_image(copy.replace(unusual, usual)), decode_image(page))


def test_a_page_that_is_cut_off_is_not_made_whole() -> None:
    """Its first strip is the last of the file, of which a byte is missing."""
    strips = [RANDOM.integers(0, 256, 192, dtype=np.uint8).tobytes() for _ in range(2)]
    data = make_tiff_pages([({258: 8, 278: 8}, strips), ({258: 8}, [bytes(384)])])
    first, second = struct.pack("<II", 8, 8 + 192), struct.pack("<II", len(data), 8 + 192)
    cut = data.replace(first, second) + strips[0]
    np.testing.assert_array_equal(decode_image(read_pages(cut)[0]), decode_image(data))
    with pytest.raises(ImageError):
        decode_image(read_pages(cut[:-1])[0])


def test_values_that_overlap_are_not_copied_again_and_again() -> None:
    """A thousand tags that point to the same 100,000 bytes."""
    tags: TiffTags = {40_000 + index: [7, 7] for index in range(1000)}
    data = two_pages(tags)
    for tag in sorted(tags):
        data = data.replace(struct.pack("<HHI", tag, 4, 2), struct.pack("<HHI", tag, 4, 25_000), 1)
    data += bytes(100_000)
    assert [len(copy) < 500_000 for copy in read_pages(data)] == [True, True]


def test_pages_in_a_circle_end() -> None:
    data = bytearray(two_pages())
    second = data.rindex(struct.pack("<HHI", 256, 4, 1)) - 2
    struct.pack_into("<I", data, len(data) - 4, second)
    assert len(read_pages(bytes(data))) == 2


@pytest.mark.parametrize("data", [b"", b"II*\0", b"junk" * 9, two_pages()[:300], b"MM\0+" + b"\xff" * 30])
def test_a_file_without_pages_is_sent_as_it_is(data: bytes) -> None:
    assert read_pages(data) == [data]
