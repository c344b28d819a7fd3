"""The served contract, as far as a client sees it: names of tensors, the threshold parameter, form of an answer."""

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
    """What the server says about one image.

    Attributes:
        status: `OK`, or why this image has no result.
        class_ids: Label numbers, by descending score; empty where the status is not `OK`.
        scores: Their probabilities, 5 decimals.
        label_names: Their names.
    """

    status: str
    class_ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    label_names: tuple[str, ...] = ()


def encode_threshold(threshold: Threshold | None) -> str | None:
    """Write a threshold as the JSON text that travels as request parameter `threshold`.

    Only the form is looked at here; label names, class ids and lengths are the server's to judge.

    Returns:
        JSON text; None for None, which leaves the model's own threshold in force.

    Raises:
        InvalidRequestError: Not a number, dict or list of finite numbers.
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
            f'a key of a threshold dict is "default", a class id or a label name, got {key!r} ({type(key).__name__})'
        )
    return str(key)


def _threshold_number(value: object) -> float:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(
            "a threshold is a finite number, a dict from label to number or a list with one number per label, "
            f"got {value!r} ({type(value).__name__})"
        )
    return value


def read_answers(
    result: npt.NDArray[np.object_] | None, status: npt.NDArray[np.object_] | None, count: int
) -> list[Answer]:
    """Read the outputs of one request.

    Args:
        result: Output `result`, (N, 1) bytes, JSON; None where the response lacks it.
        status: Output `status`, (N, 1) bytes; None where the response lacks it.
        count: N, the number of images that were sent.

    Raises:
        ProtocolError: An output is missing or is not of the contract.
    """
    results = _texts(result, RESULT, count)
    return [
        _read_answer(state, text) if state == STATUS_OK else Answer(status=state or "no reason given")
        for state, text in zip(_texts(status, STATUS, count), results, strict=True)
    ]


def keep_top(answer: Answer, top_k: int | None) -> Answer:
    """Return an answer with no more than its `top_k` best labels; None keeps all."""
    if top_k is None or len(answer.class_ids) <= top_k:
        return answer
    return Answer(answer.status, answer.class_ids[:top_k], answer.scores[:top_k], answer.label_names[:top_k])


def _texts(tensor: npt.NDArray[np.object_] | None, name: str, count: int) -> list[str]:
    if tensor is None:
        raise ProtocolError(f"expected output {name!r} in the response, it is not there; is this a model of `mlcls`?")
    if tensor.shape != (count, 1):
        raise ProtocolError(f"expected output {name!r} with shape ({count}, 1), got {tensor.shape}")
    texts = []
    for item in tensor.ravel().tolist():
        try:
            texts.append(item.decode("utf-8") if isinstance(item, bytes) else str(item))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"expected UTF-8 text in output {name!r}, got {item[:80]!r}") from error
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
            f"expected output {RESULT!r} to be JSON with the lists class_ids, scores and label_names of one length, "
            f"got {text[:200]!r}"
        )
    return Answer(status, tuple(class_ids), tuple(float(score) for score in scores), tuple(names))
