"""A small graph as it is served: normalization, six convolutions, the head of ML-Decoder; and images for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mlcls.conversion import onnx_edits
from mlcls.model.spec import ImageTransform, ModelSpec
from support.onnx_graphs import make_model, run

SIZE = (32, 48)
NUM_LABELS = 5


def spec_of() -> ModelSpec:
    """Return the spec of the graph."""
    transform = ImageTransform(*SIZE, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    labels = tuple(f"label {index}" for index in range(NUM_LABELS))
    return ModelSpec("tiny", "PP-LCNet_x1_0_ML", labels, (0.5,) * NUM_LABELS, transform, source_activation="sigmoid")


def make_served(spec: ModelSpec, scale: float = 1.0) -> onnx.ModelProto:
    """Return the graph, `pixels` in and `logits` out; the logits have a standard deviation of 3 `scale`."""
    generator = np.random.default_rng(7)
    width = 16

    def weight(*shape: int) -> npt.NDArray[np.float32]:
        return generator.normal(0, 1.4 * float(np.prod(shape[1:] or shape)) ** -0.5, shape).astype(np.float32)

    weights: Mapping[str, Any] = {
        "conv.1": weight(width, 3, 3, 3),
        "bias.1": weight(width),
        "conv.2": weight(width, width, 3, 3),
        **{f"conv.{index}": weight(width, width, 3, 3) for index in range(3, 7)},
        "memory.dims": np.array([0, width, -1], np.int64),
        "queries": weight(1, NUM_LABELS, width) * 4,
        "query.weight": weight(width, width),
        "key.weight": weight(width, width),
        "value.weight": weight(width, width),
        "score.weight": weight(width, 1),
        "mean": np.zeros((1, NUM_LABELS), np.float32),
        "scale": np.ones((1, NUM_LABELS), np.float32),
        "dims": np.array([0, -1], np.int64),
    }

    def convolve(index: int, source: str, *bias: str) -> list[onnx.NodeProto]:
        options = {"strides": [2, 2] if index <= 3 else [1, 1], "pads": [1, 1, 1, 1]}
        return [
            helper.make_node("Conv", [source, f"conv.{index}", *bias], [f"c{index}"], f"convolve {index}", **options),
            helper.make_node("HardSwish", [f"c{index}"], [f"h{index}"], f"swish {index}"),
        ]

    nodes = [
        *convolve(1, "x", "bias.1"),
        *convolve(2, "h1"),
        *itertools.chain(*(convolve(index, f"h{index - 1}") for index in range(3, 7))),
        helper.make_node("Reshape", ["h6", "memory.dims"], ["flat"], "flatten"),
        helper.make_node("Transpose", ["flat"], ["memory"], "to tokens", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "query.weight"], ["query"], "project queries"),
        helper.make_node("MatMul", ["memory", "key.weight"], ["key"], "project keys"),
        helper.make_node("MatMul", ["memory", "value.weight"], ["value"], "project values"),
        helper.make_node("Transpose", ["key"], ["key.transposed"], "turn keys", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["query", "key.transposed"], ["products"], "compare"),
        helper.make_node("Softmax", ["products"], ["attention"], "attention", axis=-1),
        helper.make_node("MatMul", ["attention", "value"], ["attended"], "attend"),
        helper.make_node("MatMul", ["attended", "score.weight"], ["column"], "score"),
        helper.make_node("Reshape", ["column", "dims"], ["row"], "to row"),
        helper.make_node("Sub", ["row", "mean"], ["centered"], "center"),
        helper.make_node("Mul", ["centered", "scale"], ["logits"], "scale"),
    ]
    model = make_model(nodes, {"x": ("N", 3, *SIZE)}, {"logits": ("N", NUM_LABELS)}, weights)
    onnx_edits.prepend_normalization(model, spec)
    onnx_edits.set_batch_dimension(model, "batch")
    # the logits of different images must differ, each label's around 0
    rows = run(model, pixels=make_pixels(64, seed=9))
    constants = {"mean": rows.mean(0, keepdims=True), "scale": 3.0 * scale / rows.std(0, keepdims=True)}
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name].astype(np.float32), tensor.name))
    return model


def make_pixels(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return images (N, H, W, 3) uint8 RGB with large and small structures, each in different colors."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 6, 3)).repeat(SIZE[0] // 4, 1).repeat(SIZE[1] // 6, 2)
    fine = generator.normal(0, 12, (count, *SIZE, 3))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def assert_computed_in_bf16(logits: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> None:
    """The error is that of one rounding to 8 bits at least, and at most that of one at each of the 16 operations.

    It is taken relative to the spread of the exact logits. FP16 stays below these bounds, INT8 and exchanged answers
    are above.
    """
    error = np.sqrt(np.mean(np.square(logits - exact))) / exact.std()
    assert 2.0**-8 < error < 16 * 2.0**-8
