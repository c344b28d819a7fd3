"""Each edit of an ONNX graph by itself: what the graph computes before and after, by ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from mlcls.conversion import onnx_edits
from mlcls.errors import ModelFormatError
from mlcls.images.transforms import normalize
from mlcls.model.spec import ModelSpec
from support.onnx_graphs import Array, list_operations, make_model, make_scorer, run

SIZE = (96, 64)
BATCHES = (1, 3)


def make_input(count: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.float32]:
    """Different pictures: flat colors under noise."""
    generator = np.random.default_rng(count)
    return (generator.normal(size=(count, 3, 1, 1)) + generator.normal(0, 0.5, (count, 3, *size))).astype(np.float32)


def int64(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, **inputs: Array) -> None:
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(run(after, **inputs), run(before, **inputs), rtol=0, atol=1e-6)


def assert_stays(model: onnx.ModelProto, edit: Callable[[onnx.ModelProto], object]) -> None:
    before = copy.deepcopy(model)
    assert not edit(model)
    assert model == before


# --- the interface


def test_describe_interface() -> None:
    model = make_model(
        [helper.make_node("Add", ["a", "c"], ["b"])], {"a": ("N", 3)}, {"b": ("N", 3)}, {"c": np.ones(3, np.float32)}
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [3]))  # as older exporters do
    model.graph.input[0].type.tensor_type.shape.dim.add()
    assert onnx_edits.describe_interface(model) == (("a", "FLOAT", ("N", 3, None)), ("b", "FLOAT", ("N", 3)))
    assert [value.name for value in onnx_edits.graph_inputs(model)] == ["a"]


def with_dims(tensor: str, dims: Sequence[int | str | None], element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A scorer that claims other dims for its input `x` or its output."""
    model = make_scorer(3, SIZE)
    value = model.graph.input[0] if tensor == "x" else model.graph.output[0]
    value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, dims))
    return model


@pytest.mark.parametrize(
    "dims", [("N", 3, *SIZE), ("N", 3, "H", "W"), (None, None, None, None), (-1, 3, -1, -1), ("N", "C", 96, 64)]
)
def test_interface_that_fits(custom_spec: ModelSpec, dims: Sequence[int | str | None]) -> None:
    onnx_edits.check_interface(with_dims("x", dims), custom_spec)


EXPECTED = "one input, float32 (N, 3, 96, 64), which is a free batch size and the size that inference.yml resizes to, "


@pytest.mark.parametrize(
    ("tensor", "dims", "element_type"),
    [
        ("x", ("N", 3, 64, 96), "FLOAT"),
        ("x", ("N", 3, 96), "FLOAT"),
        ("x", (1, 3, *SIZE), "FLOAT"),
        ("y", ("N", 2), "FLOAT"),
        ("y", ("N", 3, 1), "FLOAT"),
        ("x", ("N", 3, *SIZE), "UINT8"),
        ("y", ("N", 3), "FLOAT16"),
    ],
)
def test_interface_that_does_not_fit(
    custom_spec: ModelSpec, tensor: str, dims: Sequence[int | str], element_type: str
) -> None:
    with pytest.raises(ModelFormatError) as caught:
        onnx_edits.check_interface(with_dims(tensor, dims, getattr(TensorProto, element_type)), custom_spec)
    assert EXPECTED in str(caught.value)
    assert f"{element_type} {dims}" in str(caught.value).partition("; got ")[2]


@pytest.mark.parametrize("values", ["input", "output"])
def test_one_tensor_more(custom_spec: ModelSpec, values: str) -> None:
    model = make_scorer(3, SIZE)
    getattr(model.graph, values).append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 2]))
    with pytest.raises(
        ModelFormatError, match=r"Expected a graph with one input.*; got x FLOAT .* more FLOAT \('N', 2\)"
    ):
        onnx_edits.check_interface(model, custom_spec)


# --- the activation


OTHERS = ("Softmax", "LogSoftmax", "HardSigmoid", "Tanh", "Relu")


