"""The only activation, threshold and label code: from `logits` to PaddleX's result."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.text import clip
from mlcls.errors import ThresholdError

_FORMS: Final = (
    'a number, a mapping like {"default": 0.5, "0": 0.3} of class ids or labels with a "default", or a list with one '
    "number for each label"
)


def apply_sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return scores (N, num_labels) float32 of logits (N, num_labels) float32; NaN stays NaN."""
    # exp of a negative magnitude only, so that a large logit cannot overflow
    decay = np.exp(-np.abs(logits))
    scores: npt.NDArray[np.float32] = np.where(logits >= 0, 1 / (1 + decay), decay / (1 + decay)).astype(np.float32)
    return scores


def resolve_thresholds(value: object, labels: Sequence[str]) -> tuple[float, ...]:
    """Return one threshold for each label, from any of the forms that PaddleX accepts.

    PaddleX 3.7 also reads the mapping and the list per class, but then pairs them with the images of a batch
    (`zip(preds[0], threshold_list)`); here they apply to the classes, as its documentation says.

    Args:
        value: A number; or a mapping with `"default"` and class ids (integers or their text) or labels; or a list of
            one number for each label. Numbers may be int or float. The key `"default"` is never a label's; a label of
            this name has its class id.
        labels: Label of each class id.

    Raises:
        ThresholdError: The value has none of these forms, names a class twice or one that the model does not have, or
            has a key that is the label of one class and the id of another.
    """
    if isinstance(value, dict):
        return _resolve_mapping(value, labels)
    if not isinstance(value, (list, tuple)):
        return (_number(value, "threshold"),) * len(labels)
    if len(value) != len(labels):
        text = f"threshold: expected a list of {len(labels)} numbers, one for each label, got {len(value)}."
        raise ThresholdError(text)
    return tuple(_number(item, f"threshold[{index}]") for index, item in enumerate(value))


def parse_thresholds(text: str, labels: Sequence[str]) -> tuple[float, ...]:
    """Return one threshold for each label, from the JSON text of any form that `resolve_thresholds` accepts.

    Raises:
        ThresholdError: The text is not JSON, or its value has none of the accepted forms.
    """
    try:
        value = json.loads(text, object_pairs_hook=_read_object)
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number with too many digits
        raise ThresholdError(f"threshold: expected JSON text of {_FORMS}, got {clip(text)}.") from None
    return resolve_thresholds(value, labels)


def select_labels(
    scores: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32], labels: Sequence[str]
) -> dict[str, list[Any]]:
    """Return PaddleX's result for one image.

    A label is predicted if its score is strictly greater than its threshold, both as float32; labels come in descending
    order of score, equal scores by ascending class id (PaddleX's `MultiLabelThreshOutput`, which does not define the
    order among equal scores).

    Args:
        scores: (num_labels,) float32.
        thresholds: (num_labels,) float32.
        labels: Label of each class id.

    Returns:
        `class_ids`, `scores` (rounded to 5 decimals, as PaddleX does) and `label_names`, lists of equal length.
    """
    chosen = np.flatnonzero(scores > thresholds)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    return {
        "class_ids": chosen.tolist(),
        "scores": np.around(scores[chosen].astype(np.float64), 5).tolist(),
        "label_names": [labels[index] for index in chosen],
    }


def _resolve_mapping(value: dict[Any, Any], labels: Sequence[str]) -> tuple[float, ...]:
    if value.get("default") is None:
        raise ThresholdError('threshold: expected a mapping with the key "default", got one without it.')
    thresholds = [_number(value["default"], 'threshold["default"]')] * len(labels)
    ids = {label: index for index, label in enumerate(labels)}
    named: set[int] = set()
    for key, item in value.items():
        if (text := str(key)) == "default":
            continue
        # `int` reads "07" and digits of other scripts too, which are labels and no class ids
        as_id = int(text) if re.fullmatch("0|[1-9][0-9]{0,8}", text) and int(text) < len(labels) else None
        index = ids.get(text, as_id)
        if index is None:
            known = f"a class id from 0 to {len(labels) - 1} or one of the model's labels"
            raise ThresholdError(f"threshold: expected {known}, got the key {clip(text)}.")
        if as_id not in (None, index):
            both = f"which is the label of class {index} and the id of class {as_id}"
            raise ThresholdError(f"threshold: expected keys with one meaning, got {clip(text)}, {both}; pass a list.")
        if index in named:
            raise ThresholdError(f"threshold: expected each class once, got two keys for class {index}.")
        named.add(index)
        thresholds[index] = _number(item, f"threshold[{clip(text)}]")
    return tuple(thresholds)


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ThresholdError(f"threshold: expected each key once, got {clip(key)} twice.")
        content[key] = value
    return content


def _number(value: object, where: str) -> float:
    with contextlib.suppress(OverflowError):  # an int beyond the largest float
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    expected = _FORMS if where == "threshold" else "a finite number"
    raise ThresholdError(f"{where}: expected {expected}, got {clip(value)}.")
