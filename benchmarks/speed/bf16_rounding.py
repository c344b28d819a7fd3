"""What bf16 arithmetic does to a graph's answers, computed in float32 on a processor without units for it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlcls.engines.fp16.rounding import element_types

_SUFFIX: Final = ".exact"


def round_like_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every float32 weight and every float32 result of an operation rounded to bf16.

    Sums within an operation stay in float32, as in the units of processors. An engine that fuses operations, or keeps
    some in float32, rounds less often than this.

    Args:
        model: A served FP32 graph: `pixels` in and `logits` out, which both keep their names and types.

    Returns:
        A graph of float32 operations and casts.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    floats = {name for name, element_type in element_types(model).items() if element_type == TensorProto.FLOAT}
    for initializer in rounded.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            values = round_to_bf16(numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    nodes = list(rounded.graph.node)
    del rounded.graph.node[:]
    for node in nodes:
        casts = []
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = name + _SUFFIX
                casts.append(helper.make_node("Cast", [name + _SUFFIX], [f"{name}.bf16"], to=TensorProto.BFLOAT16))
                casts.append(helper.make_node("Cast", [f"{name}.bf16"], [name], to=TensorProto.FLOAT))
        rounded.graph.node.extend([node, *casts])
    del rounded.graph.value_info[:]
    return rounded


def round_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 numbers rounded to the nearest bf16, ties to even, in float32 of the same shape; none may be NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(values.shape)
