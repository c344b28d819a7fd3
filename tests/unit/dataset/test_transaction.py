"""Several files change together or not at all, wherever the change is interrupted."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlcls.dataset.check import check_dataset
from mlcls.dataset.transaction import JOURNAL, recover, replace_files
from mlcls.errors import DatasetError
from support.dataset_samples import coco_document, read_tree, write_coco, write_random_dataset

CATEGORIES = {1: "person", 18: "dog"}

# What is changed, what is left, and the files that are written.
Change = tuple[str, dict[str, bytes], dict[str, bytes | None]]

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


def make_split(root: Path) -> None:
    write_random_dataset(root, 30, 3, 0)
    (root / "val.txt.bak").write_text("of an earlier split\n")


def make_conversion(root: Path) -> None:
    documents = {
        "instances_train.json": coco_document({1: [1], 2: [18], 3: []}, CATEGORIES),
        "instances_val.json": coco_document({7: [1, 18]}, CATEGORIES),
    }
    write_coco(root, documents)
    (root / "label.txt").write_text("0 of another conversion\n")


MAKERS = {"split": make_split, "conversion": make_conversion}


def make(what: str, root: Path) -> dict[str, bytes]:
    MAKERS[what](root)
    return read_tree(root)


def run(what: str, root: Path) -> dict[str, bytes]:
    options: dict[str, Any] = {"train_percent": 50} if what == "split" else {"convert_coco": True}
    assert check_dataset(root, root.parent / "output", **options).passed
    return read_tree(root)


@pytest.fixture(params=MAKERS)
def change(request: pytest.FixtureRequest, tmp_path: Path) -> Change:
    """A change of a dataset, what an undisturbed run leaves, and the files that it writes."""
    what: str = request.param
    make(what, tmp_path / "whole/x")
    wanted = run(what, tmp_path / "whole/x")
    names = ("train.txt", "val.txt") if what == "split" else ("label.txt", "train.txt", "val.txt")
    retired = () if what == "split" else ("annotations/instances_train.json", "annotations/instances_val.json")
    return what, wanted, {**{name: wanted[name] for name in names}, **dict.fromkeys(retired)}


@pytest.mark.parametrize("stop", [raise_interrupt, raise_full_disk])
def test_interruption_at_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, stop: Callable[[], None]
) -> None:
    what, wanted, files = change
    root = tmp_path / "x"
    before = make(what, root)
    interruption = Interruption(monkeypatch, stop)
    for at in range(1, 100):
        interruption.calls, interruption.at = 0, at
        try:
            replace_files(root, files)
        except (KeyboardInterrupt, DatasetError) as error:
            assert isinstance(error, KeyboardInterrupt) or re.search("on device.*; nothing was changed", str(error))
            assert read_tree(root) == before, at
        else:
            break
    assert read_tree(root) == wanted
    assert at >= 15


@pytest.mark.parametrize("at", [1, 5, 10, 15, 30])
def test_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, at: int) -> None:
    """The whole run, pictures and all, and the run after it."""
    what, wanted, _ = change
    root = tmp_path / "x"
    before = make(what, root)
    with monkeypatch.context() as context:
        Interruption(context, raise_interrupt).at = at
        with contextlib.suppress(KeyboardInterrupt):
            run(what, root)
    assert read_tree(root) in (before, wanted)  # wanted: only the folder of pictures was still to be renamed
    assert not list(root.rglob(".mlcls-staging-*"))
    assert run(what, root) == wanted


def test_kill_at_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """A killed process cannot take anything back; the next run does."""
    what, wanted, files = change
    half_done = 0
    for at in range(1, 60):
        root = tmp_path / str(at) / "x"
        before = make(what, root)
        status = replace_and_kill(monkeypatch, at, root, files)
        if status == 0:
            assert read_tree(root) == wanted
            break
        assert status == _KILLED
        half_done += read_tree(root) not in (before, wanted)
        recover(root)
        assert without_leftovers(root) == before
        replace_files(root, files)
        assert read_tree(root) == wanted
    else:
        pytest.fail("the change never came to its end")
    assert half_done >= 5


def replace_and_kill(monkeypatch: pytest.MonkeyPatch, at: int, root: Path, files: Mapping[str, bytes | None]) -> int:
    """Change files in a child process that ends at the nth write; return its status."""
    child = os.fork()
    if child == 0:
        Interruption(monkeypatch, lambda: os._exit(_KILLED)).at = at
        replace_files(root, files)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def without_leftovers(root: Path) -> dict[str, bytes]:
    return {name: text for name, text in read_tree(root).items() if ".mlcls-staging-" not in name}


def test_recovery_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking back can be interrupted at each write, and goes on the next time."""
    for at in range(1, 30):
        root = tmp_path / str(at)
        root.mkdir()
        for name in ("a", "b"):
            (root / name).write_text(f"old {name}")
        before = read_tree(root)
        replace_and_kill(monkeypatch, 17, root, {"a": b"new", "b": b"new", "c": b"new"})
        assert (root / JOURNAL).exists()
        with monkeypatch.context() as context:
            Interruption(context, raise_interrupt).at = at
            try:
                recover(root)
            except KeyboardInterrupt:
                pass
            else:
                assert read_tree(root) == before
                return
        recover(root)
        assert without_leftovers(root) == before
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
