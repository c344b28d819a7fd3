"""What happens to the server in a soak run, and the random schedule, which a seed reproduces."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from benchmarks.endurance.identity_model import publish
from benchmarks.endurance.supervised_server import SupervisedServer
from benchmarks.usage import find_name
from mlcls.releases.rollout import roll_back
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.server.model_control import ModelControl

# How long a file stays damaged before and after the server that has loaded it is killed.
DAMAGED_S: Final = 6.0


@dataclasses.dataclass(frozen=True)
class Victims:
    """What faults are injected into.

    Attributes:
        server: The server.
        repository: Its model repository.
        models: The ensembles that it serves.
        random: Chooses among the models.
    """

    server: SupervisedServer
    repository: Path
    models: Sequence[str]
    random: random.Random

    def find(self, name: str) -> psutil.Process:
        """Return the first process whose name, see `find_name`, begins so; steps of later versions end with a number.

        Raises:
            StopIteration: There is none.
        """
        return next(process for process in self.server.descendants() if _name_of(process).startswith(name))

    def choose(self) -> str:
        """Return one of the models."""
        return self.random.choice(self.models)

    @property
    def control(self) -> ModelControl:
        """The server's model control."""
        return ModelControl(f"http://{self.server.place.http_url}", self.server.place.admin_key, timeout_s=60)


def _name_of(process: psutil.Process) -> str:
    try:
        return find_name(process) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""


def _signal_step(step: str, number: signal.Signals) -> Callable[[Victims], object]:
    return lambda victims: victims.find(f"{victims.choose()}_{step}").send_signal(number)


def _signal_server(number: signal.Signals) -> Callable[[Victims], object]:
    return lambda victims: victims.find("tritonserver").send_signal(number)


def _damage_weights_and_kill(victims: Victims) -> None:
    """Flip a bit of a served file, which the running engine must not notice; then the server must restart."""
    path = Repository(victims.repository).active(victims.choose()).engine_folder / ONNX_FILE
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    with path.open("r+b") as file:  # the very file that the engine was made from, not a replacement
        file.write(bad)
    try:
        time.sleep(DAMAGED_S)
        victims.find("tritonserver").kill()
        time.sleep(DAMAGED_S)
    finally:
        with path.open("r+b") as file:
            file.write(good)


def _publish_and_roll_back(victims: Victims) -> None:
    model = victims.choose()
    publish(victims.repository, model, victims.control)
    roll_back(Repository(victims.repository), model, control=victims.control)


FAULTS: Final[Mapping[str, Callable[[Victims], object]]] = {
    "killed preprocess": _signal_step("preprocess", signal.SIGKILL),
    "killed engine": _signal_step("engine", signal.SIGKILL),
    "killed postprocess": _signal_step("postprocess", signal.SIGKILL),
    "stopped preprocess": _signal_step("preprocess", signal.SIGSTOP),
    "stopped engine": _signal_step("engine", signal.SIGSTOP),
    "stopped postprocess": _signal_step("postprocess", signal.SIGSTOP),
    "killed tritonserver": _signal_server(signal.SIGKILL),
    "stopped tritonserver": _signal_server(signal.SIGSTOP),
    "killed mlcls serve": lambda victims: victims.server.kill_and_start(),
    "damaged weights": _damage_weights_and_kill,
    "new version": lambda victims: publish(victims.repository, victims.choose(), victims.control),
    "new version and back": _publish_and_roll_back,
}


def plan_faults(
    duration_s: float, count: int, seed: int, kinds: Sequence[str] = tuple(FAULTS)
) -> list[tuple[float, str]]:
    """Plan the faults: each kind as often as the others, and none in the last seventh of the run.

    Args:
        duration_s: Length of the run.
        count: Number of faults; if it reaches the number of kinds, each kind comes at least once.
        seed: Seed of the order and the times.
        kinds: Faults to choose from.

    Returns:
        Seconds from the start, and the fault's name.
    """
    chance = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        names += chance.sample(kinds, min(len(kinds), count - len(names)))
    step_s = duration_s * 6 / 7 / max(count, 1)
    return [(step_s * (index + chance.uniform(0.2, 0.5)), name) for index, name in enumerate(names)]
