"""Files and folders appear complete or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls.base import files
from mlcls.base.files import (
    LOCK_NAME,
    STAGING_PREFIX,
    abandoned_folders,
    describe_os_error,
    held_folder,
    replace_folder,
    require_writable,
    staged_folder,
    write_text,
)


class FaultError(OSError):
    """What the tests inject."""


def fail_at(monkeypatch: pytest.MonkeyPatch, function: str, *calls: int) -> None:
    """Makes a function of `os` fail at its first, second, ... call."""
    real: Callable[..., Any] = getattr(os, function)
    count = 0

    def wrapper(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise FaultError(function)
        return real(*args, **options)

    monkeypatch.setattr(os, function, wrapper)


def list_tree(folder: Path) -> dict[str, str | None]:
    """Content of every file by its path, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


# --- write_text


@pytest.mark.usefixtures("private_umask")
def test_write_text(tmp_path: Path) -> None:
    """Triton runs as another user than the one that imports, and must read it."""
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("a longer text", "犬\r\nend\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list_tree(tmp_path).keys() == {"a", "a/b", "a/b/file.txt"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("function", ["fdopen", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", ["old", None])
def test_write_text_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None, function: str) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)
    before = list_tree(tmp_path)
    fail_at(monkeypatch, function, 1)
    with pytest.raises(FaultError):
        write_text(path, "new")
    assert list_tree(tmp_path) == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_names_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """The kernel names none when it writes, and a temporary one when it renames."""
    path = tmp_path / "file.txt"

    def fail(source: Any, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *([] if function == "fsync" else [source]))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError) as caught:
        write_text(path, "new")
    assert describe_os_error(caught.value) == f"{path}: No space left on device; free some space on its disk."


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        require_writable(tmp_path / "file" / "b")
    assert describe_os_error(caught.value) == f"{tmp_path / 'file'}: Not a directory; check the path."


def test_file_is_complete_when_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    seen = []
    real = os.replace

    def replace(source: str, target: Path) -> None:
        seen.append((path.exists(), Path(source).parent, Path(source).read_text()))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_text(path, "text")
    assert seen == [(False, tmp_path, "text")]


# --- held_folder

_HOLDER = """
import sys, time
from pathlib import Path
from mlcls.base.files import held_folder
with held_folder(Path(sys.argv[1])) as folder:
    (folder / "graph").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds a folder, and the folder."""
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_what_a_killed_process_left_goes_when_the_next_folder_is_made(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], Path]
) -> None:
    process, held = holder
    with held_folder(tmp_path) as own:
        assert {own, held} == set(tmp_path.iterdir())
        assert list(abandoned_folders(tmp_path)) == []
    process.kill()
    process.wait()
    assert (held / "graph").stat().st_size == 1000
    assert list(abandoned_folders(tmp_path)) == [held]
    with held_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_abandoned_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK_NAME).touch()
    fill(tmp_path / f"{STAGING_PREFIX}without-lock", "old")
    (tmp_path / f"{STAGING_PREFIX}link").symlink_to("elsewhere")
    (tmp_path / f"{STAGING_PREFIX}file").write_text("")
    before = list_tree(tmp_path)
    assert list(abandoned_folders(tmp_path)) == []
    with held_folder(tmp_path):
        pass
    assert list_tree(tmp_path) == before


