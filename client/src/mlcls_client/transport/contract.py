"""The served contract as a client sees it: tensor names, the threshold parameter, the form of an answer."""

from __future__ import annotations

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
    """Return a threshold as JSON text for the request parameter `threshold`.

    Only the form is checked here; the server checks label names, class ids and lengths.

    Returns:
        JSON text; None for None, which keeps the model's own threshold.

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
    if hasattr(key, "item"):
        key = key.item()
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise InvalidRequestError(
            f'Expected "default", a class id or a label name as key of a threshold dict, got {key!r} '
            f"({type(key).__name__})."
        )
    return str(key)


def _threshold_number(value: object) -> float:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(
            "Expected a threshold to be a finite number, a dict from label to number or a list with one number per "
            f"label, got {value!r} ({type(value).__name__})."
        )
    return value


def read_answers(
    result: npt.NDArray[np.object_] | None, status: npt.NDArray[np.object_] | None, count: int
) -> list[Answer]:
    """Read the outputs of one request.

    Args:
        result: Output `result`, (N, 1) bytes, JSON; None if the response lacks it.
        status: Output `status`, (N, 1) bytes; None if the response lacks it.
        count: N, the number of images sent.

    Raises:
        ProtocolError: An output is missing or does not follow the contract.
    """
    results = _texts(result, RESULT, count)
    return [
        _read_answer(state, text) if state == STATUS_OK else Answer(status=state or "no reason given.")
        for state, text in zip(_texts(status, STATUS, count), results, strict=True)
    ]


def keep_top(answer: Answer, top_k: int | None) -> Answer:
    """Return an answer with at most its `top_k` best labels; None keeps all."""
    if top_k is None or len(answer.class_ids) <= top_k:
        return answer
    return Answer(answer.status, answer.class_ids[:top_k], answer.scores[:top_k], answer.label_names[:top_k])


def _texts(tensor: npt.NDArray[np.object_] | None, name: str, count: int) -> list[str]:
    if tensor is None:
        raise ProtocolError(f"Expected output {name!r} in the response, got none; is this an mlcls model?")
    if tensor.shape != (count, 1):
        raise ProtocolError(f"Expected output {name!r} with shape ({count}, 1), got {tensor.shape}.")
    texts = []
    for item in tensor.ravel().tolist():
        try:
            texts.append(item.decode("utf-8") if isinstance(item, bytes) else str(item))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"Expected UTF-8 text in output {name!r}, got {item[:80]!r}.") from error
    return texts


def _read_answer(status: str, text: str) -> Answer:
    try:
        content = json.loads(text)
        class_ids, scores, names = content["class_ids"], content["scores"], content["label_names"]
        well_formed = (
            len(class_ids) == len(scores) == len(names)
            and all(isinstance(class_id, int) for class_id in class_ids)
            and all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
            and all(isinstance(name, str) for name in names)
        )
    except (ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise ProtocolError(
            f"Expected output {RESULT!r} to be JSON with the lists class_ids, scores and label_names of one length, "
            f"got {text[:200]!r}."
        )
    return Answer(status, tuple(class_ids), tuple(float(score) for score in scores), tuple(names))
