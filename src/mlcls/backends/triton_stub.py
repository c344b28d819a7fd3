"""What the Triton backends share: arguments, spec, the life of a step, BYTES tensors, responses to failed requests."""

from __future__ import annotations

import abc
import dataclasses
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.backends.metric_sender import CounterGroup, MetricSender
from mlcls.backends.pulse import Pulse
from mlcls.backends.refusal_log import RefusalLog
from mlcls.base.documents import decode
from mlcls.base.text import clip
from mlcls.errors import ConfigError, ImageError, OverloadedError, RepositoryError, RequestError, ThresholdError
from mlcls.images.settings import ImageSettings
from mlcls.model.spec import SPEC_FILE, ModelSpec
from mlcls.repository.manifest import require_same_spec, verify_folder
from mlcls.repository.names import IMAGES_PARAMETER, PRECISION_PARAMETER, STEP_SUFFIXES, THREADS_PARAMETER, step_name
from mlcls.repository.settings import ENGINE_PRECISIONS, QueueSettings


@dataclasses.dataclass(frozen=True)
class StepArguments:
    """What Triton tells a step in `initialize`, read once; a wrong setting raises a RepositoryError.

    Attributes:
        step: Name of the step's model.
        version_folder: Folder of the version that is to be served.
        config: The step's configuration.
    """

    step: str
    version_folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, args: Mapping[str, str]) -> StepArguments:
        """Read the arguments of `initialize`."""
        folder = Path(args["model_repository"]) / args["model_version"]
        return cls(args["model_name"], folder, json.loads(args["model_config"]))

    @property
    def version(self) -> str:
        """Version of the model."""
        return self.version_folder.name

    def engine_file(self) -> str:
        """Return the name of the model file in the version folder; a path out of it is refused."""
        name = self.config.get("default_model_filename", "")
        if not isinstance(name, str) or not name or name == ".." or Path(name).name != name:
            expected = "expected default_model_filename to be the name of a file in the version folder"
            raise self._wrong(f"{expected}, got {name!r}.")
        return name

    def engine_threads(self) -> int:
        """Return the threads of one engine; 0, all cores, if none are set."""
        return int(self._parameter(THREADS_PARAMETER, "0", "[0-9]+", "a whole number, 0 for all cores"))

    def engine_precision(self) -> str:
        """Return the precision that the engine computes in; `f32` if none is set."""
        expected = f"one of {', '.join(ENGINE_PRECISIONS)}"
        return self._parameter(PRECISION_PARAMETER, "f32", "|".join(ENGINE_PRECISIONS), expected)

    def image_settings(self) -> ImageSettings:
        """Return what images the model accepts; the defaults if nothing is set."""
        text = self._parameter(IMAGES_PARAMETER, "{}", r"[\s\S]*", "an object as JSON text")
        try:
            return decode(text, ImageSettings, ConfigError, IMAGES_PARAMETER)
        except ConfigError as error:
            raise self._wrong(f"the parameter {error}") from None

    def queue_settings(self) -> QueueSettings:
        """Return how many requests may wait for the step, and how long; the defaults if nothing is set."""
        policy = self.config.get("dynamic_batching", {}).get("default_queue_policy", {})
        most = int(policy.get("max_queue_size", 0)) or QueueSettings().max_queue_size
        timeout = int(policy.get("default_timeout_microseconds", 0)) or QueueSettings().timeout_microseconds
        return QueueSettings(most, timeout)

    def load_spec(self, *files: str) -> ModelSpec:
        """Return the spec in the version folder, after checking it and the files to be loaded against the manifest.

        Raises:
            SpecError: The spec is wrong.
            RepositoryError: The folder is not what its manifest says, or another step's folder beside it has another
                spec.
        """
        folder = self.version_folder
        verify_folder(folder, self.step, (SPEC_FILE, *files))
        spec = ModelSpec.read(folder / SPEC_FILE)
        # The others are beside it in a local repository; from an object store Triton copies each model by itself.
        root = folder.parent.parent
        steps = [step_name(spec.name, suffix, int(folder.name)) for suffix in STEP_SUFFIXES]
        require_same_spec({step: root / step / folder.name for step in steps})
        return spec

    def _parameter(self, name: str, default: str, pattern: str, expected: str) -> str:
        """Return the text of a parameter that matches a pattern."""
        parameter = self.config.get("parameters", {}).get(name, {"string_value": default})
        text = parameter.get("string_value") if isinstance(parameter, dict) else None
        if not isinstance(text, str) or not re.fullmatch(pattern, text):
            raise self._wrong(f"the parameter {name}: expected {expected}, got {text!r}.")
        return text

    def _wrong(self, text: str) -> RepositoryError:
        return RepositoryError(f"The configuration of {self.step}: {text} Run: mlcls repository.")


