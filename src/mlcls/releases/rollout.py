"""`publish` and `rollback`: switch a running server and its repository from one version to another.

The order follows from how Triton 2.51 was measured to behave: it takes an ensemble out of service if it is loaded while
one of its steps cannot be, so the steps are loaded first; loading an ensemble leaves loaded steps alone; requests that
the old version has accepted are answered by it, with the steps that they started with.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Final

from mlcls.base.files import write_text
from mlcls.errors import MlclsError, ModelControlError, RepositoryError
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import CONFIG_FILE, STEP_SUFFIXES, check_name, step_name
from mlcls.repository.publishing import add_version, pin_version, prune_versions, remove_leftovers, remove_version
from mlcls.repository.staging import StagedVersion
from mlcls.server.model_control import ModelControl

# Versions that stay in the repository, the active one included.
DEFAULT_KEEP: Final = 3
# How long the previous version may answer what it has accepted.
_DRAIN_TIMEOUT_S: Final = 30.0


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a publish or a rollback did.

    Attributes:
        name: The model.
        version: The version that was added or chosen.
        previous: The version that was active before; None if there was none.
        active: The version that is active now.
        removed: Versions that were removed from the repository.
    """

    name: str
    version: int
    previous: int | None
    active: int
    removed: tuple[int, ...] = ()


def publish(
    repository: Repository,
    staged: StagedVersion,
    *,
    control: ModelControl | None = None,
    keep: int | None = DEFAULT_KEEP,
    keep_loaded: bool = False,
    activate: bool = True,
) -> Rollout:
    """Add a version and make it the active one.

    Args:
        repository: The model repository.
        staged: The version.
        control: The running server to switch; None changes the repository only.
        keep: How many versions to keep in the repository; None for all.
        keep_loaded: Whether the previous version stays loaded, so that a rollback need not load it.
        activate: Whether to switch to the version.

    Raises:
        ModelControlError: The server cannot be reached or cannot load the version; the version is removed again, and
            the server still serves the previous one.
        RepositoryError: The name could be a step of another model, or the model in the repository is damaged.
    """
    name = staged.spec.name
    check_name(name)
    with repository.lock():
        # First, so that nothing is written if there is no server or it does not know the key.
        taken = _known_versions(control, name) if control is not None else set()
        previous = repository.active_number(name) if repository.is_imported(name) else None
        version = add_version(repository, staged, taken)
        if previous is not None and not activate:
            return Rollout(name, version.number, previous, previous)
        try:
            switch(version, control, pin=previous is not None, keep_loaded=keep_loaded, is_new=True)
        except BaseException:
            if previous is None or repository.active_number(name) != version.number:
                remove_version(version)
            raise
        removed = prune_versions(repository, name, keep) if keep is not None else []
        return Rollout(name, version.number, previous, version.number, tuple(removed))


def roll_back(
    repository: Repository,
    name: str,
    to: int | None = None,
    *,
    control: ModelControl | None = None,
    keep_loaded: bool = False,
) -> Rollout:
    """Make another version the active one: the previous one, or any that exists.

    Args:
        repository: The model repository.
        name: The model.
        to: The version; by default the one that was active when the active one was published. The active one itself
            brings a server in line with its repository, after a publish that was killed.
        control: The running server to switch; None changes the repository only.
        keep_loaded: Whether the previous version stays loaded.

    Raises:
        ModelControlError: The server cannot be reached or cannot load the version; it still serves the previous one.
        RepositoryError: There is no such version, or none before the active one.
    """
    with repository.lock():
        if to is None or not repository.is_imported(name):
            to = _find_previous(repository.active(name))
        version = repository.version(name, to)
        if control is not None:
            control.states()
        remove_leftovers(repository, name)
        try:
            previous: int | None = repository.active_number(name)
        except RepositoryError:  # the ensemble's configuration is damaged, which the switch repairs
            previous = None
        switch(version, control, keep_loaded=keep_loaded)
        return Rollout(name, to, previous, to)


def _find_previous(active: ModelVersion) -> int:
    previous = active.replaced
    numbers = [number for number in active.repository.numbers(active.name) if number != active.number]
    if previous not in numbers:
        choice = f"choose one of {', '.join(map(str, numbers))} with --to" if numbers else "it is the only one"
        raise RepositoryError(f"The version before version {active.number} of {active.name} does not exist; {choice}.")
    return previous


def switch(
    version: ModelVersion,
    control: ModelControl | None,
    *,
    pin: bool = True,
    keep_loaded: bool = False,
    is_new: bool = False,
) -> None:
    """Have a server serve a version: load its steps, pin it, load the ensemble, and unload the other versions.

    If it fails or is interrupted, the old version stays active. To pin, the caller holds the lock of the repository.

    Args:
        version: The version.
        control: The running server; None changes the repository only.
        pin: Whether to make it the active version of the repository.
        keep_loaded: Whether the previous version stays loaded.
        is_new: Whether the version was just added: whatever the server says, it cannot be serving it.

    Raises:
        ModelControlError: The server cannot be reached, or cannot load the version.
        RepositoryError: The version is damaged.
    """
    if control is None:
        if pin:
            pin_version(version)
        return
    name, number = version.name, version.number
    served = _served_version(control, name)
    if is_new or served != number:
        _load(version, control, pin)
    elif pin:
        pin_version(version)
    try:
        _unload_others(control, name, {number} | ({served} if keep_loaded and served else set()))
    except ModelControlError as error:
        raise ModelControlError(
            f"Version {number} of {name} is active, but the others could not be unloaded: {error}"
        ) from None


def _load(version: ModelVersion, control: ModelControl, pin: bool) -> None:
    """Load a version, and make it the active one; if that fails, restore the old one, in the server too."""
    name, number = version.name, version.number
    config = version.repository.root / name / CONFIG_FILE
    before = config.read_text(encoding="utf-8") if config.is_file() else None
    asked = False
    try:
        for step in version.steps:  # Triton leaves loaded steps alone if their files have not changed
            control.load(step, number)
        if pin:
            pin_version(version)
        asked = True
        control.load(name, number)
    except BaseException:
        if before is not None and config.read_text(encoding="utf-8") != before:
            write_text(config, before)
        if pin and asked:
            # Even if it has not switched: the server completes an interrupted request, and then this one.
            with contextlib.suppress(MlclsError):
                control.load(name, version.repository.active_number(name))
        if not control.is_ready(name, number):
            with contextlib.suppress(ModelControlError):
                for step in version.steps:
                    control.unload(step)
        raise


def _known_versions(control: ModelControl, name: str) -> set[int]:
    """Return the numbers of the versions that the server has or had; a new one of the same number could be confused."""
    return {
        number
        for model, number in control.states()
        if model in {name, *(step_name(name, suffix, number) for suffix in STEP_SUFFIXES)}
    }


def _served_version(control: ModelControl, name: str) -> int | None:
    for (model, number), state in control.states().items():
        if model == name and state.state == "READY":
            return number
    return None


def _unload_others(control: ModelControl, name: str, kept: set[int]) -> None:
    """Unload the steps of all other versions, after the requests that use them are answered."""
    states = control.states()
    control.wait_until_drained([name], _DRAIN_TIMEOUT_S)
    steps = {
        (step_name(name, suffix, number), number)
        for (_, number) in states
        if number not in kept
        for suffix in STEP_SUFFIXES
    }
    for step in states.keys() & steps:
        if states[step].state == "READY":
            control.unload(step[0])
