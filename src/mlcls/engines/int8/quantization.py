"""Post-training quantization of a served FP32 graph with NNCF: real images run through it once, without training.

The result is ONNX with QuantizeLinear and DequantizeLinear, which both OpenVINO and ONNX Runtime run in INT8. Parts of
it, the decoder and slices of the backbone, can go back to FP32. Where INT8 hurts depends on the weights, not on the
architecture: in a trained PP-LCNet_x1_0 it is the last quarter, in a freshly initialized one the first. So nothing is
protected by name; the parts are tried and measured.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_edits import describe_interface, graph_inputs, require_interface
from mlcls.errors import ConversionError, MissingExtraError

if TYPE_CHECKING:
    import onnx

# Slices of the backbone, by depth; with the decoder, nine parts.
BACKBONE_PARTS: Final = 8

# Matrix products that INT8 makes faster; a slice is measured in these.
INT8_PRODUCTS: Final = frozenset(("Conv", "Gemm", "MatMul"))


def quantize_graph(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    """Quantize all weights and activations that NNCF can, except the normalization.

    Weights are symmetric and per channel, with half the range, so that scores are right on processors without VNNI too.
    Activations are asymmetric if they have negative values (NNCF's preset `mixed`: HardSwish and GELU are lopsided, and
    on a CPU a zero point costs next to nothing). In a backbone with attention, NNCF's model type `transformer` keeps
    what is between the matrix products of an attention in FP32.

    Args:
        model: The served FP32 graph; not modified.
        pixels: The calibration set: real images of what the model will see, (N, H, W, 3) uint8 RGB.

    Raises:
        ConversionError: NNCF fails, or its graph is not valid or has not the same inputs and outputs.
        MissingExtraError: nncf is not installed.
    """
    import onnx
    from tqdm import tqdm

    nncf = _import_nncf()
    source = onnx.ModelProto()
    source.CopyFrom(model)
    name = graph_inputs(model)[0].name
    options: dict[str, Any] = {"ignored_scope": nncf.IgnoredScope(names=sorted(find_normalization(model)))}
    if has_attention_backbone(model):
        options["model_type"] = nncf.ModelType.TRANSFORMER
    with tqdm(desc="calibrating", unit="image", leave=False, disable=None) as progress:  # on a terminal only

        def read_image(image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
            progress.update()
            return {name: image[None]}

        try:
            with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws its own bars, even without a terminal
                quantized: onnx.ModelProto = nncf.quantize(
                    source,
                    nncf.Dataset(list(pixels), read_image),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(pixels),
                    # 7-bit weights: sums of 8-bit products overflow on processors without VNNI
                    advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
                    **options,
                )
        except Exception as error:  # NNCF passes on errors of ONNX, ONNX Runtime and its own graph code
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConversionError(
                f"NNCF {nncf.__version__} cannot quantize the graph ({reason}); serve it in FP32, and please report "
                f"the model."
            ) from error
    check_quantized(quantized, model)
    quantized.producer_name = model.producer_name
    return quantized


def has_attention_backbone(model: onnx.ModelProto) -> bool:
    """Return whether there is attention before the decoder's, as in CLIP's ViT."""
    decoder = find_decoder(model)
    return any(node.op_type == "Softmax" and node.name not in decoder for node in model.graph.node)


def check_quantized(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Raise a `ConversionError` unless a graph is valid, has INT8 operations and the FP32 graph's interface."""
    require_interface(quantized, describe_interface(model), "INT8")
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise ConversionError("Expected a graph with INT8 operations, got one without.")


def _import_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # if it is set when NNCF is imported, NNCF sends no telemetry
    try:
        import nncf
        import nncf.onnx  # `nncf.quantize` needs it for ONNX, and would fail late without it
    except ModuleNotFoundError as error:
        raise MissingExtraError("int8", str(error.name)) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


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
    feed-forward part and the labels' own heads. Without an attention there are none.
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

    The quantized graph has the original's nodes, with QuantizeLinear and DequantizeLinear in between.

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