class Step(abc.ABC):
    """What preprocess and postprocess share: their images are counted, and the watchdog sees when they are at work.

    Attributes:
        spec: The model's spec.
        refusal_log: Log of the refused requests.
        pulse: The pulse of this process.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read spec and configuration, prepare the step, and start to send its counts."""
        import triton_python_backend_utils as pb_utils

        self._pb_utils = pb_utils
        self.pulse = Pulse.open(args)
        arguments = StepArguments.read(args)
        self.spec = arguments.load_spec()
        self.refusal_log = RefusalLog(self.spec.name, arguments.version, pb_utils.Logger.log_warn)
        self._metrics = MetricSender(self.prepare(arguments), pb_utils)
        self._metrics.start()
        self.pulse.begin()

    def finalize(self) -> None:
        """Mark this process as ended on purpose, and send the last counts."""
        self.pulse.end()
        self._metrics.stop()

    @abc.abstractmethod
    def prepare(self, arguments: StepArguments) -> Sequence[CounterGroup]:
        """Get ready for the first request, and return the step's counters."""


class RequestStep(Step):
    """A step that answers each of the requests that Triton batched in its turn."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself: an error in one does not touch the others that Triton batched with it."""
        responses = []
        with self.pulse.working():
            for request in requests:
                self.pulse.beat()
                try:
                    responses.append(self._pb_utils.InferenceResponse(self.answer(request)))
                except Exception as error:  # the others must be answered all the same
                    responses.append(failed_response(error, self._pb_utils))
        return responses

    @abc.abstractmethod
    def answer(self, request: Any) -> list[Any]:
        """Return the output tensors of one request; `failed_response` tells which errors are the client's fault."""


def read_input(request: Any, name: str, dims: Sequence[int], pb_utils: Any) -> Any:
    """Return an input tensor (N, *dims) of a request.

    Triton checks the shape, but lets a batch size through that is a multiple of 2**32, zero too, and then leaves the
    batch dimension out.

    Raises:
        RequestError: The tensor has another shape.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if tensor.ndim != len(dims) + 1 or tensor.shape[1:] != tuple(dims):
        raise RequestError(f"{name}: expected the shape {[-1, *dims]}, got a batch size that is a multiple of 2**32.")
    return tensor


def failed_response(error: Exception, pb_utils: Any) -> Any:
    """Return the response to a request that failed.

    Args:
        error: The client's image, threshold, tensor or text is wrong, its caller has left, or there is a defect.
        pb_utils: `triton_python_backend_utils`, a module that exists inside Triton's stub process only.
    """
    if isinstance(error, ImageError | ThresholdError | RequestError):
        fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    elif isinstance(error, UnicodeDecodeError):  # of an id, a parameter or a status: over HTTP, Triton checks none
        text = f"expected all texts of a request in UTF-8, got {clip(error.object[error.start : error.end])}"
        fault = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
    elif isinstance(error, OverloadedError):
        fault = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
    elif isinstance(error, CancelledError):
        fault = pb_utils.TritonError("the caller has left before the answer", pb_utils.TritonError.CANCELLED)
    else:
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        fault = pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=fault)


def encode_texts(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """Return a BYTES tensor (N, 1) of UTF-8 texts."""
    return np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1)


def decode_texts(tensor: npt.NDArray[np.object_]) -> list[str]:
    """Return the texts of a BYTES tensor (N, 1)."""
    return [bytes(item).decode() for item in tensor.ravel()]
