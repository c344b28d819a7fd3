"""Model control of a running tritonserver over HTTP: list, load, unload and drain models."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import quote

from mlcls.errors import ModelControlError
from mlcls.server.http_api import ConnectionLostError, HttpApi, HttpStatusError, NoAnswerError
from mlcls.server.options import ADMIN_KEY_HEADER, ADMIN_KEY_VARIABLE

_POLL_INTERVAL_S: Final = 0.02
_LONGEST_POLL_INTERVAL_S: Final = 0.3
_QUERY_TIMEOUT_S: Final = 30.0


class ModelState(NamedTuple):
    """What a server reports about one version of a model.

    Attributes:
        state: `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`; empty for a model that was never loaded.
        reason: Why it is unavailable.
    """

    state: str = ""
    reason: str = ""


class ModelControl:
    """Loads and unloads models of a running server, with the key of its closed APIs.

    A server that polls its repository refuses both and does them itself; `load` then waits until it has. Loading a
    model may take `timeout_s`. An address that is neither `host:port` nor a URL raises a ServerError.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 300.0) -> None:
        self._api = HttpApi(url, allow_proxy=True)
        self.url = self._api.url
        self._headers = {"Content-Type": "application/json", **({ADMIN_KEY_HEADER: key} if key else {})}
        self._timeout_s = timeout_s

    def states(self) -> dict[tuple[str, int], ModelState]:
        """Return the state of each version of each model that was ever loaded.

        Raises:
            ModelControlError: The server cannot be asked.
        """
        models = json.loads(self._post("index", min(_QUERY_TIMEOUT_S, self._timeout_s)))
        return {
            (model["name"], int(model["version"])): ModelState(model.get("state", ""), model.get("reason", ""))
            for model in models
            if model.get("version")
        }

    def is_ready(self, model: str, version: int) -> bool:
        """Return whether the server reports a version of a model as ready; False too if it does not answer."""
        return self._api.is_ready(model, version, _QUERY_TIMEOUT_S)

    def load(self, model: str, version: int) -> None:
        """Load a model, or reload it, and wait until a version of it is ready.

        Raises:
            ModelControlError: The server cannot load it; the text has Triton's reason.
        """
        deadline = time.monotonic() + self._timeout_s
        hint = "see its log."
        try:
            self._post(f"models/{quote(model, safe='')}/load", self._timeout_s)
        except _PollingError:
            hint = "the server refuses model control: does it poll its repository?"
        while not self.is_ready(model, version):
            state = self.states().get((model, version), ModelState())
            if state.state == "UNAVAILABLE" and state.reason != "unloaded":
                raise ModelControlError(f"Triton cannot load {model}, version {version}: {_shorten(state.reason)}")
            if time.monotonic() > deadline:
                raise ModelControlError(
                    f"{model}, version {version}, was not ready within {self._timeout_s:.0f} s at {self.url}; {hint} "
                    f"Give it more time with --ready-timeout."
                )
            time.sleep(_POLL_INTERVAL_S)

    def unload(self, model: str) -> None:
        """Unload a model once its requests are answered; a server that polls keeps what is in its repository.

        Raises:
            ModelControlError: The server refuses.
        """
        with contextlib.suppress(_PollingError):
            self._post(f"models/{quote(model, safe='')}/unload", self._timeout_s)

    def wait_until_drained(self, models: Collection[str], timeout_s: float) -> bool:
        """Wait until the versions of some models that are being unloaded have answered the requests they accepted.

        Returns:
            Whether they have, within the time. In Triton 2.51, a request whose caller has left may never end.

        Raises:
            ModelControlError: The server cannot be asked.
        """
        deadline, pause_s = time.monotonic() + timeout_s, _POLL_INTERVAL_S
        while any(name in models and state.state == "UNLOADING" for (name, _), state in self.states().items()):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_POLL_INTERVAL_S)
        return True

    def _post(self, path: str, timeout_s: float) -> bytes:
        ask = partial(self._api.request, f"/v2/repository/{path}", timeout_s, b"{}", self._headers)
        try:
            try:
                return ask()
            except ConnectionLostError:  # Triton 2.51 resets one now and then under load; each request can be repeated
                return ask()
        except HttpStatusError as error:
            reason = error.reason or f"HTTP status {error.status}"
            if "not allowed if polling is enabled" in reason:
                raise _PollingError(reason) from None
            if "restricted" in reason:
                raise ModelControlError(
                    f"{self.url} refuses model control: set {ADMIN_KEY_VARIABLE} to the key that the server was "
                    f"started with ({reason})."
                ) from None
            raise ModelControlError(f"Triton at {self.url} refused: {_shorten(reason)}") from None
        except NoAnswerError as error:
            raise ModelControlError(
                f"No answer from Triton's HTTP API at {self.url} ({error}). Is the server running (mlcls serve)? "
                f"Without --url, only the repository is changed."
            ) from None


class _PollingError(ModelControlError):
    """The server polls its repository and allows no model control."""


def _shorten(reason: str) -> str:
    """Return Triton's reason without the traceback of a Python backend."""
    return reason.split("\n\nAt:")[0].strip().replace("\n", " ")[:1000]
