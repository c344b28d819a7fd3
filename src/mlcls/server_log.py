"""Triton's log, read for the one line that tells why a server ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: `2026-01-31T12:00:00Z E 4711 model_lifecycle.cc:654] "text"`; level and process id change places between releases.
_LINE: Final = re.compile(r"^\S+ (?:\d+ )*(?P<level>[EWI]) (?:\d+ )*[\w./]+:\d+\] (?P<text>.*)$")

#: Lines that tell nothing about a machine without a GPU.
_HARMLESS: Final = re.compile(r"CudaDriverHelper|NVML|DCGM|CUDA driver version is insufficient")

_TAIL_BYTES: Final = 1 << 20

#: As the path of the log: Triton's log goes to standard output, as a container's should.
STANDARD_OUTPUT: Final = Path("-")


def describe_end(log_path: Path, exit_status: int, tail: str | None = None) -> str:
    """One line for a server that ended: the first reason in its log, else how the process ended.

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
    """The reason why a server could not start or run, from its log; None where the log has none."""
    errors: list[str] = []
    for line in log.splitlines():
        match = _LINE.match(line)
        if match and match["level"] == "E" and not _HARMLESS.search(match["text"]):
            errors.append(match["text"].strip().strip('"').split("\\n")[0].strip())
        elif line.startswith("error: ") and not _HARMLESS.search(line):
            errors.append(line.removeprefix("error: ").strip())
    # The first line is the cause, and later ones say that something could not go on because of it; but where a model is
    # the cause, the line that names it comes second.
    named = [error for error in errors if error.startswith("failed to load '")]
    return (named or errors)[0][:600] if errors else None
