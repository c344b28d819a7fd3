"""The quick benchmark on a small served model: peers that answer alike are measured, others are errors."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks.photo_set import write_uniform_photos
from benchmarks.speed.compare import require_equal, require_telling
from benchmarks.speed.contenders import Bench, Comparison
from benchmarks.speed.peers.bare_process import BareProcess
from benchmarks.speed.peers.contender import Answer, Load, PeerError
from benchmarks.speed.peers.served import ServedEnsemble
from mlcls.errors import MlclsError
from mlcls.model.spec import ModelSpec
from mlcls.repository.models import Repository
from mlcls.server.process import TritonServer
from support.served_models import SmallModels

pytestmark = pytest.mark.slow

LOAD = Load(concurrency=4, window_s=1.0, warmup_s=0.2)


class NamedProcess(BareProcess):
    """One of several in a comparison."""

    def __init__(self, name: str, onnx: Path, spec: ModelSpec, photos: Sequence[Path]) -> None:
        super().__init__(onnx, spec, photos)
        self.name = name


class SwappingProcess(NamedProcess):
    """A peer that computes the right answers and gives them to the wrong photos."""

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        return super().answer(photos)[::-1]


def _refuse() -> NamedProcess:
    raise PeerError("expected a program that is there")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_uniform_photos(tmp_path_factory.mktemp("photos"), 4, 480, 640, seed=1)


def test_peers_that_answer_alike_are_compared_and_others_are_errors(
    small_models: SmallModels, small_server: TritonServer, photos: list[Path]
) -> None:
    name = "small_with_sigmoid"
    spec = Repository(small_models.repository).active(name).spec
    onnx = Repository(small_models.repository).active(name).weights("embedded")
    served = ServedEnsemble(small_server.grpc_url, spec, photos)
    expected = served.answer(photos)
    require_telling(expected)
    comparison = Comparison(name, LOAD)
    steps: list[str] = []
    with contextlib.ExitStack() as stack:
        bench = Bench(
            comparison,
            served,
            stack,
            lambda peer, answers, asked: require_equal(peer, expected[:asked], answers, spec.thresholds),
            photos,
            steps.append,
        )
        right = bench.start("right", partial(NamedProcess, "right", onnx, spec, photos))
        wrong = bench.start("wrong", partial(SwappingProcess, "wrong", onnx, spec, photos))
        missing = bench.start("missing", partial(NamedProcess, "missing", onnx.parent / "none.onnx", spec, photos))
        dies = bench.start("dies", partial(NamedProcess, "dies", onnx, spec, photos))
        assert right is not None
        assert wrong is not None
        assert missing is not None
        assert dies is not None
        assert bench.start("unknown", _refuse) is None
        bench.wait_until_loaded()
        assert [bench.admit(process, partial(process.choose_threads, 0.2)) for process in (right, wrong, missing)] == [
            True,
            False,
            False,
        ]
        assert bench.admit(dies)
        assert not bench.admit(None)
        assert not psutil.pid_exists(wrong.pid)
        assert list(bench.contenders) == ["served", "right", "dies"]
        os.kill(dies.pid, signal.SIGKILL)
        turns = bench.take_turns(["right", "dies"], LOAD, turns=1)
    assert [window.name for window in turns.windows] == ["served", "right", "served", "dies", "served"]
    assert all(value > 0 for value in turns.ratio("served", "right").values)
    assert len(turns.ratio("served", "right").values) == 2
    with pytest.raises(MlclsError):
        turns.values("dies")
    assert comparison.errors.keys() == {"wrong", "missing", "dies", "unknown"}
    assert "expected the served model's answer to photo " in comparison.errors["wrong"]
    assert "none.onnx" in comparison.errors["missing"]
    assert "the process exited" in comparison.errors["dies"]
    assert not psutil.pid_exists(right.pid)
