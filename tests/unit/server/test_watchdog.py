"""The pulse of a step and the watchdog that reads it, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlcls.backends.pulse import IDLE, PULSE_FOLDER_VARIABLE, STARTING, Pulse, read_pulses
from mlcls.base.processes import end_group, read_process
from mlcls.server.watchdog import Watchdog

STEP = """
import sys, time
from mlcls.backends.pulse import Pulse
pulse = Pulse.open({"model_instance_name": "demo_engine_0_0"})
if "starting" not in sys.argv:
    pulse.begin()
if "ended" in sys.argv:
    pulse.end()
with pulse.working() if "working" in sys.argv else open("/dev/null"):
    print("started", flush=True)
    sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Yield a function that starts a process with a pulse, like a stub process."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STEP, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, PULSE_FOLDER_VARIABLE: str(tmp_path)},
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class Clock:
    """The monotonic clock, which a test advances."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def __call__(self) -> int:
        return time.monotonic_ns() + int(self.later_s * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(tmp_path: Path, clock: Clock) -> Watchdog:
    return Watchdog(os.getpid(), tmp_path, hang_timeout_s=60, clock_ns=clock)


def test_a_step_that_waits_for_requests_is_healthy_however_long(watchdog: Watchdog, start: Start, clock: Clock) -> None:
    start()
    clock.later_s = 1e6
    assert watchdog.find_fault() is None


def test_a_step_that_works_too_long_hangs(watchdog: Watchdog, start: Start, clock: Clock) -> None:
    process = start("working")
    clock.later_s = 50
    assert watchdog.find_fault() is None
    clock.later_s = 61
    expected = f"step demo_engine_0_0 (process {process.pid}) hangs: it has been working on one request for 61 s"
    assert watchdog.find_fault() == expected


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_killed_step(watchdog: Watchdog, start: Start, is_known: bool, is_reaped: bool) -> None:
    process = start()
    if is_known:
        assert watchdog.find_fault() is None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
    expected = f"step demo_engine_0_0 (process {process.pid}) was killed or exited"
    assert watchdog.find_fault() == expected


def test_a_step_that_is_stopped_and_goes_on(watchdog: Watchdog, start: Start, clock: Clock) -> None:
    process = start()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert watchdog.find_fault() is None, "a debugger may hold it for a moment"
    clock.later_s = 2.5
    assert watchdog.find_fault() == f"step demo_engine_0_0 (process {process.pid}) is stopped"
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)
    assert watchdog.find_fault() is None
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert watchdog.find_fault() is None, "the time starts again"


@pytest.mark.parametrize("state", ["ended", "starting"])
def test_a_step_that_was_told_to_end_or_could_not_start(
    watchdog: Watchdog, start: Start, state: str, tmp_path: Path
) -> None:
    process = start(state)
    assert watchdog.find_fault() is None
    process.kill()
    process.wait()
    assert watchdog.find_fault() is None
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_stopped(start: Start, tmp_path: Path, clock: Clock) -> None:
    server = start()
    watchdog = Watchdog(server.pid, tmp_path, hang_timeout_s=60, clock_ns=clock)
    server.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)
    assert watchdog.find_fault() is None
    clock.later_s = 3
    assert watchdog.find_fault() == f"tritonserver (process {server.pid}) is stopped"


def test_a_pulse_beats_within_its_work(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, "step")
    states = [next(read_pulses(tmp_path))[2]]
    pulse.begin()
    with pulse.working():
        states += [next(read_pulses(tmp_path))[2]]
        pulse.beat()
        states += [next(read_pulses(tmp_path))[2]]
    assert next(read_pulses(tmp_path)) == (os.getpid(), "step", IDLE)
    assert states == sorted({STARTING, *states}), "each later than the one before"


def test_progress_of_one_thread_does_not_hide_that_another_hangs(
    tmp_path: Path, watchdog: Watchdog, clock: Clock
) -> None:
    pulse = Pulse(tmp_path, "step")
    pulse.begin()
    hanging, released = threading.Event(), threading.Event()

    def hang() -> None:
        with pulse.working():
            hanging.set()
            released.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    assert hanging.wait(60)
    since_ns = next(read_pulses(tmp_path))[2]
    with pulse.working():
        pulse.beat()
        assert next(read_pulses(tmp_path))[2] == since_ns
    clock.later_s = 61
    assert "hangs" in str(watchdog.find_fault())
    released.set()
    thread.join()
    assert next(read_pulses(tmp_path))[2] == IDLE


@pytest.mark.parametrize("jump_s", [-86_400 * 365, 86_400 * 365])
def test_a_date_that_jumps_moves_no_pulse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: Watchdog, jump_s: float
) -> None:
    pulse = Pulse(tmp_path, "step")
    pulse.begin()
    with pulse.working():
        now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: now_s + jump_s)
        pulse.beat()
        assert watchdog.find_fault() is None


def test_without_a_folder_nobody_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PULSE_FOLDER_VARIABLE, raising=False)
    pulse = Pulse.open({"model_instance_name": "demo_engine_0_0"})
    pulse.begin()
    with pulse.working():
        pulse.beat()
    pulse.end()
    assert list(tmp_path.iterdir()) == []


def test_a_group_is_gone_when_it_was_ended() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert read_process(child) is not None
        leader.kill()
        leader.wait()
        end_group(leader.pid)
        assert read_process(child) is None
