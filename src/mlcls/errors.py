"""The one exception tree of mlcls.

Every message says what was expected, what came and what to do; the command line prints it as one line and leaves with
`MlclsError.exit_code`. Errors of other libraries are mapped to these where they cross into mlcls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

# Why an image is refused, in one word for counting; the text of the error says it in full.
#
# - `empty`: no bytes.
# - `unknown_format`: bytes of no image format, a file name or base64 text for example.
# - `format_not_supported`: a format that is known and cannot be decoded here, HEIC for example.
# - `format_not_allowed`: a format that the model's settings leave out.
# - `too_many_bytes`, `too_many_pixels`, `side_too_long`, `aspect_ratio`, `too_many_frames`: over a limit.
# - `too_complex`: of so many segments, chunks, blocks or scans that reading them would take longer than any picture.
# - `truncated`: the file ends too early.
# - `corrupt`: a field of the file is wrong.
# - `undecodable`: its decoder cannot read it and there is no finer reason.
ImageReason = Literal[
    "empty",
    "unknown_format",
    "format_not_supported",
    "format_not_allowed",
    "too_many_bytes",
    "too_many_pixels",
    "side_too_long",
    "aspect_ratio",
    "too_many_frames",
    "too_complex",
    "truncated",
    "corrupt",
    "undecodable",
]
IMAGE_REASONS: Final[tuple[ImageReason, ...]] = get_args(ImageReason)


class MlclsError(Exception):
    """Base of all errors that mlcls raises on purpose.

    Attributes:
        details: What a result file says beyond the text.
    """

    exit_code = 1

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: Mapping[str, Any] = details or {}


class SpecError(MlclsError):
    """A model description (`inference.yml`, `model_spec.json`) is missing, wrong or asks for what cannot be done."""


class ModelFormatError(MlclsError):
    """A model folder, archive or graph is not a PaddleX multi-label inference model."""


class DownloadError(MlclsError):
    """A model could not be fetched from its URL."""


class ConversionError(MlclsError):
    """A Paddle graph could not be turned into the ONNX graph that is served."""


class ParityError(ConversionError):
    """The converted model's answers differ from Paddle's by more than the limit."""


class ServedImageError(ParityError):
    """A model has no good answer for one image of a batch.

    Attributes:
        index: The image's place in the batch.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class ImageError(MlclsError):
    """The bytes of one image cannot be decoded, or are refused.

    Attributes:
        reason: Why, in one word: one of `IMAGE_REASONS`, which metrics are labeled with.
    """

    def __init__(self, message: str, reason: ImageReason = "undecodable") -> None:
        super().__init__(message)
        self.reason: ImageReason = reason


class DatasetError(MlclsError):
    """A dataset's file is missing or wrong."""


class ConfigError(MlclsError):
    """A configuration file or an override of it is wrong."""


class TrainingError(MlclsError):
    """A training cannot start, go on or be resumed: its settings, weights or checkpoint do not allow it."""


class TrainingInterruptedError(TrainingError):
    """A training was told to stop; its checkpoint is written and it can be resumed."""

    exit_code = 130


class PredictionError(MlclsError):
    """Some images could not be labeled, or their results not be saved; the others were."""


class ThresholdError(MlclsError):
    """A threshold has none of the accepted forms, or names a label that the model does not have."""


class RepositoryError(MlclsError):
    """The model repository is stale, incomplete or cannot be written."""


class ServerError(MlclsError):
    """The embedded tritonserver cannot start, or ended by itself."""


class UnhealthyServerError(ServerError):
    """A server runs, but a part of it was killed, hangs or does not answer."""


class RestartsExhaustedError(ServerError):
    """A server ended or was unhealthy too often to be started once more."""

    exit_code = 3


class TuningError(MlclsError):
    """A search for settings found none that meet its target, or had no time to compare any."""


class ModelControlError(MlclsError):
    """A running server cannot be reached, refuses the admin key, or cannot load a model."""


class MissingExtraError(MlclsError):
    """A command needs packages of an extra that is not installed."""

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(
            f"This needs the Python package {missing!r}, which is not installed; install mlcls with its extra "
            f"{extra!r}: pip install 'mlcls[{extra}]' (in a checkout: make build)."
        )
