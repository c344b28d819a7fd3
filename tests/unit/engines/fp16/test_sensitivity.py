"""The operations whose values FP16 cannot hold, or not precisely enough, are found, and no others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlcls.engines.fp16.sensitivity import Sensitivity, measure_sensitivity
from support.onnx_graphs import run
from support.served_graphs import make_attention, make_cancelling, make_overflowing, make_pixels, make_served


def measure(model: onnx.ModelProto) -> Sensitivity:
    return measure_sensitivity(model, make_pixels(5), threads=1)


def test_nothing_is_sensitive_in_a_good_model() -> None:
    source = make_attention()
    before = source.SerializeToString()
    sensitivity = measure(source)
    assert source.SerializeToString() == before
    assert sensitivity.images == 5
    assert set(sensitivity.nodes) == {node.name for node in source.graph.node}
    assert not sensitivity.find_sensitive()
    assert not sensitivity.find_overflowing()
    # one rounding of the inputs and one of the result
    assert 1e-5 < sensitivity.nodes["n.query"].relative_error < 2e-3
    pixels = make_pixels(5)
    expected = max(np.abs(run(source, pixels=pixels[i : i + 1])).max() for i in range(5))
    assert sensitivity.nodes["n.logits"].highest == pytest.approx(expected, rel=1e-5)


def test_overflow_keeps_the_operation_and_what_takes_its_result() -> None:
    sensitivity = measure(make_overflowing())
    assert sensitivity.nodes["n.squares"].highest > 65504
    assert sensitivity.nodes["n.squares"].relative_error == np.inf
    assert {"n.squares", "n.roots"} <= sensitivity.find_sensitive()
    assert not sensitivity.find_sensitive() & {"n.normalized", "n.features", "n.conv", "n.pooled", "n.logits"}


def test_cancellation_keeps_the_operation_and_what_gives_its_inputs() -> None:
    sensitivity = measure(make_cancelling(300.0))
    assert sensitivity.nodes["n.mixed"].relative_error > 0.01
    assert sensitivity.nodes["n.moved"].relative_error < 1e-3
    assert sensitivity.find_sensitive() == {"n.moved", "n.mixed"}


def test_values_near_the_end_of_the_range_are_sensitive_before_they_overflow() -> None:
    constants = {"far": np.array(3e4, np.float32), "back": np.array(1 / 3e4, np.float32)}
    sensitivity = measure(
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
    assert sensitivity.nodes["n.grown"].highest < 65504
    # the last one has a constant that is subnormal in FP16 as well
    assert {"n.grown", "n.positive", "n.mixed"} <= sensitivity.find_sensitive()
    assert "n.bounded" not in sensitivity.find_sensitive()


def test_a_product_beyond_the_range_is_no_sensitive_one() -> None:
    generator = np.random.default_rng(3)
    weight = generator.normal(0, 3e4, (16, 16)).astype(np.float32)
    sensitivity = measure(
        make_served(
            [("MatMul", ["features", "w"], "grown"), ("Mul", ["grown", "small"], "mixed")],
            {"w": weight, "small": np.array(1e-4, np.float32)},
        )
    )
    assert set(sensitivity.find_overflowing()) == {"n.grown"}
    assert "n.grown" not in sensitivity.find_sensitive()
    assert "n.mixed" in sensitivity.find_sensitive()


def test_a_constant_beyond_the_range_counts() -> None:
    bounds = np.full(16, 1e6, np.float32)
    sensitivity = measure(make_served([("Min", ["features", "bounds"], "mixed")], {"bounds": bounds}))
    assert sensitivity.nodes["n.mixed"].highest == 1e6
    assert "n.mixed" in sensitivity.find_sensitive()
