"""Split a served graph into parts that can go back from INT8 to FP32: the decoder, and slices of the backbone.

Where INT8 hurts depends on the weights, not on the architecture: in a trained PP-LCNet_x1_0 it is the last quarter, in
a freshly initialized one the first. So nothing is protected by name; the parts are tried and measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from mlcls.conversion.onnx_edits import graph_inputs
from mlcls.errors import ConversionError

if TYPE_CHECKING:
    import onnx

# Slices of the backbone, by depth; with the decoder, nine parts.
BACKBONE_PARTS: Final = 8

# Matrix products that INT8 makes faster; a slice is measured in these.
INT8_PRODUCTS: Final = frozenset(("Conv", "Gemm", "MatMul"))


@dataclasses.dataclass(frozen=True)
class GraphPart:
    """Nodes that are quantized or kept in FP32 together.

    Attributes:
        name: Its name in messages and in the manifest: `decoder`, `backbone 1/8` (the first) and so on.
        nodes: Names of its nodes.
    """

    name: str
    nodes: frozenset[str]


def split_graph(model: onnx.ModelProto, backbone_parts: int = BACKBONE_PARTS) -> tuple[GraphPart, ...]:
    """Split everything that depends on the image, after the normalization, into parts.

    Args:
        model: The served FP32 graph.
        backbone_parts: Slices of the backbone, with equally many matrix products if possible; fewer if it has fewer.

    Returns:
        The slices in order, then the decoder if the graph has one.

    Raises:
        ConversionError: Nodes share a name or have none, or the graph has no matrix product.
    """
    _require_names(model)
    moving = _image_tensors(model)
    front = find_normalization(model)
    nodes = [node for node in model.graph.node if not moving.isdisjoint(node.input) and node.name not in front]
    decoder = find_decoder(model)
    backbone = [node for node in nodes if node.name not in decoder]
    total = sum(node.op_type in INT8_PRODUCTS for node in backbone)
    if not total:
        raise ConversionError("Expected a graph with convolutions or matrix products, got one without.")
    count = min(backbone_parts, total)
    slices: list[set[str]] = [set() for _ in range(count)]
    seen = 0
    for node in backbone:
        seen += node.op_type in INT8_PRODUCTS
        slices[(max(seen, 1) - 1) * count // total].add(node.name)
    parts = [GraphPart(f"backbone {index + 1}/{count}", frozenset(names)) for index, names in enumerate(slices)]
    if decoder:
        parts.append(GraphPart("decoder", decoder))
    return tuple(parts)


def find_normalization(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes between `pixels` and the first matrix product.

    They scale and shift 8-bit numbers to float32: INT8 would gain nothing there and lose digits.
    """
    front: set[str] = set()
    reached = {graph_inputs(model)[0].name}
    for node in model.graph.node:
        if reached.isdisjoint(node.input):
            continue
        if node.op_type in INT8_PRODUCTS or node.op_type == "Shape":
            continue
        if set(node.input) & _image_tensors(model) <= reached:
            front.add(node.name)
            reached.update(node.output)
    return frozenset(front)


def find_decoder(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes after the tensor from which the last attention makes its keys and values.

    In all six models these are the ML-Decoder: the projections, the attention of the labels' queries to the image, the
    feed-forward part and the labels' own heads.

    Returns:
        The names; empty if the graph has no attention.
    """
    nodes = list(model.graph.node)
    softmax = next((node for node in reversed(nodes) if node.op_type == "Softmax"), None)
    if softmax is None:
        return frozenset()
    product = next((node for node in nodes if node.op_type == "MatMul" and softmax.output[0] in node.input), None)
    if product is None:
        return frozenset()
    values = next(tensor for tensor in product.input if tensor != softmax.output[0])
    shared = _ancestors(model, softmax.input[0]) & _ancestors(model, values)
    moving = _image_tensors(model)
    return frozenset(node.name for node in nodes if node.name not in shared and not moving.isdisjoint(node.input))


def restore_nodes(quantized: onnx.ModelProto, original: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a quantized graph in which some nodes compute in FP32 again, with their original weights.

    Args:
        quantized: What NNCF made of `original`: the same nodes, with QuantizeLinear and DequantizeLinear in between.
        original: The served FP32 graph.
        names: Names of nodes of both graphs.

    Raises:
        ConversionError: The quantized graph has lost a node or a tensor of the original.
    """
    import onnx

    restored = onnx.ModelProto()
    restored.CopyFrom(quantized)
    constants = {tensor.name: tensor for tensor in original.graph.initializer}
    found = {node.name: node for node in restored.graph.node}
    copied: set[str] = set()
    for node in original.graph.node:
        if node.name not in names:
            continue
        if node.name not in found:
            raise ConversionError(f"Expected the node {node.name} in the quantized graph, found none.")
        for index, tensor in enumerate(node.input):
            name = tensor
            if tensor in constants:  # under a new name: NNCF may have changed or shared the constant of the old name
                name = f"{tensor}.fp32"
                if name not in copied:
                    copied.add(name)
                    restored.graph.initializer.add().CopyFrom(constants[tensor])
                    restored.graph.initializer[-1].name = name
            found[node.name].input[index] = name
    _drop_unused(restored)
    _require_complete(restored)
    return restored


def count_products(model: onnx.ModelProto, parts: Iterable[GraphPart]) -> int:
    """Return the number of matrix products in some parts."""
    names = frozenset().union(*(part.nodes for part in parts))
    return sum(node.op_type in INT8_PRODUCTS and node.name in names for node in model.graph.node)


def _require_names(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    if len(set(names)) != len(names) or "" in names:
        raise ConversionError("Expected a graph whose nodes have different names; import the model again.")


def _image_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the tensors whose values depend on the image; the result of a Shape depends only on its size."""
    moving = {graph_inputs(model)[0].name}
    for node in model.graph.node:
        if node.op_type != "Shape" and not moving.isdisjoint(node.input):
            moving.update(node.output)
    return moving


def _ancestors(model: onnx.ModelProto, tensor: str) -> set[str]:
    """Return the names of the nodes that a tensor is computed from."""
    producers = {output: node for node in model.graph.node for output in node.output}
    waiting, found = [tensor], set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove the nodes and constants that no output depends on."""
    needed = {output.name for output in model.graph.output}
    nodes = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    nodes.reverse()
    copies = (_copies(nodes), _copies(constants))  # before `del` frees them
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(copies[0])
    model.graph.initializer.extend(copies[1])
    del model.graph.value_info[:]


def _copies(messages: Iterable[onnx.NodeProto] | Iterable[onnx.TensorProto]) -> list[object]:
    result = []
    for message in messages:
        copy = type(message)()
        copy.CopyFrom(message)
        result.append(copy)
    return result


def _require_complete(model: onnx.ModelProto) -> None:
    known = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        if missing := [tensor for tensor in node.input if tensor not in known]:
            raise ConversionError(
                f"Expected {missing[0]}, an input of {node.name}, in the quantized graph, found none."
            )
        known.update(node.output)
