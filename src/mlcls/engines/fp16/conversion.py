"""From the served FP32 graph to an explicitly typed FP16 graph, with chosen operations kept in FP32.

The converter is ONNX Runtime's own (`onnxruntime.transformers.float16`). This module mends what it does wrong: it
rounds a constant that FP32 and FP16 operations share for both, sends a tensor between two FP32 operations through FP16,
and appends its casts unsorted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from mlcls.conversion.onnx_edits import describe_interface, require_interface
from mlcls.errors import ConversionError, MissingExtraError

if TYPE_CHECKING:
    import onnx

# Matrix products, which are always FP16: TensorRT-RTX has no FP32 ones for compute capability 7.5, and they are what
# FP16 is for.
FP16_PRODUCTS: Final = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))

# Operations that sum up or exponentiate, which always stay in FP32: NVIDIA's guide names normalizations and reductions
# as the first to keep ("Precision Control", docs.nvidia.com/deeplearning/tensorrt). The squares in a normalization
# leave FP16's range at 256, which a few images may not show, and these operations cost next to nothing.
FP32_OPERATIONS: Final = frozenset(
    """
    AveragePool BatchNormalization CumSum Erf Exp GlobalAveragePool GroupNormalization HardSigmoid InstanceNormalization
    LayerNormalization Log LogSoftmax LpNormalization Pow ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean ReduceProd
    ReduceSum ReduceSumSquare Reciprocal Sigmoid Softmax Sqrt
    """.split()  # noqa: SIM905
)


def convert_to_fp16(model: onnx.ModelProto, sensitive: Collection[str] = ()) -> onnx.ModelProto:
    """Convert the served FP32 graph to a checked one in which every tensor is explicitly typed.

    Args:
        model: The graph, from uint8 to float32, with float32 weights and named nodes; not modified.
        sensitive: Names of further nodes that stay in FP32; matrix products must not be among them. See
            `mlcls.engines.fp16.sensitivity`, which also checks that constants are in FP16's range.

    Raises:
        ConversionError: The graph is not FP32, or its nodes have no different names.
        MissingExtraError: onnxruntime or one of its converter's packages is not installed.
    """
    import onnx
    from onnx import TensorProto

    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ModuleNotFoundError as error:
        raise MissingExtraError("convert", str(error.name)) from error
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ConversionError("Expected the FP32 graph, got one that has FP16 weights; import the model again.")
    if len({node.name for node in model.graph.node} - {""}) != len(model.graph.node):
        raise ConversionError("Expected a graph whose nodes have different names; import the model again.")
    kept = list_kept(model, sensitive)
    fp16 = onnx.ModelProto()
    fp16.CopyFrom(model)
    _split_shared_constants(fp16, kept)
    fp16 = convert_float_to_float16(fp16, keep_io_types=True, op_block_list=[], node_block_list=sorted(kept))
    edited = OnnxModel(fp16)
    edited.remove_cascaded_cast_nodes()
    results = {tensor for node in fp16.graph.node if node.name in kept for tensor in node.output}
    for node in [node for node in fp16.graph.node if node.op_type == "Cast" and node.input[0] in results]:
        if node.attribute[0].i == TensorProto.FLOAT and node.output[0] != model.graph.output[0].name:
            edited.replace_input_of_all_nodes(node.output[0], node.input[0])  # it casts float32 to float32
            edited.remove_node(node)
    OnnxModel.graph_topological_sort(fp16.graph)
    del fp16.graph.value_info[:]  # the converter's; some of its tensors are gone
    require_interface(fp16, describe_interface(model), "FP16")
    fp16.producer_name = model.producer_name
    return fp16


def list_kept(model: onnx.ModelProto, sensitive: Collection[str]) -> set[str]:
    """Return the names of all nodes that stay in FP32."""
    return {node.name for node in model.graph.node if node.op_type in FP32_OPERATIONS or node.name in sensitive}


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph, from ONNX's shape inference."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {initializer.name: initializer.data_type for initializer in graph.initializer}


def _split_shared_constants(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """Give the FP32 operations their own copy of each constant that FP16 operations use too."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    in_fp16 = {name for node in model.graph.node if node.name not in kept for name in node.input}
    copies: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.name in kept and name in constants and name in in_fp16:
                node.input[index] = copies.setdefault(name, f"{name}.fp32")
    for name, copy in copies.items():
        model.graph.initializer.add().CopyFrom(constants[name])
        model.graph.initializer[-1].name = copy
