"""Which operations of a graph FP16 is too small or too coarse for, by running it on real images."""

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

# How far from the end of FP16's range activations must stay: other images than the calibration's give other ones.
RANGE_MARGIN: Final = 4.0

# The relative error of one operation above which it counts as too coarse. One rounding to FP16 is 3e-4 on average.
MAX_RELATIVE_ERROR: Final = 1e-2


@dataclasses.dataclass(frozen=True)
class NodeCalibration:
    """What one operation did on the calibration's images.

    Attributes:
        operation: Operation type.
        highest: Highest absolute value that it gave, in float32, or that one of its constants has.
        relative_error: Highest relative error (root of the summed squares, over one image) of the same operation with
            its inputs and its result rounded to FP16; infinite where that gave no number.
        before: Names of the operations that its inputs come from.
        after: Names of the operations that its results go to.
    """

    operation: str
    highest: float
    relative_error: float
    before: frozenset[str]
    after: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the operations of a graph did on the calibration's images.

    Attributes:
        images: Number of images.
        nodes: The floating-point operations by the names of their nodes.
    """

    images: int
    nodes: Mapping[str, NodeCalibration]

    def find_delicate(self) -> frozenset[str]:
        """Return the nodes that must stay in FP32: matrix products are none of them, what is around them may be.

        Where a result comes near the end of the range, so must what takes it; where a result is too coarse, so must
        what gave the operation its inputs, since the loss may be in their rounding.
        """
        delicate: set[str] = set()
        for name, node in self.nodes.items():
            if node.highest > MAX_FP16 / RANGE_MARGIN:
                delicate |= {name} | node.after
            if node.relative_error > MAX_RELATIVE_ERROR:
                delicate |= {name} | node.before
        return frozenset(
            name for name in delicate if name in self.nodes and self.nodes[name].operation not in FP16_PRODUCTS
        )

    def find_impossible(self) -> dict[str, float]:
        """Return the matrix products beyond FP16's range, with the highest value that each gave or has."""
        return {
            name: node.highest
            for name, node in self.nodes.items()
            if node.operation in FP16_PRODUCTS and not node.highest <= MAX_FP16
        }


def calibrate(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], threads: int = 2) -> Calibration:
    """Run the FP32 graph and, operation by operation, its FP16 twin.

    Args:
        model: The served FP32 graph.
        pixels: Real images, (N, H, W, 3) uint8 RGB; they run one by one, so that no more memory is needed than for one.
        threads: Threads within one operation.

    Raises:
        ConversionError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime
    from tqdm import tqdm

    probed, names = _add_probes(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # twins overflow, which is what they are for
    try:
        session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise ConversionError(f"ONNX Runtime cannot load the graph for the calibration: {error}") from error
    source = session.get_inputs()[0].name
    probes = [value.name for value in session.get_outputs()]
    highest: dict[str, float] = defaultdict(float)
    errors: dict[str, float] = defaultdict(float)
    for image in tqdm(pixels, desc="calibrating", unit="image", leave=False, disable=None):
        found = dict(zip(probes, session.run(None, {source: image[None]}), strict=True))
        for name in names:
            peak, wrong, right = (float(found[f"{name}.{probe}"]) for probe in ("peak", "wrong", "right"))
            highest[name] = max(highest[name], np.nan_to_num(peak, nan=np.inf))
            errors[name] = max(errors[name], _relative_error(wrong, right))
    return Calibration(len(pixels), _describe(model, names, highest, errors))


def _relative_error(wrong: float, right: float) -> float:
    if not np.isfinite(wrong) or not np.isfinite(right):
        return float("inf")
    if right == 0.0:
        return 0.0 if wrong == 0.0 else float("inf")
    return float(np.sqrt(wrong / right))


def _describe(
    model: onnx.ModelProto, names: list[str], highest: Mapping[str, float], errors: Mapping[str, float]
) -> dict[str, NodeCalibration]:
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
        described[node.name] = NodeCalibration(
            node.op_type,
            max([highest[node.name], *(peaks.get(tensor, 0.0) for tensor in node.input)]),
            errors[node.name],
            frozenset(producers[tensor] for tensor in node.input if tensor in producers),
            frozenset(user for output in node.output for user in consumers[output]),
        )
    return described


def _add_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a graph that gives three numbers for each floating-point operation instead of its answers.

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
