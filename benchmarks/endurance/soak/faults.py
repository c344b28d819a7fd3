"""The faults of a soak run, and their random schedule, which a seed reproduces."""

from __future__ import annotations

import dataclasses
import random
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from benchmarks.endurance.supervised_server import SupervisedServer
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE

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

    def step(self, suffix: str) -> psutil.Process:
        """Return the stub process of a step of one of the models."""
        name = self.random.choice(self.models)
        found = [each for each in self.server.descendants() if f"{name}_{suffix}_0_0" in _words(each)]
        return found[0]

    def tritonserver(self) -> psutil.Process:
        """Return the process of tritonserver."""
        return next(each for each in self.server.descendants() if each.name() == "tritonserver")


def _words(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def _signal_step(suffix: str, signum: signal.Signals) -> Callable[[Victims], None]:
    return lambda victims: victims.step(suffix).send_signal(signum)


def _damage_weights_and_kill(victims: Victims) -> None:
    """Flip a bit of a served file, which the running engine must not notice; then the server must restart."""
    path = Repository(victims.repository).active(victims.models[0]).engine_folder / ONNX_FILE
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    with path.open("r+b") as file:  # the very file that the engine was made from, not a replacement
        file.write(bad)
    pause = threading.Event()
    pause.wait(DAMAGED_S)
    victims.tritonserver().kill()
    pause.wait(DAMAGED_S)
    with path.open("r+b") as file:
        file.write(good)


FAULTS: Final[Mapping[str, Callable[[Victims], None]]] = {
    "killed preprocess": _signal_step("preprocess", signal.SIGKILL),
    "killed engine": _signal_step("engine", signal.SIGKILL),
    "killed postprocess": _signal_step("postprocess", signal.SIGKILL),
    "stopped preprocess": _signal_step("preprocess", signal.SIGSTOP),
    "stopped engine": _signal_step("engine", signal.SIGSTOP),
    "stopped postprocess": _signal_step("postprocess", signal.SIGSTOP),
    "killed tritonserver": lambda victims: victims.tritonserver().kill(),
    "stopped tritonserver": lambda victims: victims.tritonserver().send_signal(signal.SIGSTOP),
    "killed mlcls serve": lambda victims: victims.server.kill_and_start(),
    "damaged weights": _damage_weights_and_kill,
}


def plan_faults(duration_s: float, count: int, seed: int) -> list[tuple[float, str]]:
    """Plan the faults: each kind as often as the others, and none in the last seventh of the run.

    Args:
        duration_s: Length of the run.
        count: Number of faults; if it reaches the number of kinds, each kind comes at least once.
        seed: Seed of the order and the times.

    Returns:
        Seconds from the start, and the fault's name.
    """
    chance = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        kinds = list(FAULTS)
        chance.shuffle(kinds)
        names += kinds[: count - len(names)]
    step_s = duration_s * 6 / 7 / count
    return [(step_s * (index + chance.uniform(0.2, 0.5)), name) for index, name in enumerate(names)]
