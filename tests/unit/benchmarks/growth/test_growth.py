"""How growth is told: axes, medians of turns, factors, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from benchmarks.growth.axes import (
    AXIS_NAMES,
    REDUCED,
    Axis,
    Point,
    doubling_factors,
    make_axis,
    median_figures,
    needed_models,
)
from benchmarks.growth.load import GrowthFigures, GrowthLoad
from benchmarks.growth.models import GrowthModel, copies, with_labels
from benchmarks.growth.report import draw_axis, format_csv, format_json, format_table


def make_figures(images_per_s: float, **cost: float) -> GrowthFigures:
    return GrowthFigures(images_per_s, 10.0, 20.0, 30.0, 500.0, cost or {"engine": 30.0}, 2.5, 50_000.0, 120.0)


def make_measured() -> tuple[Axis, dict[Point, list[GrowthFigures]]]:
    load = GrowthLoad(("m",), (Path("photo.jpg"),))
    points = tuple(Point(series, value, load) for series in ("whole", "reduced") for value in (1.0, 4.0, 16.0))
    rates = ((40, 60), (40, 40), (10, 10), (50, 50), (50, 50), (25, 25))
    measured = {
        point: [make_figures(rate, preprocess=5.0, engine=30.0, tritonserver=1.0) for rate in turns]
        for point, turns in zip(points, rates, strict=True)
    }
    return Axis("megapixels", "megapixels of a photo", "8 clients", points), measured


def test_all_that_the_axes_serve_is_made(tmp_path: Path) -> None:
    made = {model.name for model in needed_models(AXIS_NAMES)}
    for name in AXIS_NAMES:
        axis = make_axis(name, tmp_path)
        served = {model for point in axis.points for model in point.load.models}
        assert served <= {model.name for model in needed_models([name])} <= made
        assert all(photo.is_file() for point in axis.points for photo in point.load.photos)
        for series in {point.series for point in axis.points}:
            values = [point.value for point in axis.points if point.series == series]
            assert values == sorted(set(values))


def test_an_axis_is_named_by_what_grows_on_it(tmp_path: Path) -> None:
    loads = {
        name: [point.load for point in make_axis(name, tmp_path).points] for name in ("models", "clients", "batch")
    }
    assert [len(load.models) for load in loads["models"]] == [1, 2, 3, 4, 5, 6]
    assert [load.clients for load in loads["clients"]] == [1, 2, 4, 8, 16, 32, 64]
    assert [load.batch_size for load in loads["batch"]] == [1, 2, 4, 8, 16, 32]


def test_reduced_decoding_is_left_out_where_it_cannot_be_asked_for(tmp_path: Path) -> None:
    whole, both = make_axis("megapixels", tmp_path, with_reduced=False), make_axis("megapixels", tmp_path)
    assert REDUCED.name not in {model for point in whole.points for model in point.load.models}
    assert {point.series for point in whole.points} == {""}
    assert {point.series for point in both.points} == {"whole", "reduced"}


def test_a_model_of_the_official_size_is_a_copy() -> None:
    assert with_labels(80, 80) == copies(3)[0]
    assert with_labels(9600, 80) == GrowthModel("labels_9600_of_80_queries", 9600, 80)


def test_the_median_of_each_figure_is_taken() -> None:
    turns = [make_figures(rate, engine=cost) for rate, cost in ((30.0, 1.0), (10.0, 5.0), (20.0, 3.0))]
    turns.append(make_figures(40.0, engine=3.0, tritonserver=2.0))
    figures = median_figures(turns)
    assert figures.images_per_s == 25.0
    assert figures.core_ms_per_image == {"engine": 3.0, "tritonserver": 0.0}


@pytest.mark.parametrize(
    ("points", "factors"),
    [
        ({1: 10, 2: 20}, {2: 2.0}),
        ({1: 40, 4: 10}, {4: 0.5}),
        ({1: 40, 4: 40, 8: 20}, {4: 1.0, 8: 0.5}),
        ({1: 40}, {}),
        ({1: 40, 2: 0}, {}),
    ],
)
def test_factors_are_of_one_doubling(points: dict[float, float], factors: dict[float, float]) -> None:
    assert doubling_factors(points) == pytest.approx(factors)


def test_the_table_has_each_series_by_itself() -> None:
    axis, measured = make_measured()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in format_table(axis, measured).splitlines()[4:]]
    assert [row[:3] for row in rows] == [
        ["1, whole", "50 (40 to 60)", ""],
        ["4, whole", "40 (40 to 40)", "x 0.89"],
        ["16, whole", "10 (10 to 10)", "x 0.50"],
        ["1, reduced", "50 (50 to 50)", ""],
        ["4, reduced", "50 (50 to 50)", "x 1.00"],
        ["16, reduced", "25 (25 to 25)", "x 0.71"],
    ]
    assert rows[0][3:] == ["10, 20, 30", "5.0, 30.0, 1.0", "500", "2.5 s", "50 kB", "120"]


def test_files_have_all_turns_and_the_medians() -> None:
    axis, measured = make_measured()
    document = json.loads(format_json(axis, measured, {"commit": "1234567"}))
    assert document["conditions"] == {"commit": "1234567"}
    assert [turn["images_per_s"] for turn in document["points"][0]["turns"]] == [40, 60]
    first = next(csv.DictReader(io.StringIO(format_csv(measured))))
    assert (first["series"], first["value"], first["images_per_s"]) == ("whole", "1", "50")
    assert (first["engine_core_ms_per_image"], first["postprocess_core_ms_per_image"]) == ("30", "0")


def test_the_picture_is_the_same_for_the_same_figures_and_small() -> None:
    axis, measured = make_measured()
    picture = draw_axis(axis, measured)
    xml.etree.ElementTree.fromstring(picture)
    assert picture == draw_axis(axis, measured)
    assert len(picture) < 150_000
