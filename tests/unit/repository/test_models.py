"""The model repository: what is written, what is stale, and that models are replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base import files as atomic
from mlcls.errors import RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS, coco_labels, official_spec
from mlcls.model.spec import ModelSpec
from mlcls.repository import configurations, publishing, staging
from mlcls.repository.configurations import expected_specs, find_stale, render_files, require_fresh, write_configs
from mlcls.repository.models import Repository
from mlcls.repository.settings import Target
from support.repositories import add, snapshot

NAME = "animals-v2"
FILES = {
    f"{NAME}/config.pbtxt",
    f"{NAME}/labels.txt",
    f"{NAME}_preprocess/config.pbtxt",
    f"{NAME}_engine/config.pbtxt",
    f"{NAME}_engine/configs/cpu.pbtxt",
    f"{NAME}_engine/configs/gpu.pbtxt",
    f"{NAME}_engine/configs/int8.pbtxt",
    f"{NAME}_postprocess/config.pbtxt",
    f"{NAME}_postprocess/labels.txt",
}
STEPS = ("_preprocess", "_engine", "_postprocess")


def make_other(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """Another import, by default under the same name."""
    transform = msgspec.structs.replace(spec.transform, height=32, width=48)
    fields = {"labels": ("x", "y"), "thresholds": (0.1, 0.2), "transform": transform, "onnx_sha256": "5" * 64}
    return msgspec.structs.replace(spec, **(fields | changes))


def list_stale(root: Path, *specs: ModelSpec) -> dict[str, str]:
    return find_stale(Repository(root), specs)


# --- what is written, and what is stale


def test_write_configs_writes_only_what_differs(root: Path, custom_spec: ModelSpec) -> None:
    written = write_configs(Repository(root), custom_spec)
    assert {path.relative_to(root).as_posix() for path in written} == FILES
    assert snapshot(root) == {path: text.encode() for path, text in render_files(custom_spec).items()}
    assert (root / NAME / "labels.txt").read_text(encoding="utf-8") == 'cat\n犬\na "fox"\n'
    assert write_configs(Repository(root), custom_spec) == []
    edited, binary = root / f"{NAME}_engine" / "configs" / "gpu.pbtxt", root / NAME / "config.pbtxt"
    edited.write_text(edited.read_text() + "\n")
    binary.write_bytes(b"\xff")
    deleted = root / NAME / "labels.txt"
    deleted.unlink()
    assert set(write_configs(Repository(root), custom_spec)) == {edited, binary, deleted}
    assert list_stale(root, custom_spec) == {}


def test_stale_files(root: Path, custom_spec: ModelSpec) -> None:
    write_configs(Repository(root), custom_spec)
    (root / NAME / "labels.txt").write_bytes(b'cat\r\n\xe7\x8a\xac\na "fox"\n')
    shutil.rmtree(root / f"{NAME}_engine" / "configs")
    foreign, unknown = f"{NAME}_postprocess/configs/tpu.pbtxt", f"{NAME}_preprocess2/config.pbtxt"
    # the last is what an import leaves while it runs or when it is killed
    for path in (foreign, unknown, f"{atomic.STAGING_PREFIX}abc/{NAME}/config.pbtxt"):
        (root / path).parent.mkdir(parents=True)
        shutil.copy(root / NAME / "config.pbtxt", root / path)
    assert list_stale(root, custom_spec) == {
        f"{NAME}/labels.txt": "differs from what the generator writes",
        **{f"{NAME}_engine/configs/{target}.pbtxt": "missing" for target in ("cpu", "gpu", "int8")},
        foreign: "is not a file that the generator writes",
        unknown: "belongs to no model of the repository",
    }
    shutil.rmtree(root)
    assert list_stale(root, custom_spec) == dict.fromkeys(FILES, "missing")


@pytest.fixture
def public_root() -> Iterator[Path]:
    """The root of a repository in a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "model_repository"
        root.mkdir()
        yield root


def test_readers_stay_out_of_the_folders_of_commands(public_root: Path, custom_spec: ModelSpec) -> None:
    """An import writes in one that nobody else may read, while a container starts as another user."""
    add(public_root, custom_spec)
    hidden = public_root / f"{atomic.STAGING_PREFIX}abc"
    shutil.copytree(public_root / NAME, hidden)
    hidden.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            (hidden / "config.pbtxt").stat()
        assert Repository(public_root).models() == [NAME]
        assert Repository(public_root).leftovers(NAME) == {}
        assert list_stale(public_root, custom_spec) == {}
    finally:
        os.seteuid(user)
        hidden.chmod(0o755)


def test_require_fresh(root: Path, custom_spec: ModelSpec) -> None:
    other = make_other(custom_spec, name="animals-v3")
    add(root, custom_spec)
    add(root, other)
    (root / "animals-v3" / "labels.txt").unlink()
    require_fresh(Repository(root).active(NAME))
    with pytest.raises(RepositoryError, match=r"is stale: animals-v3/labels.txt: missing\. Run: mlcls repository\.$"):
        require_fresh(Repository(root).active(other.name))
    shutil.copy(root / NAME / "config.pbtxt", root / f"{NAME}_engine" / "configs" / "tpu.pbtxt")
    with pytest.raises(RepositoryError, match=r"animals-v2_engine/configs/tpu.pbtxt: is not a file that"):
        require_fresh(Repository(root).active(NAME))


