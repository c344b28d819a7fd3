"""Import paddle, which must be configured before the import and prints warnings during it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
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
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import paddle
    except ModuleNotFoundError as error:
        raise MissingExtraError(extra, str(error.name)) from error
    paddle.set_device("cpu")
    return sys.modules["paddle"]
