"""A server that follows its repository: what `mlcls serve --poll` does.

Triton's own polling cannot do it: it loads every folder, even models that are not imported and versions that are not
active, and it takes an ensemble out of service if its new steps cannot be loaded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mlcls.base.files import is_locked
from mlcls.errors import MlclsError
from mlcls.releases.rollout import switch
from mlcls.repository.models import Repository
from mlcls.repository.names import CONFIG_FILE
from mlcls.server.model_control import ModelControl
from mlcls.server.process import TritonServer


@contextlib.contextmanager
def following(
    server: TritonServer, interval_s: float | None, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Follow a server's repository while the block runs, in a thread, so that a watch never waits for a model to load.

    Args:
        server: The server, which is ready.
        interval_s: How often to check the repository; None for never.
        say: Called with one line for each model that was switched or could not be; the latter stays as it is until its
            configuration changes again.

    Yields:
        A function that raises the error that ended the thread, if there was one.
    """
    control = ModelControl(server.http_url, server.admin_key, server.options.ready_timeout_s)
    repository = Repository(server.options.repository)
    seen = {name: _read_state(repository, name) for name in server.options.models}
    ended = threading.Event()
    failures: list[Exception] = []

    def follow() -> None:
        while not ended.wait(interval_s):
            if is_locked(repository.root):  # a command is running, and may switch the server itself
                continue
            for name, state in seen.items():
                seen[name] = _read_state(repository, name)
                line = "" if seen[name] == state else _switch_to_active(repository, name, control)
                if line and not ended.is_set():
                    say(line)

    def follow_until_failure() -> None:
        try:
            follow()
        except Exception as error:  # the thread that serves raises it
            failures.append(error)

    def check() -> None:
        if failures:
            raise failures[0]

    if interval_s is not None:
        threading.Thread(target=follow_until_failure, name="mlcls-follower", daemon=True).start()
    try:
        yield check
    finally:
        ended.set()


def _read_state(repository: Repository, name: str) -> tuple[int, int] | None:
    """Return what changes with the file that makes a version active."""
    try:
        status = (repository.root / name / CONFIG_FILE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _switch_to_active(repository: Repository, name: str, control: ModelControl) -> str:
    """Have the server serve a model's active version; return a line about it, empty if it does so already."""
    try:
        if control.is_ready(name, repository.active_number(name)):
            return ""
        version = repository.active(name)
        version.check()
        switch(version, control, pin=False)
    except MlclsError as error:
        return f"{name}: not switched: {error}"
    return f"{name}: version {version.number}"
