"""The versions of a served model: which are complete, and which one the ensemble serves.

Version 1 is the model that was imported; each later one has steps of its own beside it, which can be loaded while the
others serve:

    NAME/                config.pbtxt  labels.txt  1/version.json  2/{version.json,labels.txt}
    NAME_preprocess/     config.pbtxt  1/...       (and NAME_engine/, NAME_postprocess/)
    NAME_preprocess_2/   config.pbtxt  2/...       (and NAME_engine_2/, NAME_postprocess_2/)

A version exists where `NAME/N/` does, which is written after its steps and removed before them. `NAME/config.pbtxt`
names the active version and its steps: that one file, which is replaced whole, is the switch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from mlcls.errors import RepositoryError
from mlcls.repository import triton_config
from mlcls.repository.names import ENGINE_SUFFIX, FIRST_VERSION, STEP_SUFFIXES, step_name

RECORD_NAME: Final = "version.json"
LAST_NUMBER_NAME: Final = ".mlcls-last-version"

_NUMBER: Final = re.compile(r"[1-9]\d{0,8}")
_STEP: Final = re.compile(rf"(?P<model>.+)(?:{'|'.join(STEP_SUFFIXES)})(?:_(?P<version>[1-9]\d{{0,8}}))?")


def is_step_name(name: str) -> bool:
    """Return whether a folder of this name can be the step of a model."""
    return _STEP.fullmatch(name) is not None


def step_folders(root: Path, name: str, version: int) -> dict[str, Path]:
    """Return the version folder of each step, by the suffix of the step's name."""
    return {suffix: root / step_name(name, suffix, version) / str(version) for suffix in STEP_SUFFIXES}


def engine_folder(root: Path, name: str) -> Path:
    """Return the version folder of the engine that is active, with its model files and manifest.

    Raises:
        RepositoryError: See `active_version`.
    """
    return step_folders(root, name, active_version(root, name))[ENGINE_SUFFIX]


def list_versions(root: Path, name: str) -> list[int]:
    """Return numbers of a model's complete versions, ascending."""
    folder = root / name
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir())


def find_leftovers(root: Path, name: str) -> dict[int, list[Path]]:
    """Return folders of steps whose version does not exist, by its number: what an interrupted command left.

    The folders of the first version are none: they hold the configurations of a model that is not imported yet.
    """
    complete = list_versions(root, name)
    found: dict[int, list[Path]] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and match["model"] == name and path.is_dir():
            version = int(match["version"] or FIRST_VERSION)
            if version not in complete and (version != FIRST_VERSION or complete):
                found.setdefault(version, []).append(path)
    return found


def read_pin(path: Path) -> int:
    """Return the version that an ensemble's configuration serves.

    Raises:
        RepositoryError: The file is missing, or its steps are not those of one version.
    """
    from google.protobuf.text_format import ParseError

    try:
        config = triton_config.parse_config(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ParseError) as error:
        raise RepositoryError(f"{path}: expected the configuration of an ensemble, got: {error}.") from None
    served = tuple(config.version_policy.specific.versions)
    steps = [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]
    if not served and all(version == -1 for _, version in steps):  # as written before there were several versions
        served, steps = (FIRST_VERSION,), [(step, FIRST_VERSION) for step, _ in steps]
    expected = [(step_name(config.name, suffix, served[0]), served[0]) for suffix in STEP_SUFFIXES] if served else []
    if len(served) != 1 or steps != expected:
        raise RepositoryError(f"{path}: expected an ensemble of the three steps of one version, got {steps}.")
    return int(served[0])


def active_version(root: Path, name: str) -> int:
    """Return the version that the ensemble serves; the first one of a model that is not imported.

    Raises:
        RepositoryError: There are several versions, and the ensemble's configuration does not say which.
    """
    versions = list_versions(root, name)
    if not versions:
        return FIRST_VERSION
    try:
        return read_pin(root / name / "config.pbtxt")
    except RepositoryError as error:
        if len(versions) == 1:
            return versions[0]
        raise RepositoryError(
            f"{error} Versions {describe(versions)} of {name} exist; choose one: mlcls rollback {name} --to N."
        ) from None


def read_replaced(root: Path, name: str, version: int) -> int | None:
    """Return the version that was active when this one was made; None for the first.

    Raises:
        RepositoryError: The record is not one.
    """
    path = root / name / str(version) / RECORD_NAME
    try:
        replaced = json.loads(path.read_text(encoding="utf-8"))["replaces"]
        if replaced is not None and (not isinstance(replaced, int) or isinstance(replaced, bool)):
            raise TypeError("replaces is no number")
    except FileNotFoundError:  # as written before there were several versions
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{path}: expected the record of a version, got a file that is none ({error}).") from None
    return replaced


def render_record(replaces: int | None) -> str:
    """Return the text of `version.json`."""
    return json.dumps({"replaces": replaces}) + "\n"


def require_version(root: Path, name: str, version: int) -> None:
    """Refuse a version that does not exist.

    Raises:
        RepositoryError: It does not.
    """
    versions = list_versions(root, name)
    if version not in versions:
        raise RepositoryError(f"{name} in {root} has no version {version}; expected one of {describe(versions)}.")


def describe(versions: list[int]) -> str:
    """Return a list of numbers for a message."""
    return ", ".join(map(str, versions)) or "none"


def next_version(root: Path, name: str) -> int:
    """Return a number that no version has or had: a server, its log and its metrics may still know the old one by it.

    Raises:
        RepositoryError: The file that remembers the last number is damaged.
    """
    path = root / name / LAST_NUMBER_NAME
    last = 0
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not _NUMBER.fullmatch(text):
            raise RepositoryError(f"{path}: expected the number of the last version, got {text[:20]!r}; remove it.")
        last = int(text)
    return max([last, *list_versions(root, name), *find_leftovers(root, name)]) + 1
