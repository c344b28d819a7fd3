"""Each edit of an ONNX graph by itself: what the graph computes before and after, by ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgspec
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


@pytest.mark.parametrize("make", [make_scorer, make_decoder])
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


@pytest.mark.parametrize("make", [make_scorer, make_decoder])
def test_interface_that_fits(custom_spec: ModelSpec, make: Any) -> None:
    onnx_edits.check_interface(make(3, SIZE), custom_spec)


def with_dims(tensor: str, dims: Sequence[int | str | None], element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A scorer that claims other dims for its input `x` or its output."""
    model = make_scorer(3, SIZE)
    value = model.graph.input[0] if tensor == "x" else model.graph.output[0]
    value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, dims))
    return model


@pytest.mark.parametrize(
    "dims", [("N", 3, "H", "W"), (None, None, None, None), ("N", 3, 96, None), (-1, 3, -1, -1), ("N", "C", 96, 64)]
)
def test_free_size(custom_spec: ModelSpec, dims: Sequence[int | str | None]) -> None:
    onnx_edits.check_interface(with_dims("x", dims), custom_spec)


@pytest.mark.parametrize(
    "dims", [("N", 3, 64, 96), ("N", 3, 96, 96), ("N", 3, 64, 64), ("N", 1, 96, 64), ("N", 96, 64, 3), ("N", 3, 96), ()]
)
def test_wrong_input(custom_spec: ModelSpec, dims: Sequence[int | str]) -> None:
    with pytest.raises(ModelFormatError, match=r"input to be float32 \(N, 3, 96, 64\).* got FLOAT \("):
        onnx_edits.check_interface(with_dims("x", dims), custom_spec)


@pytest.mark.parametrize("element_type", [TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_wrong_types(custom_spec: ModelSpec, element_type: int) -> None:
    name = TensorProto.DataType.Name(element_type)
    with pytest.raises(ModelFormatError, match=rf"input to be float32 .* got {name} "):
        onnx_edits.check_interface(with_dims("x", ("N", 3, 96, 64), element_type), custom_spec)
    with pytest.raises(ModelFormatError, match=rf"output to be float32 .* got {name} "):
        onnx_edits.check_interface(with_dims("y", ("N", 3), element_type), custom_spec)


@pytest.mark.parametrize("dims", [("N", 2), ("N", 4), ("N", 80), ("N",), ("N", 3, 1), ("N", 1, 3), ("N", 0)])
def test_wrong_number_of_labels(custom_spec: ModelSpec, dims: Sequence[int | str]) -> None:
    with pytest.raises(ModelFormatError, match=r"output to be float32 \(N, 3\), one score for each label .* got FLOAT"):
        onnx_edits.check_interface(with_dims("y", dims), custom_spec)


def test_two_inputs(custom_spec: ModelSpec) -> None:
    model = make_scorer(3, SIZE)
    model.graph.input.append(helper.make_tensor_value_info("im_shape", TensorProto.FLOAT, ["N", 2]))
    with pytest.raises(ModelFormatError, match=r"got 2 inputs and 1 outputs: x, im_shape, sigmoid.0\.$"):
        onnx_edits.check_interface(model, custom_spec)


def test_two_outputs(custom_spec: ModelSpec) -> None:
    model = make_scorer(3, SIZE)
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 8]))
    with pytest.raises(ModelFormatError, match=r"got 1 inputs and 2 outputs: x, sigmoid.0, features\.$"):
        onnx_edits.check_interface(model, custom_spec)


# --- the activation


@pytest.mark.parametrize("make", [make_scorer, make_decoder])
@pytest.mark.parametrize(
    "endings", [("Sigmoid",), ("Sigmoid", "Identity"), ("Identity", "Sigmoid"), ("Sigmoid", "Identity", "Cast")]
)
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


@pytest.mark.parametrize("make", [make_scorer, make_decoder])
@pytest.mark.parametrize("endings", [(), ("Identity",), ("Cast", "Identity")])
def test_no_activation(make: Any, endings: tuple[str, ...]) -> None:
    before = make(3, SIZE, endings)
    model = copy.deepcopy(before)
    assert onnx_edits.cut_activation(model) == "none"
    assert_same(before, model, x=make_input(2))


@pytest.mark.parametrize("operation", ["Softmax", "LogSoftmax", "HardSigmoid", "Tanh", "Relu"])
@pytest.mark.parametrize("after", [(), ("Identity",)])
def test_other_activation(operation: str, after: tuple[str, ...]) -> None:
    with pytest.raises(
        ModelFormatError, match=rf"^Expected a multi-label model, .* got one that ends in {operation}\."
    ):
        onnx_edits.cut_activation(make_scorer(3, SIZE, (operation, *after)))


