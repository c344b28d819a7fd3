"""Spans of requests for OpenTelemetry: Triton makes and sends them, this says where and how many."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from mlcls.errors import ConfigError

#: Every so manieth request is traced unless told otherwise.
DEFAULT_TRACE_EVERY: Final = 100

SERVICE_NAME: Final = "mlcls"

#: Triton's option separates by commas; a name with a password would be seen by everyone who lists the processes.
_URL: Final = re.compile(
    r"https?://[\w.-]+(:\d{1,5})?(/[\w./~%+-]*)?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?(/[\w./~%+-]*)?"
)


@dataclasses.dataclass(frozen=True)
class TraceSettings:
    """Where spans go.

    Attributes:
        url: Of a collector's OTLP over HTTP, `http://localhost:4318/v1/traces` for example.
        every: Every so manieth request is traced; 1 for all.
    """

    url: str
    every: int = DEFAULT_TRACE_EVERY

    def __post_init__(self) -> None:
        if not _URL.fullmatch(self.url):
            raise ConfigError(
                f"Expected --trace-url to be the http or https address of a collector's OTLP receiver without a name "
                f"or password, http://localhost:4318/v1/traces for example, got {self.url!r}."
            )
        if not 1 <= self.every <= 1_000_000:
            raise ConfigError(f"Expected --trace-rate 1 (every request) to 1000000 (each millionth), got {self.every}.")

    def arguments(self) -> list[str]:
        """Options of tritonserver."""
        return [
            "--trace-config=mode=opentelemetry",
            f"--trace-config=opentelemetry,url={self.url}",
            f"--trace-config=opentelemetry,resource=service.name={SERVICE_NAME}",
            f"--trace-config=rate={self.every}",
            "--trace-config=level=TIMESTAMPS",
        ]
