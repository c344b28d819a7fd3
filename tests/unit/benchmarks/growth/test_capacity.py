"""What a rate of images takes: the figures of `make bench-growth`, multiplied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.growth import capacity
from benchmarks.growth.capacity import ImageCost, Machine, core_hours_per_million, estimate, read_costs

COST = ImageCost(0.3, 36.0, 0.8, 100_000, 500.0, 2)


def write_axis(folder: Path, **changes: Any) -> None:
    turns = [
        {"core_ms_per_image": {"engine": engine, "tritonserver": 1.0}, "image_bytes": 100_000.0, "pss_mb": 500.0}
        for engine in (29.0, 31.0)
    ]
    points = [{"series": series, "value": 0.3, "turns": turns} for series in ("whole", "reduced")]
    document = {"conditions": {"cores": "2"}, "points": points, **changes}
    (folder / "megapixels.json").write_text(json.dumps(document))


def test_needs_are_products() -> None:
    need = estimate(COST, 1000, Machine(cores=64, utilization=0.5))
    assert need.busy_cores == pytest.approx(36.0)
    assert need.machines == 3, "72 cores are two machines of 64, and one may fail"
    assert need.memory_gb == pytest.approx(36 * 0.5), "72 cores are 36 servers of two"
    assert need.ingress_gbit_s == pytest.approx(0.8)
    assert need.ingress_cores == pytest.approx(0.8)
    assert need.pixels_gb_s == pytest.approx(0.602112)
    assert core_hours_per_million(COST) == pytest.approx(10.0)


def test_costs_are_the_medians_of_the_first_series(tmp_path: Path) -> None:
    write_axis(tmp_path)
    assert read_costs(tmp_path) == [ImageCost(0.3, 31.0, 1.0, 100_000.0, 500.0, 2)]


def test_the_tables_have_every_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_axis(tmp_path)
    assert capacity.main([str(tmp_path), "--rates", "1000", "100000", "--utilization", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "| 0.3 MP | 100 kB | 31.0 | 8.6 |" in printed
    assert "100,000 images/s, machines with 64 cores, 50% of them busy:" in printed
    assert "| 0.3 MP | 3,100 | 100.0 | 98 | 1,550 GB | 80.0 Gbit/s | 60.2 GB/s |" in printed


@pytest.mark.parametrize("changes", [{"points": []}, {"conditions": {}}, {"points": [{"series": "", "value": 1}]}])
def test_what_was_not_measured_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    write_axis(tmp_path, **changes)
    assert capacity.main([str(tmp_path)]) != 0
    assert "benchmarks.growth --axes megapixels" in capsys.readouterr().err
