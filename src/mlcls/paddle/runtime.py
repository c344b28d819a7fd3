"""Import paddle, which must be configured before the import and prints warnings during it."""

from __future__ import annotations

import contextlib
import importlib.abc
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

from mlcls.errors import MissingExtraError


def import_paddle(extra: str) -> ModuleType:
    """Import paddle for the CPU, with all cores and without its warnings.

    Raises:
        MissingExtraError: paddle is not installed; the text names the extra that installs it.
    """
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    os.environ.setdefault("GLOG_minloglevel", "2")
    # paddle's default is one thread, which can be changed only before the import
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    try:
        with _kept_signals(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import paddle
    except ModuleNotFoundError as error:
        raise MissingExtraError(extra, str(error.name)) from error
    paddle.set_device("cpu")
    return sys.modules["paddle"]


class _SignalKeeper(importlib.abc.MetaPathFinder):
    """Finds no module, but puts Python's handling of SIGTERM back whenever one is looked for.

    Paddle's C++ part takes the signal over early in the import, to print a trace and abort.
    """

    def find_spec(self, *_: object) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return
    keeper = _SignalKeeper()
    sys.meta_path.insert(0, keeper)
    try:
        yield
    finally:
        sys.meta_path.remove(keeper)
        keeper.find_spec()
