"""What preprocess and postprocess do with a request, without Triton."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.backends.tallies import DecodeTally
from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.images.transforms import resize_image
from mlcls.model.contract import NO_SCORE, OK, THRESHOLD_PARAMETER
from mlcls.model.postprocess import apply_sigmoid, parse_thresholds, resolve_thresholds, select_labels
from mlcls.model.spec import ModelSpec


def preprocess_images(
    images: Sequence[bytes],
    spec: ModelSpec,
    settings: ImageSettings = DEFAULT_IMAGE_SETTINGS,
    tally: DecodeTally | None = None,
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Decode and resize the images of one request.

    Args:
        images: Encoded images.
        spec: The model's spec.
        settings: What images the model accepts and how they are read.
        tally: Counts the outcome of each image.

    Returns:
        `pixels` (N, H, W, 3) uint8 RGB, black for an image that cannot be decoded, and the status of each image: `OK`
        or why it cannot be decoded.

    Raises:
        ImageError: No image of the request can be decoded; it has the reason of the first.
    """
    transform = spec.transform
    pixels = np.empty((len(images), transform.height, transform.width, 3), np.uint8)
    statuses = []
    first: ImageError | None = None
    for index, image in enumerate(images):
        began_s = time.perf_counter()
        try:
            decoded = decode_image(image, settings, transform)
            pixels[index] = resize_image(decoded, transform)
            statuses.append(OK)
        except ImageError as error:
            pixels[index] = 0
            statuses.append(str(error))
            first = first or error
            if tally is not None:
                tally.refused(index, error, len(image))
            continue
        if tally is not None:
            height, width = decoded.shape[:2]
            tally.decoded(height, width, len(image), time.perf_counter() - began_s)
    if first is not None and OK not in statuses:
        text = f"none of the {len(images)} images can be decoded; the first: {first}"
        raise ImageError(str(first) if len(images) == 1 else text, first.reason)
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
