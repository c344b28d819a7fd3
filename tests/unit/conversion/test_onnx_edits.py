"""Each edit of an ONNX graph by itself: what the graph computes before and after, by ONNX Runtime."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from mlcls.conversion import onnx_edits
from mlcls.errors import ConversionError, ModelFormatError
from mlcls.images.transforms import normalize
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.onnx_graphs import Array, list_operations, make_decoder, make_model, make_scorer, run

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


MAKERS = pytest.mark.parametrize("make", [make_scorer, make_decoder])


@MAKERS
def test_graphs_are_sensitive(make: Any) -> None:
    """Otherwise no comparison below could fail."""
    scores = run(make(3, SIZE), x=make_input(3))
    assert scores.shape == (3, 3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(scores[first] - scores[second]).max() > 0.05


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
    "dims",
    [
        ("N", 3, *SIZE), ("N", 3, "H", "W"), (None, None, None, None), ("N", 3, 96, None), (-1, 3, -1, -1),
        ("N", "C", 96, 64),
    ],
)  # fmt: skip
def test_interface_that_fits(custom_spec: ModelSpec, dims: Sequence[int | str | None]) -> None:
    onnx_edits.check_interface(with_dims("x", dims), custom_spec)


EXPECTED = "one input, float32 (N, 3, 96, 64), which is a free batch size and the size that inference.yml resizes to, "


@pytest.mark.parametrize(
    ("tensor", "dims", "element_type"),
    [
        *(("x", dims, "FLOAT") for dims in [("N", 3, 64, 96), ("N", 96, 64, 3), ("N", 3, 96), (), (1, 3, *SIZE)]),
        *(("y", dims, "FLOAT") for dims in [("N", 2), ("N", 80), ("N",), ("N", 3, 1)]),
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


@MAKERS
@pytest.mark.parametrize("endings", [("Sigmoid",), ("Identity", "Sigmoid"), ("Sigmoid", "Identity", "Cast")])
def test_sigmoid_is_cut(make: Any, endings: tuple[str, ...]) -> None:
    before = make(3, SIZE, endings)
    model = copy.deepcopy(before)
    assert onnx_edits.cut_activation(model) == "sigmoid"
    onnx.checker.check_model(model)
    for batch in BATCHES:
        x = make_input(batch)
        logits = run(model, x=x)
        assert logits.min() < 0 or logits.max() > 1
        np.testing.assert_allclose(apply_sigmoid(logits), run(before, x=x), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(logits, run(make(3, SIZE, ()), x=x))


@MAKERS
@pytest.mark.parametrize("endings", [(), ("Cast", "Identity")])
def test_no_activation(make: Any, endings: tuple[str, ...]) -> None:
    before = make(3, SIZE, endings)
    model = copy.deepcopy(before)
    assert onnx_edits.cut_activation(model) == "none"
    assert_same(before, model, x=make_input(2))


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


@pytest.mark.parametrize("batch", BATCHES)
def test_queries_are_untiled(batch: int) -> None:
    before = make_decoder(3, SIZE)
    model = copy.deepcopy(before)
    assert onnx_edits.untile_constants(model) is True
    assert "Tile" in list_operations(before)
    assert "Tile" not in list_operations(model)
    assert_same(before, model, x=make_input(batch))


def test_nothing_to_untile() -> None:
    assert_stays(make_scorer(3, SIZE), onnx_edits.untile_constants)


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


@MAKERS
def test_flatten_is_rewritten(make: Any) -> None:
    before = make(3, SIZE)
    model = copy.deepcopy(before)
    onnx_edits.flatten_without_shape(model)
    reshape = next(node for node in model.graph.node if node.name.startswith("flatten."))
    dims = next(item for item in model.graph.initializer if item.name == reshape.input[1])
    assert onnx.numpy_helper.to_array(dims).tolist() == [0, -1]
    for batch in BATCHES:
        assert_same(before, model, x=make_input(batch))


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


def make_passthrough(size: tuple[int, int]) -> onnx.ModelProto:
    dims = ("N", 3, *size)
    return make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": dims}, {"y": dims})


@pytest.mark.parametrize(("size", "batch"), [((96, 64), 1), ((64, 96), 3)])
def test_normalization_is_that_of_transforms(custom_spec: ModelSpec, size: tuple[int, int], batch: int) -> None:
    transform = dataclasses.replace(custom_spec.transform, height=size[0], width=size[1])
    model = make_passthrough(size)
    onnx_edits.prepend_normalization(model, dataclasses.replace(custom_spec, transform=transform))
    onnx.checker.check_model(model, full_check=True)
    assert onnx_edits.describe_interface(model)[0] == ("pixels", "UINT8", ("N", *size, 3))
    assert list_operations(model) == ["Cast", "Mul", "Add", "Transpose", "Identity"]
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    got = run(model, pixels=pixels)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, normalize(pixels, transform))


def test_normalization_of_every_value(custom_spec: ModelSpec) -> None:
    """Each of the 256 values in each channel, at batch 1."""
    transform = dataclasses.replace(custom_spec.transform, height=256, width=3)
    model = make_passthrough((256, 3))
    onnx_edits.prepend_normalization(model, dataclasses.replace(custom_spec, transform=transform))
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 256, 3, 3)).copy()
    got = run(model, pixels=pixels)
    for channel, (mean, std) in enumerate(zip(transform.mean, transform.std, strict=True)):
        expected = (np.arange(256) * transform.scale - mean) / std
        np.testing.assert_allclose(got[0, channel, :, 0], expected, rtol=0, atol=1e-6)


# --- names and the batch dimension


@pytest.mark.parametrize("output", ["sigmoid.0", "raw"])
def test_name_output(output: str) -> None:
    """Everywhere, if the output is also used inside."""
    before = make_scorer(3, SIZE)
    before.graph.output[0].name = output
    model = copy.deepcopy(before)
    onnx_edits.name_output(model, "logits")
    assert model.graph.output[0].name == "logits"
    assert_same(before, model, x=make_input(2))


def test_name_that_is_taken() -> None:
    with pytest.raises(ConversionError, match=r"^Expected no tensor named 'relu' in the Paddle graph"):
        onnx_edits.name_output(make_scorer(3, SIZE), "relu")


def test_set_batch_dimension() -> None:
    model = make_scorer(3, SIZE, batch=1)
    model.graph.value_info.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 8]))
    onnx_edits.set_batch_dimension(model, "batch")
    assert [dims for _, _, dims in onnx_edits.describe_interface(model)] == [("batch", 3, 96, 64), ("batch", 3)]
    assert not model.graph.value_info
    onnx.checker.check_model(model, full_check=True)
    x = make_input(3)
    np.testing.assert_allclose(run(model, x=x), run(make_scorer(3, SIZE), x=x), atol=1e-6)
