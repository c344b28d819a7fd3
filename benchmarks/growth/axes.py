"""What grows: models, clients, photo size, images per request, labels."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.growth.load import GrowthFigures, GrowthLoad
from benchmarks.growth.models import OFFICIAL_LABELS, GrowthModel, copies, with_labels
from benchmarks.photo_set import write_uniform_photos

# A copy that decodes large JPEG files at a reduced scale (`jpeg_oversampling`).
REDUCED: Final = GrowthModel("copy_reduced")

_MODELS: Final = 6
_CLIENTS: Final = (1, 2, 4, 8, 16, 32, 64)
_BATCHES: Final = (1, 2, 4, 8, 16, 32)
# With batches: one request is computed while the next is decoded.
_CLIENTS_OF_BATCHES: Final = 2
# Megapixels, height and width.
_PHOTOS: Final = {
    0.1: (274, 366),
    0.3: (480, 640),
    1.0: (866, 1155),
    3.0: (1500, 2000),
    6.0: (2121, 2828),
    12.0: (3000, 4000),
    24.0: (4000, 6000),
}
_USUAL_MEGAPIXELS: Final = 0.3
_LABELS: Final = (80, 320, 1280, 4800, 9600)
# With one query per label the decoder itself grows; beyond this, one image takes seconds.
_LABELS_OF_ONE_QUERY_EACH: Final = (80, 320, 1280)

_GROUPS: Final = f"{OFFICIAL_LABELS} queries for all labels"
_ONE_EACH: Final = "a query for each label"


@dataclasses.dataclass(frozen=True)
class Point:
    """One value on an axis.

    Attributes:
        series: Line of the picture; empty if there is only one.
        value: Position on the axis.
        load: What is served and requested.
    """

    series: str
    value: float
    load: GrowthLoad


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows while everything else stays the same.

    Attributes:
        name: Name in files and options.
        label: What the values are.
        fixed: What stays the same.
        points: In ascending order within each series.
    """

    name: str
    label: str
    fixed: str
    points: tuple[Point, ...]


AXIS_NAMES: Final = ("models", "clients", "megapixels", "batch", "labels")


def needed_models(names: Sequence[str]) -> list[GrowthModel]:
    """Return the models that some axes need."""
    models = copies(_MODELS if "models" in names else 1)
    if "megapixels" in names:
        models.append(REDUCED)
    if "labels" in names:
        models += [with_labels(labels, OFFICIAL_LABELS) for labels in _LABELS]
        models += [with_labels(labels, labels) for labels in _LABELS_OF_ONE_QUERY_EACH]
    return list(dict.fromkeys(models))


def make_axis(name: str, work: Path, with_reduced: bool = True) -> Axis:
    """Return an axis, and write the photos for it.

    Args:
        name: One of `AXIS_NAMES`.
        work: Folder for photos.
        with_reduced: Whether `REDUCED` can be served.
    """
    usual = _write_photos(work, _USUAL_MEGAPIXELS)
    names = tuple(model.name for model in copies(_MODELS))
    one = names[:1]
    if name == "models":
        points = [Point("", count, GrowthLoad(names[:count], usual)) for count in range(1, _MODELS + 1)]
        return Axis(name, "models loaded, asked in turn", "8 clients, 640x480", tuple(points))
    if name == "clients":
        points = [Point("", clients, GrowthLoad(one, usual, clients)) for clients in _CLIENTS]
        return Axis(name, "clients, each with one request at a time", "1 model, 640x480", tuple(points))
    if name == "batch":
        points = [Point("", size, GrowthLoad(one, usual, _CLIENTS_OF_BATCHES, size)) for size in _BATCHES]
        return Axis(name, "images in a request", f"1 model, {_CLIENTS_OF_BATCHES} clients, 640x480", tuple(points))
    if name == "megapixels":
        kinds = {"whole": one, **({"reduced": (REDUCED.name,)} if with_reduced else {})}
        points = [
            Point(series if len(kinds) > 1 else "", size, GrowthLoad(models, _write_photos(work, size)))
            for series, models in kinds.items()
            for size in _PHOTOS
        ]
        return Axis(name, "megapixels of a JPEG photo", "1 model, 8 clients", tuple(points))
    points = [
        Point(series, labels, GrowthLoad((with_labels(labels, queries or labels).name,), usual))
        for series, counts, queries in ((_GROUPS, _LABELS, OFFICIAL_LABELS), (_ONE_EACH, _LABELS_OF_ONE_QUERY_EACH, 0))
        for labels in counts
    ]
    return Axis(name, "labels", "1 model, 8 clients, 640x480", tuple(points))


def _write_photos(work: Path, megapixels: float) -> tuple[Path, ...]:
    folder = work / f"{megapixels:g}"
    if folder.exists():
        return tuple(sorted(folder.iterdir()))
    count = 8 if megapixels < 1 else 2
    return tuple(write_uniform_photos(folder, count, *_PHOTOS[megapixels], seed=0))


def median_figures(turns: Sequence[GrowthFigures]) -> GrowthFigures:
    """Return the median of each figure over the turns."""
    names = [field.name for field in dataclasses.fields(GrowthFigures) if field.name != "core_ms_per_image"]
    processes = dict.fromkeys(name for turn in turns for name in turn.core_ms_per_image)
    return GrowthFigures(
        **{name: statistics.median(getattr(turn, name) for turn in turns) for name in names},
        core_ms_per_image={
            name: statistics.median(turn.core_ms_per_image.get(name, 0.0) for turn in turns) for name in processes
        },
    )


def doubling_factors(points: Mapping[float, float]) -> dict[float, float]:
    """Return by what a figure is multiplied if the value doubles, as measured between a value and the one before it.

    1 means that the figure does not depend on the value, 2 that it is proportional to it, 0.5 inversely proportional.

    Args:
        points: The figure by value; values ascend and are above 0.
    """
    factors = {}
    for (before, low), (value, high) in itertools.pairwise(points.items()):
        if low > 0 and high > 0:
            factors[value] = 2 ** (math.log(high / low) / math.log(value / before))
    return factors
