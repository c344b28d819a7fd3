"""Open the runners that a command line names: `KIND` or `KIND=WHERE`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from mlcls.engines.runners import DecodingRunner, ImageRunner, OnnxRuntimeRunner, OpenVinoRunner, PaddleRunner
from mlcls.errors import MlclsError
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import ONNX_FILE, PLAN_FILE

# Where `served` looks for a server by default.
DEFAULT_SERVER: Final = "127.0.0.1:8001"


def _engine_file(version: ModelVersion, where: str | None, default: str = ONNX_FILE) -> Path:
    """Return the named file, or one of the engine's version folder.

    Raises:
        MlclsError: It does not exist.
    """
    path = version.engine_folder / default if where is None else Path(where)
    if not path.is_file():
        raise MlclsError(f"Expected an engine's file, got {path}, which does not exist.")
    return path


def _open_paddle(version: ModelVersion, where: str | None, stack: contextlib.ExitStack) -> ImageRunner:
    from mlcls.paddle.sources import open_source

    if where is None:
        raise MlclsError("Expected paddle=FOLDER, the PaddleX model that was imported (or its archive, URL or name).")
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


def _open_onnxruntime(version: ModelVersion, where: str | None, _: contextlib.ExitStack) -> ImageRunner:
    return DecodingRunner(OnnxRuntimeRunner(_engine_file(version, where), version.spec), version.spec)


def _open_openvino(version: ModelVersion, where: str | None, _: contextlib.ExitStack) -> ImageRunner:
    return DecodingRunner(OpenVinoRunner(_engine_file(version, where), version.spec), version.spec)


def _open_openvino_bf16(version: ModelVersion, where: str | None, _: contextlib.ExitStack) -> ImageRunner:
    return DecodingRunner(OpenVinoRunner(_engine_file(version, where), version.spec, precision="bf16"), version.spec)


def _open_served(version: ModelVersion, where: str | None, _: contextlib.ExitStack) -> ImageRunner:
    from mlcls.engines.served_runner import ServedRunner

    return ServedRunner(where or DEFAULT_SERVER, version.spec)


def _open_tensorrt(version: ModelVersion, where: str | None, stack: contextlib.ExitStack) -> ImageRunner:
    from mlcls.engines.tensorrt.runner import TensorRtRunner

    plan = _engine_file(version, where, PLAN_FILE)
    return DecodingRunner(stack.enter_context(TensorRtRunner(plan, version.spec, "tensorrt")), version.spec)


def _open_tensorrt_rtx(version: ModelVersion, where: str | None, stack: contextlib.ExitStack) -> ImageRunner:
    from mlcls.engines.tensorrt.runner import TensorRtRunner

    if where is None:
        raise MlclsError("Expected tensorrt-rtx=FILE, an engine that mlcls build-engine --engine tensorrt-rtx wrote.")
    engine = TensorRtRunner(_engine_file(version, where), version.spec, "tensorrt_rtx")
    return DecodingRunner(stack.enter_context(engine), version.spec)


_OPENERS: Final[Mapping[str, Callable[[ModelVersion, str | None, contextlib.ExitStack], ImageRunner]]] = {
    "paddle": _open_paddle,
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
    "openvino-bf16": _open_openvino_bf16,
    "served": _open_served,
    "tensorrt": _open_tensorrt,
    "tensorrt-rtx": _open_tensorrt_rtx,
}
RUNNER_KINDS: Final = tuple(_OPENERS)


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
    if kind not in _OPENERS or (equals and not where):
        raise MlclsError(f"Expected a runner, one of {', '.join(RUNNER_KINDS)}, or KIND=WHERE, got {text!r}.")
    return _OPENERS[kind](version, where or None, stack)
