"""Changes the settings of a served model: `serving.json`, its evidence and the configurations, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mlcls.base.files import folder_lock, write_bytes
from mlcls.errors import ConfigError
from mlcls.repository import expected_files, read_spec, write_configs
from mlcls.serving_settings import DEFAULT_MODEL_SETTINGS, ModelSettings, read_settings, settings_path
from mlcls.triton_config import preprocess_paths
from mlcls.versions import active_version, list_versions


def change_settings(
    root: Path,
    name: str,
    change: Callable[[ModelSettings], ModelSettings],
    evidence: Mapping[str, bytes | None] | None = None,
) -> list[Path]:
    """Changes a model's settings, and writes the configurations of all its versions that follow from them.

    What fails or is interrupted leaves every file as it was. Where the process is killed meanwhile, the settings can be
    the new ones and a part of the configurations stale: such a model is not served until `mlcls repository` mends it.

    Args:
        root: The model repository.
        name: An imported model.
        change: Gives the new settings, from those that are there when nobody else can change them.
        evidence: Content of files beside `serving.json`, by name; None removes one.

    Returns:
        The configurations that changed.

    Raises:
        RepositoryError: The model is not imported, or damaged.
        ConfigError: Its `serving.json` is wrong.
    """
    with folder_lock(root):
        spec = read_spec(root, name)
        settings = change(read_settings(root, name))
        path = settings_path(root, name)
        files = {path.parent / file: content for file, content in (evidence or {}).items()}
        # of default settings no file is kept: the defaults of a later mlcls are then taken
        files[path] = None if settings == DEFAULT_MODEL_SETTINGS else settings.to_json().encode()
        configs = set(expected_files(root, spec, settings))
        for version in {active_version(root, name), *list_versions(root, name)}:
            configs.update(preprocess_paths(name, version))
        before = {touched: _read(touched) for touched in [*files, *(root / config for config in configs)]}
        try:
            for file, content in files.items():
                _put(file, content)
            return write_configs(root, spec)
        except BaseException:
            for file, content in before.items():
                if _read(file) != content:
                    _put(file, content)
            raise


def remove_wrong_settings(root: Path, name: str) -> bool:
    """Removes a `serving.json` that cannot be read; tells whether there was one."""
    try:
        read_settings(root, name)
    except ConfigError:
        settings_path(root, name).unlink(missing_ok=True)
        return True
    return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)
