"""Versions in the repository: what each command leaves, finished or killed before any of its writes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base.files import STAGING_PREFIX
from mlcls.base.processes import free_ports
from mlcls.cli import main
from mlcls.errors import ModelControlError, RepositoryError
from mlcls.model.spec import ModelSpec
from mlcls.releases import rollout
from mlcls.releases.rollout import Rollout, roll_back
from mlcls.repository.configurations import find_stale, require_fresh
from mlcls.repository.models import Repository, read_pin
from mlcls.repository.names import LAST_NUMBER_FILE, VERSION_FILE
from mlcls.repository.publishing import add_model, prune_versions, remove_leftovers, remove_version
from mlcls.repository.staging import ConvertedVersion
from mlcls.server.model_control import ModelControl
from support.repositories import stage

NAME = "animals-v2"
KILLED = 9


@pytest.fixture
def root(root: Path) -> Path:
    """An empty repository."""
    root.mkdir()
    return root


def make_spec(spec: ModelSpec, number: int) -> ModelSpec:
    """Return the model that a test publishes as this version, with its own labels, number of labels and size."""
    labels = tuple(f"label {index} of {number}" for index in range(number + 1))
    transform = msgspec.structs.replace(spec.transform, height=32 * number)
    return msgspec.structs.replace(
        spec, labels=labels, thresholds=(0.5,) * len(labels), transform=transform, onnx_sha256=str(number) * 64
    )


def staged(root: Path, spec: ModelSpec, number: int) -> ConvertedVersion:
    return stage(root, make_spec(spec, number), f"graph of {number}")


def publish(root: Path, spec: ModelSpec, number: int, **options: Any) -> Rollout:
    return rollout.publish(Repository(root), staged(root, spec, number), **options)


def replace_all(root: Path, spec: ModelSpec, number: int) -> None:
    add_model(Repository(root), staged(root, spec, number), replace_versions=True)


@pytest.fixture
def two_versions(root: Path, custom_spec: ModelSpec) -> Path:
    """A repository with two versions of a model; the second one is active."""
    publish(root, custom_spec, 1)
    publish(root, custom_spec, 2)
    return root


def list_stale(root: Path) -> dict[str, str]:
    return find_stale(Repository(root), [Repository(root).active(name).spec for name in Repository(root).models()])


def served_number(root: Path) -> int | None:
    """Return the model that a server that starts now would serve, after checking its files; None if it could not."""
    if not Repository(root).is_imported(NAME):
        return None
    spec = Repository(root).active(NAME).spec
    require_fresh(Repository(root).active(NAME))
    number = len(spec.labels) - 1
    assert Repository(root).active(NAME).weights("embedded").read_text() == f"graph of {number}"
    assert spec.transform.height == 32 * number
    assert read_pin(root / NAME / "config.pbtxt") == Repository(root).active_number(NAME)
    for version in Repository(root).versions(NAME):  # each of them can be chosen
        version.check()
        assert version.replaced != version.number
    return number


# --- killed before each write

# The versions before, the operation that is killed, and the models that may be served afterwards.
OPERATIONS: dict[str, tuple[list[int], Callable[[Path, ModelSpec], object], set[int | None]]] = {
    "publish the first": ([], lambda root, spec: publish(root, spec, 1), {None, 1}),
    "publish the second": ([1], lambda root, spec: publish(root, spec, 2), {1, 2}),
    "publish and remove": ([1, 2], lambda root, spec: publish(root, spec, 3, keep=1), {2, 3}),
    "stage": ([1], lambda root, spec: publish(root, spec, 2, activate=False), {1}),
    "roll back": ([1, 2], lambda root, _: roll_back(Repository(root), NAME), {1, 2}),
    "import again": ([1], lambda root, spec: replace_all(root, spec, 2), {None, 1, 2}),
    "import in place of several": ([1, 2], lambda root, spec: replace_all(root, spec, 3), {None, 2, 3}),
}


# Audit events of changes to a repository: how many paths their arguments begin with, and where descriptors begin.
WRITES = {"os.rename": (2, 2), "os.remove": (1, 1), "os.rmdir": (1, 1), "os.mkdir": (1, 2)}


def paths_of(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Return full paths: `shutil.rmtree` names files by the descriptor of their folder."""
    count, descriptors = WRITES[event]
    folders = [os.readlink(f"/proc/self/fd/{number}") if number != -1 else "" for number in arguments[descriptors:]]
    return [os.path.join(folder, os.fspath(path)) for path, folder in zip(arguments[:count], folders, strict=True)]


