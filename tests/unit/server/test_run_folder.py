"""Nothing of a server outlives its `mlcls serve`, whoever is killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from mlcls.server.run_folder import run_folder, shared_memory_prefix
from support.processes import assert_ended
from support.settling import wait_for

TIMEOUT_S = 60.0

# A "server" that ends at SIGTERM, and a "step" of it that does not, as one that Triton leaves while it loads.
_SERVE = """
import os, subprocess, sys, time
from pathlib import Path
from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.server.run_folder import pulse_folder, run_folder, shared_memory_prefix
step = "trap '' TERM; echo ready; while :; do sleep 1; done"
with run_folder() as folder:
    (Path("/dev/shm") / f"{shared_memory_prefix(folder)}region").write_bytes(bytes(1000))
    environment = {**os.environ, PULSE_FOLDER_VARIABLE: str(pulse_folder(folder))}
    command = ["sh", "-c", 'sh -c "$0" & wait', step]
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)
    server.stdout.readline()  # the step ignores SIGTERM now
    print(folder, server.pid, flush=True)
    time.sleep(600)
"""


class Served(NamedTuple):
    process: psutil.Process
    keeper: psutil.Process
    children: list[psutil.Process]
    folder: Path

    @property
    def segments(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{shared_memory_prefix(self.folder)}*"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the test and its processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def served() -> Iterator[Served]:
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, server = process.stdout.readline().split()
        own = psutil.Process(process.pid)
        keeper = next(child for child in own.children() if child.pid != int(server))
        children = [psutil.Process(int(server)), *psutil.Process(int(server)).children(recursive=True)]
        assert len(children) >= 2
        yield Served(own, keeper, children, Path(folder))
        process.kill()
    for child in children:
        if child.is_running():
            child.kill()


def test_a_killed_command_leaves_nothing(served: Served) -> None:
    assert len(served.segments) == 1
    served.process.kill()
    assert_ended([*served.children, served.keeper], TIMEOUT_S)
    assert served.segments == []
    assert not served.folder.exists()


def test_what_a_command_and_its_keeper_left_goes_at_the_next_start(served: Served, temporary: Path) -> None:
    with run_folder() as own:
        assert {own, served.folder} == set(temporary.iterdir()), "the command lives"
    served.keeper.kill()
    served.process.kill()
    served.process.wait()
    assert served.folder.exists()
    assert len(served.segments) == 1
    with run_folder() as own:
        assert list(temporary.iterdir()) == [own]
        assert served.segments == []
        assert_ended(served.children, TIMEOUT_S)


@pytest.mark.parametrize("keeper_lives", [True, False])
def test_the_block_itself_leaves_nothing(temporary: Path, keeper_lives: bool) -> None:
    with run_folder() as folder:
        segment = Path("/dev/shm") / f"{shared_memory_prefix(folder)}region"
        segment.write_bytes(b"")
        children = psutil.Process().children()
        (keeper,) = wait_for(lambda: [each for each in children if str(folder) in each.cmdline()], TIMEOUT_S)
        if not keeper_lives:
            keeper.kill()
            keeper.wait()
    assert not keeper.is_running()
    assert not segment.exists()
    assert list(temporary.iterdir()) == []
