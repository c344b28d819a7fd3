"""Which nodes go back to FP32 together, and that they do so exactly."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlcls.engines.int8.quantization import (
    check_quantized,
    count_products,
    find_decoder,
    find_normalization,
    has_attention_backbone,
    quantize_graph,
    restore_nodes,
    split_graph,
)
from mlcls.errors import ConversionError
from support.int8_graphs import SIZE, make_pixels, make_served, spec_of
from support.onnx_graphs import make_scorer, run


@pytest.fixture(scope="module")
def served() -> onnx.ModelProto:
    return make_served(spec_of())


@pytest.fixture(scope="module")
def quantized(served: onnx.ModelProto) -> onnx.ModelProto:
    return quantize_graph(served, make_pixels(40))


def names_of(model: onnx.ModelProto, *operations: str) -> set[str]:
    return {node.name for node in model.graph.node if node.op_type in operations}


def test_each_product_is_in_one_part(served: onnx.ModelProto) -> None:
    parts = split_graph(served)
    assert list(parts) == [*(f"backbone {index}/6" for index in range(1, 7)), "decoder"]
    products = names_of(served, "Conv", "MatMul")
    inside = [name for nodes in parts.values() for name in nodes if name in products]
    # the projection of the constant queries does not depend on the image
    assert sorted(inside) == sorted(products - {"project queries"})
    assert [count_products(served, nodes) for nodes in parts.values()] == [*[1] * 6, 5]
    assert find_normalization(served) == {"mlcls.cast", "mlcls.scale", "mlcls.shift", "mlcls.to_chw"}
    assert find_normalization(served).isdisjoint(frozenset().union(*parts.values()))


def test_the_decoder_begins_where_keys_and_values_part(served: onnx.ModelProto) -> None:
    decoder = find_decoder(served)
    assert {"project keys", "project values", "attend", "score"} <= decoder
    assert decoder.isdisjoint(names_of(served, "Conv")), "the backbone is no part of the decoder"
    assert not has_attention_backbone(served)


def test_a_graph_without_attention_and_without_names() -> None:
    model = make_scorer(3, SIZE, endings=())
    with pytest.raises(ConversionError, match="nodes have different names"):
        split_graph(model)
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
    assert list(split_graph(model)) == ["backbone 1/2", "backbone 2/2"]


def test_all_parts_back_is_fp32_to_the_last_bit(served: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    expected, got = (run(model, pixels=make_pixels(8, seed=1)) for model in (served, quantized))
    assert np.abs(expected - got).max() > 1e-3, "otherwise this would prove nothing"
    restored = restore_nodes(quantized, served, frozenset().union(*split_graph(served).values()))
    assert not names_of(restored, "QuantizeLinear", "DequantizeLinear")
    np.testing.assert_array_equal(run(restored, pixels=make_pixels(8, seed=1)), expected)
    with pytest.raises(ConversionError, match="INT8 operations, got one without"):
        check_quantized(restored, served)


@pytest.mark.parametrize("part", ["backbone 1/6", "backbone 4/6", "decoder"])
def test_one_part_back(served: onnx.ModelProto, quantized: onnx.ModelProto, part: str) -> None:
    before = quantized.SerializeToString(deterministic=True)
    nodes = split_graph(served)[part]
    restored = restore_nodes(quantized, served, nodes)
    check_quantized(restored, served)
    assert quantized.SerializeToString(deterministic=True) == before, "the quantized graph stays as it is"
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in served.graph.initializer}
    again = {tensor.name: numpy_helper.to_array(tensor) for tensor in restored.graph.initializer}
    originals = {node.name: node for node in served.graph.node}
    produced = {output: node.op_type for node in restored.graph.node for output in node.output}
    for node in restored.graph.node:
        if node.name in nodes:
            assert not {produced.get(tensor) for tensor in node.input} & {"DequantizeLinear"}, node.name
            for tensor, original in zip(node.input, originals[node.name].input, strict=True):
                if original in weights:
                    np.testing.assert_array_equal(again[tensor], weights[original])
    assert 0 < len(names_of(restored, "QuantizeLinear")) < len(names_of(quantized, "QuantizeLinear"))


def test_a_node_that_is_gone(served: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    other = copy.deepcopy(quantized)
    next(node for node in other.graph.node if node.name == "score").name = "another"
    with pytest.raises(ConversionError, match="Expected the node score in the quantized graph"):
        restore_nodes(other, served, {"score"})