@pytest.mark.parametrize("folder", ["", NAME, f"{NAME}_engine"])
def test_a_repository_that_cannot_be_changed(public_root: Path, custom_spec: ModelSpec, folder: str) -> None:
    add(public_root, custom_spec)
    for path in (public_root, *Repository(public_root).folders()):
        path.chmod(0o777)
    repository, user = Repository(public_root), os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        repository.require_writable(NAME)
        os.seteuid(user)
        (public_root / folder).chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(RepositoryError) as caught:
            repository.require_writable(NAME)
    finally:
        os.seteuid(user)
        (public_root / folder).chmod(0o755)
    assert str(caught.value).startswith(
        f"The model repository cannot be changed, and nothing was done yet: {public_root / folder}: Permission denied; "
    )


@pytest.mark.parametrize("name", ["model.py", "libtriton_mlcls_engine.so", "lib/x.so", "configs/x.so"])
def test_a_file_that_triton_could_run(root: Path, custom_spec: ModelSpec, name: str) -> None:
    """Triton looks for a backend in the model's folder and its version folder before its own."""
    add(root, custom_spec)
    path = root / f"{NAME}_engine" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(RepositoryError, match=f"stale: {NAME}_engine/{name}: is not a file that the generator writes"):
        require_fresh(Repository(root).active(NAME))
    path.rename(root / f"{NAME}_engine" / "1" / path.name)
    with pytest.raises(RepositoryError, match=f"not in its manifest, so their origin is unknown: {path.name};"):
        Repository(root).active(NAME).check()


# --- add_model


def test_add_model(root: Path, custom_spec: ModelSpec) -> None:
    add(root, custom_spec)
    files = snapshot(root)
    for step in STEPS:
        assert files.pop(f"{NAME}{step}/1/manifest.json")
    assert files == {
        **{path: text.encode() for path, text in render_files(custom_spec).items()},
        **{f"{NAME}{step}/1/model_spec.json": custom_spec.to_json().encode() for step in STEPS},
        atomic.LOCK_NAME: b"",
        f"{NAME}/1/version.json": b'{"replaces": null}\n',
        f"{NAME}_engine/1/model.onnx": f"graph of {custom_spec.labels}".encode(),
    }
    assert not (root.parent / "given.onnx").exists()
    assert not list(root.glob(f"{atomic.STAGING_PREFIX}*"))
    assert Repository(root).active(NAME).spec == custom_spec
    require_fresh(Repository(root).active(NAME))


def test_models_side_by_side(root: Path, custom_spec: ModelSpec) -> None:
    add(root, custom_spec)
    before = snapshot(root)
    other = make_other(custom_spec, name="animals-v3")
    add(root, other)
    assert before.items() <= snapshot(root).items()
    assert Repository(root).models() == [NAME, "animals-v3"]
    assert list_stale(root, custom_spec, other) == {}


def assert_not_mixed(root: Path, *imports: ModelSpec) -> ModelSpec | None:
    """Assert that all files are of one import if Triton could load the ensemble; return it, or None if it could not."""
    if not (root / NAME / "1").is_dir():
        with pytest.raises(RepositoryError):
            Repository(root).active(NAME).check()
        return None
    spec = Repository(root).active(NAME).spec
    assert spec in imports
    assert (root / f"{NAME}_engine" / "1" / "model.onnx").read_text() == f"graph of {spec.labels}"
    assert list_stale(root, spec) == {}
    return spec


# Where an import fails, at which calls, and whether something has changed by then.
FAILURES: list[tuple[Any, str, range, bool]] = [
    (staging, "write_text", range(1, 5), False),
    (configurations, "write_bytes", range(1, 10), False),
    (publishing, "replace_folder", range(1, 5), True),
    (atomic, "_exchange", range(1, 4), True),  # the ensemble's folder is gone by then
]


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize(
    ("module", "function", "call", "changed"),
    [(module, function, call, changed) for module, function, calls, changed in FAILURES for call in calls],
)
def test_add_model_interrupted(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    custom_spec: ModelSpec,
    module: Any,
    function: str,
    call: int,
    changed: bool,
    replaces: bool,
) -> None:
    """What is left is the old model or none, and the next import repairs it."""
    other = make_other(custom_spec)
    if replaces:
        add(root, other)
        (root / f"{NAME}_engine" / "1" / "model.plan").write_text("of the other graph")
    elif function == "_exchange":
        pytest.skip("there is nothing to exchange")
    before = snapshot(root)
    calls, real = 0, getattr(module, function)

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        with pytest.raises(OSError, match="No space left"):
            add(root, custom_spec)
    if changed:
        assert assert_not_mixed(root, other, custom_spec) is None
    else:
        assert snapshot(root) == before | {atomic.LOCK_NAME: b""}
    assert not list(root.glob(f"{atomic.STAGING_PREFIX}*"))
    add(root, custom_spec)
    assert assert_not_mixed(root, custom_spec) == custom_spec
    after = snapshot(root)
    shutil.rmtree(root)
    add(root, custom_spec)
    assert after == snapshot(root)


