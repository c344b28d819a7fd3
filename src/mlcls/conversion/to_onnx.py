"""From a Paddle graph to the FP32 ONNX graph that is served: paddle2onnx, then edits.

The served graph takes `pixels` (batch, H, W, 3) uint8 RGB and gives `logits` (batch, num_labels) float32: the
normalization is inside, the activation is cut off (postprocess applies it, once), the batch dimension is free, and the
decoder's queries are constants that broadcast instead of being tiled to the batch.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from mlcls.conversion import onnx_edits as onnx_graph
from mlcls.conversion.paddle2onnx_process import convert_paddle_graph
from mlcls.errors import ConversionError, MissingExtraError, ModelFormatError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import Activation, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# The name of the batch dimension in the graph.
BATCH: Final = "batch"


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """A graph that is ready to be served, and what was found on the way.

    Attributes:
        model: The ONNX model.
        source_activation: What the Paddle graph ended in.
        untiled_queries: Whether a Tile of constant queries was found and taken out.
    """

    model: onnx.ModelProto
    source_activation: Activation
    untiled_queries: bool


def export_onnx(graph_path: Path, parameters_path: Path, spec: ModelSpec) -> ExportedGraph:
    """Convert a Paddle graph and edits it for serving.

    Args:
        graph_path: `inference.json` or `inference.pdmodel`.
        parameters_path: `inference.pdiparams`.
        spec: The model's spec; its transform and its labels say what the graph must take and give.

    Raises:
        ConversionError: paddle2onnx fails, or the graph is not of the expected form.
        ModelFormatError: The graph does not fit the spec, or ends in an activation other than the sigmoid.
        MissingExtraError: The extra `convert` is not installed.
    """
    model = convert_paddle_graph(graph_path, parameters_path)
    onnx_graph.check_interface(model, spec)
    activation = onnx_graph.cut_activation(model)
    model = _simplify(model)
    untiled = onnx_graph.untile_constants(model)
    onnx_graph.flatten_without_shape(model)
    onnx_graph.drop_scalar_reshapes(model)
    model = _simplify(model)
    onnx_graph.prepend_normalization(model, spec)
    onnx_graph.name_output(model, TENSORS.logits)
    onnx_graph.set_batch_dimension(model, BATCH)
    _check(model, spec)
    model.producer_name = "mlcls"
    return ExportedGraph(model, activation, untiled)


def find_activation(graph_path: Path, parameters_path: Path, spec: ModelSpec) -> Activation:
    """Return what a Paddle graph ends in, for whoever runs the graph itself.

    Args:
        graph_path: `inference.json` or `inference.pdmodel`.
        parameters_path: `inference.pdiparams`.
        spec: The model's spec, which the graph must fit.

    Raises:
        MlclsError: See `export_onnx`.
    """
    model = convert_paddle_graph(graph_path, parameters_path)
    onnx_graph.check_interface(model, spec)
    return onnx_graph.cut_activation(model)


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and take out what they make dead."""
    try:
        import onnxslim
    except ModuleNotFoundError as error:
        raise MissingExtraError("convert", "onnxslim") from error
    logging.getLogger("ONNXSLIM").setLevel(logging.ERROR)
    simplified: onnx.ModelProto | None = onnxslim.slim(model)
    if simplified is None:
        raise ConversionError("onnxslim gave no graph; this is a fault of the conversion, please report the model.")
    return simplified


def _check(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Set the interface of the finished graph, by ONNX's own checker and shape inference."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ConversionError(f"The converted graph is not valid ONNX: {error}") from error
    transform = spec.transform
    interface = onnx_graph.describe_interface(model)
    expected = (
        (TENSORS.pixels, "UINT8", (BATCH, transform.height, transform.width, 3)),
        (TENSORS.logits, "FLOAT", (BATCH, spec.num_labels)),
    )
    if interface != expected:
        raise ModelFormatError(f"Expected the converted graph to be {expected}, got {interface}.")
