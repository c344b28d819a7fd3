"""What preprocess and postprocess do with a request, without Triton."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.backends.tallies import DecodeTally
from mlcls.errors import ImageError
from mlcls.images.cost import REQUEST_WORK_S, estimate_cost
from mlcls.images.decoding import decode_checked
from mlcls.images.encoded_image import EncodedImage, check_image, open_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.images.transforms import resize_image
from mlcls.model.contract import NO_SCORE, OK, THRESHOLD_PARAMETER
from mlcls.model.postprocess import apply_sigmoid, parse_thresholds, resolve_thresholds, select_labels
from mlcls.model.spec import ImageTransform, ModelSpec


class OpenedImages:
    """The images of one request, opened and checked against all limits, none of them decoded.

    Attributes:
        work_s: What decoding those that were not refused takes, in seconds of one core.
        refusals: Index, error and reason of each image refused, once its turn was.
    """

    def __init__(self, images: Sequence[bytes], settings: ImageSettings = DEFAULT_IMAGE_SETTINGS) -> None:
        """Open the images; one that would exceed the work of a request is refused, and smaller ones after it are not.

        Args:
            images: Encoded images.
            settings: What images the model accepts and how they are read.
        """
        self.work_s = 0.0
        self.refusals: list[tuple[int, ImageError, str]] = []
        self._sizes_bytes = [len(image) for image in images]
        self._settings = settings
        self._images: list[EncodedImage | ImageError | None] = [self._open(image) for image in images]

    def __len__(self) -> int:
        return len(self._images)

    def _open(self, data: bytes) -> EncodedImage | ImageError:
        try:
            image = open_image(data, self._settings)
            check_image(image, self._settings)
            work_s = estimate_cost(image).work_s
            if self.work_s and self.work_s + work_s > REQUEST_WORK_S:
                text = f"image: expected at most {REQUEST_WORK_S:g} s of work to decode all images of one request"
                came = f"got {self.work_s:.2g} s before this one, which takes about {work_s:.2g} s"
                raise ImageError(f"{text}, {came}; send it in another request.", "request_too_large")
        except ImageError as error:
            return error
        self.work_s += work_s
        return image

    def preprocess(
        self, spec: ModelSpec, tally: DecodeTally | None = None
    ) -> Generator[None, None, tuple[npt.NDArray[np.uint8], list[str]]]:
        """Decode and resize the images; called once.

        Args:
            spec: The model's spec.
            tally: Counts the outcome of each image.

        Yields:
            None after each image.

        Returns:
            `pixels` (N, H, W, 3) uint8 RGB, black for a refused image, and the status of each image: `OK` or why it was
            refused.

        Raises:
            ImageError: No image of the request can be decoded; it has the reason of the first.
        """
        transform = spec.transform
        pixels = np.empty((len(self._images), transform.height, transform.width, 3), np.uint8)
        statuses = []
        for index in range(len(self._images)):
            began_s = time.perf_counter()
            try:
                decoded = self._decode(index, transform)
                pixels[index] = resize_image(decoded, transform)
                statuses.append(OK)
                if tally is not None:
                    height, width = decoded.shape[:2]
                    tally.decoded(height, width, self._sizes_bytes[index], time.perf_counter() - began_s)
                del decoded  # images of other requests may be decoded before the next one
            except ImageError as error:
                pixels[index] = 0
                statuses.append(str(error))
                self.refusals.append((index, error, error.reason))
                if tally is not None:
                    tally.refused(error, self._sizes_bytes[index])
            yield
        if self.refusals and OK not in statuses:
            first = self.refusals[0][1]
            text = f"none of the {len(statuses)} images can be decoded; the first: {first}"
            raise ImageError(str(first) if len(statuses) == 1 else text, first.reason)
        return pixels, statuses

    def _decode(self, index: int, transform: ImageTransform) -> npt.NDArray[np.uint8]:
        """Decode an image, which is not kept: Pillow's holds its pixels."""
        opened, self._images[index] = self._images[index], None
        if not isinstance(opened, EncodedImage):
            raise opened or ValueError("each image can be decoded once")
        return decode_checked(opened, self._settings, transform)


def preprocess_images(
    images: Sequence[bytes],
    spec: ModelSpec,
    settings: ImageSettings = DEFAULT_IMAGE_SETTINGS,
    tally: DecodeTally | None = None,
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Open, decode and resize the images of one request: see `OpenedImages`."""
    steps = OpenedImages(images, settings).preprocess(spec, tally)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            pixels, statuses = end.value
            return pixels, statuses


def request_thresholds(parameters: str, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the thresholds (num_labels,) float32 of a request: its parameter `threshold`, else the spec's.

    Args:
        parameters: The request's parameters as JSON text, which Triton's Python backend passes; empty for none.
        spec: The model's spec.

    Raises:
        ThresholdError: The parameter has none of the accepted forms.
    """
    value = json.loads(parameters or "{}").get(THRESHOLD_PARAMETER)
    if value is None:
        thresholds = spec.thresholds
    elif isinstance(value, str):
        thresholds = parse_thresholds(value, spec.labels)
    else:
        thresholds = resolve_thresholds(value, spec.labels)
    return np.asarray(thresholds, np.float32)


def postprocess_logits(
    logits: npt.NDArray[np.float32],
    decode_statuses: Sequence[str],
    thresholds: npt.NDArray[np.float32],
    spec: ModelSpec,
) -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Return scores, results and statuses of one request.

    Args:
        logits: (N, num_labels) float32.
        decode_statuses: Status of each image from `preprocess_images`.
        thresholds: (num_labels,) float32.
        spec: The model's spec.

    Returns:
        `scores` (N, num_labels) float32, `NO_SCORE` for an image without result; `result`, a JSON text for each image;
        and `status`.
    """
    scores = apply_sigmoid(logits)
    results: list[str] = []
    statuses: list[str] = []
    for row, status in zip(scores, decode_statuses, strict=True):
        if status == OK and not np.isfinite(row).all():
            status = "the engine gave scores that are not numbers; this is a fault of the server, not of the image"
        if status == OK:
            result: dict[str, Any] = select_labels(row, thresholds, spec.labels)
        else:
            result = {"error": status}
            row[:] = NO_SCORE
        results.append(json.dumps(result, ensure_ascii=False))
        statuses.append(status)
    return scores, results, statuses
