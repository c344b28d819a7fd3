"""Log lines as JSON objects, both those of `mlcls serve` itself and Triton's, which are translated.

Triton 2.51 writes text only. A pump reads it from a pipe and writes one object per message, however many lines the
message has. Text that it cannot parse becomes the message of an object of its own, so every line of the output parses.
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

# A message without an end is written in pieces of this length.
_MAX_CHARACTERS: Final = 1 << 16
# How long to wait for the next line of a message.
_PAUSE_S: Final = 0.2
_TAIL_LINES: Final = 2000


def read_log_format(given: str | None, environment: Mapping[str, str] = os.environ) -> LogFormat:
    """Return the format that the option, or else the environment, asks for.

    Raises:
        ConfigError: The environment names an unknown format.
    """
    name = given or environment.get(LOG_FORMAT_VARIABLE) or "text"
    for known in LOG_FORMATS:
        if name == known:
            return known
    raise ConfigError(f"Expected {LOG_FORMAT_VARIABLE} to be one of {', '.join(LOG_FORMATS)}, got {name!r}.")


class JsonLog:
    """Writes objects to a stream, one per line; safe to use from several threads."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Keep the stream; the caller closes it."""
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, record: Record) -> None:
        """Write one object."""
        line = to_ascii_json(record).encode() + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def make_record(level: str, logger: str, message: str, time: str | None = None, **fields: Any) -> Record:
    """Return the object of one line.

    Args:
        level: `INFO`, `WARNING` or `ERROR`.
        logger: `mlcls` or `tritonserver`.
        message: Text for people.
        time: Time in RFC 3339; by default now.
        fields: Further fields, for programs.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time or now, "level": level, "logger": logger, "message": message, **fields}


class TritonLines:
    """Assembles Triton's lines into objects."""

    def __init__(self) -> None:
        """Start without lines."""
        self._open: Record | None = None
        self._texts: list[str] = []

    def add(self, line: str) -> list[Record]:
        """Add a line without its line break, and return the messages that it completes."""
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
        """Return the message that is still open, if any."""
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
    """Return a record with the fields of a refused request's line; only lines of this project's own code count."""
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
    """Reads Triton's text from a pipe and writes objects, in its own thread."""

    def __init__(self, pipe: IO[bytes], write: Callable[[Record], None]) -> None:
        """Start the thread.

        Args:
            pipe: The end to read from; closed when it ends.
            write: Called with each object.
        """
        self._pipe = pipe
        self._write = write
        self._lines = TritonLines()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._thread = threading.Thread(target=self._run, name="mlcls-log", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, process: subprocess.Popen[bytes], log: IO[bytes] | None) -> TritonLogPump:
        """Read a process's standard output and write to a stream, by default this process's own standard output."""
        pipe = process.stdout
        if pipe is None:
            raise ValueError("Expected a process whose standard output is a pipe.")
        return cls(pipe, JsonLog(sys.stdout.buffer if log is None else log).write)

    def tail(self) -> str:
        """Return the last lines, as Triton wrote them."""
        return "\n".join(self._tail)

    def join(self, timeout_s: float) -> None:
        """Wait until everything is written; the pipe ends with the last process that holds its write end."""
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
            except (OSError, ValueError):  # full disk, closed reader: Triton must not block on a pipe nobody reads
                continue


Level = Literal["INFO", "WARNING", "ERROR"]


class Announcements:
    """Writes lines: text to standard output, with warnings on standard error; JSON to standard output only."""

    def __init__(self, log_format: LogFormat) -> None:
        """Choose the format; nothing is written yet."""
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


# Harmless lines on a machine without a GPU.
_HARMLESS: Final = re.compile(r"CudaDriverHelper|NVML|DCGM|CUDA driver version is insufficient")

_TAIL_BYTES: Final = 1 << 20

# Log path that sends Triton's log to standard output, as in a container.
STANDARD_OUTPUT: Final = Path("-")


def describe_end(log_path: Path, exit_status: int, tail: str | None = None) -> str:
    """Return one line about a server that ended: how, and the first reason in its log.

    Args:
        log_path: The log.
        exit_status: Exit status of the process, negative for a signal.
        tail: The log's last lines as Triton wrote them, if the file holds something else.
    """
    how = f"exit status {exit_status}" if exit_status >= 0 else f"signal {-exit_status}"
    if tail is not None:
        return f"tritonserver ended with {how}: {find_reason(tail) or 'its log gives no reason'}"
    if log_path == STANDARD_OUTPUT:
        return f"tritonserver ended with {how}; see its log above"
    try:
        with log_path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    reason = find_reason(text)
    return f"tritonserver ended with {how}: {reason or 'its log gives no reason'}"


def find_reason(log: str) -> str | None:
    """Return the reason why a server could not start or run, from its log; None if the log has none."""
    errors: list[str] = []
    for line in log.splitlines():
        match = _LINE.fullmatch(line)
        if match and match["level"] == "E" and not _HARMLESS.search(match["text"]):
            errors.append(match["text"].strip().strip('"').split("\\n")[0].strip())
        elif line.startswith("error: ") and not _HARMLESS.search(line):
            errors.append(line.removeprefix("error: ").strip())
    # The first line is the cause; later ones follow from it. But if a model is the cause, the line that names it comes
    # second.
    named = [error for error in errors if error.startswith("failed to load '")]
    return (named or errors)[0][:600] if errors else None
