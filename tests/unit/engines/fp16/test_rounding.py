"""The rounded graph shows what FP16 arithmetic does, which ONNX Runtime's own run of the FP16 graph hides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from mlcls.engines.fp16.conversion import Protection, convert_to_fp16
from mlcls.engines.fp16.rounding import element_types, round_like_fp16
from support.onnx_graphs import run
from support.served_graphs import make_attention, make_cancelling, make_overflowing, make_pixels, make_served

NOTHING = Protection("nothing")
Array = npt.NDArray[Any]


def fp16_of(model: onnx.ModelProto, protection: Protection = NOTHING) -> onnx.ModelProto:
    return convert_to_fp16(model, protection)


def show(model: onnx.ModelProto, tensor: str, pixels: npt.NDArray[np.uint8]) -> Array:
    """A tensor of the rounded graph, by ONNX Runtime with all of its optimizations."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.append(onnx.helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value: Array = session.run([tensor], {"pixels": pixels})[0]
    return value


def test_overflow_shows_here_and_only_here() -> None:
    pixels = make_pixels(4)
    source = make_overflowing()
    fp16 = fp16_of(source)
    expected = run(source, pixels=pixels)
    assert np.isfinite(expected).all()
    assert not np.isfinite(run(round_like_fp16(fp16), pixels=pixels)).any()
    # the reason for all this: ONNX Runtime's CPU provider keeps float32 between FP16 operations
    np.testing.assert_allclose(run(fp16, pixels=pixels), expected, rtol=0, atol=0.05)


def test_what_stays_in_fp32_does_not_overflow() -> None:
    pixels = make_pixels(4)
    source = make_overflowing()
    fp16 = fp16_of(source, Protection("some", frozenset(("Sqrt", "Mul")), frozenset()))
    np.testing.assert_allclose(run(round_like_fp16(fp16), pixels=pixels), run(source, pixels=pixels), atol=0.05)


def test_lost_digits_show() -> None:
    pixels = make_pixels(4)
    fp16 = fp16_of(make_cancelling(4096.0))
    rounded = show(round_like_fp16(fp16), "mixed", pixels)
    # just below 4096 FP16 has steps of 2
    assert set(np.unique(rounded % 2)) == {0.0}
    assert np.abs(run(round_like_fp16(fp16), pixels=pixels) - run(make_cancelling(4096.0), pixels=pixels)).max() > 0.05


def test_no_fp16_operation_is_left_and_every_tensor_is_rounded() -> None:
    rounded = round_like_fp16(fp16_of(make_attention()))
    onnx.checker.check_model(rounded, full_check=True)
    types = element_types(rounded)
    for node in rounded.graph.node:
        if node.op_type != "Cast":
            assert all(types[name] != TensorProto.FLOAT16 for name in (*node.input, *node.output) if name)
    pixels = make_pixels(2)
    for tensor in ("normalized", "conv", "features", "norm", "products", "attention", "mixed", "pooled", "logits"):
        value = show(rounded, tensor, pixels)
        np.testing.assert_array_equal(value, value.astype(np.float16), err_msg=tensor)


def test_products_sum_up_in_float32_and_round_once() -> None:
    rounded = round_like_fp16(fp16_of(make_attention()))
    pixels = make_pixels(2)
    norm = show(rounded, "norm", pixels)
    weight = next(tensor for tensor in rounded.graph.initializer if tensor.name == "query.weight")
    exact = norm.astype(np.float64) @ onnx.numpy_helper.to_array(weight)
    np.testing.assert_allclose(show(rounded, "query", pixels), exact.astype(np.float16), rtol=1e-3, atol=0)


def test_normalization_and_softmax_are_rounded_step_by_step() -> None:
    rounded = round_like_fp16(fp16_of(make_attention()))
    pixels = make_pixels(3)
    x = show(rounded, "features", pixels).astype(np.float16)
    mean = x.mean(-1, keepdims=True, dtype=np.float32).astype(np.float16)
    centered = x - mean
    variance = (centered * centered).mean(-1, keepdims=True, dtype=np.float32).astype(np.float16)
    expected = centered / np.sqrt(variance + np.float16(1e-5))
    np.testing.assert_array_equal(show(rounded, "norm", pixels), expected)

    products = show(rounded, "products", pixels).astype(np.float16)
    powers = np.exp((products - products.max(-1, keepdims=True)).astype(np.float32)).astype(np.float16)
    softmax = powers / powers.sum(-1, keepdims=True, dtype=np.float32).astype(np.float16)
    np.testing.assert_allclose(show(rounded, "attention", pixels), softmax, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("size", [120.0, 400.0])
def test_an_fp16_normalization_overflows_where_its_squares_do(size: float) -> None:
    constants = {
        "size": np.array(size, np.float32),
        "norm.scale": np.ones(16, np.float32),
        "norm.bias": np.zeros(16, np.float32),
    }
    source = make_served(
        [
            ("Tanh", ["features"], "bounded"),
            ("Sign", ["bounded"], "signs"),
            ("Mul", ["signs", "size"], "grown"),
            ("LayerNormalization", ["grown", "norm.scale", "norm.bias"], "mixed", {"axis": -1}),
        ],
        constants,
    )
    pixels = make_pixels(3)
    expected = run(source, pixels=pixels)
    got = run(round_like_fp16(fp16_of(source)), pixels=pixels)
    kept = run(round_like_fp16(fp16_of(source, Protection("norms", frozenset(("LayerNormalization",))))), pixels=pixels)
    np.testing.assert_allclose(kept, expected, rtol=0, atol=0.05)
    # up to twice the size from the mean: 240 squared is within FP16, 800 squared is not
    assert (np.abs(got - expected).max() > 0.5) == (size == 400.0)
