"""Where spans are sent."""

from __future__ import annotations

import pytest

from mlcls.errors import ConfigError
from mlcls.server.options import TraceSettings


def test_arguments() -> None:
    assert TraceSettings("http://localhost:4318/v1/traces", 5).arguments() == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=opentelemetry,url=http://localhost:4318/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=mlcls",
        "--trace-config=rate=5",
        "--trace-config=level=TIMESTAMPS",
    ]


@pytest.mark.parametrize("url", ["https://otel.example.com/v1/traces", "http://[::1]:4318/v1/traces", "http://a"])
def test_addresses(url: str) -> None:
    assert TraceSettings(url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:4318",
        "grpc://a:4317",
        "http://user:secret@a/v1",
        "http://a/b,rate=1",
        "http://a/\n",
        "http://a/ b",
    ],
)
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="Expected --trace-url to be"):
        TraceSettings(url)


@pytest.mark.parametrize("rate", [0, -1, 1_000_001])
def test_wrong_rates(rate: int) -> None:
    with pytest.raises(ConfigError, match="Expected --trace-rate 1"):
        TraceSettings("http://a", rate)
