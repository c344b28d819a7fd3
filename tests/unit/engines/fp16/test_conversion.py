"""An FP16 graph: what is FP16, what is not, and the converter's faults that are mended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mlcls.conversion.onnx_edits import describe_interface
from mlcls.engines.fp16.conversion import FP32_OPERATIONS, convert_to_fp16, element_types, list_kept
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.errors import ConversionError
from support.served_graphs import SPEC, make_attention, make_overflowing, make_pixels, make_served


def scores(model: onnx.ModelProto, count: int = 6) -> npt.NDArray[np.float32]:
    return OnnxRuntimeRunner(model.SerializeToString(), SPEC).scores(make_pixels(count))


@pytest.mark.parametrize("sensitive", [set(), {"n.mixed"}])
def test_every_tensor_has_the_type_that_was_asked_for(sensitive: set[str]) -> None:
    source = make_attention()
    before = source.SerializeToString()
    fp16 = convert_to_fp16(source, sensitive)
    assert source.SerializeToString() == before
    assert describe_interface(fp16) == describe_interface(source)
    types = element_types(fp16)
    for node in fp16.graph.node:
        kept = node.op_type in FP32_OPERATIONS or node.name in sensitive
        wanted = TensorProto.FLOAT if kept else TensorProto.FLOAT16
        if node.op_type not in ("Cast", "Reshape"):
            assert types[node.output[0]] == wanted, node.name
            assert types[node.input[0]] == wanted, node.name
    assert types["conv.weight"] == TensorProto.FLOAT16
    assert types["norm.scale"] == TensorProto.FLOAT
    assert list_kept(source, sensitive) == {"n.norm", "n.attention", "n.pooled"} | sensitive
    assert len(fp16.SerializeToString()) < 0.75 * len(before)
    np.testing.assert_allclose(scores(fp16), scores(source), rtol=0, atol=5e-3)
    assert np.ptp(scores(source), axis=0).max() > 0.1


def test_neighbors_in_fp32_are_not_connected_through_fp16() -> None:
    fp16 = convert_to_fp16(make_overflowing(), {"n.grown", "n.squares", "n.mixed"})
    producers = {name: node for node in fp16.graph.node for name in node.output}
    (root,) = (node for node in fp16.graph.node if node.op_type == "Sqrt")
    assert producers[root.input[0]].op_type == "Mul"
    assert {element_types(fp16)[tensor] for tensor in (*root.input, *root.output)} == {TensorProto.FLOAT}
    # of the pixels, before the first of the five, after the last, and of the logits
    assert sum(node.op_type == "Cast" for node in fp16.graph.node) == 4


def test_a_shared_constant_stays_exact_for_fp32_operations() -> None:
    value = np.array(0.1, np.float32)
    source = make_served(
        [("Mul", ["features", "factor"], "one"), ("Mul", ["one", "factor"], "mixed")], {"factor": value}
    )
    fp16 = convert_to_fp16(source, {"n.one"})
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp16.graph.initializer}
    assert found["factor"].dtype == np.float16
    assert found["factor.fp32"] == value


def test_other_graphs_are_refused() -> None:
    with pytest.raises(ConversionError, match="Expected the FP32 graph, got one that has FP16 weights"):
        convert_to_fp16(convert_to_fp16(make_served()))
    unnamed = make_served()
    unnamed.graph.node[2].name = ""
    with pytest.raises(ConversionError, match="whose nodes have different names"):
        convert_to_fp16(unnamed)
