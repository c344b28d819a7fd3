"""Small served graphs with parts that survive FP16 or not: uint8 `pixels` in, float32 `logits` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlcls.model.spec import ImageTransform, ModelSpec

HEIGHT, WIDTH = 16, 8
LABELS = ("cat", "dog", "fox")
CHANNELS = 16

_TRANSFORM = ImageTransform(HEIGHT, WIDTH, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SPEC = ModelSpec("tiny", "PP-LCNet_x1_0_ML", LABELS, (0.5, 0.3, 0.6), _TRANSFORM, source_activation="sigmoid")

Steps = Sequence[tuple[str, Sequence[str], str] | tuple[str, Sequence[str], str, Mapping[str, Any]]]


def make_served(steps: Steps = (), constants: Mapping[str, npt.NDArray[Any]] | None = None) -> onnx.ModelProto:
    """Return Conv, the steps, mean over the picture, MatMul.

    Args:
        steps: Operation, inputs, output and options of each node between `features` and `mixed`, both
            (batch, positions, `CHANNELS`) float32 of about 1; without steps they are connected.
        constants: Additional inputs of the steps.
    """
    generator = np.random.default_rng(31)
    weights = {
        "scale": np.array(1 / 255, np.float32),
        "shift": np.array(-0.5, np.float32),
        "conv.weight": generator.normal(0, 0.5, (CHANNELS, 3, 4, 4)).astype(np.float32),
        "flat": np.array([0, CHANNELS, -1], np.int64),
        "head.weight": generator.normal(0, 0.3, (CHANNELS, len(LABELS))).astype(np.float32),
        "head.bias": generator.normal(0, 0.5, len(LABELS)).astype(np.float32),
        **(constants or {}),
    }
    before: Steps = [
        ("Cast", ["pixels"], "float", {"to": TensorProto.FLOAT}),
        ("Mul", ["float", "scale"], "scaled"),
        ("Add", ["scaled", "shift"], "normalized"),
        ("Transpose", ["normalized"], "chw", {"perm": [0, 3, 1, 2]}),
        ("Conv", ["chw", "conv.weight"], "conv", {"strides": [4, 4]}),
        ("Reshape", ["conv", "flat"], "sequence"),
        ("Transpose", ["sequence"], "features", {"perm": [0, 2, 1]}),
    ]
    after: Steps = [
        ("ReduceMean", ["mixed"], "pooled", {"axes": [1], "keepdims": 0}),
        ("MatMul", ["pooled", "head.weight"], "product"),
        ("Add", ["product", "head.bias"], "logits"),
    ]
    nodes = [
        helper.make_node(operation, list(inputs), [output], name=f"n.{output}", **dict(*options))
        for operation, inputs, output, *options in [*before, *(steps or [("Identity", ["features"], "mixed")]), *after]
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "served", [pixels], [logits], initializers)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


def make_attention() -> onnx.ModelProto:
    """Return LayerNormalization, self-attention over the positions, and a residual connection."""
    generator = np.random.default_rng(32)
    constants = {
        "norm.scale": np.ones(CHANNELS, np.float32),
        "norm.bias": np.zeros(CHANNELS, np.float32),
        **{
            f"{name}.weight": generator.normal(0, 0.4, (CHANNELS, CHANNELS)).astype(np.float32)
            for name in ("query", "key", "value")
        },
    }
    return make_served(
        [
            ("LayerNormalization", ["features", "norm.scale", "norm.bias"], "norm", {"axis": -1}),
            ("MatMul", ["norm", "query.weight"], "query"),
            ("MatMul", ["norm", "key.weight"], "key"),
            ("MatMul", ["norm", "value.weight"], "value"),
            ("Transpose", ["key"], "key.t", {"perm": [0, 2, 1]}),
            ("MatMul", ["query", "key.t"], "products"),
            ("Softmax", ["products"], "attention", {"axis": -1}),
            ("MatMul", ["attention", "value"], "attended"),
            ("Add", ["attended", "features"], "mixed"),
        ],
        constants,
    )


def make_overflowing() -> onnx.ModelProto:
    """Return a root of squares of about 1e6, beyond FP16, whose result is about 1 again."""
    constants = {"large": np.array(1000.0, np.float32), "small": np.array(1e-3, np.float32)}
    return make_served(
        [
            ("Mul", ["features", "large"], "grown"),
            ("Mul", ["grown", "grown"], "squares"),
            ("Sqrt", ["squares"], "roots"),
            ("Mul", ["roots", "small"], "mixed"),
        ],
        constants,
    )


def make_cancelling(offset: float) -> onnx.ModelProto:
    """Return an offset that is added and subtracted: FP16 loses what is small next to it."""
    return make_served(
        [("Add", ["features", "offset"], "moved"), ("Sub", ["moved", "offset"], "mixed")],
        {"offset": np.array(offset, np.float32)},
    )


def make_pixels(count: int, seed: int = 5) -> npt.NDArray[np.uint8]:
    """Return different pictures (count, HEIGHT, WIDTH, 3) uint8: flat colors with noise."""
    generator = np.random.default_rng(seed)
    colors = generator.integers(0, 196, (count, 1, 1, 3))
    return (colors + generator.integers(0, 60, (count, HEIGHT, WIDTH, 3))).astype(np.uint8)
