"""Post-training quantization of a served FP32 graph with NNCF: real images run through it once, without training.

The result is ONNX with QuantizeLinear and DequantizeLinear, which both OpenVINO and ONNX Runtime run in INT8.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_edits import describe_interface, graph_inputs, require_interface
from mlcls.engines.int8.parts import find_decoder, find_normalization
from mlcls.errors import ConversionError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

# If this variable is set when NNCF is imported, it sends no telemetry.
_NO_TELEMETRY: Final = "NNCF_CI"


def quantize_graph(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    """Quantize all weights and activations that NNCF can, except the normalization.

    Weights are symmetric and per channel, with half the range, so that scores are right on processors without VNNI too.
    Activations are asymmetric if they have negative values (NNCF's preset `mixed`: HardSwish and GELU are lopsided, and
    on a CPU a zero point costs next to nothing). In a backbone with attention, NNCF's model type `transformer` keeps
    what is between the matrix products of an attention in FP32.

    Args:
        model: The served FP32 graph; not modified.
        pixels: The calibration set: real images of what the model will see, (N, H, W, 3) uint8 RGB.

    Returns:
        A checked graph with the same inputs and outputs.

    Raises:
        ConversionError: NNCF fails, or its graph is not valid or has another interface.
        MissingExtraError: nncf is not installed.
    """
    import onnx

    nncf = _import_nncf()
    source = onnx.ModelProto()
    source.CopyFrom(model)
    name = graph_inputs(model)[0].name
    options: dict[str, Any] = {"ignored_scope": nncf.IgnoredScope(names=sorted(find_normalization(model)))}
    if has_attention_backbone(model):
        options["model_type"] = nncf.ModelType.TRANSFORMER
    from tqdm import tqdm

    with tqdm(desc="calibrating", unit="image", leave=False, disable=None) as progress:  # on a terminal only

        def read_image(image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
            progress.update()
            return {name: image[None]}

        try:
            with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws its own bars, even without a terminal
                quantized: onnx.ModelProto = nncf.quantize(
                    source,
                    nncf.Dataset(list(pixels), read_image),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(pixels),
                    # 7-bit weights: sums of 8-bit products overflow on processors without VNNI
                    advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
                    **options,
                )
        except Exception as error:  # NNCF passes on errors of ONNX, ONNX Runtime and its own graph code
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConversionError(
                f"NNCF {nncf.__version__} cannot quantize the graph ({reason}); serve it in FP32, and please report "
                f"the model."
            ) from error
    check_quantized(quantized, model)
    quantized.producer_name = model.producer_name
    return quantized


def has_attention_backbone(model: onnx.ModelProto) -> bool:
    """Return whether there is attention before the decoder's, as in CLIP's ViT."""
    decoder = find_decoder(model)
    return any(node.op_type == "Softmax" and node.name not in decoder for node in model.graph.node)


def check_quantized(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Check that a quantized graph is valid, has INT8 operations, and has the FP32 graph's interface.

    Raises:
        ConversionError: One of these does not hold.
    """
    require_interface(quantized, describe_interface(model), "INT8")
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise ConversionError("Expected a graph with INT8 operations, got one without.")


def _import_nncf() -> Any:
    with _environment(_NO_TELEMETRY, "1"):
        try:
            import nncf
            import nncf.onnx  # `nncf.quantize` needs it for ONNX, and would fail late without it
        except ModuleNotFoundError as error:
            raise MissingExtraError("int8", str(error.name)) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    old = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if old is None:
            del os.environ[variable]
        else:
            os.environ[variable] = old
