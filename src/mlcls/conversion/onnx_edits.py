"""Edits of an ONNX graph, each a function that changes the model in place and does one thing."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlcls.errors import ConversionError, ModelFormatError
from mlcls.images.transforms import normalization_constants
from mlcls.model.contract import TENSORS
from mlcls.model.spec import Activation, ModelSpec

if TYPE_CHECKING:
    import onnx

Dimension = int | str | None
Interface = tuple[tuple[str, str, tuple[Dimension, ...]], ...]

# Activations other than the sigmoid that a model may end in; a multi-label model has none of them.
_OTHER_ACTIVATIONS: Final = ("Softmax", "LogSoftmax", "HardSigmoid", "Tanh", "Relu", "ArgMax", "TopK")

# Operations that do not change the scores, and those that only rearrange or bound them.
_NEUTRAL: Final = ("Identity", "Cast")
_RESHAPING: Final = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Clip")

# Operations whose result with (1, ...) is that with a tensor tiled to (batch, ...), or has a dim that still broadcasts.
_BROADCASTING: Final = frozenset(("Add", "Sub", "Mul", "Div", "MatMul", "LayerNormalization"))


def describe_interface(model: onnx.ModelProto) -> Interface:
    """Return name, element type and dims of each input and output; a dim is a number, a name or None."""
    import onnx

    described = []
    for value in (*graph_inputs(model), *model.graph.output):
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
        described.append((value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), dims))
    return tuple(described)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph's inputs without the initializers."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def check_interface(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Check that a graph from paddle2onnx has the input and output that the spec describes.

    Raises:
        ModelFormatError: The graph has other inputs or outputs, another input size or another number of labels.
    """
    shape, interface = (3, spec.transform.height, spec.transform.width), describe_interface(model)
    wanted = ((0, *shape), (None, spec.num_labels))  # 0: must be free; None: is not looked at
    fits = (len(graph_inputs(model)), len(model.graph.output)) == (1, 1) and all(
        kind == "FLOAT" and len(dims) == len(sizes) and all(map(_fits, dims, sizes))
        for (_, kind, dims), sizes in zip(interface, wanted, strict=True)
    )
    if not fits:
        got = ", ".join(f"{name} {kind} {dims}" for name, kind, dims in interface)
        raise ModelFormatError(
            f"Expected a graph with one input, float32 (N, {', '.join(map(str, shape))}), which is a free batch size "
            f"and the size that inference.yml resizes to, and with one output, float32 (N, {spec.num_labels}), one "
            f"score for each label of inference.yml; got {got}."
        )


def _fits(dim: Dimension, size: int | None) -> bool:
    return size is None or not isinstance(dim, int) or dim < 1 or dim == size


