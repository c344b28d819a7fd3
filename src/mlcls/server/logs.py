"""The log of a server: lines of `mlcls serve` itself, and Triton's, which are kept, passed on or translated to JSON.

Triton 2.51 writes text only. A thread reads it from a pipe. With `--log-format json` it writes one object per message,
however many lines the message has. Text that it cannot parse becomes the message of an object of its own, so every line
of the output parses.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Final, Literal

from mlcls.backends.refusal_log import REFUSED, REFUSED_SOURCE
from mlcls.base.text import to_ascii_json
from mlcls.errors import ConfigError

LogFormat = Literal["text", "json"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")

# Environment variable with the default of `--log-format`.
LOG_FORMAT_VARIABLE: Final = "MLCLS_LOG_FORMAT"

# Log path that prints Triton's log, as in a container: text on standard error, JSON on standard output.
STANDARD_OUTPUT: Final = Path("-")

Level = Literal["INFO", "WARNING", "ERROR"]
Record = dict[str, Any]

# `2026-01-31T12:00:00Z E 4711 model_lifecycle.cc:654] "text"`; level and process id change places between releases.
_LINE: Final = re.compile(
    r"(?P<time>\S+) (?:(?P<pid>\d+) )?(?:\d+ )*(?P<level>[EWI]) (?:(?P<pid2>\d+) )?(?:\d+ )*"
    r"(?P<source>[\w./]+:\d+)\] ?(?P<text>.*)"
)
_LEVELS: Final[Mapping[str, Level]] = {"E": "ERROR", "W": "WARNING", "I": "INFO"}
# Harmless lines on a machine without a GPU.
_HARMLESS: Final = re.compile(r"CudaDriverHelper|NVML|DCGM|CUDA driver version is insufficient")

# A message without an end is written in pieces of this length.
_MAX_CHARACTERS: Final = 1 << 16
# How long to wait for the next line of a message.
_PAUSE_S: Final = 0.2
_TAIL_LINES: Final = 2000

# What tritonserver prints when a C++ exception ends it: the runtime's lines, and that of Triton's signal handler.
_TERMINATED: Final = re.compile(
    r"^(terminate called .*)(?:\n  what\(\):  (.*))?\nSignal \(\d+\) received\.$", re.MULTILINE
)


def read_log_format(given: str | None, environment: Mapping[str, str] = os.environ) -> LogFormat:
    """Return the format that the option, or else the environment, asks for.

    Raises:
        ConfigError: The environment names an unknown format.
    """
    name = given or environment.get(LOG_FORMAT_VARIABLE) or "text"
    if name not in LOG_FORMATS:
        raise ConfigError(f"Expected {LOG_FORMAT_VARIABLE} to be one of {', '.join(LOG_FORMATS)}, got {name!r}.")
    return name


class Announcements:
    """Writes lines: text to standard output, with warnings on standard error; JSON to standard output only."""

    def __init__(self, log_format: LogFormat) -> None:
        self._as_json = log_format == "json"

    def say(self, message: str, level: Level = "INFO") -> None:
        """Write a line."""
        if self._as_json:
            sys.stdout.buffer.write(encode_record(level, "mlcls", message))
            sys.stdout.buffer.flush()
        else:
            print(message, file=sys.stdout if level == "INFO" else sys.stderr, flush=True)

    def warn_now(self, message: str) -> None:
        """Write a warning with its time."""
        self.say(message if self._as_json else f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}", "WARNING")


def encode_record(level: Level, logger: str, message: str, time: str | None = None, **fields: Any) -> bytes:
    """Return one line with a JSON object: what `mlcls` or `tritonserver` says to people, and fields for programs.

    The time is in RFC 3339, by default now.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"time": time or now, "level": level, "logger": logger, "message": message, **fields}
    return to_ascii_json(record).encode() + b"\n"


class TritonLines:
    """Assembles Triton's lines into messages, each a line with a JSON object."""

    def __init__(self) -> None:
        self._head: re.Match[str] | None = None
        self._texts: list[str] = []

    def add(self, line: str) -> Iterator[bytes]:
        """Add a line without its line break, and yield the messages that it completes."""
        head = _LINE.fullmatch(line)
        ends_table = not line.strip() and any(self._texts)
        if head is not None or ends_table or line.startswith("error: "):  # the latter are Triton's last words
            yield from self.finish()
        if head is not None:
            self._head, line = head, head["text"]
        if ends_table:
            return
        self._texts.append(line)
        is_whole = head is not None and len(line) > 1 and line.startswith('"') and line.endswith('"')
        if is_whole or sum(map(len, self._texts)) > _MAX_CHARACTERS:
            yield from self.finish()

    def finish(self) -> Iterator[bytes]:
        """Yield the message that is still open, if any."""
        head, text = self._head, "\n".join(self._texts).strip()
        self._head, self._texts = None, []
        if not text:
            return
        if head is None:
            level: Level = "ERROR" if text.startswith(("error: ", "Traceback ")) else "INFO"
            yield encode_record(level, "tritonserver", text)
            return
        message, fields = _read_message(text, head["source"])
        pid = head["pid"] or head["pid2"]
        if pid is not None:
            fields["pid"] = int(pid)
        fields |= {"source": head["source"], "time": head["time"]}
        yield encode_record(_LEVELS[head["level"]], "tritonserver", message, **fields)


