"""Versions on the real server: publish and rollback under load, versions that cannot be loaded, kills between steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from mlcls.base.files import LOCK_NAME, sha256_of
from mlcls.errors import ModelControlError
from mlcls.releases.importing import import_model
from mlcls.releases.rollout import Rollout, publish, roll_back
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import LAST_NUMBER_FILE, ONNX_FILE
from mlcls.repository.publishing import add_model
from mlcls.repository.staging import ConvertedVersion
from mlcls.server.model_control import ModelControl
from mlcls.server.options import ADMIN_KEY_VARIABLE, ServerOptions, build_command
from mlcls.server.process import TritonServer
from mlcls.training.export import export_model
from support.processes import mlcls_command, run_mlcls, start_server
from support.request_load import Expected, Protocol, Reply, RequestLoad, find_fault
from support.triton_request import ask_outputs

MODEL = "animals"
KEY = "a key for tests"
REQUESTS = 2000


@dataclasses.dataclass(frozen=True)
class TwoModels:
    """Two models of other labels, sizes, and numbers of labels, as PaddleX has them and as they are imported."""

    old: Path
    new: Path
    repository: Path
    new_repository: Path


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> TwoModels:
    folder = tmp_path_factory.mktemp("versions")
    models = TwoModels(folder / "old", folder / "new", folder / "model_repository", folder / "new_repository")
    export_model("PP-LCNet_x1_0_ML", models.old, labels=("cat", "dog", "fox", "owl", "no"), size=(96, 128), seed=1)
    export_model("PP-LCNet_x1_0_ML", models.new, labels=("red", "green", "blue"), size=(64, 64), seed=2)
    for source, root in ((models.old, models.repository), (models.new, models.new_repository)):
        import_model(str(source), Repository(root), name=MODEL)
    return models


@pytest.fixture
def root(two_models: TwoModels, tmp_path: Path) -> Path:
    """A repository that has the old model."""
    return Path(shutil.copytree(two_models.repository, tmp_path / "model_repository"))


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonServer]:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    with start_server(root, MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def images(sample_images: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in sample_images[:4]]


@pytest.fixture(scope="module")
def expected(two_models: TwoModels, images: list[bytes]) -> Mapping[int, Expected]:
    """What version 1, the old model, and version 2, the new one, answer."""
    return {
        1: Expected.of(two_models.repository, MODEL, 1, images),
        2: Expected.of(two_models.new_repository, MODEL, 1, images),
    }


def control_of(server: TritonServer, kind: type[ModelControl] = ModelControl) -> ModelControl:
    return kind(f"http://{server.http_url}", server.admin_key, timeout_s=60)


def publish_new(
    two_models: TwoModels, root: Path, control: ModelControl | None, name: str = MODEL, **options: Any
) -> Rollout:
    """Publishes the new model, converted already."""
    folder = Repository(two_models.new_repository).active(MODEL).engine_folder
    staged = root.parent / "staged.onnx"
    shutil.copy(folder / ONNX_FILE, staged)
    spec = msgspec.structs.replace(Repository(two_models.new_repository).active(MODEL).spec, name=name)
    return publish(
        Repository(root),
        ConvertedVersion(spec, staged, Manifest.read(folder).engine(ONNX_FILE)),
        control=control,
        **options,
    )


def publish_broken(two_models: TwoModels, root: Path, control: ModelControl | None, name: str = MODEL) -> Rollout:
    """Publishes weights that no engine can read, with a manifest that fits them."""
    staged = root.parent / "staged.onnx"
    staged.write_bytes(
        (Repository(two_models.new_repository).active(MODEL).engine_folder / ONNX_FILE).read_bytes()[:100_000]
    )
    spec = Repository(two_models.new_repository).active(MODEL).spec
    spec = msgspec.structs.replace(spec, name=name, onnx_sha256=sha256_of(staged))
    record = Manifest.read(Repository(two_models.new_repository).active(MODEL).engine_folder).engine(ONNX_FILE)
    return publish(Repository(root), ConvertedVersion(spec, staged, record), control=control)


def import_old(two_models: TwoModels, root: Path) -> None:
    """Imports the old model, converted already, in place of all versions."""
    folder = Repository(two_models.repository).active(MODEL).engine_folder
    staged = root.parent / "staged.onnx"
    shutil.copy(folder / ONNX_FILE, staged)
    record = Manifest.read(folder).engine(ONNX_FILE)
    add_model(
        Repository(root),
        ConvertedVersion(Repository(two_models.repository).active(MODEL).spec, staged, record),
        replace_versions=True,
    )


def snapshot(root: Path) -> dict[str, str]:
    """Digest of each file of a repository, by its path; every folder too."""
    return {
        path.relative_to(root).as_posix(): sha256_of(path) if path.is_file() else ""
        for path in root.rglob("*")
        if path.name not in (LOCK_NAME, LAST_NUMBER_FILE)
    }


def loaded_versions(server: TritonServer) -> set[int]:
    """Versions of which a step is loaded."""
    return {
        version
        for (name, version), state in control_of(server).states().items()
        if name != MODEL and state.state == "READY"
    }


def assert_whole(load: RequestLoad, expected: Mapping[int, Expected]) -> None:
    """No request failed, and each answer is wholly of one version."""
    assert load.failures == []
    faults = [fault for reply in load.replies if (fault := find_fault(reply, expected))]
    assert faults == []


def changes_of(replies: list[Reply], client: int) -> list[int]:
    """The versions that a client met, in order, repetitions left out."""
    return [version for version, _ in itertools.groupby(reply.version for reply in replies if reply.client == client)]


@pytest.mark.slow
def test_publish_and_rollback_under_load(
    two_models: TwoModels, root: Path, server: TritonServer, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    spread = np.abs(expected[1].scores[:, :3] - expected[2].scores).min(axis=0).max()
    assert spread > 0.05, "the two versions' scores are too alike to be told apart"
    options = ("--url", f"http://{server.http_url}", "--repository", root)
    clients: tuple[Protocol, ...] = ("grpc", "http", "grpc")
    started_s = time.monotonic()
    with RequestLoad(server, MODEL, images, clients) as load:
        load.wait_for(200)
        process = run_mlcls("publish", two_models.new, "--name", MODEL, *options, MLCLS_ADMIN_KEY=KEY)
        published_s = time.monotonic()
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[-1].startswith(f"Version 2 of {MODEL} is active in http://127.0.0.1")
        load.wait_for(300)
        asked_s = time.monotonic()
        process = run_mlcls("rollback", MODEL, *options, MLCLS_ADMIN_KEY=KEY)
        rolled_back_s = time.monotonic()
        assert process.returncode == 0, process.stderr
        load.wait_for(max(200, REQUESTS - len(load.replies)))
        duration_s = time.monotonic() - started_s
    assert_whole(load, expected)
    assert len(load.replies) >= REQUESTS
    for client in range(len(clients)):
        assert changes_of(load.replies, client) == [1, 2, 1]
    for reply in load.replies:
        if published_s < reply.sent_s < asked_s:
            assert reply.version == 2
        if reply.sent_s > rolled_back_s:
            assert reply.version == 1
    assert Repository(root).active_number(MODEL) == 1
    assert Repository(root).numbers(MODEL) == [1, 2]
    counts = {version: sum(reply.version == version for reply in load.replies) for version in (1, 2)}
    print(f"{len(load.replies)} requests in {duration_s:.0f} s, 0 failed, {counts}")


def test_a_mixed_answer_would_be_found(expected: Mapping[int, Expected]) -> None:
    scores = [float(score) for score in expected[1].scores[0]]
    ids = sorted(range(len(scores)), key=lambda index: -scores[index])
    labels = expected[1].labels
    good = Reply(
        0,
        0.0,
        1,
        0,
        expected[1].scores[0],
        {
            "class_ids": ids,
            "label_names": [labels[index] for index in ids],
            "scores": [round(scores[index], 5) for index in ids],
        },
    )
    assert find_fault(good, expected) is None
    renamed = {**good.result, "label_names": [f"other {index}" for index in ids]}
    for fault in (
        {"version": 2},
        {"version": 3},
        {"scores": expected[2].scores[0]},
        {"scores": good.scores + 0.01},
        {"result": renamed},
        {"result": {**good.result, "class_ids": ids[:3]}},
    ):
        assert find_fault(dataclasses.replace(good, **fault), expected)


def test_the_previous_version_is_unloaded_or_kept(two_models: TwoModels, root: Path, server: TritonServer) -> None:
    control = control_of(server)
    assert publish_new(two_models, root, control) == Rollout(MODEL, 2, 1, 2)
    assert loaded_versions(server) == {2}
    assert roll_back(Repository(root), MODEL, control=control, keep_loaded=True) == Rollout(MODEL, 1, 2, 1)
    assert loaded_versions(server) == {1, 2}
    assert publish_new(two_models, root, control, keep_loaded=True, keep=2) == Rollout(MODEL, 3, 1, 3, (2,))
    assert loaded_versions(server) == {1, 3}
    assert Repository(root).numbers(MODEL) == [1, 3]
    assert roll_back(Repository(root), MODEL, control=control).active == 1


def test_top_labels_and_numbered_requests_follow(
    two_models: TwoModels, root: Path, server: TritonServer, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    publish_new(two_models, root, control_of(server))
    top = ask_outputs(server, MODEL, images[:1], ["scores"], class_count=1)["scores"].ravel()[0].decode()
    best = int(expected[2].scores[0].argmax())
    assert top.split(":")[1:] == [str(best), expected[2].labels[best]]
    image = InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[images[0]]], dtype=np.object_))
    with InferenceServerClient(server.http_url) as client:
        assert client.get_model_metadata(MODEL)["versions"] == ["2"]
        assert client.infer(MODEL, [image], model_version="2").get_response()["model_version"] == "2"
        with pytest.raises(InferenceServerException, match="version 1 is not at ready state"):
            client.infer(MODEL, [image], model_version="1")


def test_a_version_that_cannot_be_loaded(
    two_models: TwoModels, root: Path, server: TritonServer, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    before = snapshot(root)
    with RequestLoad(server, MODEL, images) as load:
        load.wait_for(50)
        with pytest.raises(ModelControlError, match=rf"{MODEL}_engine_2.*version 2 is at UNAVAILABLE state: Internal"):
            publish_broken(two_models, root, control_of(server))
        load.wait_for(50)
        assert snapshot(root) == before
        assert loaded_versions(server) == {1}
        # the next one is not held up by it, and is not taken for it
        assert publish_new(two_models, root, control_of(server)).active == 3
        load.wait_for(50)
    assert_whole(load, {1: expected[1], 3: expected[2]})


class InterruptedControl(ModelControl):
    """A Ctrl-C that comes right after Triton has loaded the model."""

    interrupted_at = ""

    def load(self, model: str, version: int) -> None:
        super().load(model, version)
        if model == self.interrupted_at and version == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("model", [f"{MODEL}_preprocess_2", f"{MODEL}_postprocess_2", MODEL])
@pytest.mark.slow
def test_an_interrupted_publish(
    two_models: TwoModels,
    root: Path,
    server: TritonServer,
    images: list[bytes],
    expected: Mapping[int, Expected],
    model: str,
) -> None:
    before = snapshot(root)
    control = control_of(server, InterruptedControl)
    assert isinstance(control, InterruptedControl)
    control.interrupted_at = model
    with RequestLoad(server, MODEL, images) as load:
        load.wait_for(20)
        with pytest.raises(KeyboardInterrupt):
            publish_new(two_models, root, control)
        assert snapshot(root) == before
        assert loaded_versions(server) == {1}
        load.wait_for(20)
        assert load.replies[-1].version == 1
    assert_whole(load, expected)


# A publish that is killed right before a function is called for a model.
KILLED = """
import os, signal, sys
from pathlib import Path
from mlcls.releases import rollout
from mlcls.repository.models import Repository
from mlcls.repository.names import ENGINE_SUFFIX, ONNX_FILE
from mlcls.repository.staging import ConvertedVersion
from mlcls.server.model_control import ModelControl
root, source, staged, url, function, model = sys.argv[1:]
module = ModelControl if function in ("load", "unload") else rollout
real = getattr(module, function)
def killed(*arguments, **options):
    if model in [getattr(argument, "name", argument) for argument in arguments]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
