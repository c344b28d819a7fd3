"""Tries of one request: again after a failure that another try may cure, never past the request's deadline."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from mlcls_client.errors import ServerUnavailableError

_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0

Answered = TypeVar("Answered")


async def call_with_retries(
    attempt: Callable[[float], Awaitable[Answered]], retries: int, timeout_s: float
) -> Answered:
    """Make a call, and make it again where that is safe.

    Only a `ServerUnavailableError` is tried again: the connection was refused or lost, or the server or the model is
    not ready. A prediction changes nothing on the server, so that one whose answer was lost may be asked for again.
    What the server has judged (a bad request, an unknown model) or taken too long for is not tried again.

    Args:
        attempt: Makes the call; it is given the seconds that are left for it.
        retries: Further tries after the first.
        timeout_s: Time limit of all tries and the pauses between them, seconds.

    Raises:
        ServerUnavailableError: The last try failed, or no time is left for the next one.
        DeadlineExceededError: No answer within the time limit.
    """
    deadline = time.monotonic() + timeout_s
    left_s, number = timeout_s, 0
    while True:
        try:
            return await attempt(left_s)
        except ServerUnavailableError as error:
            pause_s = _pause_s(number)
            left_s = deadline - time.monotonic() - pause_s
            number += 1
            # A certificate that is not trusted now will not be trusted a second later.
            if number > retries or left_s <= 0 or _is_untrusted(error):
                raise
        await asyncio.sleep(pause_s)


def _pause_s(number: int) -> float:
    """Return the pause after a failed try: twice as long each time, and by chance up to half shorter.

    Clients that lost the same server must not come back all at once.
    """
    longest: float = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(number, 16))
    return longest * random.uniform(0.5, 1.0)


def _is_untrusted(error: ServerUnavailableError) -> bool:
    cause = error.__cause__
    # aiohttp wraps the error of the TLS library.
    return isinstance(getattr(cause, "certificate_error", cause), ssl.SSLCertVerificationError)
