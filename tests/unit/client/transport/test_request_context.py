"""Requests of the client can be found again: ids, and the caller's span."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest

from mlcls_client import ImageRejectedError, ServerUnavailableError, create_model
from mlcls_client.testing import FakeServer
from support.client_images import NAME, encode

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_each_request_has_its_own_id(server: FakeServer) -> None:
    with create_model(NAME, url=server.url) as model:
        list(model.predict([encode()] * 5, batch_size=2, request_id="job-17"))
        assert sorted(server.request_ids) == ["job-17-0", "job-17-1", "job-17-2"]
        server.request_ids.clear()
        list(model.predict([encode()] * 2))
        list(model.predict(encode()))
        bases = {one.rpartition("-")[0] for one in server.request_ids}
        assert len(server.request_ids) == 3
        assert len(bases) == 2
        assert all(len(base) == 16 for base in bases)


def test_a_retry_has_the_same_id(server: FakeServer) -> None:
    server.outages = 2
    with create_model(NAME, url=server.url) as model:
        list(model.predict(encode(), request_id="again"))
        assert server.request_ids == ["again-0"]
        server.outages = 99
        with pytest.raises(ServerUnavailableError, match=r"\(request down-0\)$") as caught:
            list(model.predict(encode(), request_id="down"))
        assert caught.value.request_id == "down-0"


def test_images_of_a_refused_batch_have_ids_of_their_own(server: FakeServer) -> None:
    with create_model(NAME, url=server.url) as model:
        results = list(model.predict([b"no", b"image"], batch_size=2, on_error="yield", request_id="bad"))
        assert server.request_ids[0] == "bad-0"
        assert sorted(server.request_ids[1:]) == ["bad-0.0", "bad-0.1", "bad-probe"]
        errors = [result.error for result in results]
        assert [error.request_id for error in errors if error is not None] == ["bad-0", "bad-0"]


def test_a_rejected_image_names_its_request(caplog: pytest.LogCaptureFixture, server: FakeServer) -> None:
    with create_model(NAME, url=server.url) as model:
        with pytest.raises(ImageRejectedError, match=r"bytes in no known format. \(request r-0\)$") as caught:
            list(model.predict([b"no image"], request_id="r"))
        assert caught.value.reason.endswith("bytes in no known format.")
        (result,) = model.predict([b"no image"], request_id="r", on_error="yield")
        assert "request" not in str(result.json), "an answer does not depend on who asks"
        with caplog.at_level(logging.WARNING):
            assert list(model.predict([b"no image"], request_id="s", on_error="skip")) == []
        assert "(request s-0)" in caplog.text


@pytest.mark.parametrize(
    ("sent", "headers", "expected"),
    [
        ({"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": "user=alice"}, None, (TRACEPARENT, "a=b")),
        (None, None, (None, None)),  # a tracer that fails costs nothing
        ({"traceparent": "00-ff-ff-01"}, {"traceparent": TRACEPARENT}, (TRACEPARENT, None)),  # the caller's headers win
    ],
)
def test_the_current_span_of_the_caller_is_sent(
    monkeypatch: pytest.MonkeyPatch, server: FakeServer, sent: Any, headers: Any, expected: tuple[str | None, ...]
) -> None:
    propagate: Any = types.ModuleType("opentelemetry.propagate")
    propagate.inject = lambda carrier: carrier.update(sent)  # TypeError for None
    for name in ("opentelemetry", "opentelemetry.trace"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", propagate)
    with create_model(NAME, url=server.url, headers=headers) as model:
        assert len(list(model.predict(encode()))) == 1
    assert tuple(map(server.headers[-1].get, ("traceparent", "tracestate"))) == expected
    assert "baggage" not in server.headers[-1]
