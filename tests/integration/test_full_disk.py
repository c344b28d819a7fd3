"""A disk that is really full: what was there stays, nothing is left over, and it works again once there is room."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base.files import LOCK_NAME
from mlcls.cli import main
from mlcls.releases.importing import import_model
from mlcls.releases.rollout import publish
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import LAST_NUMBER_FILE, ONNX_FILE
from mlcls.repository.publishing import add_model
from mlcls.repository.staging import ConvertedVersion
from support.processes import ROOT

DEMO = ROOT / "demo_model" / "inference"
NAME = "demo"
SIZE_MB = 40
BLOCK = 4096

Add = Callable[[Repository, ConvertedVersion], object]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    process = subprocess.run(mount, capture_output=True, text=True)
    if process.returncode != 0:
        pytest.skip(f"only root can mount a small disk: {process.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def repository(disk: Path) -> Path:
    """With one version of the demo model."""
    root = disk / "model_repository"
    import_model(str(DEMO), Repository(root), name=NAME, batch_sizes=(1,))
    return root


def fill(disk: Path, left_bytes: int) -> Path:
    """Leaves so much room."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        for _ in range(state.f_bavail * state.f_frsize // BLOCK - left_bytes // BLOCK):
            file.write(bytes(BLOCK))
    return filler


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All files and folders, but the note of the highest number so far: no number of a version is used twice."""
    paths = [path for path in folder.rglob("*") if path.name not in (LOCK_NAME, LAST_NUMBER_FILE)]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def test_an_import_on_a_full_disk(disk: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no room for the converted graph of 4.9 MB."""
    before = snapshot(repository)
    filler = fill(disk, 2_000_000)
    try:
        status = main(["import", str(DEMO), "--name", "other", "--repository", str(repository)])
    finally:
        filler.unlink()
    errors = capsys.readouterr().err.splitlines()
    assert status == 1
    graph = rf"{repository}/\.mlcls-staging-\w+/model\.onnx"
    assert re.fullmatch(f"mlcls import: {graph}: No space left on device; free some space on its disk.", errors[-1])
    assert snapshot(repository) == before


@pytest.mark.parametrize("source", [str(DEMO), "http://127.0.0.1:9/model.tar"])
def test_a_read_only_disk_is_found_before_the_work(
    disk: Path, repository: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        status = main(["import", source, "--repository", str(repository)])
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert status == 1
    assert capsys.readouterr().err == (
        f"mlcls import: The model repository cannot be changed, and nothing was done yet: {repository}: Read-only file "
        f"system; it is on a read-only disk; choose another place.\n"
    )


@pytest.mark.parametrize(
    ("add", "change"),
    [
        (publish, {}),
        (add_model, {}),
        (add_model, {"labels": tuple(f"label {number}" for number in range(12))}),
        (add_model, {"name": "other"}),
    ],
)
def test_a_disk_that_is_full_at_any_point_of_the_writing(
    disk: Path, repository: Path, tmp_path: Path, add: Add, change: dict[str, Any]
) -> None:
    """A converted graph is there, and the room ends with each block that is written after it."""
    kept = tmp_path / "kept"
    shutil.copytree(repository, kept)
    spec = msgspec.structs.replace(Repository(repository).active(NAME).spec, **change)
    (record,) = Manifest.read(Repository(repository).active(NAME).engine_folder).engines
    before = snapshot(repository)
    for blocks in range(100):
        onnx = repository / ".mlcls-staging-test"
        shutil.copyfile(Repository(repository).active(NAME).engine_folder / ONNX_FILE, onnx)
        filler = fill(disk, blocks * BLOCK)
        try:
            add(Repository(repository), ConvertedVersion(spec, onnx, record))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            onnx.unlink(missing_ok=True)
            assert snapshot(repository) == before, blocks
        else:
            break
        finally:
            filler.unlink()
    assert blocks > 5, "several files are written"
    assert Repository(repository).active_number(spec.name) == Repository(repository).numbers(spec.name)[-1]
    assert not list(repository.glob(".mlcls-staging-*"))
    shutil.rmtree(repository)
    shutil.copytree(kept, repository)
