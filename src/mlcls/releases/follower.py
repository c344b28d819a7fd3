"""A server that follows its repository: what `mlcls serve --poll` does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from mlcls.base.files import is_locked
from mlcls.errors import MlclsError
from mlcls.releases.rollout import switch
from mlcls.repository.models import Repository
from mlcls.repository.names import CONFIG_FILE
from mlcls.server.model_control import ModelControl
from mlcls.server.process import TritonServer


class RepositoryFollower:
    """Brings a running server in line with its repository, again and again.

    Triton's own polling is no choice: it loads whatever folder is there, models that are not imported and versions that
    are not active included, and takes an ensemble out of service whose new steps cannot be loaded.
    """

    def __init__(self, repository: Repository, names: Sequence[str], control: ModelControl) -> None:
        """Follow a server that is ready, with what is active in the repository now.

        Args:
            repository: The model repository.
            names: The models that are served.
            control: The server.
        """
        self._repository = repository
        self._names = names
        self._control = control
        self._seen = {name: self._read_state(name) for name in names}

    def follow(self) -> list[str]:
        """Switch the models whose active version is another one now.

        Returns:
            A line for each model that was switched, or that was to be and cannot; the latter stays as it is until its
            configuration changes again.
        """
        if is_locked(self._repository.root):  # a command is at work, and may switch the server itself
            return []
        lines = []
        for name in self._names:
            state = self._read_state(name)
            if state == self._seen[name]:
                continue
            self._seen[name] = state
            try:
                if self._control.is_ready(name, self._repository.active_number(name)):
                    continue
                version = self._repository.active(name)
                version.check()
                switch(version, self._control, pin=False)
                lines.append(f"{name}: version {version.number}")
            except MlclsError as error:
                lines.append(f"{name}: not switched: {error}")
        return lines

    def _read_state(self, name: str) -> tuple[int, int] | None:
        try:
            status = (self._repository.root / name / CONFIG_FILE).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


@contextlib.contextmanager
def following(server: TritonServer, interval_s: float, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Follow the repository of a server while the block runs, in a thread: a watch must not wait for a model to load.

    Args:
        server: It is ready.
        interval_s: How often to look.
        say: Takes one line for each event.

    Yields:
        Raises what ended the thread, if anything did.
    """
    control = ModelControl(f"http://{server.http_url}", server.admin_key, server.options.ready_timeout_s)
    follower = RepositoryFollower(Repository(server.options.repository), server.options.models, control)
    ended = threading.Event()
    failures: list[Exception] = []

    def follow() -> None:
        while not ended.wait(interval_s):
            try:
                lines = follower.follow()
            except Exception as error:  # told to the thread that serves
                failures.append(error)
                return
            for line in lines:
                if not ended.is_set():
                    say(line)

    def check() -> None:
        if failures:
            raise failures[0]

    threading.Thread(target=follow, name="mlcls-follower", daemon=True).start()
    try:
        yield check
    finally:
        ended.set()
