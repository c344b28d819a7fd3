"""Replies of the benchmarks' requests: what tritonclient reads and raises, and what is malformed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from benchmarks.asking import Refusal, ask, connect, make_request, read_error, read_result

SCORES = np.array([[0.1, 0.9], [0.5, np.nan]], np.float32)
RESULTS = ['{"class_ids": [1], "scores": [0.9], "label_names": ["собака"]}', '{"error": "no"}']
STATUSES = ["OK", "no"]


def make_result(scores: Any = SCORES, results: Any = RESULTS, statuses: Any = STATUSES) -> Any:
    texts = {
        name: None if each is None else np.array([text.encode() for text in each], dtype=np.object_).reshape(-1, 1)
        for name, each in (("result", results), ("status", statuses))
    }
    return SimpleNamespace(as_numpy={"scores": scores, **texts}.get)


def test_a_request_is_sent_as_it_is_given() -> None:
    request = make_request(tritonclient.http, [b"\xff\xd8 one", b"", b"three\0" * 1000], "0.3")
    body, length = tritonclient.http.InferenceServerClient.generate_request_body(**request)
    for part in (b'"shape":[3,1]', b'"threshold":"0.3"', b'"scores"', b'"result"', b'"status"'):
        assert part in body[:length]
    assert body[length:] == b"\x06\0\0\0\xff\xd8 one" + b"\0\0\0\0" + b"\x70\x17\0\0" + b"three\0" * 1000


def test_a_reply_is_read() -> None:
    reply = read_result(make_result(), 2)
    assert not isinstance(reply, Refusal)
    np.testing.assert_array_equal(np.stack([row.scores for row in reply if row.scores is not None]), SCORES)
    assert [row.result for row in reply] == [
        {"class_ids": [1], "scores": [0.9], "label_names": ["собака"]},
        {"error": "no"},
    ]
    assert [row.status for row in reply] == STATUSES


@pytest.mark.parametrize(
    ("result", "count"),
    [
        (make_result(), 3),
        (make_result(scores=SCORES[:1]), 2),
        (make_result(scores=SCORES[0]), 2),
        (make_result(scores=None), 2),
        (make_result(results=["{", "{}"]), 2),
        (make_result(results=["3", "{}"]), 2),
        (make_result(statuses=["OK"]), 2),
        (make_result(statuses=None), 2),
    ],
)
def test_anything_else_is_malformed(result: Any, count: int) -> None:
    reply = read_result(result, count)
    assert isinstance(reply, Refusal)
    assert reply.code == "MALFORMED"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("StatusCode.INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("400", "INVALID_ARGUMENT"),
        ("503", "UNAVAILABLE"),
        ("418", "418"),
    ],
)
def test_both_protocols_refuse_alike(status: str, code: str) -> None:
    assert read_error(InferenceServerException("why", status)) == Refusal(code, "why")


def test_nobody_listens() -> None:
    reply = ask(connect("127.0.0.1:1"), "m", [b"x"], timeout_s=5)
    assert isinstance(reply, Refusal)
    assert reply.code == "UNAVAILABLE"
