"""The calibration finds the operations that FP16 is too small or too coarse for, and no others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlcls.engines.fp16.calibration import Calibration, calibrate
from support.onnx_graphs import run
from support.served_graphs import make_attention, make_cancelling, make_overflowing, make_pixels, make_served


def calibrated(model: onnx.ModelProto) -> Calibration:
    return calibrate(model, make_pixels(5), threads=1)


def test_nothing_is_delicate_where_all_is_well() -> None:
    source = make_attention()
    before = source.SerializeToString()
    calibration = calibrated(source)
    assert source.SerializeToString() == before
    assert calibration.images == 5
    assert set(calibration.nodes) == {node.name for node in source.graph.node}
    assert not calibration.find_delicate()
    assert not calibration.find_impossible()
    # one rounding of the inputs and one of the result
    assert 1e-5 < calibration.nodes["n.query"].relative_error < 2e-3
    pixels = make_pixels(5)
    expected = max(np.abs(run(source, pixels=pixels[i : i + 1])).max() for i in range(5))
    assert calibration.nodes["n.logits"].highest == pytest.approx(expected, rel=1e-5)


def test_overflow_keeps_the_operation_and_what_takes_its_result() -> None:
    calibration = calibrated(make_overflowing())
    assert calibration.nodes["n.squares"].highest > 65504
    assert calibration.nodes["n.squares"].relative_error == np.inf
    assert {"n.squares", "n.roots"} <= calibration.find_delicate()
    assert not calibration.find_delicate() & {"n.normalized", "n.features", "n.conv", "n.pooled", "n.logits"}


def test_cancellation_keeps_the_operation_and_what_gives_its_inputs() -> None:
    calibration = calibrated(make_cancelling(300.0))
    assert calibration.nodes["n.mixed"].relative_error > 0.01
    assert calibration.nodes["n.moved"].relative_error < 1e-3
    assert calibration.find_delicate() == {"n.moved", "n.mixed"}


def test_values_near_the_end_of_the_range_are_delicate_before_they_overflow() -> None:
    constants = {"far": np.array(3e4, np.float32), "back": np.array(1 / 3e4, np.float32)}
    calibration = calibrated(
        make_served(
            [
                ("Tanh", ["features"], "bounded"),
                ("Mul", ["bounded", "far"], "grown"),
                ("Relu", ["grown"], "positive"),
                ("Mul", ["positive", "back"], "mixed"),
            ],
            constants,
        )
    )
    assert calibration.nodes["n.grown"].highest < 65504
    # the last one has a constant that is subnormal in FP16 as well
    assert {"n.grown", "n.positive", "n.mixed"} <= calibration.find_delicate()
    assert "n.bounded" not in calibration.find_delicate()


def test_a_product_beyond_the_range_is_impossible() -> None:
    generator = np.random.default_rng(3)
    weight = generator.normal(0, 3e4, (16, 16)).astype(np.float32)
    calibration = calibrated(
        make_served(
            [("MatMul", ["features", "w"], "grown"), ("Mul", ["grown", "small"], "mixed")],
            {"w": weight, "small": np.array(1e-4, np.float32)},
        )
    )
    assert set(calibration.find_impossible()) == {"n.grown"}
    assert "n.grown" not in calibration.find_delicate()
    assert "n.mixed" in calibration.find_delicate()


def test_a_constant_beyond_the_range_counts() -> None:
    bounds = np.full(16, 1e6, np.float32)
    calibration = calibrated(make_served([("Min", ["features", "bounds"], "mixed")], {"bounds": bounds}))
    assert calibration.nodes["n.mixed"].highest == 1e6
    assert "n.mixed" in calibration.find_delicate()
