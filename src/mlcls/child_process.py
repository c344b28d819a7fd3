"""What becomes of a process when the one that started it is gone."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

# of <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Has the kernel end this process when the thread that started it ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
