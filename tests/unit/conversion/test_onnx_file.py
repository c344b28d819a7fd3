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


def put_outside(tensor: onnx.TensorProto, where: str = "weights.bin") -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def outside(name: str) -> onnx.TensorProto:
    return put_outside(numpy_helper.from_array(np.ones(16, np.float32), name))


def constant(name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=outside(name))


def branch(*initializers: onnx.TensorProto, depth: int = 1) -> onnx.NodeProto:
    """An If whose branch is a graph, in which there may be another one, and so on."""
    nodes = [branch(depth=depth - 1)] if depth > 1 else []
    graph = helper.make_graph(nodes, "branch", [], [], list(initializers))
    return helper.make_node("If", ["c"], ["x"], then_branch=graph, else_branch=graph)


def function(name: str) -> onnx.FunctionProto:
    return helper.make_function("", "f", [], ["y"], [constant(name)], [helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda model: put_outside(model.graph.initializer[2], "../../../etc/passwd"),
            r"the tensor b'conv\.weight' with its data in another file",
        ),
        (lambda model: setattr(model.graph.initializer[2], "data_location", TensorProto.EXTERNAL), "in another file"),
        (lambda model: model.graph.initializer[2].external_data.add(key="location", value="x"), "in another file"),
        (lambda model: model.graph.node.append(constant("hidden")), "the tensor b'hidden' with"),
        (lambda model: model.graph.node.append(branch(outside("deep"))), "the tensor b'deep' with"),
        (lambda model: model.graph.sparse_initializer.add().values.CopyFrom(outside("sparse")), "b'sparse' with"),
        (lambda model: model.functions.append(function("in a function")), "the tensor b'in a function' with"),
        (lambda model: model.opset_import.append(helper.make_opsetid("evil.example", 1)), r"domain b'evil\.example'"),
        (lambda model: setattr(model.graph.node[0], "domain", "evil.example"), r"domain b'evil\.example'"),
        (lambda model: setattr(model.opset_import[0], "version", MAX_OPSET + 1), f"the opset {MAX_OPSET + 1}"),
        (lambda model: model.ClearField("opset_import"), "without an opset"),
        (lambda model: model.ClearField("graph"), "without a graph"),
        (lambda model: model.training_info.add(), "graphs for training"),
        (lambda model: model.graph.node.append(branch(depth=8)), "graphs nested more than"),
    ],
)
def test_what_is_refused(tmp_path: Path, spoil: Callable[[onnx.ModelProto], object], words: str) -> None:
    path = tmp_path / "model.onnx"
    model = make_served()
    path.write_bytes(model.SerializeToString())
    check_onnx_file(path)
    spoil(model)
    path.write_bytes(model.SerializeToString())
    runners = (lambda path: OpenVinoEngine(path, SPEC), lambda path: OnnxRuntimeRunner(path, SPEC))
    for read in (check_onnx_file, read_onnx, *runners):
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
