"""One request: its id and trace context, and its retries."""

from __future__ import annotations

import asyncio
import importlib
import random
import re
import secrets
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from mlcls_client.errors import InvalidRequestError, ServerUnavailableError

# Printable, so that any log shows it unchanged.
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,100}")

# The two headers of W3C Trace Context. Baggage is not sent: it is private to the caller and may hold anything.
_TRACE_HEADERS: Final = ("traceparent", "tracestate")

_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0

Answered = TypeVar("Answered")


def check_request_id(request_id: str | None) -> str:
    """Return the prefix of the ids of one `predict` call, a random one for None."""
    if request_id is None:
        return secrets.token_hex(8)
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            f"Expected request_id to be 1 to 100 printable ASCII characters without a space, got {request_id!r}."
        )
    return request_id


def read_trace_headers() -> dict[str, str]:
    """Return the trace context of the caller's current OpenTelemetry span, if there is one."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:  # otherwise there is no span
        try:
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            propagate.inject(carrier)
        except Exception:  # a misconfigured tracer must not fail a prediction
            carrier = {}
    return {name: carrier[name] for name in _TRACE_HEADERS if name in carrier}


async def call_with_retries(
    attempt: Callable[[float], Awaitable[Answered]], retries: int, timeout_s: float
) -> Answered:
    """Make a call, and retry it if that is safe, within `timeout_s` seconds for all attempts and the pauses.

    Only a `ServerUnavailableError` is retried: the connection was refused or lost, or the server or the model is not
    ready. A prediction changes nothing on the server, so it can be repeated if its answer was lost. A request that the
    server rejected (a bad request, an unknown model) or did not answer in time is not retried. `attempt` is given the
    seconds that are left.

    Raises:
        ServerUnavailableError: The last attempt failed, or no time is left for the next one.
        DeadlineExceededError: No answer within the time limit.
    """
    deadline = time.monotonic() + timeout_s
    left_s, number = timeout_s, 0
    while True:
        try:
            return await attempt(left_s)
        except ServerUnavailableError as error:
            # Randomly up to half shorter: clients that lost the same server must not all come back at once.
            pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(number, 16)) * random.uniform(0.5, 1.0)
            left_s = deadline - time.monotonic() - pause_s
            number += 1
            cause = getattr(error.__cause__, "certificate_error", error.__cause__)  # aiohttp wraps the error of TLS
            # A certificate that is not trusted now will not be trusted a second later.
            if number > retries or left_s <= 0 or isinstance(cause, ssl.SSLCertVerificationError):
                raise
        await asyncio.sleep(pause_s)
