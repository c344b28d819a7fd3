"""Versions on the real server: publish and rollback under load, versions that cannot be loaded, kills between steps."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http
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
from support.processes import run_mlcls, start_server
from support.request_load import Expected, Protocol, Reply, RequestLoad, find_fault
from support.serve_process import serving
from support.triton_request import ask_outputs, make_input

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


@pytest.fixture(scope="module")
def images(sample_images: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in sample_images[:4]]


@pytest.fixture(scope="module")
def expected(two_models: TwoModels, images: list[bytes]) -> Mapping[int, Expected]:
    """What version 1, the old model, answers, and what all others do, which are the new one."""
    old, new = (Expected.of(root, MODEL, 1, images) for root in (two_models.repository, two_models.new_repository))
    return {1: old, 2: new, 3: new}


class Rollouts:
    """Publishes and rolls back in a repository and in the server on it."""

    def __init__(
        self, models: TwoModels, root: Path, images: list[bytes], expected: Mapping[int, Expected], server: TritonServer
    ) -> None:
        self.repository, self.server = Repository(root), server
        self._models, self._images, self._expected = models, images, expected

    def control(self) -> ModelControl:
        return ModelControl(f"http://{self.server.http_url}", self.server.admin_key, timeout_s=60)

    def stage(self, source: Path, name: str = MODEL, size_bytes: int | None = None) -> ConvertedVersion:
        """The model of a repository as one that was just converted, or its first bytes, which no engine can read."""
        version = Repository(source).active(MODEL)
        staged = self.repository.root.parent / "staged.onnx"
        staged.write_bytes((version.engine_folder / ONNX_FILE).read_bytes()[:size_bytes])
        spec = msgspec.structs.replace(version.spec, name=name, onnx_sha256=sha256_of(staged))
        return ConvertedVersion(spec, staged, Manifest.read(version.engine_folder).engine(ONNX_FILE))

    def publish(
        self,
        name: str = MODEL,
        is_broken: bool = False,
        switches: bool = True,
        control: ModelControl | None = None,
        **options: Any,
    ) -> Rollout:
        staged = self.stage(self._models.new_repository, name, 100_000 if is_broken else None)
        return publish(self.repository, staged, control=control or self.control() if switches else None, **options)

    def roll_back(self, to: int | None = None, **options: Any) -> Rollout:
        return roll_back(self.repository, MODEL, to, control=self.control(), **options)

    def import_old(self) -> None:
        """Imports the old model in place of all versions."""
        add_model(self.repository, self.stage(self._models.repository), replace_versions=True)

    def snapshot(self) -> dict[str, str]:
        """Digest of each file, by its path; every folder too."""
        return {
            path.relative_to(self.repository.root).as_posix(): sha256_of(path) if path.is_file() else ""
            for path in self.repository.root.rglob("*")
            if path.name not in (LOCK_NAME, LAST_NUMBER_FILE)
        }

    def loaded(self) -> set[int]:
        """Versions of which a step is loaded."""
        states = self.control().states()
        return {version for (name, version), state in states.items() if name != MODEL and state.state == "READY"}

    @contextlib.contextmanager
    def load(self, clients: Sequence[Protocol] = ("grpc", "http")) -> Iterator[RequestLoad]:
        """Requests while the block runs, of which none fails; each answer is wholly of one version."""
        with RequestLoad(self.server, MODEL, self._images, clients) as load:
            yield load
        assert load.failures == []
        assert [fault for reply in load.replies if (fault := find_fault(reply, self._expected))] == []


@pytest.fixture
def rollouts(
    two_models: TwoModels,
    root: Path,
    images: list[bytes],
    expected: Mapping[int, Expected],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Rollouts]:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    with start_server(root, MODEL) as server:
        yield Rollouts(two_models, root, images, expected, server)


def changes_of(load: RequestLoad, client: int) -> list[int]:
    """The versions that a client met, in order, repetitions left out."""
    replies = [reply for reply in load.replies if reply.client == client]
    return [version for version, _ in itertools.groupby(reply.version for reply in replies)]


@pytest.mark.slow
def test_publish_and_rollback_under_load(
    two_models: TwoModels, rollouts: Rollouts, expected: Mapping[int, Expected]
) -> None:
    """The commands, as an operator runs them; no request fails, and each answer is wholly of one version."""
    spread = np.abs(expected[1].scores[:, :3] - expected[2].scores).min(axis=0).max()
    assert spread > 0.05, "the two versions' scores are too alike to be told apart"
    server, repository = rollouts.server, rollouts.repository
    options = ("--url", f"http://{server.http_url}", "--repository", repository.root)
    clients: tuple[Protocol, ...] = ("grpc", "http", "grpc")
    started_s = time.monotonic()
    with rollouts.load(clients) as load:
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
    assert len(load.replies) >= REQUESTS
    for client in range(len(clients)):
        assert changes_of(load, client) == [1, 2, 1]
    assert {reply.version for reply in load.replies if published_s < reply.sent_s < asked_s} == {2}
    assert {reply.version for reply in load.replies if reply.sent_s > rolled_back_s} == {1}
    assert (repository.active_number(MODEL), repository.numbers(MODEL)) == (1, [1, 2])
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
        {"version": 4},
        {"scores": expected[2].scores[0]},
        {"scores": good.scores + 0.01},
        {"result": renamed},
        {"result": {**good.result, "class_ids": ids[:3]}},
    ):
        assert find_fault(dataclasses.replace(good, **fault), expected)


def test_the_previous_version_is_unloaded_or_kept(rollouts: Rollouts) -> None:
    assert rollouts.publish() == Rollout(MODEL, 2, 1, 2)
    assert rollouts.loaded() == {2}
    assert rollouts.roll_back(keep_loaded=True) == Rollout(MODEL, 1, 2, 1)
    assert rollouts.loaded() == {1, 2}
    assert rollouts.publish(keep_loaded=True, keep=2) == Rollout(MODEL, 3, 1, 3, (2,))
    assert rollouts.loaded() == {1, 3}
    assert rollouts.repository.numbers(MODEL) == [1, 3]
    assert rollouts.roll_back().active == 1


def test_top_labels_and_numbered_requests_follow(
    rollouts: Rollouts, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    rollouts.publish()
    top = ask_outputs(rollouts.server, MODEL, images[:1], ["scores"], class_count=1)["scores"].ravel()[0].decode()
    best = int(expected[2].scores[0].argmax())
    assert top.split(":")[1:] == [str(best), expected[2].labels[best]]
    image = make_input(images[:1], tritonclient.http)
    with tritonclient.http.InferenceServerClient(rollouts.server.http_url) as client:
        assert client.get_model_metadata(MODEL)["versions"] == ["2"]
        assert client.infer(MODEL, [image], model_version="2").get_response()["model_version"] == "2"
        with pytest.raises(InferenceServerException, match="version 1 is not at ready state"):
            client.infer(MODEL, [image], model_version="1")


def test_a_version_that_cannot_be_loaded(rollouts: Rollouts) -> None:
    before = rollouts.snapshot()
    with rollouts.load() as load:
        load.wait_for(50)
        with pytest.raises(ModelControlError, match=rf"{MODEL}_engine_2.*version 2 is at UNAVAILABLE state: Internal"):
            rollouts.publish(is_broken=True)
        load.wait_for(50)
        assert rollouts.snapshot() == before
        assert rollouts.loaded() == {1}
        # the next one is not held up by it, and is not taken for it
        assert rollouts.publish().active == 3
        load.wait_for(50)
    assert {reply.version for reply in load.replies} == {1, 3}


class InterruptedControl(ModelControl):
    """A Ctrl-C that comes right after Triton has loaded the model."""

    interrupted_at = ""

    def load(self, model: str, version: int) -> None:
        super().load(model, version)
        if model == self.interrupted_at and version == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("model", [f"{MODEL}_preprocess_2", f"{MODEL}_postprocess_2", MODEL])
@pytest.mark.slow
def test_an_interrupted_publish(rollouts: Rollouts, model: str) -> None:
    before = rollouts.snapshot()
    control = InterruptedControl(rollouts.server.http_url, KEY, 60)
    control.interrupted_at = model
    with rollouts.load() as load:
        load.wait_for(20)
        with pytest.raises(KeyboardInterrupt):
            rollouts.publish(control=control)
        assert rollouts.snapshot() == before
        assert rollouts.loaded() == {1}
        load.wait_for(20)
        assert load.replies[-1].version == 1


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
    ("function", "model", "active"),
    [
        ("pin_version", MODEL, 1),  # the steps are in the repository, and loaded
        ("load", MODEL, 2),  # the configuration is written, the server has not read it
        ("unload", f"{MODEL}_engine", 2),  # both versions are loaded
    ],
)
@pytest.mark.slow
def test_a_killed_publish_and_a_killed_server(
    two_models: TwoModels, rollouts: Rollouts, function: str, model: str, active: int
) -> None:
    repository, source = rollouts.repository, two_models.new_repository
    staged = rollouts.stage(source).onnx_model
    arguments = [repository.root, source, staged, f"http://{rollouts.server.http_url}", function, model]
    with rollouts.load() as load:
        process = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        load.wait_for(20)
    os.kill(rollouts.server.pid, signal.SIGKILL)
    assert (repository.active_number(MODEL), repository.numbers(MODEL)) == (active, [1, 2])
    with start_server(repository.root, MODEL) as rollouts.server:
        with rollouts.load() as load:
            load.wait_for(20)
            assert {reply.version for reply in load.replies} == {active}
            assert rollouts.publish() == Rollout(MODEL, 3, active, 3)
            load.wait_for(20)
        assert load.replies[-1].version == 3
        assert rollouts.roll_back().active == active
        assert rollouts.loaded() == {active}


def test_a_server_and_a_repository_that_disagree(rollouts: Rollouts) -> None:
    """After a publish that was killed before the server read the configuration."""
    rollouts.publish(switches=False)
    assert rollouts.control().is_ready(MODEL, 1)
    assert rollouts.roll_back(2) == Rollout(MODEL, 2, 2, 2)
    assert rollouts.control().is_ready(MODEL, 2)
    assert rollouts.loaded() == {2}


def test_publish_of_a_model_that_the_server_does_not_have(rollouts: Rollouts) -> None:
    assert rollouts.publish("colors") == Rollout("colors", 1, None, 1)
    assert rollouts.control().is_ready("colors", 1)
    assert rollouts.control().is_ready(MODEL, 1)
    with pytest.raises(ModelControlError, match="shades_engine"):
        rollouts.publish("shades", is_broken=True)
    assert not rollouts.repository.is_imported("shades")
    assert rollouts.control().is_ready("colors", 1)


def test_a_number_that_the_server_has_is_not_used_again(rollouts: Rollouts) -> None:
    """Else the weights that are loaded under it would go on to serve, under the name of the new ones."""
    rollouts.publish()
    rollouts.import_old()
    assert rollouts.repository.numbers(MODEL) == [1]
    assert rollouts.publish() == Rollout(MODEL, 3, 1, 3)
    assert rollouts.loaded() == {3}


@pytest.mark.parametrize("key", ["", "a wrong key"])
def test_without_the_key(two_models: TwoModels, rollouts: Rollouts, key: str) -> None:
    before, url = rollouts.snapshot(), rollouts.server.http_url
    for command in (("publish", two_models.new, "--name", MODEL), ("rollback", MODEL, "--to", "1")):
        options = ("--url", url, "--repository", rollouts.repository.root)
        process = run_mlcls(*command, *options, MLCLS_ADMIN_KEY=key)
        assert process.returncode == 1
        (line,) = process.stderr.splitlines()
        assert line.startswith(f"mlcls {command[0]}: http://{url} refuses model control: set MLCLS")
    assert rollouts.snapshot() == before


@pytest.mark.slow
def test_serve_follows_the_repository(
    two_models: TwoModels, root: Path, tmp_path: Path, images: list[bytes], expected: Mapping[int, Expected]
) -> None:
    with serving(root, tmp_path, "--poll", "0.2", model=MODEL) as served:
        http_port, grpc_port = (int(url.rpartition(":")[2]) for url in (served.http_url, served.grpc_url))
        server = TritonServer(ServerOptions(root, (MODEL,), http_port=http_port, grpc_port=grpc_port))
        rollouts = Rollouts(two_models, root, images, expected, server)
        assert served.process.stdout is not None
        with rollouts.load() as load:
            load.wait_for(20)
            rollouts.publish(switches=False)
            assert served.process.stdout.readline() == f"{MODEL}: version 2\n"
            load.wait_for(20)
            assert load.replies[-1].version == 2
            rollouts.publish(is_broken=True, switches=False)
            assert served.process.stdout.readline().startswith(f"{MODEL}: not switched: ")
            load.wait_for(20)
            assert load.replies[-1].version == 2
            roll_back(rollouts.repository, MODEL, 1)
            assert served.process.stdout.readline() == f"{MODEL}: version 1\n"
            load.wait_for(20)
        for client in range(2):
            assert changes_of(load, client) == [1, 2, 1]
        assert served.stop() == (0, "Stopped.\n", [])


@pytest.fixture
def polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own polling, as an operator may run it without `mlcls serve`."""

    def build_polling_command(*arguments: Any) -> list[str]:
        left_out = ("--load-model", "--model-control-mode")
        command = [part for part in build_command(*arguments) if not part.startswith(left_out)]
        return [*command, "--model-control-mode=poll", "--repository-poll-secs=1"]

    monkeypatch.setattr("mlcls.server.process.build_command", build_polling_command)


@pytest.mark.slow
def test_a_server_that_polls_by_itself(polling: None, rollouts: Rollouts) -> None:
    before = rollouts.snapshot()
    with rollouts.load() as load:
        load.wait_for(20)
        with pytest.raises(ModelControlError, match=rf"Triton cannot load {MODEL}_engine_2"):
            rollouts.publish(is_broken=True)
        assert rollouts.snapshot() == before
        assert rollouts.publish().active == 3
        load.wait_for(20)
        assert load.replies[-1].version == 3
        assert rollouts.roll_back().active == 1
        load.wait_for(20)
    for client in range(2):
        assert changes_of(load, client) == [1, 3, 1]
