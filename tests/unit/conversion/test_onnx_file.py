"""ONNX files that are not whole in themselves, or of operations of somebody's own, are refused before they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlcls.conversion.onnx_file import MAX_OPSET, check_onnx_file, read_onnx
from mlcls.engines.openvino import OpenVinoEngine
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.errors import ModelFormatError
from support.served_graphs import SPEC, make_attention, make_served


def put_outside(tensor: onnx.TensorProto, where: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)


def outside_initializer(model: onnx.ModelProto) -> None:
    put_outside(model.graph.initializer[2], "../../../etc/passwd")


def outside_without_location(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].data_location = TensorProto.EXTERNAL


def location_without_outside(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].external_data.add(key="location", value="weights.bin")


def outside_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(16, np.float32), "hidden")
    put_outside(tensor, "weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def outside_in_a_branch(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(16, np.float32), "deep")
    put_outside(tensor, "/dev/zero")
    branch = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["logits"], ["x"], then_branch=branch, else_branch=branch))


def outside_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
    put_outside(sparse.values, "x")


def outside_in_a_function(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "in a function")
    put_outside(tensor, "x")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(helper.make_function("", "f", [], ["y"], [node], [helper.make_opsetid("", 17)]))


def foreign_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def foreign_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = MAX_OPSET + 1


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def with_training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def nested(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(8):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=graph)], "g", [], [])
    model.graph.node.extend(graph.node)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (outside_initializer, r"the tensor b'conv\.weight' with its data in another file"),
        (outside_without_location, "in another file"),
        (location_without_outside, "in another file"),
        (outside_constant, "the tensor b'hidden' with"),
        (outside_in_a_branch, "the tensor b'deep' with"),
        (outside_sparse, "the tensor b'sparse' with"),
        (outside_in_a_function, "the tensor b'in a function' with"),
        (foreign_opset, r"the domain b'evil\.example'"),
        (foreign_node, r"operations of the domain b'evil\.example'"),
        (future_opset, f"the opset {MAX_OPSET + 1}"),
        (no_opset, "without an opset"),
        (no_graph, "without a graph"),
        (with_training, "graphs for training"),
        (nested, "graphs nested more than"),
    ],
)
def test_what_is_refused(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], words: str) -> None:
    path = tmp_path / "model.onnx"
    model = make_served()
    path.write_bytes(model.SerializeToString())
    check_onnx_file(path)
    spoil(model)
    path.write_bytes(model.SerializeToString())
    for read in (
        check_onnx_file,
        read_onnx,
        lambda path: OpenVinoEngine(path, SPEC),
        lambda path: OnnxRuntimeRunner(path, SPEC),
    ):
        with pytest.raises(ModelFormatError, match=words):
            read(path)


def test_a_file_that_was_read_is_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = make_attention()
    path.write_bytes(model.SerializeToString())
    assert read_onnx(path) == model


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = make_served().SerializeToString()
    for content, words in ((b"", "a file of 0 bytes"), (b"\x80" * 40, "damaged"), (b"PK\x03\x04zip", "damaged")):
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match=words):
            check_onnx_file(path)
    with pytest.raises(ModelFormatError, match="No such file"):
        check_onnx_file(tmp_path / "none.onnx")
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ModelFormatError, match="2147483648 bytes"):
        check_onnx_file(path)
    for end in range(1, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelFormatError, match=r"truncated|damaged|without"):
            check_onnx_file(path)


def test_damaged_bytes_end_in_an_answer(tmp_path: Path) -> None:
    """Whatever a byte becomes, the walk ends, with or without a refusal."""
    path = tmp_path / "model.onnx"
    whole = bytearray(make_served().SerializeToString())
    generator = np.random.default_rng(3)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 4):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            check_onnx_file(path)
        except ModelFormatError:
            refused += 1
    assert 0 < refused < 500
