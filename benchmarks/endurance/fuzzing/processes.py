"""The processes of a server under test: which have ended, and how much memory they took."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import psutil

_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class ServerProcesses:
    """tritonserver and its Python processes as they were at the start."""

    def __init__(self, pid: int, model: str) -> None:
        """Note them.

        Args:
            pid: Of tritonserver.
            model: The ensemble's name.
        """
        self._server = psutil.Process(pid)
        self._names = {process.pid: _describe(process) for process in self.descendants()}
        self._decoding = {pid for pid, name in self._names.items() if name.startswith(f"{model}_preprocess")}

    def descendants(self) -> list[psutil.Process]:
        """Return the processes that tritonserver has started, and theirs."""
        return list(self._server.children(recursive=True))

    def is_server_alive(self) -> bool:
        """Return whether tritonserver runs."""
        return bool(self._server.is_running() and self._server.status() != psutil.STATUS_ZOMBIE)

    def find_lost(self) -> list[str]:
        """Return names of those that have ended since the last call."""
        if not self.is_server_alive():
            return ["tritonserver"]
        alive = {process.pid for process in self.descendants() if _runs(process)}
        lost = [self._names.pop(pid) for pid in sorted(set(self._names) - alive)]
        self._names |= {pid: _describe(psutil.Process(pid)) for pid in alive - set(self._names)}
        return lost

    def peak_decoding_bytes(self) -> int:
        """Return the highest memory that one of the processes which decode has ever used."""
        peaks = []
        for pid in self._decoding:
            try:
                found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
            except FileNotFoundError:
                continue
            peaks.append(int(found[1]) * 1024 if found else 0)
        return max(peaks, default=0)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    """Return a stub's last but one argument is its instance: `NAME_preprocess_0_0`."""
    try:
        arguments = process.cmdline()
    except psutil.NoSuchProcess:
        return "a process"
    is_stub = len(arguments) > 2 and arguments[0].endswith("triton_python_backend_stub")
    return str(arguments[-2] if is_stub else process.pid)
