"""Compute on a CPU what FP16 arithmetic does to a graph's answers.

ONNX Runtime's CPU provider has no FP16 kernels on x86-64: it runs an FP16 graph in float32 and removes the casts in
between (`insert_cast_transformer.cc`), so an overflow or a lost digit does not show there. The graph made here computes
in float32 too, but rounds every FP16 tensor to FP16 by a pair of casts, which ONNX Runtime keeps since 1.17.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx

# Operations that pass numbers through unchanged: FP16 inputs give FP16 results.
_EXACT: Final = frozenset(
    (
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)


def round_like_fp16(fp16: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float32 graph that gives an FP16 graph's answers as a GPU computes them.

    Matrix products and convolutions accumulate in float32 and round their result, as tensor cores do by default. An
    FP16 LayerNormalization or Softmax is split into steps that are each rounded, the worst that an engine may do. An
    engine that fuses operations rounds less often.

    Args:
        fp16: An explicitly typed FP16 graph, see `mlcls.engines.fp16.conversion.convert_to_fp16`.

    Returns:
        A graph with the same inputs and outputs, whose only FP16 operations are casts.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.ModelProto()
    model.CopyFrom(fp16)
    types = element_types(model)
    fp16_tensors = {name for name, element_type in types.items() if element_type == TensorProto.FLOAT16}
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT16:
            _widen(initializer)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                _widen(attribute.t)
        model.graph.node.extend(_rounded(node, types, fp16_tensors))
    del model.graph.value_info[:]
    return model


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph, from ONNX's shape inference."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {initializer.name: initializer.data_type for initializer in graph.initializer}


def _rounded(node: onnx.NodeProto, types: dict[str, int], fp16_tensors: set[str]) -> list[onnx.NodeProto]:
    """Return the node, or its steps, with each result rounded."""
    outputs = [name for name in node.output if name in fp16_tensors]
    if not outputs or node.op_type in _EXACT:
        return [node]
    if node.op_type == "LayerNormalization":
        return _layer_normalization(node)
    if node.op_type == "Softmax":
        return _softmax(node)
    result = [node]
    for index, name in enumerate(node.output):
        if name in fp16_tensors:
            node.output[index] = f"{name}.wide"
            result += _round(f"{name}.wide", name)
    return result


def _layer_normalization(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the steps of ONNX's LayerNormalization, each rounded."""
    from onnx import helper

    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = list(range(options.get("axis", -1), 0)) or [-1]
    (x, scale, *bias), y = node.input, node.output[0]
    epsilon = np.array(options.get("epsilon", 1e-5), np.float32)
    steps = [
        ("ReduceMean", [x], {"axes": axes}),
        ("Sub", [x, f"{y}.0"], {}),
        ("Mul", [f"{y}.1", f"{y}.1"], {}),
        ("ReduceMean", [f"{y}.2"], {"axes": axes}),
        ("Add", [f"{y}.3", f"{y}.epsilon"], {}),
        ("Sqrt", [f"{y}.4"], {}),
        ("Div", [f"{y}.1", f"{y}.5"], {}),
        ("Mul", [f"{y}.6", scale], {}),
        *([("Add", [f"{y}.7", bias[0]], {})] if bias and bias[0] else []),
    ]
    constant = helper.make_node("Constant", [], [f"{y}.epsilon"], value_float=float(epsilon.astype(np.float16)))
    return [constant, *_chain(y, steps)]


def _softmax(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the steps of ONNX's Softmax, each rounded."""
    from onnx import helper

    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axis = options.get("axis", -1)
    x, y = node.input[0], node.output[0]
    constant = helper.make_node("Constant", [], [f"{y}.axes"], value_ints=[axis])
    return [
        constant,
        *_chain(
            y,
            [
                ("ReduceMax", [x], {"axes": [axis]}),
                ("Sub", [x, f"{y}.0"], {}),
                ("Exp", [f"{y}.1"], {}),
                ("ReduceSum", [f"{y}.2", f"{y}.axes"], {}),
                ("Div", [f"{y}.2", f"{y}.3"], {}),
            ],
        ),
    ]


def _chain(name: str, steps: Sequence[tuple[str, list[str], Mapping[str, Any]]]) -> list[onnx.NodeProto]:
    """Return the nodes of some steps; step i gives `name.i`, rounded, and the last one gives `name`."""
    from onnx import helper

    nodes = []
    for index, (operation, inputs, options) in enumerate(steps):
        result = name if index == len(steps) - 1 else f"{name}.{index}"
        nodes.append(helper.make_node(operation, inputs, [f"{name}.{index}.wide"], **options))
        nodes += _round(f"{name}.{index}.wide", result)
    return nodes


def _round(source: str, target: str) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [source], [f"{target}.fp16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{target}.fp16"], [target], to=TensorProto.FLOAT),
    ]


def _widen(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