def require_interface(model: onnx.ModelProto, expected: Interface, name: str) -> None:
    """Check that a graph that was made here is valid ONNX and has the expected inputs and outputs.

    Raises:
        ConversionError: It is not or has not; the text calls the graph `name`.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx's errors have no common public base
        raise ConversionError(f"The {name} graph is not valid ONNX: {error}") from error
    if (got := describe_interface(model)) != expected:
        raise ConversionError(f"Expected the {name} graph to be {expected}, got {got}.")


def cut_activation(model: onnx.ModelProto) -> Activation:
    """Make the graph end in its logits; return `sigmoid` if it ended in one, which was cut off, or else `none`.

    Raises:
        ModelFormatError: The graph ends in another activation, or has one before its last operation.
    """
    output = model.graph.output[0]
    last = _skip(model, _producer(model, output.name), _NEUTRAL)
    if last is None:
        raise ModelFormatError("Expected a graph that computes its output, got one that returns an input.")
    if last.op_type in _OTHER_ACTIVATIONS:
        raise ModelFormatError(
            f"Expected a multi-label model, whose graph ends in a Sigmoid or in logits, got one that ends in "
            f"{last.op_type}."
        )
    is_sigmoid = last.op_type == "Sigmoid"
    inner = _skip(model, _producer(model, last.input[0]) if is_sigmoid else last, (*_NEUTRAL, *_RESHAPING))
    if inner is not None and inner.op_type in ("Sigmoid", *_OTHER_ACTIVATIONS):
        raise ModelFormatError(
            f"Expected one activation, a Sigmoid at the end of the graph, got {inner.op_type} before {last.op_type}."
        )
    if not is_sigmoid:
        return "none"
    output.name = last.input[0]
    return "sigmoid"


def untile_constants(model: onnx.ModelProto) -> bool:
    """Remove each Tile that only repeats a constant (1, ...) along the batch; return whether there was one.

    What follows broadcasts.
    """
    constants = {initializer.name: initializer.dims for initializer in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    found = False
    for node in list(model.graph.node):
        dims: Any = constants.get(node.input[0], ()) if node.op_type == "Tile" else ()
        if len(dims) < 2 or dims[0] != 1 or not _repeats_along_batch_only(model, node.input[1], len(dims)):
            continue
        users = {user.op_type for user in model.graph.node if node.output[0] in user.input}
        if users <= _BROADCASTING and node.output[0] not in outputs:
            _replace_input(model, node.output[0], node.input[0])
            model.graph.node.remove(node)
            found = True
    return found


def flatten_without_shape(model: onnx.ModelProto) -> None:
    """Replace each `Reshape(x, Concat(Shape(x)[0:1], [-1]))` with the equivalent `Reshape(x, [0, -1])`.

    OpenVINO 2024.4 rejects the scalar Reshape that the former leaves behind, and no engine can fold it.
    """
    import onnx

    for node in model.graph.node:
        parts = _concatenated(model, node.input[1]) if node.op_type == "Reshape" else []
        if len(parts) != 2 or _constant(model, parts[1]) != [-1] or _batch_source(model, parts[0]) != node.input[0]:
            continue
        name = f"{node.output[0]}.dims"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1], np.int64), name))
        node.input[1] = name


def drop_scalar_reshapes(model: onnx.ModelProto) -> None:
    """Remove each Reshape of a scalar to a scalar, which paddle2onnx writes around the batch size.

    It has no effect, and OpenVINO 2024.4 rejects its empty pattern. A Reshape of one element to a scalar becomes a
    Squeeze.
    """
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input)}
    scalars = {name for name, found in types.items() if found.HasField("shape") and not found.shape.dim}
    outputs = {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        if node.op_type != "Reshape" or _constant(model, node.input[1]) != []:
            continue
        if node.input[0] in scalars and node.output[0] not in outputs:
            _replace_input(model, node.output[0], node.input[0])
            model.graph.node.remove(node)
        else:
            node.op_type = "Squeeze"
            del node.input[1]
            del node.attribute[:]


def prepend_normalization(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Prepend the conversion to float32, the normalization and the transposition to (N, 3, H, W).

    The arithmetic is PaddleX's: one float32 multiplication and one float32 addition per value.
    """
    from onnx import TensorProto, helper, numpy_helper

    source = graph_inputs(model)[0]
    alpha, beta = normalization_constants(spec.transform)
    for name, value in (("mlcls.alpha", alpha), ("mlcls.beta", beta)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    nodes = [
        helper.make_node("Cast", [TENSORS.pixels], ["mlcls.float"], "mlcls.cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mlcls.float", "mlcls.alpha"], ["mlcls.scaled"], "mlcls.scale"),
        helper.make_node("Add", ["mlcls.scaled", "mlcls.beta"], ["mlcls.normalized"], "mlcls.shift"),
        helper.make_node("Transpose", ["mlcls.normalized"], ["mlcls.chw"], "mlcls.to_chw", perm=[0, 3, 1, 2]),
    ]
    _replace_input(model, source.name, "mlcls.chw")
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)
    shape = [source.type.tensor_type.shape.dim[0].dim_param or "N", spec.transform.height, spec.transform.width, 3]
    replacement: onnx.ValueInfoProto = helper.make_tensor_value_info(TENSORS.pixels, TensorProto.UINT8, shape)
    model.graph.input.remove(source)
    model.graph.input.insert(0, replacement)


def name_output(model: onnx.ModelProto, name: str) -> None:
    """Rename the graph's output, everywhere that the tensor is used."""
    output = model.graph.output[0]
    old = output.name
    if old == name:
        return
    if any(name in (*node.input, *node.output) for node in model.graph.node):
        raise ConversionError(f"Expected no tensor named {name!r} in the Paddle graph, got one.")
    for node in model.graph.node:
        _rename(node.output, old, name)
    _replace_input(model, old, name)
    output.name = name


def set_batch_dimension(model: onnx.ModelProto, name: str) -> None:
    """Name the free first dim of the input and the output, and drop the dims inferred in between."""
    for value in (*graph_inputs(model), *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = name
    del model.graph.value_info[:]


def _skip(model: onnx.ModelProto, node: onnx.NodeProto | None, operations: tuple[str, ...]) -> onnx.NodeProto | None:
    """Return the node, or the first one before it that is not one of the operations."""
    while node is not None and node.op_type in operations:
        node = _producer(model, node.input[0])
    return node


def _producer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if tensor in node.output), None)


def _replace_input(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        _rename(node.input, old, new)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    names[:] = [new if name == old else name for name in names]


def _constant(model: onnx.ModelProto, tensor: str) -> Any:
    """Return the value of an initializer as nested lists; None for anything else."""
    from onnx import numpy_helper

    for initializer in model.graph.initializer:
        if initializer.name == tensor:
            return numpy_helper.to_array(initializer).tolist()
    return None


def _concatenated(model: onnx.ModelProto, tensor: str) -> list[str]:
    """Return the inputs of the Concat that makes a tensor; none if something else makes it."""
    concat = _producer(model, tensor)
    return list(concat.input) if concat is not None and concat.op_type == "Concat" else []


def _repeats_along_batch_only(model: onnx.ModelProto, repeats: str, rank: int) -> bool:
    parts = _concatenated(model, repeats)
    if len(parts) != rank or _batch_source(model, parts[0]) is None:
        return False
    return all(_constant(model, tensor) == [1] for tensor in parts[1:])


def _batch_source(model: onnx.ModelProto, tensor: str) -> str | None:
    """Return X if `tensor` is `Shape(X)[0:1]`, of whatever rank; None if it is something else."""
    slicing = _skip(model, _producer(model, tensor), ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"))
    if slicing is None or slicing.op_type != "Slice":
        return None
    if _constant(model, slicing.input[1]) != [0] or _constant(model, slicing.input[2]) != [1]:
        return None
    shape = _producer(model, slicing.input[0])
    return shape.input[0] if shape is not None and shape.op_type == "Shape" else None
