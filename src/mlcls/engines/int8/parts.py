"""Split a served graph into parts that can go back from INT8 to FP32: the decoder, and slices of the backbone.

Where INT8 hurts depends on the weights, not on the architecture: in a trained PP-LCNet_x1_0 it is the last quarter, in
a freshly initialized one the first. So nothing is protected by name; the parts are tried and measured.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from mlcls.conversion.onnx_edits import graph_inputs
from mlcls.errors import ConversionError

if TYPE_CHECKING:
    import onnx

# Slices of the backbone, by depth; with the decoder, nine parts.
BACKBONE_PARTS: Final = 8

# Matrix products that INT8 makes faster; a slice is measured in these.
INT8_PRODUCTS: Final = frozenset(("Conv", "Gemm", "MatMul"))


def split_graph(model: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """Split what depends on the image in a served FP32 graph, after the normalization, into parts.

    Returns:
        The names of each part's nodes by the part's name: the slices `backbone 1/8` and so on, with equally many matrix
        products if possible, fewer if it has fewer; then `decoder` if the graph has one.

    Raises:
        ConversionError: Nodes share a name or have none, or the graph has no matrix product.
    """
    if len({node.name for node in model.graph.node} - {""}) != len(model.graph.node):
        raise ConversionError("Expected a graph whose nodes have different names; import the model again.")
    moving = _image_tensors(model)
    front = find_normalization(model)
    decoder = find_decoder(model)
    backbone = [
        node
        for node in model.graph.node
        if not moving.isdisjoint(node.input) and node.name not in front and node.name not in decoder
    ]
    total = sum(node.op_type in INT8_PRODUCTS for node in backbone)
    if not total:
        raise ConversionError("Expected a graph with convolutions or matrix products, got one without.")
    count = min(BACKBONE_PARTS, total)
    slices: list[set[str]] = [set() for _ in range(count)]
    seen = 0
    for node in backbone:
        seen += node.op_type in INT8_PRODUCTS
        slices[(max(seen, 1) - 1) * count // total].add(node.name)
    parts = {f"backbone {index + 1}/{count}": frozenset(names) for index, names in enumerate(slices)}
    return {**parts, "decoder": decoder} if decoder else parts


def find_normalization(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes that the import put before the network.

    They scale and shift 8-bit numbers to float32: INT8 would gain nothing there and lose digits.
    """
    return frozenset(node.name for node in model.graph.node if node.name.startswith("mlcls."))


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
        ConversionError: The quantized graph has lost a node of the original.
    """
    import onnx

    restored = onnx.ModelProto()
    restored.CopyFrom(quantized)
    graph = restored.graph
    constants = {tensor.name: tensor for tensor in original.graph.initializer}
    found = {node.name: node for node in graph.node}
    copied: dict[str, str] = {}
    for node in original.graph.node:
        if node.name not in names:
            continue
        if node.name not in found:
            raise ConversionError(f"Expected the node {node.name} in the quantized graph, found none.")
        for index, tensor in enumerate(node.input):
            if tensor in constants:  # under a new name: NNCF may have changed or shared the constant of the old name
                copied[tensor] = f"{tensor}.fp32"
            found[node.name].input[index] = copied.get(tensor, tensor)
    for tensor, copy in copied.items():
        graph.initializer.add().CopyFrom(constants[tensor])
        graph.initializer[-1].name = copy
    needed = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for constant in [constant for constant in graph.initializer if constant.name not in needed]:
        graph.initializer.remove(constant)
    del graph.value_info[:]
    return restored


def count_products(model: onnx.ModelProto, names: Collection[str]) -> int:
    """Return the number of matrix products among some nodes."""
    return sum(node.op_type in INT8_PRODUCTS and node.name in names for node in model.graph.node)


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
