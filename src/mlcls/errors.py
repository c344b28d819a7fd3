"""The one exception tree of mlcls.

Every message says what was expected, what came and what to do; the command line prints it as one line and leaves with
`MlclsError.exit_code`. Errors of other libraries are mapped to these where they cross into mlcls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

# Why an image is refused, as a label for metrics; the text of the error has the details.
ImageReason = Literal[
    "empty",  # no bytes
    "unknown_format",  # not an image; a file name or base64 text, for example
    "format_not_supported",  # a known format or kind that cannot be decoded here: HEIC, 12-bit JPEG
    "format_not_allowed",  # a format that the model's settings exclude
    "too_many_bytes",  # over a limit, as the next seven
    "too_many_pixels",
    "side_too_long",
    "aspect_ratio",
    "too_many_frames",
    "too_much_memory",  # to decode it, by what its header says
    "too_much_work",  # to decode it: too many scans of a large picture, for example
    "request_too_large",  # the images of its request take too much work together
    "too_complex",  # so many segments, chunks, blocks or scans that reading takes longer than for any real image
    "truncated",  # the file ends too early
    "corrupt",  # a field of the file is wrong
    "undecodable",  # the decoder fails for no more specific reason
]
IMAGE_REASONS: Final[tuple[ImageReason, ...]] = get_args(ImageReason)


class MlclsError(Exception):
    """Base of all errors that mlcls raises on purpose.

    Attributes:
        details: What a result file records in addition to the text.
    """

    exit_code = 1

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: Mapping[str, Any] = details or {}


class SpecError(MlclsError):
    """A model description (`inference.yml`, `model_spec.json`) is missing, wrong or asks for something unsupported."""


class ModelFormatError(MlclsError):
    """A model folder, archive or graph is not a PaddleX multi-label inference model."""


class DownloadError(MlclsError):
    """A model could not be fetched from its URL."""


class ConversionError(MlclsError):
    """A Paddle graph could not be turned into the ONNX graph that is served."""


class ParityError(ConversionError):
    """The converted model's answers differ from Paddle's by more than the limit."""


class ServedImageError(ParityError):
    """A model gives no valid answer for one image of a batch.

    Attributes:
        index: Position of the image in the batch.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class ImageError(MlclsError):
    """One image cannot be decoded, or is refused.

    Attributes:
        reason: One of `IMAGE_REASONS`, the label in metrics.
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
    """A training was interrupted; its checkpoint is written, so it can be resumed."""

    exit_code = 130


class PredictionError(MlclsError):
    """Some images could not be labeled, or their results not saved; the others are complete."""


class ThresholdError(MlclsError):
    """A threshold is malformed, or names a label that the model does not have."""


class RequestError(MlclsError):
    """A request has a tensor that its model does not take."""


class RepositoryError(MlclsError):
    """The model repository is stale, incomplete or cannot be written."""


class ServerError(MlclsError):
    """The embedded tritonserver cannot start, or ended unexpectedly."""


class OverloadedError(ServerError):
    """A step has too many requests waiting, or one has waited too long."""


class UnhealthyServerError(ServerError):
    """A server runs, but a part of it died, hangs or does not answer."""


class RestartsExhaustedError(ServerError):
    """A server ended or was unhealthy too often to be restarted again."""

    exit_code = 3


class TuningError(MlclsError):
    """A search found no settings that meet its target, or had no time to compare any."""


class ModelControlError(MlclsError):
    """A running server cannot be reached, refuses the admin key, or cannot load a model."""


class MissingExtraError(MlclsError):
    """A command needs packages of an extra that is not installed."""

    def __init__(self, extra: str, missing: str) -> None:
        # paddleclas's own requirements go with no other package; pyproject.toml has what its networks need
        more = " && pip install --no-deps paddleclas==2.6.0" if extra == "train" and missing != "matplotlib" else ""
        super().__init__(
            f"This needs the Python package {missing!r}, which is not installed; install mlcls with its extra "
            f"{extra!r}: pip install 'mlcls[{extra}]'{more} (in a checkout: make build)."
        )