def test_add_model_waits_for_another(root: Path, custom_spec: ModelSpec) -> None:
    done = threading.Event()

    def add_other() -> None:
        add(root, custom_spec)
        done.set()

    root.mkdir()
    thread = threading.Thread(target=add_other)
    with atomic.folder_lock(root):
        thread.start()
        assert not done.wait(0.2)
        assert not (root / NAME).exists()
    thread.join(10)
    assert done.is_set()
    assert Repository(root).active(NAME).spec == custom_spec


# --- reading


def test_unknown_model(root: Path, custom_spec: ModelSpec) -> None:
    with pytest.raises(RepositoryError, match=r"^Expected a model repository, got .*, which is not a folder"):
        Repository(root).active("a")
    root.mkdir()
    with pytest.raises(RepositoryError, match=r"has no model 'a'; the repository is empty\. Import it: mlcls import a"):
        Repository(root).active("a")
    add(root, custom_spec)
    for name in ("a", f"{NAME}_engine", "", "..", f"{NAME}/1"):
        with pytest.raises(RepositoryError, match=rf"has no model {name!r}; expected one of {NAME}\."):
            Repository(root).active(name)


def test_model_that_is_not_imported(root: Path, custom_spec: ModelSpec) -> None:
    for spec in (custom_spec, official_spec("ResNet50_ML")):
        write_configs(Repository(root), spec)
    assert Repository(root).models() == ["ResNet50_ML", NAME]
    with pytest.raises(RepositoryError, match=rf"has no weights yet: .* mlcls import FOLDER --name {NAME}\.$"):
        Repository(root).active(NAME)
    with pytest.raises(RepositoryError, match=r"has no weights yet: .* mlcls import ResNet50_ML\.$"):
        Repository(root).active("ResNet50_ML")
    with pytest.raises(RepositoryError, match=r"^The custom model animals-v2 in .* is not imported here, .* --name"):
        expected_specs(Repository(root))


@pytest.mark.parametrize("suffix", STEPS)
def test_folders_of_different_imports(root: Path, custom_spec: ModelSpec, suffix: str) -> None:
    add(root, custom_spec)
    add(root.parent / "others", make_other(custom_spec))
    folder = root / f"{NAME}{suffix}" / "1"
    shutil.rmtree(folder)
    shutil.copytree(root.parent / "others" / f"{NAME}{suffix}" / "1", folder)
    with pytest.raises(RepositoryError, match=r"the folders come from different imports; import the model again"):
        Repository(root).active(NAME).check()
    shutil.rmtree(folder)
    with pytest.raises(RepositoryError, match=rf"{NAME}{suffix}/1/manifest\.json does not exist; import the model"):
        Repository(root).active(NAME).check()


def test_folders_renamed_by_hand(root: Path, custom_spec: ModelSpec) -> None:
    add(root, custom_spec)
    for suffix in ("", *STEPS):
        (root / f"{NAME}{suffix}").rename(root / f"pets{suffix}")
    with pytest.raises(RepositoryError, match=rf"expected the manifest of pets_preprocess, got that of {NAME}_pre"):
        Repository(root).active("pets").check()


@pytest.mark.parametrize(
    ("target", "file", "advice"),
    [
        ("embedded", "model.onnx", "Import the model again"),
        ("int8", "model.int8.onnx", "Build it from your photos: mlcls build-engine animals-v2 --engine int8"),
        ("gpu", "model.plan", "Build it in the serving image"),
    ],
)
def test_find_weights(root: Path, custom_spec: ModelSpec, target: Target, file: str, advice: str) -> None:
    add(root, custom_spec)
    path = root / f"{NAME}_engine" / "1" / file
    path.unlink(missing_ok=True)
    with pytest.raises(RepositoryError, match=rf"^The target '{target}' needs {path}, which does not exist\. {advice}"):
        Repository(root).active(NAME).weights(target)
    path.write_text("")
    assert Repository(root).active(NAME).weights(target) == path


def test_what_the_configurations_come_from(root: Path, custom_spec: ModelSpec) -> None:
    """An imported model has its own spec, an official one too."""
    official = {name: official_spec(name) for name in OFFICIAL_MODELS}
    assert expected_specs(Repository(root)) == list(official.values())
    trained = msgspec.structs.replace(official["ResNet50_ML"], labels=("a", *coco_labels()[1:]))
    add(root, custom_spec)
    add(root, trained)
    specs = {spec.name: spec for spec in expected_specs(Repository(root))}
    assert specs == official | {NAME: custom_spec, "ResNet50_ML": trained}