def run_killed(operation: Callable[[], object], writes: int) -> int:
    """Run an operation in a process that is killed after a number of writes; return its exit status.

    Writes in its staging folders do not count: nobody else looks there.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = writes

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WRITES and any(STAGING_PREFIX not in path for path in paths_of(event, arguments)):
            if left == 0:
                os._exit(KILLED)
            left -= 1

    status = 1
    try:
        sys.addaudithook(count)
        operation()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_before_each_write(tmp_path: Path, custom_spec: ModelSpec, name: str) -> None:
    before, operation, allowed = OPERATIONS[name]
    prepared = tmp_path / "prepared" / "models"
    prepared.mkdir(parents=True)
    for number in before:
        publish(prepared, custom_spec, number)
    reached: list[int | None] = []
    mended: set[frozenset[str]] = set()
    for writes in range(1000):
        root = tmp_path / str(writes) / "models"
        shutil.copytree(prepared, root)
        status = run_killed(lambda root=root: operation(root, custom_spec), writes)  # type: ignore[misc]
        assert status in (0, KILLED)
        try:
            reached.append(served_number(root))
        except RepositoryError as error:
            # between the removal of the active version and that of the others: an error, and nothing is served
            assert None in allowed
            assert "does not exist; choose one of" in str(error)
        left = frozenset(
            path.relative_to(root).as_posix()
            for path in (*root.glob("*"), *root.glob("*/[0-9]*"))
            if not path.name.startswith(".mlcls")
        )
        if left in mended and status != 0:
            shutil.rmtree(root)
            continue
        mended.add(left)
        # whatever was left, the next publish works and removes it
        if Repository(root).is_imported(NAME):
            last = max(Repository(root).numbers(NAME))
            done = publish(root, custom_spec, 5)
            assert done.version > last
            assert served_number(root) == 5
            assert list_stale(root) == {}
            assert Repository(root).leftovers(NAME) == {}
        else:
            replace_all(root, custom_spec, 5)
            assert served_number(root) == 5
            assert list_stale(root) == {}
        assert not list(root.rglob(f"{STAGING_PREFIX}*"))
        if status == 0:
            break
    assert set(reached) == allowed
    assert len(reached) > 5 or name == "roll back"


# --- publish and rollback without a server


def test_publish_and_roll_back(root: Path, custom_spec: ModelSpec) -> None:
    assert publish(root, custom_spec, 1) == Rollout(NAME, 1, None, 1)
    assert publish(root, custom_spec, 2) == Rollout(NAME, 2, 1, 2)
    assert served_number(root) == 2
    assert roll_back(Repository(root), NAME) == Rollout(NAME, 1, 2, 1)
    assert served_number(root) == 1
    assert publish(root, custom_spec, 3) == Rollout(NAME, 3, 1, 3)
    assert roll_back(Repository(root), NAME).active == 1, "the version before, not the one that was rolled back"
    with pytest.raises(RepositoryError, match=r"before version 1 of animals-v2 does not exist; choose one of 2, 3"):
        roll_back(Repository(root), NAME)
    assert roll_back(Repository(root), NAME, 3) == Rollout(NAME, 3, 1, 3)
    assert roll_back(Repository(root), NAME, 3) == Rollout(NAME, 3, 3, 3)
    assert list_stale(root) == {}


def test_old_versions_are_removed(root: Path, custom_spec: ModelSpec) -> None:
    for number in (1, 2, 3):
        assert publish(root, custom_spec, number).removed == ()
    assert publish(root, custom_spec, 4).removed == (1,)
    assert not list(root.glob(f"{NAME}_*/1"))
    assert Repository(root).numbers(NAME) == [2, 3, 4]
    assert Repository(root).models() == [NAME]
    assert list_stale(root) == {}
    roll_back(Repository(root), NAME, 2)
    # 2 is active before 5 is, so that 3 and 4 go first
    assert publish(root, custom_spec, 5, keep=2).removed == (3, 4)
    assert roll_back(Repository(root), NAME).active == 2
    assert prune_versions(Repository(root), NAME, 1) == [5]
    assert served_number(root) == 2


def test_no_number_is_used_twice(two_versions: Path, custom_spec: ModelSpec) -> None:
    roll_back(Repository(two_versions), NAME)
    remove_version(Repository(two_versions).version(NAME, 2))
    assert publish(two_versions, custom_spec, 3).version == 3
    replace_all(two_versions, custom_spec, 1)
    assert Repository(two_versions).numbers(NAME) == [1]
    assert publish(two_versions, custom_spec, 4).version == 4
    (two_versions / NAME / LAST_NUMBER_FILE).write_text("four")
    with pytest.raises(RepositoryError, match=r"expected the number of the last version, got 'four'; remove it"):
        publish(two_versions, custom_spec, 5)
    assert served_number(two_versions) == 4


def test_the_active_version_cannot_be_removed(two_versions: Path) -> None:
    with pytest.raises(RepositoryError, match="serves version 2, so it cannot be removed"):
        remove_version(Repository(two_versions).version(NAME, 2))
    assert served_number(two_versions) == 2


def test_the_only_version_leaves_its_configurations(root: Path, custom_spec: ModelSpec) -> None:
    publish(root, custom_spec, 1)
    remove_version(Repository(root).version(NAME, 1))
    assert not Repository(root).is_imported(NAME)
    assert find_stale(Repository(root), [make_spec(custom_spec, 1)]) == {}


def test_import_does_not_remove_published_versions_unasked(two_versions: Path, custom_spec: ModelSpec) -> None:
    with pytest.raises(RepositoryError, match=r"has the versions 1, 2\. Add the next one: mlcls publish\. Or"):
        add_model(Repository(two_versions), staged(two_versions, custom_spec, 3))
    assert served_number(two_versions) == 2
    replace_all(two_versions, custom_spec, 3)
    assert (served_number(two_versions), Repository(two_versions).numbers(NAME)) == (3, [1])
    assert list_stale(two_versions) == {}


# --- reading


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("versions: 2", "versions: 1"),
        ("versions: 2", "versions: 2\n    versions: 1"),
        ("versions: 2", ""),
        (f'"{NAME}_engine_2"', f'"{NAME}_engine"'),
        ("model_version: 2", "model_version: 1"),
        ("platform", "platforms"),
    ],
)
def test_a_mixed_ensemble_is_refused(two_versions: Path, old: str, new: str) -> None:
    path = two_versions / NAME / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RepositoryError, match=r"animals-v2 has the versions 1, 2; choose one: mlcls rollback"):
        Repository(two_versions).active(NAME).check()
    assert roll_back(Repository(two_versions), NAME, 2) == Rollout(NAME, 2, None, 2)
    assert path.read_text() == text


def test_an_active_version_that_is_gone(two_versions: Path) -> None:
    shutil.rmtree(two_versions / NAME / "2")
    with pytest.raises(RepositoryError, match=r"Version 2, which animals-v2 .* does not exist; choose one of 1: mlcls"):
        Repository(two_versions).active(NAME).check()
    assert roll_back(Repository(two_versions), NAME, 1).active == 1
    assert served_number(two_versions) == 1
    assert Repository(two_versions).leftovers(NAME) == {}


def test_a_damaged_version_is_not_chosen(two_versions: Path, custom_spec: ModelSpec) -> None:
    (two_versions / f"{NAME}_preprocess" / "1" / "model_spec.json").write_text(make_spec(custom_spec, 3).to_json())
    with pytest.raises(RepositoryError, match="is not the file that its manifest was written for"):
        roll_back(Repository(two_versions), NAME)
    (two_versions / NAME / "2" / VERSION_FILE).write_text('{"replaces": "1"}')
    with pytest.raises(RepositoryError, match=r"version\.json: replaces: expected int \| null, got '1'; remove it"):
        roll_back(Repository(two_versions), NAME)
    assert Repository(two_versions).active(NAME).spec == make_spec(custom_spec, 2)


@pytest.mark.parametrize("name", ["a_engine", "a_preprocess_10"])
def test_names_of_steps(root: Path, custom_spec: ModelSpec, name: str) -> None:
    for add in (rollout.publish, add_model):
        with pytest.raises(RepositoryError, match="Expected a name that does not end in _preprocess or _engine or "):
            add(Repository(root), stage(root, msgspec.structs.replace(custom_spec, name=name)))


@pytest.mark.parametrize("name", ["a_2", "a_engine_0", "a_engine_2_b"])
def test_names_that_look_like_steps(root: Path, custom_spec: ModelSpec, name: str) -> None:
    """Names beside a model whose steps they must not be mistaken for."""
    for each in ("a", name, name):
        rollout.publish(Repository(root), stage(root, msgspec.structs.replace(custom_spec, name=each)))
    assert Repository(root).models() == sorted(["a", name])
    assert Repository(root).leftovers("a") == {}
    remove_leftovers(Repository(root), "a")
    assert list_stale(root) == {}
    assert Repository(root).numbers(name) == [1, 2]


# --- a server that is not there


def test_no_server(root: Path, custom_spec: ModelSpec) -> None:
    publish(root, custom_spec, 1)
    control = ModelControl(f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(ModelControlError, match=r"^No answer from Triton's HTTP API at .*Is the server running"):
        publish(root, custom_spec, 2, control=control)
    with pytest.raises(ModelControlError, match="No answer"):
        roll_back(Repository(root), NAME, 1, control=control)
    assert (served_number(root), Repository(root).numbers(NAME)) == (1, [1])
    assert not control.is_ready(NAME, 1)


# --- the commands


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_versions_command(two_versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roll_back(Repository(two_versions), NAME)
    status, output, _ = run_main(capsys, "versions", NAME, "--repository", two_versions)
    lines = [line.split() for line in output.splitlines()]
    assert status == 0
    assert [line[0] for line in lines] == ["version", "1", "2"]
    assert [("active" in line, line[-1]) for line in lines[1:]] == [(True, "1" * 12), (False, "2" * 12)]
    first, second = json.loads(run_main(capsys, "versions", NAME, "--json", "--repository", two_versions)[1])
    assert (first["version"], first["active"], first["replaces"], first["labels"]) == (1, True, None, 2)
    assert (second["version"], second["active"], second["replaces"], second["labels"]) == (2, False, 1, 3)
    assert set(second["files"]) == {"model.onnx", "model_spec.json"}
    assert run_main(capsys, "versions", "horse", "--repository", two_versions)[0] == 1


def test_rollback_command(two_versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run_main(capsys, "rollback", NAME, "--repository", two_versions)
    assert (status, output) == (0, f"Version 1 of {NAME} is active in the repository, in place of version 2\n")
    status, _, errors = run_main(capsys, "rollback", NAME, "--to", "7", "--repository", two_versions)
    assert status == 1
    assert errors == f"mlcls rollback: {NAME} in {two_versions} has no version 7; expected one of 1, 2.\n"


@pytest.mark.parametrize(("options", "least"), [(("--keep", "0"), 1), (("--keep", "1", "--keep-loaded"), 2)])
def test_publish_keeps_at_least(
    root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], least: int
) -> None:
    status, _, errors = run_main(capsys, "publish", root, *options, "--repository", root)
    assert status == 1
    assert f"Expected --keep {least} or more" in errors


def test_repository_command_knows_versions(
    two_versions: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(two_versions, custom_spec, 3, activate=False)
    run_main(capsys, "repository", "--repository", two_versions)
    assert run_main(capsys, "repository", "--check", "--repository", two_versions)[0] == 0
    for path in (f"{NAME}_engine/config.pbtxt", f"{NAME}_engine_2/configs/gpu.pbtxt", f"{NAME}/3/labels.txt"):
        (two_versions / path).write_text("")
        status, _, errors = run_main(capsys, "repository", "--check", "--repository", two_versions)
        assert (status, errors.splitlines()[0]) == (1, f"{two_versions}/{path}: differs from what the generator writes")
        assert run_main(capsys, "repository", "--repository", two_versions)[0] == 0
    shutil.rmtree(two_versions / NAME / "3")
    assert run_main(capsys, "repository", "--check", "--repository", two_versions)[0] == 1
    assert run_main(capsys, "repository", "--repository", two_versions)[0] == 0
    assert not (two_versions / f"{NAME}_engine_3").exists()
