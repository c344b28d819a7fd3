"""Several files change together or not at all, wherever the change is interrupted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlcls.dataset.check import CheckRequest, check_dataset
from mlcls.dataset.transaction import JOURNAL, recover, replace_files
from mlcls.errors import DatasetError
from support.dataset_samples import coco_document, read_tree, write_coco, write_random_dataset

CATEGORIES = {1: "person", 18: "dog"}

# Everything that changes a folder.
FUNCTIONS = ("replace", "rename", "unlink", "fsync", "chmod")
_KILLED = 77


class Interruption:
    """Stops at the nth call of a function that changes a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], Any]) -> None:
        self.calls, self.at = 0, 0
        for name in FUNCTIONS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), stop))

    def _wrap(self, real: Callable[..., Any], stop: Callable[[], Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                stop()
            return real(*arguments, **options)

        return wrapper


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def raise_full_disk() -> None:
    raise OSError(28, "No space left on device")


def make_split(root: Path) -> CheckRequest:
    write_random_dataset(root, 30, 3, 0)
    (root / "val.txt.bak").write_text("of an earlier split\n")
    return CheckRequest(root, root.parent / "output", train_percent=50)


def make_conversion(root: Path) -> CheckRequest:
    documents = {
        "instances_train.json": coco_document({1: [1], 2: [18], 3: []}, CATEGORIES),
        "instances_val.json": coco_document({7: [1, 18]}, CATEGORIES),
    }
    write_coco(root, documents)
    (root / "label.txt").write_text("0 of another conversion\n")
    return CheckRequest(root, root.parent / "output", convert_coco=True)


MAKERS = {"split": make_split, "conversion": make_conversion}


def changed(root: Path, request: CheckRequest) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    assert check_dataset(request).passed
    return read_tree(root)


@pytest.mark.parametrize("stop", [raise_interrupt, raise_full_disk])
@pytest.mark.parametrize("what", MAKERS)
def test_interruption_at_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, stop: Callable[[], None]
) -> None:
    wanted = changed(tmp_path / "whole/x", MAKERS[what](tmp_path / "whole/x"))
    root = tmp_path / "x"
    files = wanted_files(MAKERS[what](root), wanted)
    before = read_tree(root)
    interruption = Interruption(monkeypatch, stop)
    for at in range(1, 100):
        interruption.calls, interruption.at = 0, at
        try:
            replace_files(root, files)
        except (KeyboardInterrupt, DatasetError):
            assert read_tree(root) == before, at
        else:
            break
    assert read_tree(root) == wanted
    assert at >= 15


@pytest.mark.parametrize("at", [1, 5, 10, 15, 30])
@pytest.mark.parametrize("what", MAKERS)
def test_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, at: int) -> None:
    """The whole run, pictures and all, and the run after it."""
    wanted = changed(tmp_path / "whole/x", MAKERS[what](tmp_path / "whole/x"))
    root = tmp_path / "x"
    request = MAKERS[what](root)
    before = read_tree(root)
    with monkeypatch.context() as context:
        interruption = Interruption(context, raise_interrupt)
        interruption.at = at
        with contextlib.suppress(KeyboardInterrupt):
            check_dataset(request)
    assert read_tree(root) in (before, wanted)  # wanted: only the folder of pictures was still to be renamed
    assert not list(root.rglob(".mlcls-staging-*"))
    assert changed(root, request) == wanted


@pytest.mark.parametrize("what", MAKERS)
def test_kill_at_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A killed process cannot take anything back; the next run does."""
    wanted = changed(tmp_path / "whole/x", MAKERS[what](tmp_path / "whole/x"))
    half_done = 0
    for at in range(1, 60):
        root = tmp_path / str(at) / "x"
        request = MAKERS[what](root)
        files = wanted_files(request, wanted)
        before = read_tree(root)
        child = os.fork()
        if child == 0:
            interruption = Interruption(monkeypatch, lambda: os._exit(_KILLED))
            interruption.at = at
            replace_files(root, files)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert read_tree(root) == wanted
            break
        assert status == _KILLED
        half_done += read_tree(root) not in (before, wanted)
        recover(root)
        leftovers = [name for name in read_tree(root) if ".mlcls-staging-" in name]
        assert {name: text for name, text in read_tree(root).items() if name not in leftovers} == before
        replace_files(root, files)
        assert read_tree(root) == wanted
    else:
        pytest.fail("the change never came to its end")
    assert half_done >= 5


def wanted_files(request: CheckRequest, wanted: dict[str, bytes]) -> dict[str, bytes | None]:
    names = ("train.txt", "val.txt")
    if not request.convert_coco:
        return {name: wanted[name] for name in names}
    retired = ("annotations/instances_train.json", "annotations/instances_val.json")
    return {**{name: wanted[name] for name in ("label.txt", *names)}, **dict.fromkeys(retired)}


def test_recovery_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking back can be interrupted at each write, and goes on the next time."""
    for at in range(1, 30):
        root = tmp_path / str(at)
        root.mkdir()
        for name in ("a", "b"):
            (root / name).write_text(f"old {name}")
        before = read_tree(root)
        child = os.fork()
        if child == 0:
            interruption = Interruption(monkeypatch, lambda: os._exit(_KILLED))
            interruption.at = 17
            replace_files(root, {"a": b"new", "b": b"new", "c": b"new"})
            os._exit(0)
        os.waitpid(child, 0)
        assert (root / JOURNAL).exists()
        with monkeypatch.context() as context:
            interruption = Interruption(context, raise_interrupt)
            interruption.at = at
            try:
                recover(root)
            except KeyboardInterrupt:
                pass
            else:
                assert read_tree(root) == before
                return
        recover(root)
        assert {name: text for name, text in read_tree(root).items() if ".mlcls-staging-" not in name} == before
    pytest.fail("the recovery never came to its end")


def test_backups(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert replace_files(tmp_path, {"a": b"2", "b": b"new"}) == {"a": "a.bak"}
    assert replace_files(tmp_path, {"a": b"2", "b": b"new"}) == {}
    assert replace_files(tmp_path, {"a": b"3"}) == {"a": "a.bak2"}
    assert replace_files(tmp_path, {"a": b"2"}) == {"a": "a.bak3"}
    assert replace_files(tmp_path, {"a": b"1"}) == {"a": "a.bak2"}, "it has this content already"
    assert replace_files(tmp_path, {"a": None, "none": None}) == {"a": "a.bak4"}
    assert read_tree(tmp_path) == {
        "a.bak": b"1", "a.bak2": b"2", "a.bak3": b"3", "a.bak4": b"1", "b": b"new",
    }  # fmt: skip


def test_journal_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("{")
    with pytest.raises(DatasetError, match=r"expected the journal of an interrupted change, got a file that cannot"):
        recover(tmp_path)