@pytest.mark.parametrize(
    ("endings", "words"),
    [
        *(((name,), rf"^Expected a multi-label model, .* got one that ends in {name}\.") for name in OTHERS),
        (("Softmax", "Identity"), "got one that ends in Softmax"),
        *(((name, "Sigmoid"), f"^Expected one activation, .* got {name} before Sigmoid") for name in OTHERS),
        (("Sigmoid", "Identity", "Sigmoid", "Identity"), "got Sigmoid before Sigmoid"),
    ],
)
def test_other_activations(endings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelFormatError, match=words):
        onnx_edits.cut_activation(make_scorer(3, SIZE, endings))


def test_output_that_is_the_input() -> None:
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": ("N", 3)}, {"y": ("N", 3)})
    with pytest.raises(ModelFormatError, match=r"^Expected a graph that computes its output"):
        onnx_edits.cut_activation(model)


@pytest.mark.parametrize("ending", ["Flatten", "Transpose", "Clip"])
def test_sigmoid_before_another_operation(ending: str) -> None:
    """The parity check cannot find this: it applies what is found here to the scores of Paddle as well."""
    model = make_scorer(3, SIZE)
    options: dict[str, Any] = {"perm": [0, 1]} if ending == "Transpose" else {}
    model.graph.node.append(helper.make_node(ending, ["sigmoid.0"], ["y"], **options))
    model.graph.output[0].name = "y"
    assert run(model, x=make_input(2)).min() > 0
    with pytest.raises(ModelFormatError, match=f"got Sigmoid before {ending}"):
        onnx_edits.cut_activation(model)


# --- the tiled queries


def make_tile(source: str, *repeats: str, rows: int = 1, operation: str = "Add") -> onnx.ModelProto:
    """`x` (batch, 4, 5), a Tile of `source` by a Concat of `repeats`, and what its result is used for."""
    constants: dict[str, Array] = {
        "constant": np.random.default_rng(6).normal(size=(rows, 4, 5)).astype(np.float32),
        **{name: int64(value) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3))},
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["batch"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Concat", list(repeats), ["repeats"], axis=0),
        helper.make_node("Tile", [source, "repeats"], ["tiled"]),
    ]
    inputs = ["tiled"] if operation == "Identity" else ["x", "tiled"]
    nodes.append(helper.make_node(operation, inputs, ["y"], **({"axis": 1} if operation == "Concat" else {})))
    return make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("M", "K", "L")}, constants)


