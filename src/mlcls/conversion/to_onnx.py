"""Convert a Paddle graph to the FP32 ONNX graph that is served: paddle2onnx, then edits.

The served graph maps `pixels` (batch, H, W, 3) uint8 RGB to `logits` (batch, num_labels) float32. It contains the
normalization, its activation is cut off (postprocess applies it, once), its batch dimension is free, and the decoder's
queries are constants that broadcast instead of being tiled to the batch.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from mlcls.conversion import onnx_edits
from mlcls.conversion.paddle2onnx_process import convert_paddle_graph
from mlcls.errors import ConversionError, MissingExtraError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import Activation, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# Name of the batch dimension in the graph.
BATCH: Final = "batch"


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """A graph that is ready to be served."""

    model: onnx.ModelProto
    source_activation: Activation  # that the Paddle graph ended in
    untiled_queries: bool  # whether a Tile of constant queries was removed


def export_onnx(graph_path: Path, parameters_path: Path, spec: ModelSpec) -> ExportedGraph:
    """Convert a Paddle graph and edit it for serving; transform and labels determine its input and output.

    Raises:
        ConversionError: paddle2onnx failed, or the graph does not have the expected form.
        ModelFormatError: The graph does not fit the spec, or ends in an activation other than the sigmoid.
        MissingExtraError: The extra `convert` is not installed.
    """
    model = convert_paddle_graph(graph_path, parameters_path)
    onnx_edits.check_interface(model, spec)
    activation = onnx_edits.cut_activation(model)
    model = _simplify(model)
    untiled = onnx_edits.untile_constants(model)
    onnx_edits.flatten_without_shape(model)
    onnx_edits.drop_scalar_reshapes(model)
    model = _simplify(model)
    onnx_edits.prepend_normalization(model, spec)
    onnx_edits.name_output(model, TENSORS.logits)
    onnx_edits.set_batch_dimension(model, BATCH)
    height, width = spec.transform.height, spec.transform.width
    expected = (
        (TENSORS.pixels, "UINT8", (BATCH, height, width, 3)),
        (TENSORS.logits, "FLOAT", (BATCH, spec.num_labels)),
    )
    onnx_edits.require_interface(model, expected, "converted")
    model.producer_name = "mlcls"
    return ExportedGraph(model, activation, untiled)


def find_activation(graph_path: Path, parameters_path: Path, spec: ModelSpec) -> Activation:
    """Return the activation that a Paddle graph ends in, for callers that run it. Errors: see `export_onnx`."""
    model = convert_paddle_graph(graph_path, parameters_path)
    onnx_edits.check_interface(model, spec)
    return onnx_edits.cut_activation(model)


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and remove nodes that become unused."""
    try:
        import onnxslim
    except ModuleNotFoundError as error:
        raise MissingExtraError("convert", "onnxslim") from error
    logging.getLogger("ONNXSLIM").setLevel(logging.ERROR)
    simplified: onnx.ModelProto | None = onnxslim.slim(model)
    if simplified is None:
        raise ConversionError("onnxslim returned no graph; this is a bug in the conversion, please report the model.")
    return simplified
