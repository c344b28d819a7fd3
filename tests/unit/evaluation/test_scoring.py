"""Scores of an annotation file: order, memory, threads, and faulty images."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from mlcls.engines.runners import DecodingRunner, ImageRunner, Pixels, Scores
from mlcls.errors import DatasetError, ImageError, ServedImageError, ServerError
from mlcls.evaluation.scoring import score_annotated
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ImageTransform, ModelSpec
from support.dataset_samples import COLORS, write_colored_dataset

LABELS = tuple(COLORS)
TRANSFORM = ImageTransform(16, 24, "pil", "BILINEAR", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = ModelSpec("colors", "PP-LCNet_x1_0_ML", LABELS, (0.5,) * 3, TRANSFORM)
SPEC_OF_LARGE_INPUT = msgspec.structs.replace(SPEC, transform=msgspec.structs.replace(TRANSFORM, height=256, width=256))


def mean_colors(pixels: Pixels) -> Scores:
    return np.asarray(pixels.mean(axis=(1, 2)) / 255, np.float32)


class MeanColors:
    """Scores that tell the images apart."""

    name = "means"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def scores(self, pixels: Pixels) -> Scores:
        self.batches.append(len(pixels))
        return mean_colors(pixels)


class Remote:
    """A runner that takes encoded images, several batches at once."""

    name = "remote"
    labels = LABELS
    concurrency = 3

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def scores(self, images: Sequence[bytes]) -> Scores:
        self.threads.add(threading.get_ident())
        return mean_colors(np.stack([preprocess(image, TRANSFORM) for image in images]))


class Refusing(Remote):
    """Fails for images that end in a certain way."""

    def scores(self, images: Sequence[bytes]) -> Scores:
        for index, image in enumerate(images):
            if image.endswith(b"refused"):
                raise ServedImageError("no result", index)
            if image.endswith(b"down"):
                raise ServerError("no answer")
        rows = super().scores(images)
        rows[[image.endswith(b"nan") for image in images]] = np.nan
        return rows


@pytest.fixture
def val_file(tmp_path: Path) -> Path:
    return write_colored_dataset(tmp_path / "dataset", train=19) / "val.txt"


def expected_scores(val_file: Path) -> Scores:
    names = [line.split("\t")[0] for line in val_file.read_text().splitlines()]
    images = [preprocess((val_file.parent / name).read_bytes(), TRANSFORM) for name in names]
    return mean_colors(np.stack(images))


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_order_and_batches(val_file: Path, batch_size: int) -> None:
    runner, counts = MeanColors(), list[int]()
    scores, targets = score_annotated(
        DecodingRunner(runner, SPEC), val_file, batch_size=batch_size, num_workers=2, after_batch=counts.append
    )
    np.testing.assert_array_equal(scores, expected_scores(val_file))
    assert (str(scores.dtype), str(targets.dtype)) == ("float32", "bool")
    lines = val_file.read_text().splitlines()
    assert [",".join(str(int(value)) for value in row) for row in targets] == [line.split("\t")[1] for line in lines]
    assert sum(runner.batches) == counts[-1] == 19
    assert max(runner.batches) == min(batch_size, 19)


def test_several_calls_at_once(val_file: Path) -> None:
    runner = Remote()
    scores, _ = score_annotated(runner, val_file, batch_size=2)
    np.testing.assert_array_equal(scores, expected_scores(val_file))
    assert threading.get_ident() not in runner.threads


def test_unreadable_images(val_file: Path) -> None:
    """Each is an error that names the path."""
    path = val_file.parent / "images/013.png"
    whole = path.read_bytes()
    for runner in (DecodingRunner(MeanColors(), SPEC), Remote()):
        path.unlink()
        with pytest.raises(DatasetError, match=r"expected image files, got paths without one: .*images/013.png"):
            score_annotated(runner, val_file)
        path.write_bytes(whole)
    path.write_bytes(whole[:40])
    with pytest.raises(DatasetError, match=r"images/013.png: expected an image, got one that cannot be used"):
        score_annotated(DecodingRunner(MeanColors(), SPEC), val_file)
    with pytest.raises(ImageError):
        Remote().scores([whole[:40]])


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        (b"refused", ServedImageError, r"images/013.png: no result"),
        (b"down", ServerError, r"images/012.png and 3 more images: no answer"),
        (b"nan", ServedImageError, r"images/013.png: expected finite scores"),
    ],
)
def test_answers_that_are_none(val_file: Path, end: bytes, error: type[Exception], text: str) -> None:
    path = val_file.parent / "images/013.png"
    path.write_bytes(path.read_bytes() + end)
    with pytest.raises(error, match=text):
        score_annotated(Refusing(), val_file, batch_size=4)


@pytest.mark.parametrize("runner", [DecodingRunner(MeanColors(), SPEC_OF_LARGE_INPUT), Remote()])
def test_memory_is_bounded(tmp_path: Path, runner: ImageRunner) -> None:
    """500 images of 0.2 MB, decoded or not, would be 100 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    val_file = tmp_path / "val.txt"
    val_file.write_text("noise.png\t0,1,0\n" * 500)
    tracemalloc.start()
    try:
        scores, _ = score_annotated(runner, val_file)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(scores) == 500
    assert peak_bytes < 40e6