@pytest.mark.parametrize("operation", ["Sigmoid", "Softmax", "Tanh", "Relu"])
@pytest.mark.parametrize("after", [(), ("Identity",)])
def test_two_activations(operation: str, after: tuple[str, ...]) -> None:
    with pytest.raises(ModelFormatError, match=rf"^Expected one activation .*, got {operation} before a Sigmoid\."):
        onnx_edits.cut_activation(make_scorer(3, SIZE, (operation, "Sigmoid", *after)))


def test_two_activations_with_something_between() -> None:
    with pytest.raises(ModelFormatError, match=r"^Expected one activation"):
        onnx_edits.cut_activation(make_scorer(3, SIZE, ("Sigmoid", "Identity", "Sigmoid")))


def test_output_that_is_the_input() -> None:
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": ("N", 3)}, {"y": ("N", 3)})
    with pytest.raises(ModelFormatError, match=r"^Expected a graph that computes its output"):
        onnx_edits.cut_activation(model)


@pytest.mark.parametrize("ending", ["Reshape", "Squeeze", "Flatten", "Transpose", "Clip"])
def test_sigmoid_before_another_operation(ending: str) -> None:
    """The parity check cannot find this: it applies what is found here to the scores of Paddle as well."""
    model = make_scorer(3, SIZE)
    constants = {"Reshape": int64(0, 3), "Squeeze": int64(1)}
    if ending in constants:
        model.graph.initializer.append(onnx.numpy_helper.from_array(constants[ending], "last"))
    source = "sigmoid.0"
    if ending == "Squeeze":
        model.graph.node.append(helper.make_node("Unsqueeze", [source, "last"], ["wide"]))
        source = "wide"
    options: dict[str, Any] = {"perm": [0, 1]} if ending == "Transpose" else {}
    model.graph.node.append(
        helper.make_node(ending, [source, "last"] if ending in constants else [source], ["y"], **options)
    )
    model.graph.output[0].name = "y"
    assert run(model, x=make_input(2)).min() > 0
    try:
        found = onnx_edits.cut_activation(model)
    except ModelFormatError:
        return
    assert found == "sigmoid"


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
    model = make_scorer(3, SIZE)
    before = copy.deepcopy(model)
    assert onnx_edits.untile_constants(model) is False
    assert model == before


def make_tile(source: str, *repeats: str, rows: int = 1, rank: int = 3, operation: str = "Add") -> onnx.ModelProto:
    """`x` (batch, 4, 5), a Tile of `source` by a Concat of `repeats`, and what its result is used for."""
    generator = np.random.default_rng(6)
    shape = (rows, 4, 5)[:rank] if rank <= 3 else (rows, 1, 4, 5)
    constants: dict[str, Array] = {
        "constant": generator.normal(size=shape).astype(np.float32),
        **{name: int64(value) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3))},
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["batch"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Concat", list(repeats), ["repeats"], axis=0),
        helper.make_node("Tile", [source, "repeats"], ["tiled"]),
    ]
    if operation == "Concat":
        nodes.append(helper.make_node("Concat", ["x", "tiled"], ["y"], axis=1))
    elif operation == "Identity":
        nodes.append(helper.make_node("Identity", ["tiled"], ["y"]))
    else:
        nodes.append(helper.make_node(operation, ["x", "tiled"], ["y"]))
    return make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("M", "K", "L")}, constants)


@pytest.mark.parametrize("batch", BATCHES)
def test_tile_of_constant(batch: int) -> None:
    before = make_tile("constant", "batch", "one", "one")
    model = copy.deepcopy(before)
    assert onnx_edits.untile_constants(model) is True
    assert "Tile" not in list_operations(model)
    x = np.random.default_rng(batch).normal(size=(batch, 4, 5)).astype(np.float32)
    assert_same(before, model, x=x)


@pytest.mark.parametrize(
    ("source", "repeats", "options"),
    [
        ("mean", ("batch", "one", "one"), {}),
        ("constant", ("batch", "one", "two"), {"operation": "Identity"}),
        ("constant", ("batch", "two", "one"), {"operation": "Identity"}),
        ("constant", ("one", "batch", "one"), {"operation": "Identity"}),
        ("constant", ("batch", "one", "one"), {"rows": 2, "operation": "Identity"}),
    ],
    ids=["not constant", "last axis too", "middle axis too", "another axis", "more than one row"],
)
@pytest.mark.parametrize("batch", BATCHES)
def test_tile_that_stays(source: str, repeats: tuple[str, ...], options: dict[str, Any], batch: int) -> None:
    before = make_tile(source, *repeats, **options)
    model = copy.deepcopy(before)
    assert onnx_edits.untile_constants(model) is False
    assert model == before
    x = np.random.default_rng(batch).normal(size=(batch, 4, 5)).astype(np.float32)
    assert_same(before, model, x=x)


def test_tile_by_a_constant_stays() -> None:
    model = make_tile("constant", "batch", "one", "one", operation="Identity")
    model.graph.initializer.append(onnx.numpy_helper.from_array(int64(2, 1, 1), "fixed"))
    next(node for node in model.graph.node if node.op_type == "Tile").input[1] = "fixed"
    before = copy.deepcopy(model)
    assert onnx_edits.untile_constants(model) is False
    assert model == before


