"""PDF and TIFF files: an image per page, rendered when its turn comes."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls_client import InputError, create_model
from mlcls_client.inputs.pages import MAX_PAGE_PIXELS, PdfDocument, find_render_scale
from mlcls_client.inputs.sources import ImageSource, iterate_sources
from mlcls_client.inputs.tiff import TiffDocument
from mlcls_client.testing import FakeServer
from support.client_images import BLUE, GREEN, NAME, RED, decode, encode_pages

COLORS = [RED, GREEN, BLUE]


def write_pages(path: Path, count: int = 3, height: int = 20, width: int = 30) -> Path:
    image_format = "PDF" if path.suffix == ".pdf" else "TIFF"
    colors = [COLORS[number % 3] for number in range(count)]
    path.write_bytes(encode_pages(image_format, *colors, height=height, width=width))
    return path


def mean_color(encoded: bytes) -> tuple[int, ...]:
    return tuple(round(float(mean)) for mean in np.asarray(decode(encoded).convert("RGB")).mean(axis=(0, 1)))


@pytest.fixture(params=[".pdf", ".tif", ".TIFF"])
def suffix(request: pytest.FixtureRequest) -> str:
    if request.param == ".pdf":
        pytest.importorskip("pypdfium2")
    return str(request.param)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pages: list[int] = []

    for kind in (PdfDocument, TiffDocument):

        def read(self: Any, page_index: int, original: Any = kind.read) -> Any:
            pages.append(page_index)
            if page_index == 66:
                raise ZeroDivisionError("a decoder's own trouble")
            return original(self, page_index)

        monkeypatch.setattr(kind, "read", read)
    return pages


def test_a_page_is_an_image_with_a_page_index(tmp_path: Path, suffix: str) -> None:
    path = write_pages(tmp_path / f"document{suffix}")
    sources = list(iterate_sources(path))
    assert [source.page_index for source in sources] == [0, 1, 2]
    assert {source.input_path for source in sources} == {str(path)}
    for source, color in zip(sources, COLORS, strict=True):
        assert np.allclose(mean_color(source.read()), color, atol=3), "JPEG in the PDF file"


def test_pages_are_rendered_one_by_one_and_a_broken_one_costs_only_itself(
    tmp_path: Path, suffix: str, rendered: list[int]
) -> None:
    sources = list(iterate_sources(write_pages(tmp_path / f"long{suffix}", count=80)))
    assert rendered == []
    sources[0].read()
    sources[1].read()
    assert rendered == [0, 1]
    with pytest.raises(InputError, match=r"Cannot read page 66 of .*a decoder's own trouble"):
        sources[66].read()
    assert mean_color(sources[68].read())[2] > 150


def test_pages_may_be_read_in_any_order_and_again(tmp_path: Path, suffix: str) -> None:
    sources = list(iterate_sources(write_pages(tmp_path / f"document{suffix}")))
    for number in (2, 0, 1, 1, 2, 2):
        assert np.allclose(mean_color(sources[number].read()), COLORS[number], atol=3)


def open_files() -> set[str]:
    return {str(path.resolve()) for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files of Linux")
def test_a_file_is_closed_after_its_last_page(tmp_path: Path, suffix: str) -> None:
    path = write_pages(tmp_path / f"document{suffix}")
    sources = list(iterate_sources(path))
    assert str(path) not in open_files()
    sources[0].read()
    assert str(path) in open_files()
    for source in sources[1:]:
        source.read()
    assert str(path) not in open_files()


def test_a_folder_holds_pages_too(tmp_path: Path, suffix: str) -> None:
    write_pages(tmp_path / f"b{suffix}", count=2)
    for name in ("a.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    sources = iterate_sources(tmp_path)
    found = [(Path(source.input_path or "").name, source.page_index) for source in sources]
    assert found == [("a.png", None), (f"b{suffix}", 0), (f"b{suffix}", 1), ("c.png", None)]


def test_a_broken_pdf_file_fails_when_its_turn_comes(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = tmp_path / "broken.pdf"
    path.write_bytes(b"junk")
    (source,) = iterate_sources(path)
    assert source.page_index is None
    with pytest.raises(InputError, match=r"Cannot read .*broken\.pdf' as a PDF file") as caught:
        source.read()
    assert "0x" not in str(caught.value), "no address of an object"


def test_a_pdf_page_is_drawn_at_twice_its_size(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (source,) = iterate_sources(write_pages(tmp_path / "one.pdf", count=1, height=70, width=50))
    assert (source.page_index, decode(source.read()).size) == (0, (100, 140))


def test_several_threads_may_read_pdf_files(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")

    def read(number: int) -> None:
        for source in iterate_sources(write_pages(tmp_path / f"{number}.pdf", count=12)):
            assert np.allclose(mean_color(source.read()), COLORS[(source.page_index or 0) % 3], atol=3)

    with ThreadPoolExecutor(4) as pool:
        assert len([*pool.map(read, range(4))]) == 4


def test_without_pypdfium2_a_pdf_file_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    (source,) = iterate_sources(write_pages(tmp_path / "document.pdf"))
    with pytest.raises(InputError, match=r"mlcls-client\[pdf\]"):
        source.read()


# The scales were computed by PaddleX 3.7.2 (`get_pdf_render_scale_within_pixel_limit`).
@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (842.0, 595.0, 2.0),
        (14400.0, 14400.0, 0.9289583),
        (100.0, 2_000_000.0, 0.9418785),
    ],
)
def test_a_large_page_is_drawn_within_the_limit(height: float, width: float, expected: float) -> None:
    scale = find_render_scale(height, width)
    assert scale == pytest.approx(expected, abs=1e-6)
    assert np.ceil(height * scale) * np.ceil(width * scale) <= MAX_PAGE_PIXELS


@pytest.mark.parametrize(("height", "width"), [(200_000.0, 200_000.0), (0.0, 10.0)])
def test_a_page_that_cannot_be_drawn_is_an_error(height: float, width: float) -> None:
    with pytest.raises(InputError, match="Expected a page"):
        find_render_scale(height, width)


def test_sources_can_be_given_again(tmp_path: Path, server: FakeServer) -> None:
    sources: list[ImageSource] = list(iterate_sources(write_pages(tmp_path / "document.tif")))
    with create_model(NAME, url=server.url) as model:
        for _ in range(2):
            assert [result.label_names for result in model.predict(sources)] == [["red"], ["green"], ["blue"]]


def test_a_page_that_the_server_rejects_is_named(server: FakeServer) -> None:
    source = ImageSource("report.pdf", lambda: b"junk", 4)
    with create_model(NAME, url=server.url) as model:
        (result,) = model.predict(source, on_error="yield")
    assert result.page_index == 4
    assert result["error"].startswith("The server has no result for page 4 of 'report.pdf': ")
