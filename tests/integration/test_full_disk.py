"""A disk that is really full: each command says so, leaves what was there, and works again once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcls.atomic import LOCK_NAME
from mlcls.cli import main
from mlcls.versions import active_version, list_versions
from processes import ROOT

DEMO = ROOT / "demo_model" / "inference"
NAME = "demo"
SIZE_MB = 40


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    process = subprocess.run(mount, capture_output=True, text=True)
    if process.returncode != 0:
        pytest.skip(f"a small disk can be mounted by root only: {process.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def repository(disk: Path) -> Path:
    """With one version of the demo model."""
    root = disk / "model_repository"
    assert main(["import", str(DEMO), "--name", NAME, "--repository", str(root)]) == 0
    return root


def fill(disk: Path, left_bytes: int) -> Path:
    """Leaves so much room."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        for _ in range((state.f_bavail * state.f_frsize - left_bytes) >> 12):
            file.write(b"\0" * (1 << 12))
    return filler


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# The graph takes 4.9 MB: there is room for nothing, for a part of it, or for all but the last files.
@pytest.mark.parametrize("left_bytes", [0, 2_000_000, 5_000_000])
@pytest.mark.parametrize("command", ["import", "publish"])
def test_a_full_repository(
    disk: Path, repository: Path, capsys: pytest.CaptureFixture[str], command: str, left_bytes: int
) -> None:
    name = "other" if command == "import" else NAME
    before = snapshot(repository)
    filler = fill(disk, left_bytes)
    try:
        status = main([command, str(DEMO), "--name", name, "--repository", str(repository)])
    finally:
        filler.unlink()
    errors = capsys.readouterr().err.splitlines()
    assert status == 1
    assert "No space left on device" in errors[-1], errors
    assert errors[-1].startswith(f"mlcls {command}: ")
    assert snapshot(repository) == before
    assert list_versions(repository, NAME) == [1]


def test_a_full_folder_for_temporary_files(
    disk: Path, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the graph is converted."""
    temporary = disk / "tmp"
    temporary.mkdir()
    before = snapshot(repository)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    filler = fill(disk, 1_000_000)
    try:
        status = main(["publish", str(DEMO), "--name", NAME, "--repository", str(repository)])
    finally:
        filler.unlink()
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 1
    assert error.startswith("mlcls publish: ")
    assert snapshot(repository) == before
    assert list(temporary.iterdir()) == []


def test_there_is_room_again(repository: Path) -> None:
    assert main(["publish", str(DEMO), "--name", NAME, "--repository", str(repository)]) == 0
    assert active_version(repository, NAME) == 2
    assert list_versions(repository, NAME) == [1, 2]
