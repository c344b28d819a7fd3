"""From the served FP32 graph to an explicitly typed FP16 graph, with chosen operations kept in FP32.

The converter is ONNX Runtime's own (`onnxruntime.transformers.float16`). This module mends what it does wrong: it
silently raises or clips constants outside FP16's range, rounds a constant that FP32 and FP16 operations share for both,
sends a tensor between two FP32 operations through FP16, and appends its casts unsorted.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlcls.conversion.onnx_edits import describe_interface, require_interface
from mlcls.errors import ConversionError, MissingExtraError

if TYPE_CHECKING:
    import onnx

# The largest finite number of FP16 (IEEE 754 binary16).
MAX_FP16: Final = float(np.finfo(np.float16).max)

# Matrix products, which stay in FP16 at every level: TensorRT-RTX has no FP32 ones for compute capability 7.5, and they
# are what FP16 is for.
FP16_PRODUCTS: Final = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))


@dataclasses.dataclass(frozen=True)
class Protection:
    """What stays in FP32.

    Attributes:
        name: Name of the level.
        operations: Operation types of which every node stays in FP32.
        nodes: Names of further nodes that stay in FP32.
    """

    name: str
    operations: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if products := sorted(self.operations & FP16_PRODUCTS):
            raise ValueError(f"operations: expected no matrix product, got {', '.join(products)}.")

    def covers(self, node: onnx.NodeProto) -> bool:
        """Return whether a node stays in FP32."""
        return node.op_type in self.operations or node.name in self.nodes


def convert_to_fp16(model: onnx.ModelProto, protection: Protection) -> onnx.ModelProto:
    """Convert the served FP32 graph.

    Args:
        model: The graph, from uint8 to float32, with float32 weights and named nodes; not modified.
        protection: What stays in FP32.

    Returns:
        A checked graph with the same inputs and outputs, in which every tensor is explicitly typed.

    Raises:
        ConversionError: The graph is not FP32, a constant exceeds FP16's range, or the protection names a node that is
            a matrix product or does not exist.
        MissingExtraError: onnxruntime or one of its converter's packages is not installed.
    """
    import onnx

    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ModuleNotFoundError as error:
        raise MissingExtraError("convert", str(error.name)) from error
    fp16 = onnx.ModelProto()
    fp16.CopyFrom(model)
    _check_source(fp16, protection)
    _split_shared_constants(fp16, protection)
    _round_constants(fp16, protection)
    fp16 = convert_float_to_float16(
        fp16,
        keep_io_types=True,
        op_block_list=sorted(protection.operations),
        node_block_list=sorted(protection.nodes),
    )
    _drop_round_trips(fp16)
    OnnxModel.graph_topological_sort(fp16.graph)
    del fp16.graph.value_info[:]  # the converter's; some of its tensors are gone
    require_interface(fp16, describe_interface(model), "FP16")
    fp16.producer_name = model.producer_name
    return fp16


def count_kept(model: onnx.ModelProto, protection: Protection) -> int:
    """Return the number of nodes that stay in FP32."""
    return sum(map(protection.covers, model.graph.node))


def _check_source(model: onnx.ModelProto, protection: Protection) -> None:
    from onnx import TensorProto

    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ConversionError("Expected the FP32 graph, got one that has FP16 weights; import the model again.")
    nodes = {node.name: node for node in model.graph.node}
    if len(nodes) != len(model.graph.node) or "" in nodes:
        raise ConversionError("Expected a graph whose nodes have different names; import the model again.")
    if unknown := sorted(protection.nodes - nodes.keys()):
        raise ConversionError(f"Expected names of the graph's nodes to keep in FP32, got {', '.join(unknown)}.")
    if products := [name for name in sorted(protection.nodes) if nodes[name].op_type in FP16_PRODUCTS]:
        raise ConversionError(f"Expected no matrix products to keep in FP32, got {', '.join(products)}.")


def _split_shared_constants(model: onnx.ModelProto, protection: Protection) -> None:
    """Give the FP32 operations their own copy of each constant that FP16 operations use too."""
    from onnx import TensorProto

    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    in_fp16 = {name for node in model.graph.node if not protection.covers(node) for name in node.input}
    copies: set[str] = set()
    for node in filter(protection.covers, model.graph.node):
        for index, name in enumerate(node.input):
            if name not in constants or name not in in_fp16:
                continue
            node.input[index] = f"{name}.fp32"
            if name not in copies:
                copies.add(name)
                model.graph.initializer.add().CopyFrom(constants[name])
                model.graph.initializer[-1].name = f"{name}.fp32"


def _round_constants(model: onnx.ModelProto, protection: Protection) -> None:
    """Round the constants of FP16 operations to the nearest FP16 number, so the converter changes none."""
    from onnx import TensorProto, numpy_helper

    users: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if not protection.covers(node):
            users.update(dict.fromkeys(node.input, node))
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name not in users:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if np.isinf(rounded[np.isfinite(values)]).any():
            node = users[tensor.name]
            raise ConversionError(
                f"The constant {tensor.name} of {node.op_type} {node.name} reaches {np.abs(values).max():.3g}, but "
                f"FP16 ends at {MAX_FP16:.0f}; "
                + ("a matrix product cannot stay in FP32." if node.op_type in FP16_PRODUCTS else "keep it in FP32.")
            )
        tensor.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32), tensor.name))


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Connect FP32 operations that the converter connected through FP16."""
    from onnx import TensorProto

    nodes = model.graph.node
    producers = {name: node for node in nodes for name in node.output}
    renamed: dict[str, str] = {}
    outputs = {value.name for value in model.graph.output}
    for node in [node for node in nodes if _cast_target(node) == TensorProto.FLOAT]:
        narrowing = producers.get(node.input[0])
        if narrowing is None or _cast_target(narrowing) != TensorProto.FLOAT16:
            continue
        source = narrowing.input[0]
        if source not in producers or _cast_target(producers[source]) is not None:
            continue
        if node.output[0] in outputs:  # an output keeps its name
            renamed[source] = node.output[0]
        else:
            renamed[node.output[0]] = source
        nodes.remove(node)
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                while name in renamed:
                    name = renamed[name]
                names[index] = name
    used = {name for node in nodes for name in node.input} | outputs
    for node in [node for node in nodes if _cast_target(node) is not None and node.output[0] not in used]:
        nodes.remove(node)


def _cast_target(node: onnx.NodeProto) -> int | None:
    """Return the element type that a Cast casts to; None for another operation."""
    if node.op_type != "Cast":
        return None
    value: Any = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    return int(value)
