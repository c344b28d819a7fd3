"""Find the operations of a graph that are sensitive to FP16, by running it on real images.

ONNX Runtime's CPU provider has no FP16 kernels on x86-64: it runs an FP16 graph in float32 and removes the casts in
between (`insert_cast_transformer.cc`), so an overflow or a lost digit does not show there. The graph made here runs in
float32 too, next to a twin of each operation whose inputs and result are rounded to FP16 by a pair of casts, which ONNX
Runtime keeps since 1.17.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mlcls.engines.fp16.conversion import FP16_PRODUCTS, element_types
from mlcls.errors import ConversionError

if TYPE_CHECKING:
    import onnx

# The largest finite number of FP16 (IEEE 754 binary16).
MAX_FP16: Final = float(np.finfo(np.float16).max)

# Factor by which numbers must stay below the end of FP16's range: other images give other numbers.
RANGE_MARGIN: Final = 4.0

# Relative error above which an operation counts as sensitive. One rounding to FP16 is 3e-4 on average.
MAX_RELATIVE_ERROR: Final = 1e-2


class NodeFigures(NamedTuple):
    """What an operation on floating-point numbers did on the images.

    Attributes:
        highest: Highest absolute value of its inputs, its constants and its results, in float32.
        relative_error: Highest relative error (root of the summed squares, over one image) of the same operation with
            its inputs and its result rounded to FP16; infinite if the result was not finite.
    """

    highest: float
    relative_error: float


def find_sensitive(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> frozenset[str]:
    """Return the names of the nodes that must stay in FP32; never matrix products, but possibly what is around them.

    An operation is sensitive if its numbers come near the end of the range. If its result loses precision, so are the
    operations that its inputs come from, because the loss may be in their rounding.

    Args:
        model: The served FP32 graph.
        pixels: Real images, (N, H, W, 3) uint8 RGB.

    Raises:
        ConversionError: A matrix product goes beyond FP16's range, or ONNX Runtime cannot run the graph.
    """
    figures = measure_nodes(model, pixels)
    producers = {output: node.name for node in model.graph.node for output in node.output}
    sensitive: set[str] = set()
    overflowing: dict[str, float] = {}
    for node in model.graph.node:
        if node.name not in figures:
            continue
        highest, relative_error = figures[node.name]
        if highest > MAX_FP16 / RANGE_MARGIN:
            sensitive.add(node.name)
        if relative_error > MAX_RELATIVE_ERROR:
            sensitive |= {node.name, *(producers[tensor] for tensor in node.input if tensor in producers)}
        if node.op_type in FP16_PRODUCTS and highest > MAX_FP16:
            overflowing[node.name] = highest
    if overflowing:
        worst = sorted(overflowing.items(), key=lambda item: -item[1])[:3]
        raise ConversionError(
            f"Expected matrix products within FP16's range of {MAX_FP16:.0f}, got {len(overflowing)} that go beyond it "
            f"on the photos ({', '.join(f'{name}: {value:.3g}' for name, value in worst)}), and TensorRT-RTX has no "
            f"FP32 ones for compute capability 7.5. Nothing was written; serve this model in FP32 (model.onnx)."
        )
    products = {node.name for node in model.graph.node if node.op_type in FP16_PRODUCTS}
    return frozenset(sensitive & figures.keys() - products)


def measure_nodes(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> dict[str, NodeFigures]:
    """Run the FP32 graph and an FP16 twin of each operation, image by image; see `find_sensitive`."""
    import onnxruntime
    from onnx import TensorProto, numpy_helper
    from tqdm import tqdm

    floats = {name for name, element_type in element_types(model).items() if element_type == TensorProto.FLOAT}
    nodes = [node for node in model.graph.node if node.output[0] in floats]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4  # the twins are expected to overflow
    content = _add_probes(model, nodes, floats).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise ConversionError(f"ONNX Runtime cannot load the graph to measure FP16 sensitivity: {error}") from error
    peaks: dict[str, float] = defaultdict(float)
    errors: dict[str, float] = defaultdict(float)
    for constant in model.graph.initializer:
        if constant.name in floats:
            values = numpy_helper.to_array(constant)
            peaks[constant.name] = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    source = session.get_inputs()[0].name
    probes = [value.name for value in session.get_outputs()]
    for image in tqdm(pixels, desc="measuring FP16", unit="image", leave=False, disable=None):
        found = dict(zip(probes, map(float, session.run(None, {source: image[None]})), strict=True))
        for node in nodes:
            relative = _relative_error(found[f"{node.name}.wrong"], found[f"{node.name}.right"])
            errors[node.name] = max(errors[node.name], relative)
            for tensor in node.output:
                if tensor in floats:
                    peak = found[f"{tensor}.peak"]
                    peaks[tensor] = max(peaks[tensor], np.inf if np.isnan(peak) else peak)
    return {
        node.name: NodeFigures(max(peaks[tensor] for tensor in tensors), errors[node.name])
        for node in model.graph.node
        if (tensors := floats.intersection((*node.input, *node.output)))
    }


def _relative_error(wrong: float, right: float) -> float:
    if not np.isfinite(wrong + right) or (right == 0.0 and wrong > 0.0):
        return float("inf")
    return float(np.sqrt(wrong / right)) if right else 0.0


def _add_probes(model: onnx.ModelProto, measured: list[onnx.NodeProto], floats: set[str]) -> onnx.ModelProto:
    """Return the graph with numbers of each operation as its outputs.

    `TENSOR.peak` is the highest absolute value of a result, `NODE.wrong` the summed squares of the twin's errors and
    `NODE.right` those of the result.
    """
    import onnx
    from onnx import TensorProto, helper

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    del probed.graph.value_info[:]

    def add(operation: str, source: str | list[str], output: str, **options: Any) -> None:
        inputs = [source] if isinstance(source, str) else source
        probed.graph.node.append(helper.make_node(operation, inputs, [output], **options))

    def add_probe(operation: str, source: str, probe: str) -> None:
        add(operation, source, probe, keepdims=0)
        probed.graph.output.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))

    def add_rounded(tensor: str) -> None:
        add("Cast", tensor, f"{tensor}.fp16", to=TensorProto.FLOAT16)
        add("Cast", f"{tensor}.fp16", f"{tensor}.rounded", to=TensorProto.FLOAT)

    for tensor in dict.fromkeys(tensor for node in measured for tensor in node.input if tensor in floats):
        add_rounded(tensor)
    for node in measured:
        twin = probed.graph.node.add()
        twin.CopyFrom(node)
        twin.name = f"{node.name}.twin"
        twin.input[:] = [f"{tensor}.rounded" if tensor in floats else tensor for tensor in node.input]
        twin.output[:] = [f"{tensor}.twin" if tensor else tensor for tensor in node.output]
        result = node.output[0]
        add_rounded(f"{result}.twin")
        add("Sub", [f"{result}.twin.rounded", result], f"{result}.difference")
        add_probe("ReduceSumSquare", f"{result}.difference", f"{node.name}.wrong")
        add_probe("ReduceSumSquare", result, f"{node.name}.right")
        for tensor in node.output:
            if tensor in floats:
                add("Abs", tensor, f"{tensor}.magnitude")
                add_probe("ReduceMax", f"{tensor}.magnitude", f"{tensor}.peak")
    return probed