def make_rows(batch: int) -> Array:
    return np.random.default_rng(batch).normal(size=(batch, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("batch", BATCHES)
def test_tile_of_constant(batch: int) -> None:
    before = make_tile("constant", "batch", "one", "one")
    model = copy.deepcopy(before)
    assert onnx_edits.untile_constants(model) is True
    assert "Tile" not in list_operations(model)
    assert_same(before, model, x=make_rows(batch))


@pytest.mark.parametrize(
    ("source", "repeats", "rows", "operation"),
    [
        ("mean", ("batch", "one", "one"), 1, "Add"),  # no constant
        ("constant", ("batch", "one", "two"), 1, "Identity"),
        ("constant", ("batch", "two", "one"), 1, "Identity"),
        ("constant", ("one", "batch", "one"), 1, "Identity"),
        ("constant", ("two", "one", "one"), 1, "Identity"),
        ("constant", ("batch", "one", "one"), 2, "Identity"),  # more than one row
        ("constant", ("batch", "one", "one"), 1, "Identity"),  # the output itself
        ("constant", ("batch", "one", "one"), 1, "Concat"),  # does not broadcast
    ],
)
def test_tile_that_stays(source: str, repeats: tuple[str, ...], rows: int, operation: str) -> None:
    assert_stays(make_tile(source, *repeats, rows=rows, operation=operation), onnx_edits.untile_constants)


# --- flatten


@pytest.mark.parametrize(
    ("of", "start", "end", "rest"),
    [
        ("other", "zero", "one", ("rest",)),
        ("x", "one", "two", ("rest",)),
        ("x", "one", "one", ("rest",)),
        ("x", "zero", "two", ("rest",)),
        ("x", "zero", "one", ("twenty",)),
        ("x", "zero", "one", ("two", "rest")),
    ],
)
def test_reshape_that_stays(of: str, start: str, end: str, rest: tuple[str, ...]) -> None:
    constants = {name: int64(value) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("rest", -1))}
    constants["twenty"] = int64(20)
    nodes = [
        helper.make_node("Transpose", ["x"], ["other"], perm=[1, 0, 2]),
        helper.make_node("Shape", [of], ["shape"]),
        helper.make_node("Slice", ["shape", start, end], ["first"]),
        helper.make_node("Concat", ["first", *rest], ["dims"], axis=0),
        helper.make_node("Reshape", ["x", "dims"], ["y"]),
    ]
    rank = 1 + len(rest) - (start == end) + (start == "zero" and end == "two")
    model = make_model(nodes, {"x": ("N", 4, 5)}, {"y": tuple("ABC"[:rank])}, constants)
    assert_stays(model, onnx_edits.flatten_without_shape)


@pytest.mark.parametrize("edit", [onnx_edits.flatten_without_shape, onnx_edits.drop_scalar_reshapes])
def test_reshape_to_constant_dims_stays(edit: Callable[[onnx.ModelProto], object]) -> None:
    nodes = [helper.make_node("Reshape", ["x", "dims"], ["y"])]
    assert_stays(make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("N", 20)}, {"dims": int64(-1, 20)}), edit)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("of", ["scalar", "size"])
def test_reshape_to_a_scalar(batch: int, of: str) -> None:
    """The batch's size, taken out of the shape as a scalar (again), as paddle2onnx does it around CLIP's tokens."""
    constants = {name: int64(value) for name, value in (("zero", 0), ("one", 1), ("rest", -1))}
    constants["nothing"] = np.zeros(0, np.int64)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["size"]),
        helper.make_node("Squeeze", ["size", "zero"], ["scalar"]),
        helper.make_node("Reshape", [of, "nothing"], ["again"], allowzero=0),
        helper.make_node("Unsqueeze", ["again", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["dims"], axis=0),
        helper.make_node("Reshape", ["x", "dims"], ["y"]),
    ]
    before = make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("N", 20)}, constants)
    model = copy.deepcopy(before)
    onnx_edits.drop_scalar_reshapes(model)
    onnx.checker.check_model(model, full_check=True)
    assert list_operations(model).count("Reshape") == 1
    assert list_operations(model).count("Squeeze") == (1 if of == "scalar" else 2)
    assert_same(before, model, x=make_rows(batch))


# --- the normalization


@pytest.mark.parametrize(("size", "batch"), [((96, 64), 1), ((64, 96), 3)])
def test_normalization_is_that_of_transforms(custom_spec: ModelSpec, size: tuple[int, int], batch: int) -> None:
    transform = msgspec.structs.replace(custom_spec.transform, height=size[0], width=size[1])
    dims = ("N", 3, *size)
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": dims}, {"y": dims})
    onnx_edits.prepend_normalization(model, msgspec.structs.replace(custom_spec, transform=transform))
    onnx.checker.check_model(model, full_check=True)
    assert onnx_edits.describe_interface(model)[0] == ("pixels", "UINT8", ("N", *size, 3))
    assert list_operations(model) == ["Cast", "Mul", "Add", "Transpose", "Identity"]
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    got = run(model, pixels=pixels)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, normalize(pixels, transform))


# --- the output's name


@pytest.mark.parametrize("output", ["sigmoid.0", "raw"])
def test_name_output(output: str) -> None:
    """Everywhere, if the output is also used inside."""
    before = make_scorer(3, SIZE)
    before.graph.output[0].name = output
    model = copy.deepcopy(before)
    onnx_edits.name_output(model, "logits")
    assert model.graph.output[0].name == "logits"
    assert_same(before, model, x=make_input(2))
