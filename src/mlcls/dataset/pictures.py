"""Pictures of a checked dataset: its histogram, and sample images with their labels."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.pictures import draw_label_panels, require_matplotlib
from mlcls.dataset.content import TRAIN, VAL, DatasetContent
from mlcls.errors import DatasetError, MlclsError

SAMPLE_FOLDER: Final = "demo_img"
HISTOGRAM_FILE: Final = "histogram.png"

_COLORS: Final = {"train": "#2f7d8c", "val": "#e0902f"}
# If the longest bar is this many times the median one, most bars would be too short to see on a linear scale.
_LONG_TAIL: Final = 20
# Number of images of each part to show, and the seed that chooses them: those of PaddleX's `check`.
_SAMPLE_COUNT: Final = 10
_SAMPLE_SEED: Final = 123
_WRITTEN_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def draw_histogram(
    labels: Sequence[str], train_counts: npt.NDArray[np.int64], val_counts: npt.NDArray[np.int64]
) -> bytes:
    """Draw two bars for each label, with the counts as numbers, the most frequent label in training first.

    Labels are drawn in panels of at most 50, so that the text keeps its size however many there are. The scale, the
    same in all panels, is logarithmic if few labels have most of the images.

    Args:
        labels: The labels.
        train_counts: (num_labels,) training images with each label.
        val_counts: (num_labels,) validation images with each label.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    order = np.lexsort((np.arange(len(labels)), -val_counts, -train_counts))
    scale = _Scale.of(np.concatenate([train_counts, val_counts]))

    def draw_panel(axes: Any, panel: npt.NDArray[np.intp]) -> None:
        counts = {"train": train_counts[panel], "val": val_counts[panel]}
        _draw_panel(axes, counts)
        scale.apply(axes)

    return draw_label_panels(labels, order, draw_panel, f"Images with each label ({len(labels)} labels)")


class _Scale:
    """The scale of the counts, the same in all panels."""

    def __init__(self, longest: int, *, is_logarithmic: bool) -> None:
        self._longest = longest
        self._is_logarithmic = is_logarithmic

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64]) -> _Scale:
        positive = counts[counts > 0]
        if not positive.size:
            return cls(1, is_logarithmic=False)
        return cls(int(positive.max()), is_logarithmic=bool(positive.max() > _LONG_TAIL * np.median(positive)))

    def apply(self, axes: Any) -> None:
        if self._is_logarithmic:
            axes.set_xscale("symlog", linthresh=1)  # a count may be 0
            axes.set_xlim(0, self._longest**1.15)
            axes.set_xlabel("images, logarithmic scale", fontsize=8)
        else:
            axes.set_xlim(0, self._longest * 1.12)
            axes.set_xlabel("images", fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_panel(axes: Any, counts: dict[str, npt.NDArray[np.int64]]) -> None:
    positions = np.arange(len(counts["train"]))
    for (part, values), offset in zip(counts.items(), (-0.21, 0.21), strict=True):
        bars = axes.barh(positions + offset, values, height=0.4, color=_COLORS[part], label=part)
        axes.bar_label(bars, fontsize=6.5, padding=2, color="#3a3a3a")


def require_pictures() -> None:
    """Check that the packages for the pictures are installed, before long work.

    Raises:
        MissingExtraError: matplotlib is not installed.
        MlclsError: The client, which draws the labeled images, is not installed.
    """
    require_matplotlib()
    try:
        import mlcls_client.pictures.drawing  # noqa: F401
    except ModuleNotFoundError:
        raise MlclsError(
            "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
        ) from None


def write_sample_pictures(root: Path, content: DatasetContent, folder: Path) -> dict[str, list[str]]:
    """Write ten images of each part with their labels, the same that PaddleX chooses.

    Returns:
        For each part, the paths of the pictures relative to `folder`.

    Raises:
        DatasetError: A picture cannot be drawn.
    """
    from mlcls_client import MlclsClientError
    from mlcls_client.pictures.drawing import draw_names, open_image

    (folder / SAMPLE_FOLDER).mkdir()
    written: dict[str, list[str]] = {}
    taken: set[str] = set()
    for part, samples in content.parts.items():
        written[part] = []
        for index in _choose_samples(len(samples)):
            name = samples.names[index]
            labels = [content.labels[label] for label in samples.targets[index].nonzero()[0]]
            target = f"{SAMPLE_FOLDER}/{_free_name(name, taken)}"
            try:
                with _unnamed_characters():
                    draw_names(open_image((root / name).read_bytes()), labels).save(folder / target)
            except (MlclsClientError, OSError, ValueError) as error:
                raise DatasetError(
                    f"{root / name}: expected to draw its labels, got: {str(error).rstrip('.')}."
                ) from error
            written[part].append(target)
    return written


def write_histogram(content: DatasetContent, folder: Path) -> str:
    """Write the histogram and return its path relative to `folder`."""
    counts = (content.parts[part].targets.sum(axis=0) for part in (TRAIN, VAL))
    (folder / HISTOGRAM_FILE).write_bytes(draw_histogram(content.labels, *counts))
    return HISTOGRAM_FILE


@contextlib.contextmanager
def _unnamed_characters() -> Iterator[None]:
    """Keep the client from logging missing characters for each picture; the histogram logs them once."""
    client = logging.getLogger("mlcls_client")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _choose_samples(count: int) -> list[int]:
    indices = list(range(count))
    random.Random(_SAMPLE_SEED).shuffle(indices)
    return indices[:_SAMPLE_COUNT]


def _free_name(name: str, taken: set[str]) -> str:
    """Return a unique file name for an image, with a suffix of a format that Pillow writes in color."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() in _WRITTEN_SUFFIXES else ".png"
    chosen = next(candidate for candidate in _candidates(path.stem, suffix) if candidate.casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen


def _candidates(stem: str, suffix: str) -> Iterator[str]:
    yield stem + suffix
    yield from (f"{stem}_{number}{suffix}" for number in itertools.count(2))
