"""The stand-in for bf16 arithmetic, held against ONNX Runtime's own casts and against float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.speed.precision_price import round_like_bf16, round_to_bf16
from support.int8_graphs import assert_computed_in_bf16, make_pixels, make_served, spec_of
from support.onnx_graphs import run

SPREAD = np.random.default_rng(0).normal(0, 1, 4000) * 10.0 ** np.arange(-20, 20).repeat(100)
EDGES = np.array([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, 1e-40, 3.4e38, np.inf, -np.inf], np.float32)


def test_weights_are_rounded_as_onnx_runtime_rounds() -> None:
    values = np.concatenate([SPREAD.astype(np.float32), EDGES])
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(values)]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "casts", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    expected = run(model, x=values)
    assert not np.array_equal(expected, values)
    np.testing.assert_array_equal(round_to_bf16(values).view(np.uint32), expected.view(np.uint32))


def test_a_rounded_graph_is_near_and_rounds_everywhere() -> None:
    model = make_served(spec_of())
    rounded = round_like_bf16(model)
    onnx.checker.check_model(rounded)
    casts = [node for node in rounded.graph.node if node.op_type == "Cast" and node.output[0].endswith(".bf16")]
    computed = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "Add", "Relu")]
    assert {node.output[0] for node in computed} <= {node.output[0].removesuffix(".bf16") for node in casts}
    pixels = make_pixels(20)
    exact, got = (run(graph, pixels=pixels) for graph in (model, rounded))
    assert_computed_in_bf16(got, exact)
    np.testing.assert_array_equal(got, round_to_bf16(got))
