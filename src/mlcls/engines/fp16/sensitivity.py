"""Find the operations of a graph that are sensitive to FP16, by running it on real images.

An operation is sensitive if its values come near the end of FP16's range, or if FP16 loses too much of its precision.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.engines.fp16.conversion import FP16_PRODUCTS, MAX_FP16
from mlcls.engines.fp16.rounding import element_types
from mlcls.errors import ConversionError

if TYPE_CHECKING:
    import onnx

# Factor by which activations must stay below the end of FP16's range: other images give other activations.
RANGE_MARGIN: Final = 4.0

# Relative error above which an operation counts as sensitive. One rounding to FP16 is 3e-4 on average.
MAX_RELATIVE_ERROR: Final = 1e-2


@dataclasses.dataclass(frozen=True)
class NodeSensitivity:
    """What one operation did on the images.

    Attributes:
        operation: Operation type.
        highest: Highest absolute value of its results, in float32, and of its constants.
        relative_error: Highest relative error (root of the summed squares, over one image) of the same operation with
            its inputs and its result rounded to FP16; infinite if the result was not finite.
        before: Names of the operations that its inputs come from.
        after: Names of the operations that its results go to.
    """

    operation: str
    highest: float
    relative_error: float
    before: frozenset[str]
    after: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What the operations of a graph did on the images.

    Attributes:
        images: Number of images.
        nodes: The floating-point operations by the names of their nodes.
    """

    images: int
    nodes: Mapping[str, NodeSensitivity]

    def find_sensitive(self) -> frozenset[str]:
        """Return the nodes that must stay in FP32; never matrix products, but possibly what is around them.

        If a result comes near the end of the range, the operations that take it must stay too. If a result loses
        precision, so must the operations that its inputs come from, because the loss may be in their rounding.
        """
        sensitive: set[str] = set()
        for name, node in self.nodes.items():
            if node.highest > MAX_FP16 / RANGE_MARGIN:
                sensitive |= {name} | node.after
            if node.relative_error > MAX_RELATIVE_ERROR:
                sensitive |= {name} | node.before
        return frozenset(
            name for name in sensitive if name in self.nodes and self.nodes[name].operation not in FP16_PRODUCTS
        )

    def find_overflowing(self) -> dict[str, float]:
        """Return the matrix products beyond FP16's range, each with its highest value."""
        return {
            name: node.highest
            for name, node in self.nodes.items()
            if node.operation in FP16_PRODUCTS and not node.highest <= MAX_FP16
        }


def measure_sensitivity(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], threads: int = 2) -> Sensitivity:
    """Run the FP32 graph and an FP16 twin of each operation.

    Args:
        model: The served FP32 graph.
        pixels: Real images, (N, H, W, 3) uint8 RGB; they run one by one, to need the memory of only one.
        threads: Threads within one operation.

    Raises:
        ConversionError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime
    from tqdm import tqdm

    probed, names = _add_probes(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # the twins are expected to overflow
    try:
        session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise ConversionError(f"ONNX Runtime cannot load the graph to measure FP16 sensitivity: {error}") from error
    source = session.get_inputs()[0].name
    probes = [value.name for value in session.get_outputs()]
    highest: dict[str, float] = defaultdict(float)
    errors: dict[str, float] = defaultdict(float)
    for image in tqdm(pixels, desc="measuring FP16", unit="image", leave=False, disable=None):
        found = dict(zip(probes, session.run(None, {source: image[None]}), strict=True))
        for name in names:
            peak, wrong, right = (float(found[f"{name}.{probe}"]) for probe in ("peak", "wrong", "right"))
            highest[name] = max(highest[name], np.nan_to_num(peak, nan=np.inf))
            errors[name] = max(errors[name], _relative_error(wrong, right))
    return Sensitivity(len(pixels), _describe(model, names, highest, errors))


def _relative_error(wrong: float, right: float) -> float:
    if not np.isfinite(wrong) or not np.isfinite(right):
        return float("inf")
    if right == 0.0:
        return 0.0 if wrong == 0.0 else float("inf")
    return float(np.sqrt(wrong / right))


def _describe(
    model: onnx.ModelProto, names: list[str], highest: Mapping[str, float], errors: Mapping[str, float]
) -> dict[str, NodeSensitivity]:
    from onnx import numpy_helper

    producers = {output: node.name for node in model.graph.node for output in node.output}
    consumers = defaultdict(set)
    for node in model.graph.node:
        for tensor in node.input:
            consumers[tensor].add(node.name)
    peaks: dict[str, float] = {}
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.size:
            finite = np.abs(values[np.isfinite(values)])
            peaks[constant.name] = float(finite.max()) if finite.size else 0.0
    described = {}
    for node in model.graph.node:
        if node.name not in names:
            continue
        described[node.name] = NodeSensitivity(
            node.op_type,
            max([highest[node.name], *(peaks.get(tensor, 0.0) for tensor in node.input)]),
            errors[node.name],
            frozenset(producers[tensor] for tensor in node.input if tensor in producers),
            frozenset(user for output in node.output for user in consumers[output]),
        )
    return described


def _add_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a graph whose outputs are three numbers for each floating-point operation, and the operations' names.

    `NAME.peak` is the highest absolute value of the result, `NAME.wrong` the summed squares of its twin's errors and
    `NAME.right` those of the result.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    types = element_types(model)
    constants = {constant.name: constant for constant in model.graph.initializer}
    rounded: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    probes: list[str] = []
    names: list[str] = []

    def add(operation: str, inputs: list[str], output: str, **options: Any) -> str:
        nodes.append(helper.make_node(operation, inputs, [output], **options))
        return output

    def round_tensor(tensor: str) -> str:
        if types.get(tensor) != TensorProto.FLOAT:
            return tensor
        if tensor not in rounded:
            rounded[tensor] = f"{tensor}.rounded"
            if tensor in constants:
                with np.errstate(over="ignore"):
                    values = numpy_helper.to_array(constants[tensor]).astype(np.float16).astype(np.float32)
                probed.graph.initializer.append(numpy_helper.from_array(values, rounded[tensor]))
            else:
                add("Cast", [tensor], f"{tensor}.fp16", to=TensorProto.FLOAT16)
                add("Cast", [f"{tensor}.fp16"], rounded[tensor], to=TensorProto.FLOAT)
        return rounded[tensor]

    for node in model.graph.node:
        nodes.append(node)
        output = node.output[0]
        if types.get(output) != TensorProto.FLOAT:
            continue
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = f"{node.name}.twin"
        twin.input[:] = [round_tensor(tensor) if tensor else tensor for tensor in node.input]
        twin.output[:] = [f"{name}.twin" if name else name for name in node.output]
        nodes.append(twin)
        types[f"{output}.twin"] = TensorProto.FLOAT
        difference = add("Sub", [round_tensor(f"{output}.twin"), output], f"{output}.difference")
        magnitude = add("Abs", [output], f"{output}.magnitude")
        add("ReduceMax", [magnitude], f"{node.name}.peak", keepdims=0)
        add("ReduceSumSquare", [difference], f"{node.name}.wrong", keepdims=0)
        add("ReduceSumSquare", [output], f"{node.name}.right", keepdims=0)
        probes += [f"{node.name}.{probe}" for probe in ("peak", "wrong", "right")]
        names.append(node.name)
    del probed.graph.node[:]
    probed.graph.node.extend(nodes)
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []) for probe in probes)
    del probed.graph.value_info[:]
    return probed, names