@pytest.mark.parametrize(
    ("repeats", "operation"),
    [
        (("batch", "one", "one"), "Concat"),
        (("two", "one", "one"), "Identity"),
        (("batch", "one", "one"), "Identity"),
    ],
    ids=["used by an operation that does not broadcast", "not by the batch", "the output itself"],
)
def test_tile_that_nothing_broadcasts(repeats: tuple[str, ...], operation: str) -> None:
    before = make_tile("constant", *repeats, operation=operation)
    model = copy.deepcopy(before)
    onnx_edits.untile_constants(model)
    x = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    got, expected = run(model, x=x), run(before, x=x)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


# --- flatten


@pytest.mark.parametrize("make", [make_scorer, make_decoder])
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
    ids=["batch of another tensor", "another dim", "no dim", "two dims", "no free dim", "three dims"],
)
@pytest.mark.parametrize("batch", [2, 4])
def test_reshape_that_stays(batch: int, of: str, start: str, end: str, rest: tuple[str, ...]) -> None:
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
    before = copy.deepcopy(model)
    onnx_edits.flatten_without_shape(model)
    assert model == before
    x = np.random.default_rng(batch).normal(size=(batch, 4, 5)).astype(np.float32)
    assert run(model, x=x).size == x.size


def test_reshape_to_constant_dims_stays() -> None:
    nodes = [helper.make_node("Reshape", ["x", "dims"], ["y"])]
    model = make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("N", 20)}, {"dims": int64(-1, 20)})
    before = copy.deepcopy(model)
    onnx_edits.flatten_without_shape(model)
    assert model == before


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
    x = np.random.default_rng(batch).normal(size=(batch, 4, 5)).astype(np.float32)
    assert_same(before, model, x=x)


def test_other_reshapes_stay() -> None:
    nodes = [helper.make_node("Reshape", ["x", "dims"], ["y"])]
    model = make_model(nodes, {"x": ("N", 4, 5)}, {"y": ("N", 20)}, {"dims": int64(-1, 20)})
    before = copy.deepcopy(model)
    onnx_edits.drop_scalar_reshapes(model)
    assert model == before


# --- the normalization


def make_passthrough(size: tuple[int, int], batch: int | str = "N", name: str = "x") -> onnx.ModelProto:
    dims = (batch, 3, *size)
    return make_model([helper.make_node("Identity", [name], ["y"])], {name: dims}, {"y": dims})


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (16, 16)])
def test_normalization_is_that_of_transforms(custom_spec: ModelSpec, size: tuple[int, int], batch: int) -> None:
    transform = msgspec.structs.replace(custom_spec.transform, height=size[0], width=size[1])
    spec = msgspec.structs.replace(custom_spec, transform=transform)
    model = make_passthrough(size)
    onnx_edits.prepend_normalization(model, spec)
    onnx.checker.check_model(model, full_check=True)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    got = run(model, pixels=pixels)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, normalize(pixels, transform))


def test_normalization_of_every_value(custom_spec: ModelSpec) -> None:
    """Each of the 256 values in each channel, at batch 1."""
    transform = msgspec.structs.replace(custom_spec.transform, height=256, width=3)
    model = make_passthrough((256, 3))
    onnx_edits.prepend_normalization(model, msgspec.structs.replace(custom_spec, transform=transform))
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 256, 3, 3)).copy()
    got = run(model, pixels=pixels)
    for channel, (mean, std) in enumerate(zip(transform.mean, transform.std, strict=True)):
        expected = (np.arange(256) * transform.scale - mean) / std
        np.testing.assert_allclose(got[0, channel, :, 0], expected, rtol=0, atol=1e-6)


def test_interface_after_normalization(custom_spec: ModelSpec) -> None:
    model = make_passthrough((96, 64))
    onnx_edits.prepend_normalization(model, custom_spec)
    assert onnx_edits.describe_interface(model) == (
        ("pixels", "UINT8", ("N", 96, 64, 3)),
        ("y", "FLOAT", ("N", 3, 96, 64)),
    )
    assert list_operations(model) == ["Cast", "Mul", "Add", "Transpose", "Identity"]


# --- names and the batch dimension


@pytest.mark.parametrize("endings", [("Sigmoid",), ()])
def test_name_output(endings: tuple[str, ...]) -> None:
    before = make_scorer(3, SIZE, endings)
    model = copy.deepcopy(before)
    onnx_edits.name_output(model, "logits")
    assert model.graph.output[0].name == "logits"
    assert_same(before, model, x=make_input(2))


def test_name_output_that_is_used_inside() -> None:
    before = make_scorer(3, SIZE)
    before.graph.output[0].name = "raw"
    model = copy.deepcopy(before)
    onnx_edits.name_output(model, "logits")
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    assert list(sigmoid.input) == ["logits"]
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
