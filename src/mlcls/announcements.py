"""What `mlcls serve` says about itself: plain lines, or the JSON objects that Triton's log is made of as well."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Literal

from mlcls.json_log import JsonLog, LogFormat, make_record

Level = Literal["INFO", "WARNING", "ERROR"]


class Announcements:
    """Writes lines: as text to standard output, and warnings to standard error; as JSON all to standard output."""

    def __init__(self, log_format: LogFormat) -> None:
        """Nothing is written yet."""
        self.log = JsonLog(sys.stdout.buffer) if log_format == "json" else None

    def say(self, message: str, level: Level = "INFO") -> None:
        """Writes a line."""
        if self.log is not None:
            sys.stdout.flush()
            self.log.write(make_record(level, "mlcls", message))
        elif level == "INFO":
            print(message, flush=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def warn_now(self, message: str) -> None:
        """Writes a warning with its time."""
        self.say(message if self.log is not None else f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}", "WARNING")
