"""Open the runners that a command line names: `KIND` or `KIND=WHERE`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from mlcls.engines.runners import DecodingRunner, ImageRunner, OnnxRuntimeRunner, OpenVinoRunner, PaddleRunner
from mlcls.engines.tensorrt.library import Library
from mlcls.errors import MlclsError
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import ONNX_FILE, PLAN_FILE

# Where `served` looks for a server by default.
DEFAULT_SERVER: Final = "127.0.0.1:8001"

RUNNER_KINDS: Final = ("paddle", "onnxruntime", "openvino", "openvino-bf16", "served", "tensorrt", "tensorrt-rtx")

# What a kind without a default must name.
_REQUIRED: Final[Mapping[str, str]] = {
    "paddle": "paddle=FOLDER, the PaddleX model that was imported (or its archive, URL or name)",
    "tensorrt-rtx": "tensorrt-rtx=FILE, an engine that mlcls build-engine --engine tensorrt-rtx wrote",
}


def open_runner(text: str, version: ModelVersion, stack: contextlib.ExitStack) -> ImageRunner:
    """Open a runner for a model of the repository.

    Args:
        text: `paddle=FOLDER`, `onnxruntime[=FILE]`, `openvino[=FILE]`, `openvino-bf16[=FILE]`, `served[=HOST:PORT]`,
            `tensorrt[=FILE]` or `tensorrt-rtx=FILE`.
        version: The version of a model of the repository.
        stack: Closes the runner's resources.

    Raises:
        MlclsError: The text has another form, or the runner cannot be opened.
    """
    kind, equals, where = text.partition("=")
    if kind not in RUNNER_KINDS or (equals and not where):
        raise MlclsError(f"Expected a runner, one of {', '.join(RUNNER_KINDS)}, or KIND=WHERE, got {text!r}.")
    if kind in _REQUIRED and not where:
        raise MlclsError(f"Expected {_REQUIRED[kind]}.")
    spec = version.spec
    if kind == "paddle":
        return _open_paddle(version, where, stack)
    if kind == "served":
        from mlcls.engines.served_runner import ServedRunner

        return ServedRunner(where or DEFAULT_SERVER, spec)
    path = Path(where) if where else version.engine_folder / (PLAN_FILE if kind == "tensorrt" else ONNX_FILE)
    if not path.is_file():
        raise MlclsError(f"Expected an engine's file, got {path}, which does not exist.")
    if kind == "onnxruntime":
        return DecodingRunner(OnnxRuntimeRunner(path, spec), spec)
    if kind.startswith("openvino"):
        return DecodingRunner(OpenVinoRunner(path, spec, precision="bf16" if kind == "openvino-bf16" else "f32"), spec)
    from mlcls.engines.tensorrt.runner import TensorRtRunner

    library: Library = "tensorrt" if kind == "tensorrt" else "tensorrt_rtx"
    return DecodingRunner(stack.enter_context(TensorRtRunner(path, spec, library)), spec)


def _open_paddle(version: ModelVersion, where: str, stack: contextlib.ExitStack) -> ImageRunner:
    from mlcls.paddle.sources import open_source

    source = stack.enter_context(open_source(where))
    spec = source.make_spec()
    if dict(spec.source_sha256) != dict(version.spec.source_sha256):
        raise MlclsError(
            f"Expected the PaddleX model that {version.spec.name} was imported from, got {where}, whose files differ "
            f"(SHA-256); import it under a name of its own."
        )
    # labels and transform come from inference.yml, not from the model that is compared with it
    spec = msgspec.structs.replace(spec, source_activation=version.spec.source_activation)
    return DecodingRunner(PaddleRunner(source, spec), spec)
