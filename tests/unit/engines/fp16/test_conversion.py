"""An FP16 graph: what is FP16, what is not, and the converter's faults that are mended."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mlcls.conversion.onnx_edits import describe_interface
from mlcls.engines.fp16.conversion import Protection, convert_to_fp16, count_kept
from mlcls.engines.fp16.rounding import element_types
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.errors import ConversionError
from support.served_graphs import SPEC, make_attention, make_overflowing, make_pixels, make_served

NOTHING = Protection("nothing")
NORMS = Protection("norms", frozenset(("LayerNormalization", "Softmax")))


def find_node(model: onnx.ModelProto, operation: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operation)


def constants_of(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def scores(model: onnx.ModelProto, count: int = 6) -> npt.NDArray[np.float32]:
    return OnnxRuntimeRunner(model.SerializeToString(), SPEC, threads=1).scores(make_pixels(count))


@pytest.mark.parametrize("protection", [NOTHING, NORMS])
def test_every_tensor_has_the_type_that_was_asked_for(protection: Protection) -> None:
    source = make_attention()
    before = source.SerializeToString()
    fp16 = convert_to_fp16(source, protection)
    assert source.SerializeToString() == before
    assert describe_interface(fp16) == describe_interface(source)
    types = element_types(fp16)
    for node in fp16.graph.node:
        wanted = TensorProto.FLOAT if protection.covers(node) else TensorProto.FLOAT16
        if node.op_type not in ("Cast", "Reshape"):
            assert types[node.output[0]] == wanted, node.name
            assert types[node.input[0]] == wanted, node.name
    assert types["conv.weight"] == TensorProto.FLOAT16
    assert types["norm.scale"] == (TensorProto.FLOAT if protection is NORMS else TensorProto.FLOAT16)
    assert count_kept(source, protection) == (2 if protection is NORMS else 0)
    assert len(fp16.SerializeToString()) < 0.75 * len(before)
    np.testing.assert_allclose(scores(fp16), scores(source), rtol=0, atol=5e-3)
    assert np.ptp(scores(source), axis=0).max() > 0.1


def test_neighbors_in_fp32_are_not_connected_through_fp16() -> None:
    source = make_overflowing()
    protection = Protection("some", frozenset(("Sqrt",)), frozenset(("n.grown", "n.squares", "n.mixed")))
    fp16 = convert_to_fp16(source, protection)
    types = element_types(fp16)
    squares, roots = find_node(fp16, "Sqrt").input[0], find_node(fp16, "Sqrt").output[0]
    assert types[squares] == types[roots] == TensorProto.FLOAT
    producers = {name: node for node in fp16.graph.node for name in node.output}
    assert producers[squares].op_type == "Mul"
    casts = [node for node in fp16.graph.node if node.op_type == "Cast"]
    # of the pixels, before and after the four, and of the logits
    assert len(casts) == 4


def test_an_output_of_an_fp32_operation_needs_no_cast() -> None:
    fp16 = convert_to_fp16(make_attention(), Protection("last", nodes=frozenset(("n.logits",))))
    last = fp16.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Add", ["logits"])
    assert element_types(fp16)["logits"] == TensorProto.FLOAT


def test_a_shared_constant_stays_exact_for_fp32_operations() -> None:
    value = np.array(0.1, np.float32)
    source = make_served(
        [("Mul", ["features", "factor"], "one"), ("Mul", ["one", "factor"], "mixed")], {"factor": value}
    )
    fp16 = convert_to_fp16(source, Protection("first", nodes=frozenset(("n.one",))))
    found = constants_of(fp16)
    assert found["factor"].dtype == np.float16
    assert found["factor.fp32"] == value


def test_constants_are_rounded_to_the_nearest() -> None:
    values = np.array([1e-8, 2.9e-8, 3.1e-8, 6e-8, -1e-8, 0.1, 65519.0, -np.inf, 0.0] + [1.0] * 7, np.float32)
    fp16 = convert_to_fp16(make_served([("Min", ["features", "bounds"], "mixed")], {"bounds": values}), NOTHING)
    expected = values.copy()
    expected[6] = 65504
    np.testing.assert_array_equal(constants_of(fp16)["bounds"], expected.astype(np.float16))
    assert constants_of(fp16)["bounds"][0] == 0


@pytest.mark.parametrize(
    ("name", "advice"), [("head.weight", "MatMul n.product reaches 7e"), ("head.bias", "Add n.logits reaches 7e")]
)
def test_a_constant_beyond_fp16_is_named(name: str, advice: str) -> None:
    source = make_served()
    tensor = next(tensor for tensor in source.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = -7e4
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ConversionError, match=rf"^The constant {name} of {advice}\+04, but FP16 ends at 65504"):
        convert_to_fp16(source, NOTHING)
    if name == "head.bias":
        convert_to_fp16(source, Protection("last", nodes=frozenset(("n.logits",))))


def test_matrix_products_cannot_be_kept_in_fp32() -> None:
    with pytest.raises(ValueError, match=r"expected no matrix product, got Conv, MatMul"):
        Protection("all", frozenset(("Add", "Conv", "MatMul")))
    with pytest.raises(ConversionError, match=r"Expected no matrix products to keep in FP32, got n\.conv"):
        convert_to_fp16(make_served(), Protection("conv", nodes=frozenset(("n.conv",))))


def test_other_graphs_are_refused() -> None:
    with pytest.raises(ConversionError, match="names of the graph's nodes to keep in FP32, got nothing like it"):
        convert_to_fp16(make_served(), Protection("odd", nodes=frozenset(("nothing like it",))))
    with pytest.raises(ConversionError, match="Expected the FP32 graph, got one that has FP16 weights"):
        convert_to_fp16(convert_to_fp16(make_served(), NOTHING), NOTHING)
    unnamed = make_served()
    unnamed.graph.node[2].name = ""
    with pytest.raises(ConversionError, match="whose nodes have different names"):
        convert_to_fp16(unnamed, NOTHING)