def test_a_folder_that_another_process_took_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process looked when the folder was there and its lock was not."""
    real = fcntl.flock
    taken: list[Path] = []

    def take_first(file: Any, operation: int) -> None:
        if not taken:
            taken.append(Path(file.name).parent)
            shutil.rmtree(taken[0])
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", take_first)
    with held_folder(tmp_path) as folder:
        assert taken != [folder]
        assert list(tmp_path.iterdir()) == [folder]


# --- staged_folder


def fill(folder: Path, text: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file.txt").write_text(text)
    (folder / f"only-{text}").write_text("")
    return folder


NEW = {"target": None, "target/only-new": "", "target/sub": None, "target/sub/file.txt": "new"}


@pytest.fixture(params=["old", "none"])
def before(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str | None]:
    """What is in the folder at first: a target or nothing."""
    if request.param == "old":
        fill(tmp_path / "target", "old")
    return list_tree(tmp_path)


def test_target_stays_until_the_end(tmp_path: Path, before: dict[str, str | None]) -> None:
    with staged_folder(tmp_path / "target") as staging:
        assert staging.parent.parent == tmp_path
        assert list(staging.iterdir()) == []
        fill(staging, "new")
        seen = {path: text for path, text in list_tree(tmp_path).items() if not path.startswith(STAGING_PREFIX)}
        assert seen == before
    assert list_tree(tmp_path) == NEW


@pytest.mark.parametrize("error", [FaultError, KeyboardInterrupt, SystemExit])
def test_block_that_fails(tmp_path: Path, before: dict[str, str | None], error: type[BaseException]) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "target") as staging:
        fill(staging, "new")
        raise error
    assert list_tree(tmp_path) == before


@pytest.mark.usefixtures("private_umask")
def test_parents_and_mode_of_the_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "target"):
        pass
    assert list_tree(tmp_path) == {"a": None, "a/target": None}
    assert stat.S_IMODE((tmp_path / "a" / "target").stat().st_mode) == 0o755


def test_staged_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with staged_folder(tmp_path / "target") as staging:
        fill(staging, "new")
    assert list_tree(tmp_path) == NEW


# --- replace_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", "new")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return fill(tmp_path / "target", "old")


def test_target_is_never_missing(tmp_path: Path, source: Path, target: Path) -> None:
    """A reader that looks all the time, while the folder is replaced again and again."""
    stop = threading.Event()
    looks = missing = 0

    def look() -> None:
        nonlocal looks, missing
        while not stop.is_set():
            looks += 1
            missing += not target.exists()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for round_ in range(300):
            staging = tmp_path / f"staging{round_}"
            staging.mkdir()
            replace_folder(staging, target)
    finally:
        stop.set()
        reader.join()
    assert looks > 100
    assert missing == 0
    replace_folder(source, target)
    assert list_tree(tmp_path) == NEW


def test_exchange_that_is_not_allowed(
    tmp_path: Path, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that is none of the file system's abilities: an error that names both paths, and the old state."""
    before = list_tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_AT_FDCWD", -1)
        patch.setattr(os, "fsencode", lambda path: str(path).lstrip("/").encode())
        with pytest.raises(OSError, match=f"Bad file descriptor: '{source}' -> '{target}'"):
            replace_folder(source, target)
    assert list_tree(tmp_path) == before


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("call", [1, 2])
def test_rename_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, target: Path, call: int
) -> None:
    """The first rename puts the old folder aside, the second one puts the new one in its place."""
    before = list_tree(tmp_path)
    fail_at(monkeypatch, "rename", call)
    with pytest.raises(FaultError):
        replace_folder(source, target)
    assert list_tree(tmp_path) == before
    replace_folder(source, target)
    assert list_tree(tmp_path) == NEW


@pytest.mark.usefixtures("without_exchange")
def test_old_folder_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, target: Path) -> None:
    """Neither the new folder can be put in place nor the old one back: both must still be somewhere."""
    fail_at(monkeypatch, "rename", 2, 3)
    with pytest.raises(FaultError):
        replace_folder(source, target)
    assert {"old", "new"} <= set(list_tree(tmp_path).values())


def test_is_locked(tmp_path: Path) -> None:
    """Also for a server that may only read the folder, and without taking the lock away from a command."""
    assert not files.is_locked(tmp_path / "missing")
    assert not files.is_locked(tmp_path)
    with files.folder_lock(tmp_path):
        assert files.is_locked(tmp_path)
        (tmp_path / files.LOCK_NAME).chmod(0o444)
        assert files.is_locked(tmp_path)
    assert not files.is_locked(tmp_path)
    with files.folder_lock(tmp_path):
        pass