setattr(module, function, killed)
version = Repository(Path(source)).active("animals")
record = version.verify(ENGINE_SUFFIX).engine(ONNX_FILE)
rollout.publish(
    Repository(Path(root)),
    ConvertedVersion(version.spec, Path(staged), record),
    control=ModelControl(url, os.environ["MLCLS_ADMIN_KEY"]),
)
"""


@pytest.mark.parametrize(
    ("function", "model", "active", "versions"),
    [
        ("pin_version", MODEL, 1, [1, 2]),  # the steps are in the repository, and loaded
        ("load", MODEL, 2, [1, 2]),  # the configuration is written, the server has not read it
        ("unload", f"{MODEL}_engine", 2, [1, 2]),  # both versions are loaded
    ],
)
@pytest.mark.slow
def test_a_killed_publish_and_a_killed_server(
    two_models: TwoModels,
    root: Path,
    server: TritonServer,
    images: list[bytes],
    expected: Mapping[int, Expected],
    function: str,
    model: str,
    active: int,
    versions: list[int],
) -> None:
    staged = root.parent / "staged.onnx"
    shutil.copy(Repository(two_models.new_repository).active(MODEL).engine_folder / ONNX_FILE, staged)
    arguments = [root, two_models.new_repository, staged, f"http://{server.http_url}", function, model]
    with RequestLoad(server, MODEL, images) as load:
        process = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        load.wait_for(20)
    assert_whole(load, expected)
    os.kill(server.pid, signal.SIGKILL)
    assert (Repository(root).active_number(MODEL), Repository(root).numbers(MODEL)) == (active, versions)
    with start_server(root, MODEL) as again:
        with RequestLoad(again, MODEL, images) as load:
            load.wait_for(20)
            assert {reply.version for reply in load.replies} == {active}
            assert publish_new(two_models, root, control_of(again)) == Rollout(MODEL, 3, active, 3)
            load.wait_for(20)
        assert_whole(load, {**expected, 3: expected[2]})
        assert load.replies[-1].version == 3
        assert roll_back(Repository(root), MODEL, control=control_of(again)).active == active
        assert loaded_versions(again) == {active}


def test_a_server_and_a_repository_that_disagree(two_models: TwoModels, root: Path, server: TritonServer) -> None:
    """After a publish that was killed before the server read the configuration."""
    publish_new(two_models, root, None)
    assert control_of(server).is_ready(MODEL, 1)
    assert roll_back(Repository(root), MODEL, 2, control=control_of(server)) == Rollout(MODEL, 2, 2, 2)
    assert control_of(server).is_ready(MODEL, 2)
    assert loaded_versions(server) == {2}


def test_publish_of_a_model_that_the_server_does_not_have(
    two_models: TwoModels, root: Path, server: TritonServer
) -> None:
    assert publish_new(two_models, root, control_of(server), name="colors") == Rollout("colors", 1, None, 1)
    assert control_of(server).is_ready("colors", 1)
    assert control_of(server).is_ready(MODEL, 1)
    with pytest.raises(ModelControlError, match="shades_engine"):
        publish_broken(two_models, root, control_of(server), name="shades")
    assert not Repository(root).is_imported("shades")
    assert control_of(server).is_ready("colors", 1)


def test_a_number_that_the_server_has_is_not_used_again(
    two_models: TwoModels, root: Path, server: TritonServer, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    """Else the weights that are loaded under it would go on to serve, under the name of the new ones."""
    publish_new(two_models, root, control_of(server))
    import_old(two_models, root)
    assert Repository(root).numbers(MODEL) == [1]
    assert publish_new(two_models, root, control_of(server)) == Rollout(MODEL, 3, 1, 3)
    assert loaded_versions(server) == {3}


@pytest.mark.parametrize("key", ["", "a wrong key"])
def test_without_the_key(two_models: TwoModels, root: Path, server: TritonServer, key: str) -> None:
    before = snapshot(root)
    for command in (("publish", two_models.new, "--name", MODEL), ("rollback", MODEL, "--to", "1")):
        process = run_mlcls(*command, "--url", server.http_url, "--repository", root, MLCLS_ADMIN_KEY=key)
        assert process.returncode == 1
        assert process.stderr.startswith(
            f"mlcls {command[0]}: http://{server.http_url} refuses model control: set MLCLS"
        )
        assert len(process.stderr.splitlines()) == 1
    assert snapshot(root) == before


@pytest.mark.slow
def test_serve_follows_the_repository(
    two_models: TwoModels, root: Path, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    options = ServerOptions.on_free_ports(root, MODEL)
    ports = [
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
    ]
    process = subprocess.Popen(
        mlcls_command("serve", MODEL, "--repository", root, "--poll", "0.2", *ports),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Loading")
        assert process.stdout.readline().startswith("Ready")
        with RequestLoad(TritonServer(options), MODEL, images) as load:
            load.wait_for(20)
            publish_new(two_models, root, None)
            assert process.stdout.readline() == f"{MODEL}: version 2\n"
            load.wait_for(20)
            assert load.replies[-1].version == 2
            publish_broken(two_models, root, None)
            assert process.stdout.readline().startswith(f"{MODEL}: not switched: ")
            load.wait_for(20)
            assert load.replies[-1].version == 2
            roll_back(Repository(root), MODEL, 1)
            assert process.stdout.readline() == f"{MODEL}: version 1\n"
            load.wait_for(20)
        assert_whole(load, expected)
        for client in range(2):
            assert changes_of(load.replies, client) == [1, 2, 1]
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "Stopped.\n", "")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_server_that_polls_by_itself(
    two_models: TwoModels,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: list[bytes],
    expected: Mapping[int, Expected],
) -> None:
    """Triton's own polling, as an operator may run it without `mlcls serve`."""
    explicit = build_command

    def polling(*arguments: object) -> list[str]:
        command = [part for part in explicit(*arguments) if not part.startswith("--load-model")]  # type: ignore[arg-type]
        return [
            *(part for part in command if not part.startswith("--model-control-mode")),
            "--model-control-mode=poll",
            "--repository-poll-secs=1",
        ]

    monkeypatch.setattr("mlcls.server.process.build_command", polling)
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    before = snapshot(root)
    with start_server(root, MODEL) as server:
        with RequestLoad(server, MODEL, images) as load:
            load.wait_for(20)
            with pytest.raises(ModelControlError, match=rf"Triton cannot load {MODEL}_engine_2"):
                publish_broken(two_models, root, control_of(server))
            assert snapshot(root) == before
            assert publish_new(two_models, root, control_of(server)).active == 3
            load.wait_for(20)
            assert load.replies[-1].version == 3
            assert roll_back(Repository(root), MODEL, control=control_of(server)).active == 1
            load.wait_for(20)
        assert_whole(load, {1: expected[1], 3: expected[2]})
        for client in range(2):
            assert changes_of(load.replies, client) == [1, 3, 1]
