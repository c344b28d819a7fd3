"""Draining a server: no new request is taken, and those that were taken are answered, before it is told to end.

SIGTERM alone is not enough: Triton then refuses a request that is between two steps of its ensemble. An ensemble that
is unloaded answers what it has taken, and refuses the rest at once, as unavailable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from mlcls.errors import ModelControlError
from mlcls.model_control import ModelControl

#: How long requests in flight may take at the end of a server; as long as one may wait in a queue.
DEFAULT_DRAIN_TIMEOUT_S: Final = 30.0

_POLL_INTERVAL_S: Final = 0.02


def drain(url: str, key: str, models: Sequence[str], timeout_s: float) -> bool:
    """Unloads ensembles and waits until the requests that they had taken are answered.

    Args:
        url: `host:port` of the HTTP API.
        key: Of the closed APIs.
        models: The ensembles.
        timeout_s: How long to wait for all of it.

    Returns:
        Whether all were answered in time; False too where the server does not answer, or takes no orders.
    """
    deadline = time.monotonic() + timeout_s
    control = ModelControl(f"http://{url}", key, timeout_s)
    try:
        for name in models:
            control.unload(name)
        while any(name in models and state.state == "UNLOADING" for (name, _), state in control.states().items()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_INTERVAL_S)
    except ModelControlError:
        return False
    return True
