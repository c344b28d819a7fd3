"""Log lines as JSON objects: those of `mlcls serve` itself, and Triton's, which this translates.

Triton 2.51 writes text only. A pump reads it from a pipe and writes one object for each message, however many lines the
message has; what it cannot read becomes the message of an object of its own, so that every line of the output parses.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
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

Record = dict[str, Any]

# `2026-01-31T12:00:00Z E 4711 model_lifecycle.cc:654] "text"`; level and process id change places between releases.
_LINE: Final = re.compile(
    r"(?P<time>\S+) (?:(?P<pid>\d+) )?(?:\d+ )*(?P<level>[EWI]) (?:(?P<pid2>\d+) )?(?:\d+ )*"
    r"(?P<source>[\w./]+:\d+)\] ?(?P<text>.*)"
)
_LEVELS: Final = {"E": "ERROR", "W": "WARNING", "I": "INFO"}

# A message that does not end is written in pieces of this length.
_MAX_CHARACTERS: Final = 1 << 16
# How long a message of several lines is waited for.
_PAUSE_S: Final = 0.2
_TAIL_LINES: Final = 2000


def read_log_format(given: str | None, environment: Mapping[str, str] = os.environ) -> LogFormat:
    """Return the format that was asked for, by the option or else by the environment.

    Raises:
        ConfigError: The environment names another one.
    """
    name = given or environment.get(LOG_FORMAT_VARIABLE) or "text"
    for known in LOG_FORMATS:
        if name == known:
            return known
    raise ConfigError(f"Expected {LOG_FORMAT_VARIABLE} to be one of {', '.join(LOG_FORMATS)}, got {name!r}.")


class JsonLog:
    """Writes objects to a stream, a line each; several threads may use it at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Write to the stream, which stays the caller's."""
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, record: Record) -> None:
        """Write one object."""
        line = to_ascii_json(record).encode() + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def make_record(level: str, logger: str, message: str, time: str | None = None, **fields: Any) -> Record:
    """Return the content of a line.

    Args:
        level: `INFO`, `WARNING` or `ERROR`.
        logger: `mlcls` or `tritonserver`.
        message: For people.
        time: When, in RFC 3339; by default now.
        fields: What else is known, for programs.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time or now, "level": level, "logger": logger, "message": message, **fields}


class TritonLines:
    """Puts the objects together from lines."""

    def __init__(self) -> None:
        """No line came yet."""
        self._open: Record | None = None
        self._texts: list[str] = []

    def add(self, line: str) -> list[Record]:
        """Take a line without its end; give the messages that it ends."""
        match = _LINE.fullmatch(line)
        if match is None:
            if not line.strip() and any(self._texts):  # after a table, for example
                return self.finish()
            ended = self.finish() if line.startswith("error: ") else []  # Triton's last words
            if self._open is None:
                self._open = make_record("INFO", "tritonserver", "")
            self._texts.append(line)
            return [*ended, *(self.finish() if sum(map(len, self._texts)) > _MAX_CHARACTERS else [])]
        ended = self.finish()
        pid = match["pid"] or match["pid2"]
        self._open = make_record(_LEVELS[match["level"]], "tritonserver", "", match["time"], source=match["source"])
        if pid is not None:
            self._open["pid"] = int(pid)
        text = match["text"]
        self._texts = [text]
        is_whole = len(text) > 1 and text.startswith('"') and text.endswith('"')
        return [*ended, *self.finish()] if is_whole else ended

    def finish(self) -> list[Record]:
        """Return the message that is open, if any."""
        record, text = self._open, "\n".join(self._texts).strip()
        self._open, self._texts = None, []
        if record is None or not text:
            return []
        if "source" not in record and text.startswith(("error: ", "Traceback ")):
            record["level"] = "ERROR"
        record["message"] = _unquote(text)
        return [_with_fields(record)]


def _unquote(text: str) -> str:
    """Return the text of a message that Triton wrote as a JSON string."""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    return content if isinstance(content, str) else text


def _with_fields(record: Record) -> Record:
    """Return what a refused request's line says, as fields; that of this project's own code alone is believed."""
    message = record["message"]
    if record.get("source", "").startswith(f"{REFUSED_SOURCE}:") and message.startswith(REFUSED):
        try:
            content = json.loads(message.removeprefix(REFUSED))
        except ValueError:
            return record
        if isinstance(content, dict):
            fields = {name: value for name, value in content.items() if name not in record}
            return {**record, "message": REFUSED + str(content.get("error", "")), "event": "refused", **fields}
    return record


class TritonLogPump:
    """Reads Triton's text from a pipe and writes objects, in a thread of its own."""

    def __init__(self, pipe: IO[bytes], write: Callable[[Record], None]) -> None:
        """Start.

        Args:
            pipe: The end to read from; closed at the end.
            write: Takes each object.
        """
        self._pipe = pipe
        self._write = write
        self._lines = TritonLines()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._thread = threading.Thread(target=self._run, name="mlcls-log", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, process: subprocess.Popen[bytes], log: IO[bytes] | None) -> TritonLogPump:
        """Read a process's standard output and write to a stream, by default to this process's own output."""
        pipe = process.stdout
        if pipe is None:
            raise ValueError("Expected a process whose standard output is a pipe.")
        return cls(pipe, JsonLog(sys.stdout.buffer if log is None else log).write)

    def tail(self) -> str:
        """Return the last lines as Triton wrote them."""
        return "\n".join(self._tail)

    def join(self, timeout_s: float) -> None:
        """Wait until everything is written; the pipe ends with the last process that holds its other end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        rest = b""
        with self._pipe:
            descriptor = self._pipe.fileno()
            while True:
                ready, _, _ = select.select([descriptor], [], [], _PAUSE_S)
                if not ready:
                    self._emit(self._lines.finish())
                    continue
                content = os.read(descriptor, 1 << 16)
                if not content:
                    break
                *lines, rest = (rest + content).split(b"\n")
                if len(rest) > _MAX_CHARACTERS:
                    lines, rest = [*lines, rest], b""
                self._take(lines)
            self._take([rest] if rest else [])
            self._emit(self._lines.finish())

    def _take(self, lines: list[bytes]) -> None:
        for content in lines:
            line = content.decode(errors="replace").rstrip("\r")
            self._tail.append(line)
            self._emit(self._lines.add(line))

    def _emit(self, records: list[Record]) -> None:
        for record in records:
            try:
                self._write(record)
            except (OSError, ValueError):  # a full disk, a closed reader: Triton must not wait for a pipe nobody reads
                continue


Level = Literal["INFO", "WARNING", "ERROR"]


class Announcements:
    """Writes lines: as text to standard output, and warnings to standard error; as JSON all to standard output."""

    def __init__(self, log_format: LogFormat) -> None:
        """Nothing is written yet."""
        self.log = JsonLog(sys.stdout.buffer) if log_format == "json" else None

    def say(self, message: str, level: Level = "INFO") -> None:
        """Write a line."""
        if self.log is not None:
            sys.stdout.flush()
            self.log.write(make_record(level, "mlcls", message))
        elif level == "INFO":
            print(message, flush=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def warn_now(self, message: str) -> None:
        """Write a warning with its time."""
        self.say(message if self.log is not None else f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}", "WARNING")


# Lines that tell nothing about a machine without a GPU.
_HARMLESS: Final = re.compile(r"CudaDriverHelper|NVML|DCGM|CUDA driver version is insufficient")

_TAIL_BYTES: Final = 1 << 20

# As the path of the log: Triton's log goes to standard output, as a container's should.
STANDARD_OUTPUT: Final = Path("-")


def describe_end(log_path: Path, exit_status: int, tail: str | None = None) -> str:
    """Return one line for a server that ended: the first reason in its log, else how the process ended.

    Args:
        log_path: The log.
        exit_status: Of the process, negative for a signal.
        tail: The log's last lines, where the file does not have them as Triton wrote them.
    """
    how = f"exit status {exit_status}" if exit_status >= 0 else f"signal {-exit_status}"
    if tail is not None:
        return f"tritonserver ended with {how}: {find_reason(tail) or 'its log tells no reason'}"
    if log_path == STANDARD_OUTPUT:
        return f"tritonserver ended with {how}; its log above tells why"
    try:
        with log_path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    reason = find_reason(text)
    return f"tritonserver ended with {how}: {reason or 'its log tells no reason'}"


def find_reason(log: str) -> str | None:
    """Return the reason why a server could not start or run, from its log; None where the log has none."""
    errors: list[str] = []
    for line in log.splitlines():
        match = _LINE.fullmatch(line)
        if match and match["level"] == "E" and not _HARMLESS.search(match["text"]):
            errors.append(match["text"].strip().strip('"').split("\\n")[0].strip())
        elif line.startswith("error: ") and not _HARMLESS.search(line):
            errors.append(line.removeprefix("error: ").strip())
    # The first line is the cause, and later ones say that something could not go on because of it; but where a model is
    # the cause, the line that names it comes second.
    named = [error for error in errors if error.startswith("failed to load '")]
    return (named or errors)[0][:600] if errors else None
