"""The pictures of a checked dataset: some images with their labels, and the histogram."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlcls.base.pictures import require_matplotlib
from mlcls.dataset.content import TRAIN, VAL, DatasetContent
from mlcls.dataset.histogram import draw_histogram
from mlcls.errors import DatasetError, MlclsError

SAMPLE_FOLDER: Final = "demo_img"
HISTOGRAM_FILE: Final = "histogram.png"

#: Images of each part that are shown, and the seed that chooses them: those of PaddleX's `check`.
_SAMPLE_COUNT: Final = 10
_SAMPLE_SEED: Final = 123
_WRITTEN_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def require_pictures() -> None:
    """Raises now what drawing would raise after long work.

    Raises:
        MissingExtraError: matplotlib is not installed.
        MlclsError: The client, which draws the labelled images, is not installed.
    """
    require_matplotlib()
    try:
        import mlcls_client.drawing  # noqa: F401
    except ModuleNotFoundError:
        raise MlclsError(
            "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
        ) from None


def write_sample_pictures(root: Path, content: DatasetContent, folder: Path) -> dict[str, list[str]]:
    """Writes ten images of each part with their labels, those that PaddleX chooses.

    Returns:
        For each part the pictures' paths relative to `folder`.

    Raises:
        DatasetError: A picture cannot be drawn.
    """
    from mlcls_client.drawing import draw_names, open_image
    from mlcls_client.errors import MlclsClientError

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
                raise DatasetError(f"{root / name}: expected to draw its labels, got: {error}.") from error
            written[part].append(target)
    return written


def write_histogram(content: DatasetContent, folder: Path) -> str:
    """Writes the histogram; returns its path relative to `folder`."""
    counts = (content.parts[part].targets.sum(axis=0) for part in (TRAIN, VAL))
    (folder / HISTOGRAM_FILE).write_bytes(draw_histogram(content.labels, *counts))
    return HISTOGRAM_FILE


@contextlib.contextmanager
def _unnamed_characters() -> Iterator[None]:
    """Keeps the client from naming the characters that no font has at each picture; the histogram does so once."""
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
    """The image's own name, told apart from that of another folder, with a suffix that Pillow writes in colour."""
    path = Path(name)
    suffix = (
        path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff") else ".png"
    )
    chosen = next(candidate for candidate in _candidates(path.stem, suffix) if candidate.casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen


def _candidates(stem: str, suffix: str) -> Iterator[str]:
    yield stem + suffix
    yield from (f"{stem}_{number}{suffix}" for number in itertools.count(2))
