"""What the three Triton backends share: their version folder, their spec, BYTES tensors, errors of single requests."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.backends.pulse import Pulse
from mlcls.errors import ConfigError, ImageError, RepositoryError, ThresholdError
from mlcls.images.settings import ImageSettings
from mlcls.model.spec import FILE_NAME, ModelSpec
from mlcls.repository.manifest import require_same_spec, verify_folder
from mlcls.repository.names import IMAGES_PARAMETER, PRECISION_PARAMETER, STEP_SUFFIXES, THREADS_PARAMETER, step_name
from mlcls.repository.settings import ENGINE_PRECISIONS


def version_folder(args: Mapping[str, str]) -> Path:
    """Return the version folder of a model, from the arguments that Triton gives to `initialize`."""
    return Path(args["model_repository"]) / args["model_version"]


def engine_file(args: Mapping[str, str]) -> str:
    """Return the name of the model file that a model's configuration asks for, from the arguments of `initialize`.

    Raises:
        RepositoryError: The configuration names none, or a path out of the version folder.
    """
    name = json.loads(args["model_config"]).get("default_model_filename", "")
    if not isinstance(name, str) or not name or name == ".." or Path(name).name != name:
        raise RepositoryError(
            f"The configuration of {args['model_name']}: expected default_model_filename to be the name of a file in "
            f"the version folder, got {name!r}. Run: mlcls repository."
        )
    return str(name)


def engine_threads(args: Mapping[str, str]) -> int:
    """Return the threads of one engine, from the arguments of `initialize`; 0, all cores, if none are set.

    Raises:
        RepositoryError: The configuration's parameter is no number.
    """
    text = _parameter(args, THREADS_PARAMETER, "0")
    if not isinstance(text, str) or not text.isascii() or not text.isdigit():
        raise RepositoryError(
            f"The configuration of {args['model_name']}: expected the parameter {THREADS_PARAMETER} to be a whole "
            f"number, 0 for all cores, got {text!r}. Run: mlcls repository."
        )
    return int(text)


def engine_precision(args: Mapping[str, str]) -> str:
    """In what the engine computes, from the arguments of `initialize`; `f32` where nothing is set.

    Raises:
        RepositoryError: The configuration's parameter is none of `ENGINE_PRECISIONS`.
    """
    text = _parameter(args, PRECISION_PARAMETER, "f32")
    if text not in ENGINE_PRECISIONS:
        raise RepositoryError(
            f"The configuration of {args['model_name']}: expected the parameter {PRECISION_PARAMETER} to be one of "
            f"{', '.join(ENGINE_PRECISIONS)}, got {text!r}. Run: mlcls repository."
        )
    return str(text)


def image_settings(args: Mapping[str, str]) -> ImageSettings:
    """Return what images a model accepts, from the arguments of `initialize`; the defaults where nothing is set.

    Raises:
        RepositoryError: The configuration's parameter is wrong.
    """
    text = _parameter(args, IMAGES_PARAMETER, "{}")
    try:
        return ImageSettings.from_json(text if isinstance(text, str) else json.dumps(text))
    except ConfigError as error:
        raise RepositoryError(
            f"The configuration of {args['model_name']}: the parameter {IMAGES_PARAMETER} is wrong: {error} "
            "Run: mlcls repository."
        ) from None


def _parameter(args: Mapping[str, str], name: str, default: str) -> object:
    """Return the text of a parameter of a model's configuration; whatever stands in its place where it is none."""
    parameter = json.loads(args["model_config"]).get("parameters", {}).get(name, {"string_value": default})
    return parameter.get("string_value") if isinstance(parameter, dict) else None


def load_spec(args: Mapping[str, str], *files: str) -> ModelSpec:
    """Return the spec in a model's version folder, after checking the folder against its manifest.

    Args:
        args: Triton's arguments.
        files: Names of the model files that will be loaded; their content is checked as well.

    Raises:
        SpecError: The spec is wrong.
        RepositoryError: The folder is not what its manifest says, or another step's folder beside it has another spec.
    """
    folder = version_folder(args)
    verify_folder(folder, args["model_name"], (FILE_NAME, *files))
    spec = ModelSpec.read(folder / FILE_NAME)
    # Beside it where the repository is a local folder; from an object store Triton copies each model by itself.
    root = folder.parent.parent
    steps = [step_name(spec.name, suffix, int(folder.name)) for suffix in STEP_SUFFIXES]
    require_same_spec({step: root / step / folder.name for step in steps})
    return spec


def answer_each(
    requests: Sequence[Any], answer: Callable[[Any], list[Any]], pb_utils: Any, pulse: Pulse | None = None
) -> list[Any]:
    """Answer each request by itself: what is wrong with one does not touch the others that Triton batched with it.

    Args:
        requests: The requests of one `execute`.
        answer: Gives the output tensors of one request; an ImageError or a ThresholdError is the client's fault.
        pb_utils: `triton_python_backend_utils`, a module that exists inside Triton's stub process only.
        pulse: Of this process; it beats before each request.

    Returns:
        A response for each request, in order.
    """
    responses = []
    for request in requests:
        if pulse is not None:
            pulse.beat()
        try:
            responses.append(pb_utils.InferenceResponse(answer(request)))
        except Exception as error:  # the others must be answered all the same
            responses.append(failed_response(error, pb_utils))
    return responses


def failed_response(error: Exception, pb_utils: Any) -> Any:
    """Return the response to a request that failed: by the client's image or threshold, else by a defect of ours.

    Args:
        error: What went wrong.
        pb_utils: See `answer_each`.
    """
    if isinstance(error, ImageError | ThresholdError):
        fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    else:
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        fault = pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=fault)


def cancelled_response(pb_utils: Any) -> Any:
    """Return the response to a request whose caller has left; nobody reads it."""
    fault = pb_utils.TritonError("the caller has left before the answer", pb_utils.TritonError.CANCELLED)
    return pb_utils.InferenceResponse(error=fault)


def encode_texts(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """Return a BYTES tensor (N, 1) of UTF-8 texts."""
    return np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1)


def decode_texts(tensor: npt.NDArray[np.object_]) -> list[str]:
    """Return the texts of a BYTES tensor (N, 1)."""
    return [bytes(item).decode() for item in tensor.ravel()]
