"""What a request carries besides its images, so that it can be found again in logs and traces."""

import importlib
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mlcls_client.errors import InvalidRequestError

# Printable, so that it can be searched for as it is, in any log.
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,100}")

# The two headers of W3C Trace Context. Baggage is not sent: it is the caller's own, and may hold anything.
_TRACE_HEADERS: Final = ("traceparent", "tracestate")


@dataclass(frozen=True)
class RequestContext:
    """Identity of one request.

    Attributes:
        request_id: Sent as Triton's request id; empty for none.
        headers: Trace context of the caller.
    """

    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


NO_CONTEXT: Final = RequestContext()


def begin_context(request_id: str | None) -> RequestContext:
    """Return what the requests of one `predict` call have in common: the begin of their ids, the caller's span.

    Args:
        request_id: The caller's; None for a random one.

    Raises:
        InvalidRequestError: It is no text of 1 to 100 printable ASCII characters.
    """
    if request_id is None:
        request_id = secrets.token_hex(8)
    elif not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            f"expected request_id to be 1 to 100 printable ASCII characters without a space, got {request_id!r}"
        )
    return RequestContext(request_id, _current_trace_headers())


def _current_trace_headers() -> dict[str, str]:
    """Return the span that is current in the caller's program, where that uses OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:  # a program without a span need not pay for the import
        return {}
    carrier: dict[str, str] = {}
    try:
        propagate: Any = importlib.import_module("opentelemetry.propagate")
        propagate.inject(carrier)
    except Exception:  # a tracer that is set up wrongly must not cost a prediction
        return {}
    return {name: carrier[name] for name in _TRACE_HEADERS if name in carrier}