def _read_message(text: str, source: str) -> tuple[str, Record]:
    """Return the message of a quoted text, and the fields of a refused request, which only this project's code logs."""
    message = _parse(text, str, text)
    if source.startswith(f"{REFUSED_SOURCE}:") and message.startswith(REFUSED):
        content = _parse(message.removeprefix(REFUSED), dict, None)
        if content is not None:
            fields = {name: value for name, value in content.items() if name not in ("level", "logger", "message")}
            return REFUSED + str(content.get("error", "")), {"event": "refused", **fields}
    return message, {}


def _parse(text: str, kind: type, default: Any) -> Any:
    try:
        content = json.loads(text)
    except ValueError:
        return default
    return content if isinstance(content, kind) else default


class TritonLog(threading.Thread):
    """Reads Triton's text from the descriptor of a pipe until it ends, and keeps the last lines.

    To a stream, if one is given, it writes the text as it is, or translated to JSON.

    Attributes:
        is_starting: Whether the server has not been ready yet; whoever waits for it changes this.
    """

    def __init__(self, descriptor: int, stream: IO[bytes] | None, log_format: LogFormat) -> None:
        super().__init__(name="mlcls-log", daemon=True)
        self._descriptor, self._stream = descriptor, stream
        self._lines = TritonLines() if log_format == "json" and stream is not None else None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.is_starting = True
        self.start()

    def tail(self) -> str:
        """Return the last lines, as Triton wrote them."""
        return "\n".join(self._tail)

    def last_foreign_line(self) -> str:
        """Return the last line that is not of Triton's own log: of a shell, for example, or of the loader."""
        lines = [line for line in self._tail if line.strip() and not (_LINE.fullmatch(line) or _HARMLESS.search(line))]
        return lines[-1][:600] if lines else "it gave no reason"

    def run(self) -> None:
        """Read until the last process that holds the pipe's other end has closed it."""
        rest = b""
        with open(self._descriptor, "rb"):
            while True:
                if self._lines is not None and not select.select([self._descriptor], [], [], _PAUSE_S)[0]:
                    self._emit(self._lines.finish())
                    continue
                content = os.read(self._descriptor, 1 << 16)
                if self._lines is None:
                    self._emit([content])
                *lines, rest = (rest + content).split(b"\n")
                if rest and (not content or len(rest) > _MAX_CHARACTERS):
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._take(line.decode(errors="replace").rstrip("\r"))
                if not content:
                    break
            if self._lines is not None:
                self._emit(self._lines.finish())

    def _take(self, line: str) -> None:
        self._tail.append(line)
        if self._lines is not None:
            self._emit(self._lines.add(line))

    def _emit(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            with contextlib.suppress(OSError, ValueError):  # full disk, closed reader: Triton must not wait for them
                if self._stream is not None:
                    self._stream.write(piece)
                    self._stream.flush()


def describe_end(exit_status: int, log: str, is_starting: bool) -> str:
    """Return one line about a server that ended: how, and why, if its log has the reason.

    Args:
        exit_status: Exit status of the process, negative for a signal.
        log: The log's last lines.
        is_starting: Whether it had not been ready yet.
    """
    how = f"exit status {exit_status}" if exit_status >= 0 else f"signal {-exit_status}"
    reason = find_start_fault(log) if is_starting else find_last_words(log)
    return f"tritonserver ended with {how}: {reason or 'its log gives no reason'}"


def find_start_fault(log: str) -> str | None:
    """Return the reason why a server could not start, from its log; None if the log has none."""
    errors: list[str] = []
    for line in log.splitlines():
        if _HARMLESS.search(line):
            continue
        match = _LINE.fullmatch(line)
        if match and match["level"] == "E":
            errors.append(match["text"].strip().strip('"').split("\\n")[0].strip())
        elif line.startswith("error: "):
            errors.append(line.removeprefix("error: ").strip())
    # The first line is the cause; later ones follow from it. But if a model is the cause, the line that names it comes
    # second.
    named = [error for error in errors if error.startswith("failed to load '")]
    return (named or errors)[0][:600] if errors else None


def find_last_words(log: str) -> str | None:
    """Return what a server that had been ready printed about its own end; None if it printed nothing.

    All else in its log, such as a traceback, is about requests or about models that were loaded later.
    """
    if terminated := list(_TERMINATED.finditer(log)):
        return ": ".join(filter(None, terminated[-1].groups()))[:600]
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ").strip()[:600] if errors else None
