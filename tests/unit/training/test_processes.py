"""Devices, signals and the launch of several processes, without a training."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlcls.errors import TrainingError, TrainingInterruptedError
from mlcls.training import processes
from mlcls.training.processes import (
    StopRequest,
    find_gpus,
    launch_command,
    process_environment,
    require_devices,
)
from mlcls.training.settings import Device, TrainSettings

# --- interruption


def test_signals_are_noted_and_handlers_put_back() -> None:
    """Paddle's launcher repeats SIGTERM; a second Ctrl-C ends at once. Other threads take no signals."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.error("").exit_code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

    def handler_within() -> Any:
        with StopRequest():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler_within).result() is before[1]


# --- several processes


@pytest.mark.parametrize(
    ("device", "where"), [("gpu:0,3", ["--devices", "0,3"]), ("cpu:0,1", ["--nproc_per_node", "2"])]
)
def test_launch_command(tmp_path: Path, device: str, where: list[str]) -> None:
    command = launch_command(tmp_path / "settings.json", Device.parse(device), {})
    assert command[:3] == [sys.executable, "-m", "mlcls.training.launcher"]
    assert command[3:-2] == ["--log_dir", str(tmp_path), "--log_level", "ERROR", "--max_restart", "0", *where]
    assert Path(command[-2]).is_file()
    assert command[-1] == str(tmp_path / "settings.json")


UUIDS = "GPU-8932f937, MIG-1e5d4c0f"


@pytest.mark.parametrize(
    ("visible", "device", "places", "names"),
    [
        (None, "gpu", [0], "0"),
        (None, "gpu:0,3", [0, 3], "0,3"),
        ("2,3", "gpu", [0], "2"),
        ("2,3", "gpu:3", [1], "3"),
        ("2,3", "gpu:2,3", [0, 1], "2,3"),
        ("2, 3", "gpu:3,2", [1, 0], "3,2"),
        (UUIDS, "gpu", [0], "GPU-8932f937"),
        (UUIDS, "gpu:0,1", [0, 1], "GPU-8932f937,MIG-1e5d4c0f"),
    ],
)
def test_gpus_are_numbered_as_in_the_environment(
    tmp_path: Path, visible: str | None, device: str, places: list[int], names: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = find_gpus(Device.parse(device), environment)
    assert [place for place, _ in found] == places
    assert ",".join(name for _, name in found) == names
    assert f"--devices {names} " in " ".join(launch_command(tmp_path / "s.json", Device.parse(device), environment))


@pytest.mark.parametrize(
    ("visible", "device", "text"),
    [
        ("2,3", "gpu:0,1", r"CUDA_VISIBLE_DEVICES=2,3 \(2, 3\), got gpu:0,1"),
        ("2", "gpu:2,3", r"CUDA_VISIBLE_DEVICES=2 \(2\), got gpu:2,3"),
        (UUIDS, "gpu:2", r"\(0, 1\), got gpu:2"),
        ("", "gpu", r"CUDA_VISIBLE_DEVICES= \(none\), got gpu"),
    ],
)
def test_gpus_that_the_environment_hides(visible: str, device: str, text: str) -> None:
    with pytest.raises(TrainingError, match=rf"Global\.device: expected .*{text}\."):
        find_gpus(Device.parse(device), {"CUDA_VISIBLE_DEVICES": visible})


def test_the_launcher_gives_each_process_its_gpu(tmp_path: Path) -> None:
    """Paddle's own launcher, which needs no GPU for this, with our command and environment."""
    device, given = Device.parse("gpu:3,2"), {**os.environ, "CUDA_VISIBLE_DEVICES": "2, 3"}
    environment = process_environment(device, given)
    *command, _, settings_file = launch_command(tmp_path / "settings.json", device, environment)
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, pathlib, sys\n"
        "seen = os.environ['FLAGS_selected_gpus'] + ' of ' + os.environ['CUDA_VISIBLE_DEVICES']\n"
        "pathlib.Path(sys.argv[1]).with_name('seen.' + os.environ['PADDLE_TRAINER_ID']).write_text(seen)\n"
    )
    subprocess.run([*command, str(worker), settings_file], env=environment, check=True, timeout=300)
    assert [(tmp_path / f"seen.{rank}").read_text() for rank in range(2)] == ["1 of 2,3", "0 of 2,3"]


def test_a_stopped_training_names_only_a_checkpoint_that_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings("PP-LCNet_x1_0_ML", tmp_path, tmp_path / "output", device="cpu:0,1")

    def stop(*_: object, saves: bool = False) -> int:
        if saves:
            (tmp_path / "output/latest").mkdir()
        os.kill(os.getpid(), signal.SIGTERM)
        return -signal.SIGTERM

    monkeypatch.setattr(processes, "_run", stop)
    with pytest.raises(TrainingInterruptedError, match=r"^Stopped before the first checkpoint\.$"):
        processes.train_in_processes(settings, Device.parse(settings.device))
    monkeypatch.setattr(processes, "_run", functools.partial(stop, saves=True))
    with pytest.raises(TrainingInterruptedError, match=r"resume with Train\.resume_path=.*/output/latest\.$"):
        processes.train_in_processes(settings, Device.parse(settings.device))
    monkeypatch.setattr(processes, "_run", stop)
    with pytest.raises(TrainingInterruptedError, match="before the first checkpoint"):
        processes.train_in_processes(settings, Device.parse(settings.device))


def test_how_to_install_paddle_for_gpus_is_told(paddle: Any) -> None:
    if paddle.device.is_compiled_with_cuda():
        pytest.skip("paddle has CUDA")
    with pytest.raises(
        TrainingError, match=rf"pip install paddlepaddle-gpu=={paddle.__version__} -i https://\S+/cu\d+/"
    ):
        require_devices(Device.parse("gpu:1"))


def test_a_signal_during_the_import_of_paddle_ends_the_process_at_once() -> None:
    """Paddle's C++ part, which is loaded by then, would print a trace and abort."""
    code = """
import importlib.abc, os, signal, sys

class Ender(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "paddle.vision":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Ender())
from mlcls.paddle.runtime import import_paddle
import_paddle("train")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (-signal.SIGTERM, "")


def test_handlers_of_signals_are_kept_by_the_import_of_paddle() -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
from mlcls.paddle.runtime import import_paddle
import_paddle("train")
os.kill(os.getpid(), signal.SIGTERM)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (7, "")
