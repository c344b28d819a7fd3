"""A collector of OpenTelemetry spans: OTLP over HTTP with JSON, as Triton sends it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.quiet_http import QuietHandler, serve_http


@dataclasses.dataclass(frozen=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    attributes: dict[str, str]
    service: str


class OtlpReceiver:
    """The spans received so far."""

    def __init__(self, url: str, spans: list[Span]) -> None:
        self.url, self.spans = url, spans

    def of(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def receive_spans() -> Iterator[OtlpReceiver]:
    spans: list[Span] = []

    class Handler(QuietHandler):
        def do_POST(self) -> None:  # noqa: N802  # http.server's name
            spans.extend(read_spans(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.reply(200)

    with serve_http(Handler) as port:
        yield OtlpReceiver(f"http://127.0.0.1:{port}/v1/traces", spans)


def read_spans(document: dict[str, Any]) -> Iterator[Span]:
    for resource in document["resourceSpans"]:
        service = _attributes(resource["resource"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    span["traceId"],
                    span["spanId"],
                    span.get("parentSpanId", ""),
                    span["name"],
                    _attributes(span),
                    service,
                )


def _attributes(content: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: str(next(iter(one["value"].values()))) for one in content.get("attributes", [])}
