"""What the steps of a served model count: images, pixels, decoding times, labels and scores.

To count is to add to arrays; `MetricSender` sends them to Triton's /metrics. docs/how-to/observability.md lists them.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.backends.metric_sender import SEND_INTERVAL_S, CounterGroup
from mlcls.errors import IMAGE_REASONS, ConfigError, ImageError
from mlcls.model.contract import OK
from mlcls.model.spec import ModelSpec

# Environment variable: `off`, or the number of labels up to which each label of a model is counted.
LABEL_METRICS_VARIABLE: Final = "MLCLS_LABEL_METRICS"
DEFAULT_LABEL_LIMIT: Final = 100

# Reason of a refused request, next to those of images: its threshold has none of the accepted forms.
THRESHOLD_REASON: Final = "threshold"

# Upper bounds of the buckets of decoding times, in seconds.
DECODE_BOUNDS_S: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)

# Lower bounds of the bins of scores. Most scores of most labels are near 0, so bins of equal width would put nearly all
# of them into one; these are about equally wide in logits.
SCORE_BOUNDS: Final = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99)

# How often the scores of single labels are sent, in seconds; they are many, and drift is slow.
LABEL_INTERVAL_S: Final = 15.0


def read_label_limit(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of labels up to which each label of a model is counted; 0 for never.

    Raises:
        ConfigError: The variable is neither `off` nor a whole number.
    """
    text = environment.get(LABEL_METRICS_VARIABLE, "").strip()
    if text.lower() == "off":
        return 0
    if text and not (text.isascii() and text.isdigit() and len(text) < 7):
        raise ConfigError(
            f"Expected {LABEL_METRICS_VARIABLE} to be off, or the number of labels up to which each label of a model "
            f"is counted (default {DEFAULT_LABEL_LIMIT}), got {text!r}."
        )
    return int(text) if text else DEFAULT_LABEL_LIMIT


class _Tally:
    """Counters of one step of one version of a model."""

    def __init__(self, spec: ModelSpec, version: str, outcomes: Sequence[tuple[str, str]]) -> None:
        self._labels = {"model": spec.name, "version": version}
        self.groups: list[CounterGroup] = []
        description = "Images by outcome: ok, refused (the client's fault) or failed (the server's)"
        labels = [{"status": status, "reason": reason} for status, reason in (*outcomes, ("failed", "internal"))]
        self._images = self._add_group("mlcls_images_total", description, labels)

    def _add_group(
        self,
        name: str,
        description: str,
        labels: Sequence[Mapping[str, str]] = ({},),
        interval_s: float = SEND_INTERVAL_S,
        shown_at_zero: bool = True,
    ) -> npt.NDArray[np.float64]:
        all_labels = [{**self._labels, **more} for more in labels]
        self.groups.append(CounterGroup(name, description, all_labels, interval_s, shown_at_zero))
        return self.groups[-1].totals

    def failed(self, images: int) -> None:
        """Count the images of a request that failed because of a defect."""
        self._images[-1] += images


class DecodeTally(_Tally):
    """What preprocess counts, in any thread."""

    def __init__(self, spec: ModelSpec, version: str) -> None:
        super().__init__(spec, version, [("refused", reason) for reason in IMAGE_REASONS])
        self._lock = threading.Lock()
        bounds = [f"{bound:g}" for bound in DECODE_BOUNDS_S] + ["+Inf"]
        name, description = "mlcls_decode_seconds", "Time to decode and resize one image that was decoded, in seconds"
        self._buckets = self._add_group(f"{name}_bucket", description, [{"le": bound} for bound in bounds])
        self._seconds = self._add_group(f"{name}_sum", f"{description}: sum")
        self._decoded = self._add_group(f"{name}_count", f"{description}: number")
        self._pixels = self._add_group("mlcls_decoded_pixels_total", "Pixels of decoded images, before resizing")
        self._bytes = self._add_group("mlcls_encoded_bytes_total", "Bytes of all images, refused ones too")

    def decoded(self, height: int, width: int, size_bytes: int, seconds: float) -> None:
        """Count an image that was decoded."""
        with self._lock:
            self._buckets[bisect_left(DECODE_BOUNDS_S, seconds) :] += 1
            self._seconds[0] += seconds
            self._decoded[0] += 1
            self._pixels[0] += height * width
            self._bytes[0] += size_bytes

    def refused(self, error: ImageError, size_bytes: int) -> None:
        """Count an image that cannot be decoded."""
        with self._lock:
            self._images[IMAGE_REASONS.index(error.reason)] += 1
            self._bytes[0] += size_bytes


class ScoreTally(_Tally):
    """What postprocess counts."""

    def __init__(self, spec: ModelSpec, version: str, label_limit: int) -> None:
        super().__init__(spec, version, [("ok", ""), ("refused", THRESHOLD_REASON), ("failed", "scores")])
        self._empty = self._add_group(
            "mlcls_images_without_label_total", "Answered images without any label above its threshold"
        )
        self._found = self._add_group("mlcls_image_labels_total", "Labels above their thresholds, of all images")
        bins = [{"bin": f"{bound:g}"} for bound in SCORE_BOUNDS]
        self._top = self._add_group("mlcls_top_scores_total", "Highest score of each answered image, by bin", bins)
        self._each: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
        if len(spec.labels) <= label_limit:
            labels = [{"label": label} for label in spec.labels]
            description = "Answered images in which a label is above its threshold"
            predictions = self._add_group("mlcls_label_predictions_total", description, labels)
            each = [{**label, **one} for label in labels for one in bins]
            description = "Scores of a label, by bin; bin is the lower bound"
            scores = self._add_group("mlcls_label_scores_total", description, each, LABEL_INTERVAL_S, False)
            self._each = predictions, scores

    def answered(
        self,
        scores: npt.NDArray[np.float32],
        decode_statuses: list[str],
        statuses: list[str],
        thresholds: npt.NDArray[np.float32],
    ) -> None:
        """Count the images of an answered request.

        Args:
            scores: (N, num_labels) float32, `NO_SCORE` for an image without result.
            decode_statuses: (N,) statuses from preprocess, which has counted those that are not `OK`.
            statuses: (N,) statuses of the answer.
            thresholds: (num_labels,) float32.
        """
        count = statuses.count(OK)
        if count < len(statuses):
            self._images[2] += decode_statuses.count(OK) - count
            if not count:
                return
            scores = scores[[status == OK for status in statuses]]
        self._images[0] += count
        above = scores > thresholds
        self._found[0] += np.count_nonzero(above)
        self._empty[0] += count - np.count_nonzero(above.any(axis=1))
        self._top += np.bincount(_bins(scores.max(axis=1)), minlength=len(SCORE_BOUNDS))
        if self._each is not None:
            predictions, label_scores = self._each
            predictions += above.sum(axis=0)
            bins = np.arange(scores.shape[1]) * len(SCORE_BOUNDS) + _bins(scores)
            label_scores += np.bincount(bins.ravel(), minlength=len(label_scores))

    def refused(self, images: int) -> None:
        """Count the decoded images of a request whose threshold has none of the accepted forms."""
        self._images[1] += images


def _bins(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the bin of each score."""
    bins: npt.NDArray[np.int64] = np.searchsorted(_LOWER_BOUNDS, scores, side="right")
    return bins


# Without the first, since no score is below it; float32, like scores.
_LOWER_BOUNDS: Final = np.array(SCORE_BOUNDS[1:], np.float32)
