"""Small ONNX graphs like those of paddle2onnx: a scorer, and a decoder with tiled queries.

Weights are drawn so that the scores of different images differ clearly. All take `x` (batch, 3, height, width) float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
_IR_VERSION = 8

Array = npt.NDArray[Any]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, Array] | None = None,
    element_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a checked model."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, element_type, list(dims)) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, element_type, list(dims)) for name, dims in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


def make_scorer(
    num_labels: int,
    size: tuple[int, int],
    endings: Sequence[str] = ("Sigmoid",),
    batch: int | str = "N",
    input_name: str = "x",
) -> onnx.ModelProto:
    """Return Conv, GlobalAveragePool, Reshape by the batch size, MatMul, Add, then the operations in `endings`."""
    generator = np.random.default_rng(21)
    constants: dict[str, Array] = {
        "conv.weight": generator.normal(0, 0.4, (8, 3, 5, 5)).astype(np.float32),
        "linear.weight": generator.normal(0, 2.0, (8, num_labels)).astype(np.float32),
        "linear.bias": generator.normal(0, 0.5, num_labels).astype(np.float32),
        **_shape_constants(),
    }
    nodes = [
        helper.make_node("Conv", [input_name, "conv.weight"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        *_flatten_nodes("pooled", "features"),
        helper.make_node("MatMul", ["features", "linear.weight"], ["product"]),
        helper.make_node("Add", ["product", "linear.bias"], ["raw"]),
    ]
    return _finish(nodes, constants, num_labels, size, endings, batch, input_name)


def make_decoder(
    num_labels: int, size: tuple[int, int], endings: Sequence[str] = ("Sigmoid",), batch: int | str = "N"
) -> onnx.ModelProto:
    """Return ML-Decoder's head: constant queries tiled to the batch, projection, cross attention, a score per query."""
    width = 6
    generator = np.random.default_rng(22)

    def weight(*shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        return generator.normal(0, scale, shape).astype(np.float32)

    constants: dict[str, Array] = {
        "conv.weight": weight(width, 3, 16, 16, scale=0.05),
        "queries": weight(1, num_labels, width, scale=2.0),
        "query.weight": weight(width, width),
        "key.weight": weight(width, width),
        "value.weight": weight(width, width),
        "score.weight": weight(width, 1, scale=0.5),
        "one": np.array([1], np.int64),
        "memory.dims": np.array([0, width, -1], np.int64),
        "scale": np.array(width**-0.5, np.float32),
        **_shape_constants(),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["conv"], strides=[16, 16]),
        helper.make_node("Reshape", ["conv", "memory.dims"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["memory"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["memory"], ["memory.shape"]),
        helper.make_node("Slice", ["memory.shape", "zero", "one.end", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "one", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["queries", "repeats"], ["tiled"]),
        helper.make_node("MatMul", ["tiled", "query.weight"], ["query"]),
        helper.make_node("MatMul", ["memory", "key.weight"], ["key"]),
        helper.make_node("MatMul", ["memory", "value.weight"], ["value"]),
        helper.make_node("Transpose", ["key"], ["key.transposed"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["query", "key.transposed"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "value"], ["attended"]),
        helper.make_node("Add", ["attended", "tiled"], ["sum"]),
        helper.make_node("MatMul", ["sum", "score.weight"], ["column"]),
        *_flatten_nodes("column", "raw"),
    ]
    return _finish(nodes, constants, num_labels, size, endings, batch, "x")


def _shape_constants() -> dict[str, npt.NDArray[np.int64]]:
    return {name: np.array([value], np.int64) for name, value in (("zero", 0), ("one.end", 1), ("rest", -1))}


def _flatten_nodes(source: str, target: str) -> list[onnx.NodeProto]:
    """Return `Reshape(x, Concat(Shape(x)[0:1], [-1]))`, as paddle2onnx writes a flatten."""
    return [
        helper.make_node("Shape", [source], [f"{source}.shape"]),
        helper.make_node("Slice", [f"{source}.shape", "zero", "one.end", "zero"], [f"{source}.batch"]),
        helper.make_node("Concat", [f"{source}.batch", "rest"], [f"{source}.dims"], axis=0),
        helper.make_node("Reshape", [source, f"{source}.dims"], [target], name=f"flatten.{source}"),
    ]


def _finish(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Array],
    num_labels: int,
    size: tuple[int, int],
    endings: Sequence[str],
    batch: int | str,
    input_name: str,
) -> onnx.ModelProto:
    last = "raw"
    for index, operation in enumerate(endings):
        name = f"{operation.lower()}.{index}"
        options = {"to": TensorProto.FLOAT} if operation == "Cast" else {}
        nodes.append(helper.make_node(operation, [last], [name], **options))
        last = name
    return make_model(nodes, {input_name: (batch, 3, *size)}, {last: (batch, num_labels)}, constants)


def run(model: onnx.ModelProto, **inputs: Array) -> Array:
    """Return the model's only output, by ONNX Runtime without graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: Array = session.run([model.graph.output[0].name], inputs)[0]
    return output


def list_operations(model: onnx.ModelProto) -> list[str]:
    """Return the operation types in the order of the graph."""
    return [node.op_type for node in model.graph.node]
