"""Several processes for one training, each with a device of its own, started by `paddle.distributed.launch`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mlcls.base.files import write_text
from mlcls.errors import TrainingError, TrainingInterruptedError
from mlcls.training.interruption import StopRequest
from mlcls.training.settings import Device, TrainSettings

LOG_FOLDER: Final = "process_logs"
SETTINGS_FILE: Final = "settings.yaml"
# The one line with which a process failed, for the one that started them.
FAILURE_FILE: Final = "failure.txt"


def launch_command(settings_file: Path, device: Device) -> list[str]:
    """Return the command line that starts one process for each of the device's numbers.

    Args:
        settings_file: What `mlcls.training.worker` is to read; logs go beside it.
        device: Several GPUs, or several processes on the CPU.
    """
    numbers = ",".join(map(str, device.ids))
    where = ["--devices", numbers] if device.kind == "gpu" else ["--nproc_per_node", str(len(device.ids))]
    worker = Path(__file__).with_name("worker.py")
    return [
        *(sys.executable, "-m", "paddle.distributed.launch"),
        *("--log_dir", os.fspath(settings_file.parent), "--log_level", "ERROR", "--max_restart", "0", *where),
        *(os.fspath(worker), os.fspath(settings_file)),
    ]


def train_in_processes(settings: TrainSettings, device: Device) -> None:
    """Train in several processes and wait for them; a signal is passed on.

    Raises:
        TrainingInterruptedError: A signal came; the first process has written `latest`.
        TrainingError: A process failed.
    """
    import yaml

    folder = settings.output / LOG_FOLDER
    settings_file = folder / SETTINGS_FILE
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    write_text(settings_file, yaml.safe_dump(settings.to_config(), sort_keys=False, allow_unicode=True))
    with StopRequest() as stop:
        status = _run(launch_command(settings_file, device), _environment(device), stop)
    if status == 0:
        return
    failure = _first_line(folder / FAILURE_FILE)
    if stop.requested:
        error = TrainingInterruptedError(failure or f"Stopped; go on with resume_path {settings.output / 'latest'}.")
        error.exit_code = 128 + (stop.signal_number or 2)
        raise error
    raise TrainingError(failure or f"A process failed with status {status}; see {folder}/workerlog.*.")


def _run(command: Sequence[str], environment: dict[str, str], stop: StopRequest) -> int:
    # in a session of its own: a terminal's Ctrl-C would reach the launcher twice, and the second time means "at once"
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    passed_on = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.2)
            if stop.requested and not passed_on:
                passed_on = True
                process.terminate()
    except BaseException:
        process.kill()
        process.wait()
        raise


def _environment(device: Device) -> dict[str, str]:
    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(device.ids)))
    environment.setdefault("PYTHONWARNINGS", "ignore")  # the launcher's own, about tools that it does not need here
    environment.setdefault("GLOG_minloglevel", "2")
    if device.kind == "cpu":
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # or the launcher deals out what it names
    return environment


def _first_line(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").partition("\n")[0]
    return ""
