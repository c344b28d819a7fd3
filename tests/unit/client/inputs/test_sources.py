"""Paths, folders, arrays and PIL images become a lazy stream of encoded images."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls_client import InputError
from mlcls_client.inputs.encoding import encode_bgr_array
from mlcls_client.inputs.sources import ImageSource, iterate_sources
from support.client_images import decode


def test_a_file_travels_byte_for_byte_whatever_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 3
    path = tmp_path / "no_suffix"
    path.write_bytes(content)
    for given in (path, str(path)):
        (source,) = iterate_sources(given)
        assert (source.input_path, source.page_index, source.read()) == (str(path), None, content)


def test_a_folder_is_searched_with_subfolders_in_natural_order(tmp_path: Path) -> None:
    for name in ("img10.jpg", "img2.PNG", "b/1.webp", "a.gif", "c.bmp", "d.avif", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    sources = list(iterate_sources(str(tmp_path)))
    names = [os.path.relpath(source.input_path or "", tmp_path) for source in sources]
    assert names == ["a.gif", "b/1.webp", "c.bmp", "d.avif", "img2.PNG", "img10.jpg"]
    assert [source.read() for source in sources] == [name.encode() for name in names]


def test_lists_may_be_nested_and_mixed_and_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    array = np.zeros((2, 3, 3), np.uint8)
    known = ImageSource("page.pdf", lambda: b"page", 4)
    sources = list(iterate_sources([tmp_path, [array, Image.new("L", (5, 4))], b"bytes", (known,)]))
    assert [source.input_path for source in sources] == [str(tmp_path / "a.png"), None, None, None, "page.pdf"]
    assert decode(sources[1].read()).size == (3, 2)
    assert decode(sources[2].read()).size == (5, 4)
    assert sources[3].read() == b"bytes"
    assert sources[4] is known


def test_nothing_is_read_ahead() -> None:
    taken = []

    def endless() -> Iterator[str]:
        for number in range(10**9):
            taken.append(number)
            yield f"{number}.jpg"

    stream = iterate_sources(endless())
    next(stream)
    next(stream)
    assert taken == [0, 1]


def test_an_array_is_bgr_and_keeps_every_pixel() -> None:
    array = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(encode_bgr_array(array))), array[:, :, ::-1])
    assert np.array_equal(np.asarray(decode(encode_bgr_array(array[::2, ::-3]))), array[::2, ::-3, ::-1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4,), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_another_array_is_an_error_that_says_what_came(
    array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
) -> None:
    (source,) = iterate_sources(array)
    with pytest.raises(InputError, match=r"Expected an array \(H, W, 3\) uint8 BGR") as caught:
        source.read()
    assert str(array.shape) in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_a_pil_image_keeps_its_pixels(mode: str) -> None:
    gray = np.tile(np.arange(64, dtype=np.uint16) * 1000, (8, 1))
    image = Image.fromarray(gray) if mode == "I;16" else Image.fromarray((gray // 256).astype(np.uint8)).convert(mode)
    (source,) = iterate_sources(image)
    sent = decode(source.read())
    assert sent.format == "PNG"
    expected = image if mode == "I;16" else image.convert("RGB")
    assert np.array_equal(np.asarray(sent.convert(expected.mode)), np.asarray(expected))


def test_a_gray_array_and_the_colors_of_one_with_alpha() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(encode_bgr_array(array))), array[:, :, 2::-1])
    for gray in (array[:, :, 0], array[:, :, :1]):
        assert np.array_equal(np.asarray(decode(encode_bgr_array(gray))), array[:, :, 0])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pil_image_of_numbers_without_a_white_is_an_error(mode: str) -> None:
    (source,) = iterate_sources(Image.new(mode, (5, 4), 300))
    with pytest.raises(InputError, match=f"got mode {mode}, where nothing says which number is white"):
        source.read()


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(b"junk" + bytes(range(256)))
    with path.open("rb") as file:
        file.seek(4)
        (source,) = iterate_sources(file)
    assert (source.input_path, source.read()) == (None, bytes(range(256)))
    with path.open(encoding="latin-1") as file, pytest.raises(InputError, match="binary mode, got one that reads str"):
        list(iterate_sources(file))


def test_a_pil_image_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (80, 40)).save(buffer, format="JPEG", exif=exif)
    (source,) = iterate_sources(Image.open(buffer))
    assert decode(source.read()).size == (40, 80)


@pytest.mark.parametrize(
    "path", ["no/such/file.jpg", "no/such/file.tif", "no/such/file.pgm", "a b://c", "null\0byte.jpg", "null\0byte.tiff"]
)
def test_a_missing_file_fails_when_its_turn_comes(path: str) -> None:
    (source,) = iterate_sources(path)
    with pytest.raises(InputError, match=r"does not exist|null byte"):
        source.read()


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".ppm", "RGB"), (".PGM", "L"), (".pbm", "1"), (".pnm", "L"), (".pgm", "I;16")]
)
def test_what_the_server_does_not_read_is_sent_as_png(tmp_path: Path, suffix: str, mode: str) -> None:
    gray = np.tile(np.arange(64, dtype=np.uint16) * 1000, (8, 1))
    image = Image.fromarray(gray) if mode == "I;16" else Image.fromarray((gray // 256).astype(np.uint8)).convert(mode)
    path = tmp_path / f"image{suffix}"
    image.save(path, format="PPM")
    (source,) = iterate_sources(tmp_path)
    sent = decode(source.read())
    assert (sent.format, source.page_index, source.input_path) == ("PNG", None, str(path))
    assert np.array_equal(np.asarray(sent), np.asarray(image))


def test_a_broken_file_of_these_formats_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image.ras"
    path.write_bytes(b"junk")
    (source,) = iterate_sources(path)
    with pytest.raises(InputError, match=r"Cannot read .*image\.ras' as an image: unknown format\.$"):
        source.read()


def test_a_folder_without_an_image_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (source,) = iterate_sources(tmp_path)
    with pytest.raises(InputError, match=r"Expected images .* found none"):
        source.read()


@pytest.mark.parametrize("wrong", [3, None, {"a.jpg": 1}, [3.5]])
def test_another_type_is_an_error(wrong: object) -> None:
    with pytest.raises(InputError, match="Expected a path"):
        list(iterate_sources(wrong))  # type: ignore[arg-type]
