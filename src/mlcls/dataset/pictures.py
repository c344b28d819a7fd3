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
from mlcls.dataset.annotations import stack_targets
from mlcls.dataset.content import TRAIN, VAL, DatasetContent
from mlcls.errors import DatasetError, MlclsError

SAMPLE_FOLDER: Final = "demo_img"
HISTOGRAM_FILE: Final = "histogram.png"

# If the longest bar is this many times the median one, most bars would be too short to see on a linear scale.
_LONG_TAIL: Final = 20
# Number of images of each part to show, and the seed that chooses them: those of PaddleX's `check`.
_SAMPLE_COUNT: Final = 10
_SAMPLE_SEED: Final = 123
# Of formats that Pillow writes in color.
_WRITTEN_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def draw_histogram(
    labels: Sequence[str], train_counts: npt.NDArray[np.int64], val_counts: npt.NDArray[np.int64]
) -> bytes:
    """Draw two bars for each label, its (num_labels,) counts of images, as a PNG file; the most frequent label first.

    Labels are drawn in panels of at most 50, so that the text keeps its size however many there are. The scale, the
    same in all panels, is logarithmic if few labels have most of the images.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    order = np.lexsort((np.arange(len(labels)), -val_counts, -train_counts))
    counts = np.concatenate([train_counts, val_counts])
    positive = counts[counts > 0] if counts.any() else np.ones(1)
    longest = int(positive.max())

    def draw_panel(axes: Any, panel: npt.NDArray[np.intp]) -> None:
        positions = np.arange(len(panel))
        for part, color, offset, values in (
            ("train", "#2f7d8c", -0.21, train_counts),
            ("val", "#e0902f", 0.21, val_counts),
        ):
            bars = axes.barh(positions + offset, values[panel], height=0.4, color=color, label=part)
            axes.bar_label(bars, fontsize=6.5, padding=2, color="#3a3a3a")
        if longest > _LONG_TAIL * np.median(positive):
            axes.set_xscale("symlog", linthresh=1)  # a count may be 0
            axes.set_xlim(0, longest**1.15)
            axes.set_xlabel("images, logarithmic scale", fontsize=8)
        else:
            axes.set_xlim(0, longest * 1.12)
            axes.set_xlabel("images", fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)

    return draw_label_panels(labels, order, draw_panel, f"Images with each label ({len(labels)} labels)")


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
    """Write ten images of each part with their labels, the same that PaddleX chooses; return their paths in `folder`.

    Raises:
        DatasetError: A picture cannot be drawn.
    """
    from mlcls_client import MlclsClientError
    from mlcls_client.pictures.drawing import draw_names, open_image

    (folder / SAMPLE_FOLDER).mkdir()
    written: dict[str, list[str]] = {part: [] for part in content.parts}
    taken: set[str] = set()
    for part, samples in content.parts.items():
        shuffled = list(samples)
        random.Random(_SAMPLE_SEED).shuffle(shuffled)
        for sample in shuffled[:_SAMPLE_COUNT]:
            labels = [content.labels[label] for label in sample.target.nonzero()[0]]
            target = f"{SAMPLE_FOLDER}/{_free_name(sample.name, taken)}"
            try:
                with _unnamed_characters():
                    draw_names(open_image((root / sample.name).read_bytes()), labels).save(folder / target)
            except (MlclsClientError, OSError, ValueError) as error:
                raise DatasetError(
                    f"{root / sample.name}: expected to draw its labels, got: {str(error).rstrip('.')}."
                ) from error
            written[part].append(target)
    return written


def write_histogram(content: DatasetContent, folder: Path) -> None:
    """Write the histogram."""
    train, val = (stack_targets(content.parts[part], len(content.labels)).sum(axis=0) for part in (TRAIN, VAL))
    (folder / HISTOGRAM_FILE).write_bytes(draw_histogram(content.labels, train, val))


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


def _free_name(name: str, taken: set[str]) -> str:
    """Return a file name for an image that is not taken yet, in a format that Pillow writes."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() in _WRITTEN_SUFFIXES else ".png"
    stems = itertools.chain([path.stem], (f"{path.stem}_{number}" for number in itertools.count(2)))
    chosen = next(stem + suffix for stem in stems if (stem + suffix).casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen
