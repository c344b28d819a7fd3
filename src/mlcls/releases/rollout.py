"""`publish` and `rollback`: the order in which a running server and its repository go from one version to another.

What Triton 2.51 does was measured, and sets the order: an ensemble that is loaded while one of its steps cannot be is
taken out of service, so the steps are loaded first; loading an ensemble leaves loaded steps alone; requests that the
ensemble's old version has taken are answered by it, with the steps that they started with.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import folder_lock, write_text
from mlcls.errors import MlclsError, ModelControlError, RepositoryError
from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import check_name, read_spec
from mlcls.repository.names import STEP_SUFFIXES, step_name
from mlcls.repository.publishing import (
    add_calibrated_version,
    add_version,
    pin_version,
    prune_versions,
    remove_leftovers,
    remove_version,
)
from mlcls.repository.versions import active_version, list_versions, read_replaced, require_version
from mlcls.server.model_control import ModelControl

# Versions that stay in the repository, the active one included.
DEFAULT_KEEP: Final = 3


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a publish or a rollback did.

    Attributes:
        name: The model.
        version: The version that was added or chosen.
        previous: The version that was active before; None where there was none.
        active: The version that is active now.
        removed: Versions that are no longer in the repository.
    """

    name: str
    version: int
    previous: int | None
    active: int
    removed: tuple[int, ...] = ()


def publish_version(
    root: Path,
    spec: ModelSpec,
    onnx_model: Path,
    record: EngineRecord,
    *,
    control: ModelControl | None = None,
    keep: int = DEFAULT_KEEP,
    keep_loaded: bool = False,
    activate: bool = True,
) -> Rollout:
    """Add a converted model as the next version and make it the active one.

    Args:
        root: The model repository.
        spec: The spec, with the digest of the ONNX file.
        onnx_model: The ONNX file; it is moved.
        record: Where the ONNX file came from.
        control: The running server to switch; None changes the repository only.
        keep: Versions that stay in the repository.
        keep_loaded: Whether the version that was active stays loaded, so that going back to it takes no loading.
        activate: Whether to switch to it at all.

    Raises:
        ModelControlError: The server cannot be asked, or cannot load the version; the version is removed again, and
            the server serves what it did.
        RepositoryError: The name is another model's step, or the model in the repository is damaged.
    """
    check_name(spec.name)

    def add(taken: set[int]) -> int:
        return add_version(root, spec, onnx_model, record, taken)

    return _publish(root, spec.name, add, control, keep, keep_loaded, activate)


def publish_thresholds(
    root: Path,
    name: str,
    base: int,
    thresholds: Sequence[float],
    calibration: Mapping[str, Any],
    *,
    control: ModelControl | None = None,
    keep_loaded: bool = False,
    activate: bool = True,
) -> Rollout:
    """Add a version with other thresholds and make it the active one; remove none.

    Args, errors: see `publishing.add_calibrated_version` and `publish_version`.
    """

    def add(taken: set[int]) -> int:
        return add_calibrated_version(root, name, base, thresholds, calibration, taken)

    return _publish(root, name, add, control, None, keep_loaded, activate)


def _publish(
    root: Path,
    name: str,
    add: Callable[[set[int]], int],
    control: ModelControl | None,
    keep: int | None,
    keep_loaded: bool,
    activate: bool,
) -> Rollout:
    with folder_lock(root):
        # Asked before anything is written: is there a server, and does it know the key?
        taken = _known_versions(control, name) if control is not None else set()
        previous = active_version(root, name) if list_versions(root, name) else None
        version = add(taken)
        if previous is not None and not activate:
            return Rollout(name, version, previous, previous)
        try:
            if previous is None:
                _load_first(control, name, version)
            else:
                _switch(root, name, version, control, keep_loaded)
        except BaseException:
            if previous is None or active_version(root, name) != version:
                remove_version(root, name, version)
            raise
        removed = prune_versions(root, name, keep) if keep is not None else []
        return Rollout(name, version, previous, version, tuple(removed))


def roll_back(
    root: Path, name: str, to: int | None = None, *, control: ModelControl | None = None, keep_loaded: bool = False
) -> Rollout:
    """Make another version the active one: the one before, or any that is there.

    Args:
        root: The model repository.
        name: The model.
        to: The version; by default the one that was active when the active one was published. The active one itself
            brings a server in line with its repository, after a publish that was killed.
        control: The running server to switch; None changes the repository only.
        keep_loaded: Whether the version that was active stays loaded.

    Raises:
        ModelControlError: The server cannot be asked, or cannot load the version; it serves what it did.
        RepositoryError: There is no such version, or none before the active one.
    """
    with folder_lock(root):
        if to is None or not list_versions(root, name):
            read_spec(root, name)  # for its message where there is no such model
        if to is None:
            to = _find_previous(root, name)
        require_version(root, name, to)
        if control is not None:
            control.states()
        remove_leftovers(root, name)
        try:
            previous: int | None = active_version(root, name)
        except RepositoryError:  # the ensemble's configuration is damaged, which is what this mends
            previous = None
        _switch(root, name, to, control, keep_loaded)
        return Rollout(name, to, previous, to)


def _find_previous(root: Path, name: str) -> int:
    active = active_version(root, name)
    previous = read_replaced(root, name, active)
    versions = [version for version in list_versions(root, name) if version != active]
    if previous not in versions:
        choice = f"choose one of {', '.join(map(str, versions))} with --to" if versions else "it is the only one"
        raise RepositoryError(f"The version before version {active} of {name} is not there; {choice}.")
    return previous


def _switch(root: Path, name: str, version: int, control: ModelControl | None, keep_loaded: bool) -> None:
    """Step, then the configuration, then the ensemble; what fails or is interrupted leaves the old version active."""
    path = root / name / "config.pbtxt"
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    served = None
    asked = False
    with unloading_on_failure(control, name, version):
        if control is not None and (served := _served_version(control, name)) != version:
            load_steps(control, name, version)
        try:
            pin_version(root, name, version)
            if control is not None and served != version:
                asked = True
                control.load(name, version)
        except BaseException:
            if before is not None and path.read_text(encoding="utf-8") != before:
                write_text(path, before)
            if control is not None and asked:
                # Also where it has not switched: an order that was interrupted is carried out, and this one after it.
                with contextlib.suppress(MlclsError):
                    control.load(name, active_version(root, name))
            raise
    if control is not None:
        try:
            unload_others(control, name, {version} | ({served} if keep_loaded and served else set()))
        except ModelControlError as error:
            raise ModelControlError(
                f"Version {version} of {name} is active, but the others could not be unloaded: {error}"
            ) from None


@contextlib.contextmanager
def unloading_on_failure(control: ModelControl | None, name: str, version: int) -> Iterator[None]:
    """Unload the steps of a version that does not come to serve."""
    try:
        yield
    except BaseException:
        if control is not None and not control.is_ready(name, version):
            with contextlib.suppress(ModelControlError):
                for suffix in STEP_SUFFIXES:
                    control.unload(step_name(name, suffix, version))
        raise


def _load_first(control: ModelControl | None, name: str, version: int) -> None:
    """Load a model that the server did not have."""
    with unloading_on_failure(control, name, version):
        if control is not None:
            load_steps(control, name, version)
            control.load(name, version)


def load_steps(control: ModelControl, name: str, version: int) -> None:
    """Load the steps; Triton leaves alone those that are loaded and whose files have not changed."""
    for suffix in STEP_SUFFIXES:
        control.load(step_name(name, suffix, version), version)


def _known_versions(control: ModelControl, name: str) -> set[int]:
    """Return versions that the server has or had: one of the same number could be taken for it."""
    return {
        version
        for model, version in control.states()
        if model in {name, *(step_name(name, suffix, version) for suffix in STEP_SUFFIXES)}
    }


def _served_version(control: ModelControl, name: str) -> int | None:
    for (model, version), state in control.states().items():
        if model == name and state.state == "READY":
            return version
    return None


def unload_others(control: ModelControl, name: str, kept: set[int]) -> None:
    """Unload the steps of all other versions, once the requests that they are part of are answered."""
    states = control.states()
    control.wait_until_drained([name])
    steps = {
        (step_name(name, suffix, version), version): version
        for (_, version) in states
        if version not in kept
        for suffix in STEP_SUFFIXES
    }
    for step in states.keys() & steps.keys():
        if states[step].state == "READY":
            control.unload(step[0])
