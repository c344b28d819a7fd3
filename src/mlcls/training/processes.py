"""The processes of a training: what stops them, what they tell each other, and how several are started.

Several processes, each with a device of its own, are started by `paddle.distributed.launch` and run
`mlcls.training.worker`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.documents import to_json
from mlcls.base.files import write_text
from mlcls.errors import TrainingError, TrainingInterruptedError
from mlcls.paddle.runtime import import_paddle
from mlcls.training.run_folder import RunFolder
from mlcls.training.settings import Device, TrainSettings

if TYPE_CHECKING:
    import paddle

LOG_FOLDER: Final = "process_logs"
# One line with the failure of a process, for the process that started it.
FAILURE_FILE: Final = "failure.txt"

# Paddle's own package index for CUDA 12.6; there is one for each version of CUDA.
_GPU_INDEX: Final = "https://www.paddlepaddle.org.cn/packages/stable/cu126/"

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Records SIGINT and SIGTERM while its `with` block runs, so that a training can stop after the step in progress.

    Outside the main thread it records none. `signal_number` is the first one that came.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal_number != 0

    def error(self, text: str) -> TrainingInterruptedError:
        """Return the error that ends a stopped training, with the exit status of a program that the signal ends."""
        error = TrainingInterruptedError(text)
        error.exit_code = 128 + (self.signal_number or signal.SIGINT)
        return error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # a second Ctrl-C means to stop at once; paddle's launcher sends SIGTERM several times
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process, number `rank` from 0 of `size`, and the others of the training."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> ProcessGroup:
        """Join the other processes that `paddle.distributed.launch` started, on the device that was set."""
        paddle = import_paddle("train")
        paddle.distributed.init_parallel_env()
        return cls(paddle.distributed.get_rank(), paddle.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def wrap(self, network: paddle.nn.Layer) -> Any:
        """Return the network with gradients averaged over the processes."""
        import paddle

        if self.size == 1:
            return network
        # CLIP's backbone has a projection that the head does not use
        return paddle.DataParallel(network, find_unused_parameters=True)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all processes must call this."""
        if self.size == 1:
            return flag
        import paddle

        value = paddle.to_tensor(np.array([flag], np.float32))
        paddle.distributed.all_reduce(value, op=paddle.distributed.ReduceOp.MAX)
        return bool(value.item() > 0)

    def share_statistics(self, network: paddle.nn.Layer) -> None:
        """Give all processes the first one's batch-norm statistics, which each computes over its own images."""
        if self.size == 1:
            return
        import paddle

        for name, tensor in network.state_dict().items():
            if name.endswith(("._mean", "._variance")):
                paddle.distributed.broadcast(tensor, src=0)

    def gather_rows(self, rows: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        """Return all `count` rows (count, columns) in every process; row i comes from process i mod size."""
        if self.size == 1:
            return rows
        import paddle

        padded = np.zeros((-(-count // self.size), rows.shape[1]), np.float32)
        padded[: len(rows)] = rows
        gathered: list[Any] = []
        paddle.distributed.all_gather(gathered, paddle.to_tensor(padded))
        together: npt.NDArray[np.float32] = np.stack([tensor.numpy() for tensor in gathered], axis=1)
        return together.reshape(-1, rows.shape[1])[:count]


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the GPUs in `CUDA_VISIBLE_DEVICES`, numbers or identifiers; None if it is not set."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def find_gpus(device: Device, environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return each GPU of a device: its place among the visible ones, as CUDA counts, and its name for the launcher.

    As in PaddleX and Paddle's launcher, a number is that of `CUDA_VISIBLE_DEVICES` if this is set. If it has
    identifiers instead, numbers are places.

    Raises:
        TrainingError: A number is not in `CUDA_VISIBLE_DEVICES`.
    """
    visible = visible_gpus(environment)
    if visible is None:
        return [(number, str(number)) for number in device.ids or (0,)]
    are_numbers = all(name.isdecimal() for name in visible)
    numbers = visible if are_numbers else tuple(map(str, range(len(visible))))
    wanted = tuple(map(str, device.ids)) or numbers[:1]
    if not wanted or not set(wanted) <= set(numbers):
        raise TrainingError(
            f"Global.device: expected gpu, or numbers of CUDA_VISIBLE_DEVICES={','.join(visible)} "
            f"({', '.join(numbers) or 'none'}), got {device}."
        )
    return [(numbers.index(number), visible[numbers.index(number)]) for number in wanted]


def set_device(device: Device) -> None:
    """Make paddle compute on the device; with several processes, each on its own.

    Raises:
        TrainingError: paddle has no CUDA, or there is no GPU with that number.
    """
    paddle = import_paddle("train")
    require_devices(device)
    if device.kind == "cpu":
        paddle.set_device("cpu")
        # an inference in this process may have set another number, with which sums differ in the last bit
        paddle.base.core.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
        return
    # the launcher tells each of several processes its GPU
    paddle.set_device("gpu" if device.process_count > 1 else f"gpu:{find_gpus(device, os.environ)[0][0]}")


def require_devices(device: Device) -> None:
    """Check that the devices can be used.

    Raises:
        TrainingError: The GPUs do not exist, or paddle's launcher cannot start several processes on the CPU.
    """
    paddle = import_paddle("train")
    if device.kind == "cpu":
        if device.process_count > 1 and paddle.device.is_compiled_with_cuda():
            raise TrainingError(
                "Global.device: expected paddle without CUDA for several processes on the CPU, got paddle with CUDA, "
                "whose launcher assigns GPUs; train with Global.device=cpu, or with GPUs."
            )
        return
    if not paddle.device.is_compiled_with_cuda():
        raise TrainingError(
            f"Global.device: expected paddle with CUDA for {device}, got paddle without. Paddle's own index has it, "
            f"for CUDA 12.6: pip uninstall paddlepaddle, then pip install paddlepaddle-gpu=={paddle.__version__} "
            f"-i {_GPU_INDEX} (PyPI has an old version only). Or train with Global.device=cpu."
        )
    gpus, count = find_gpus(device, os.environ), paddle.device.cuda.device_count()
    if max(place for place, _ in gpus) >= count:
        names = ", ".join(name for _, name in gpus)
        raise TrainingError(f"Global.device: expected GPUs that CUDA finds, got {names} of {count}.")


def launch_command(settings_file: Path, device: Device, environment: Mapping[str, str]) -> list[str]:
    """Return the command line that starts one process for each number of the device; logs go to the file's folder."""
    worker = Path(__file__).with_name("worker.py")
    if device.kind == "gpu":
        where = ["--devices", ",".join(name for _, name in find_gpus(device, environment))]
    else:
        where = ["--nproc_per_node", str(device.process_count)]
    launcher = [sys.executable, "-m", "mlcls.training.launcher", "--log_dir", str(settings_file.parent)]
    return [*launcher, "--log_level", "ERROR", "--max_restart", "0", *where, str(worker), str(settings_file)]


def train_in_processes(settings: TrainSettings, device: Device) -> None:
    """Train in several processes and wait for them; forward a signal to them.

    Raises:
        TrainingInterruptedError: A signal came; the first process has written `latest`.
        TrainingError: A process failed.
    """
    folder = settings.output / LOG_FOLDER
    settings_file, failure_file = folder / "settings.json", folder / FAILURE_FILE
    failure_file.unlink(missing_ok=True)
    latest = RunFolder(settings).latest
    before = _changed_at(latest)
    write_text(settings_file, to_json(settings.to_config()))
    with StopRequest() as stop:
        environment = process_environment(device, os.environ)
        status = _run(launch_command(settings_file, device, environment), environment, stop)
    if status == 0:
        return
    failure = failure_file.read_text(encoding="utf-8").partition("\n")[0] if failure_file.is_file() else ""
    if stop.requested:
        is_saved = _changed_at(latest) != before
        advice = f"; resume with Train.resume_path={latest}" if is_saved else " before the first checkpoint"
        raise stop.error(failure or f"Stopped{advice}.")
    raise TrainingError(failure or f"A process failed with status {status}; see {folder}/workerlog.*.")


def _changed_at(folder: Path) -> int | None:
    return folder.stat().st_mtime_ns if folder.exists() else None


def _run(command: Sequence[str], environment: dict[str, str], stop: StopRequest) -> int:
    # in a session of its own: a terminal's Ctrl-C would reach the launcher twice, and the second means "at once"
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and not stop.requested:
            time.sleep(0.1)
        if stop.requested:
            process.terminate()
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def process_environment(device: Device, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the launcher and of the processes that it starts."""
    environment = dict(environment)
    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // device.process_count))
    environment.setdefault("PYTHONWARNINGS", "ignore")  # the launcher warns about tools that it does not need here
    environment.setdefault("GLOG_minloglevel", "2")
    if device.kind == "cpu":
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # or the launcher would assign its GPUs
    elif (visible := visible_gpus(environment)) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible)  # the launcher takes no spaces
    return environment
