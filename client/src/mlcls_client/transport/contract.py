"""The served contract as a client sees it: tensor names, the threshold parameter, the form of an answer."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mlcls_client.errors import InvalidRequestError, ProtocolError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IMAGE: Final = "image"
RESULT: Final = "result"
STATUS: Final = "status"
THRESHOLD_PARAMETER: Final = "threshold"
STATUS_OK: Final = "OK"

Threshold: TypeAlias = float | Mapping[Any, float] | Sequence[float]
"""One number for all labels; a dict (`"default"`, class ids, label names); or a list with one number per label."""


@dataclass(frozen=True)
class Answer:
    """The server's answer for one image.

    Attributes:
        status: `OK`, or why this image has no result.
        class_ids: Label numbers, by descending score; empty if the status is not `OK`.
        scores: Their probabilities, 5 decimals.
        label_names: Their names.
    """

    status: str
    class_ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    label_names: tuple[str, ...] = ()


def encode_threshold(threshold: Threshold | None) -> str | None:
    """Return a threshold as JSON text for the request parameter `threshold`; None keeps the model's own.

    Only the form is checked here; the server checks label names, class ids and lengths.

    Raises:
        InvalidRequestError: It is not a number, dict or list of finite numbers.
    """
    if threshold is None:
        return None
    if hasattr(threshold, "tolist"):  # numpy scalar or array
        threshold = threshold.tolist()
    plain: object
    if isinstance(threshold, Mapping):
        plain = {_threshold_key(key): _threshold_number(value) for key, value in threshold.items()}
    elif isinstance(threshold, Sequence) and not isinstance(threshold, str | bytes):
        plain = [_threshold_number(value) for value in threshold]
    else:
        plain = _threshold_number(threshold)
    return json.dumps(plain, ensure_ascii=False)


def _threshold_key(key: object) -> str:
    key = key.item() if hasattr(key, "item") else key
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise InvalidRequestError(
            f'Expected "default", a class id or a label name as key of a threshold dict, got {key!r} '
            f"({type(key).__name__})."
        )
    return str(key)


def _threshold_number(value: object) -> float:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(
            "Expected a threshold to be a finite number, a dict from label to number or a list with one number per "
            f"label, got {value!r} ({type(value).__name__})."
        )
    return value


def read_answers(
    result: npt.NDArray[np.object_] | None, status: npt.NDArray[np.object_] | None, count: int
) -> list[Answer]:
    """Read the outputs of a request of N = `count` images: each (N, 1) bytes, or None if the response lacks it.

    Raises:
        ProtocolError: An output is missing or does not follow the contract.
    """
    columns: list[list[Any]] = []
    for name, tensor in ((RESULT, result), (STATUS, status)):
        if tensor is None or tensor.shape != (count, 1):
            came = "none" if tensor is None else tensor.shape
            raise ProtocolError(
                f"Expected output {name!r} with shape ({count}, 1) in the response, got {came}; is this an mlcls model?"
            )
        columns.append(tensor.ravel().tolist())
    return [_read_answer(text, state) for text, state in zip(*columns, strict=True)]


def _read_answer(text: Any, state: Any) -> Answer:
    status = state.decode("utf-8", "replace") if isinstance(state, bytes) else str(state)
    if status != STATUS_OK:
        return Answer(status or "no reason given.")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = json.loads(text)
        class_ids, scores, names = (tuple(content[key]) for key in ("class_ids", "scores", "label_names"))
        if all(
            isinstance(class_id, int)
            and isinstance(score, int | float)
            and math.isfinite(score)
            and isinstance(name, str)
            for class_id, score, name in zip(class_ids, scores, names, strict=True)
        ):
            return Answer(status, class_ids, tuple(map(float, scores)), names)
    raise ProtocolError(
        f"Expected output {RESULT!r} to be JSON with the lists class_ids, scores and label_names of one length, "
        f"got {text[:200]!r}."
    )
