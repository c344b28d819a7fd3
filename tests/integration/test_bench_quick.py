"""The quick benchmark on a small served model: peers that answer alike are measured, others are errors."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks.photo_set import write_photos
from benchmarks.speed.bench import Answer, Bench, Figures, ModelFiles, PeerError, Rate
from benchmarks.speed.compare import compare_model, list_peers
from benchmarks.speed.in_process import BARE_PROCESS
from benchmarks.speed.peers import Child, Peer
from benchmarks.speed.perf_analyzer import PerfAnalyzer, PerfAnalyzerError
from benchmarks.speed.turns import ratios_of, values_of
from mlcls.repository.models import Repository
from mlcls.server.process import TritonServer
from support.served_models import SmallModels

pytestmark = pytest.mark.slow

MODEL = "small_with_sigmoid"


class SwappingProcess(Child):
    """A peer that computes the right answers and gives them to the wrong photos."""

    def answer(self) -> list[Answer]:
        return super().answer()[::-1]


class DyingProcess(Child):
    """A peer that is killed before it is measured."""

    def measure(self, rate: Rate) -> Figures:
        os.kill(self.process.pid, signal.SIGKILL)
        return super().measure(rate)


@pytest.fixture
def bench(small_models: SmallModels, small_server: TritonServer, tmp_path: Path) -> Bench:
    try:
        analyzer = PerfAnalyzer.find()
    except PerfAnalyzerError as error:
        pytest.skip(str(error))
    version = Repository(small_models.repository).active(MODEL)
    files = ModelFiles(version.spec, version.weights("embedded"), small_models.with_sigmoid)
    photos = write_photos(tmp_path / "photos", [(480, 640)] * 4, seed=1)
    return Bench(files, small_server.grpc_url, photos, tmp_path, analyzer)


def test_peers_that_answer_alike_are_compared_and_others_are_errors(bench: Bench) -> None:
    started: dict[str, Peer] = {}

    def start(name: str, kind: type[Child], bench: Bench) -> Peer:
        started[name] = kind(bench, BARE_PROCESS)
        return started[name]

    def start_without_graph(bench: Bench) -> Peer:
        without = copy.copy(bench)
        without.files = dataclasses.replace(bench.files, onnx=bench.files.onnx.parent / "none.onnx")
        return Child(without, BARE_PROCESS)

    def refuse(bench: Bench) -> Peer:
        raise PeerError("expected a program that is there")

    starts: dict[str, Callable[[Bench], Peer]] = {
        BARE_PROCESS: partial(start, "right", Child),
        "wrong": partial(start, "wrong", SwappingProcess),
        "dies": partial(start, "dies", DyingProcess),
        "missing": start_without_graph,
        "unknown": refuse,
    }
    found = compare_model(bench, starts, 1.0, 1, lambda step: None)
    assert [name for name, _ in found.turns] == ["served", BARE_PROCESS, "served", "dies", "served"]
    ratios = ratios_of(found.turns, "served", BARE_PROCESS)
    assert len(ratios) == 2
    assert all(ratio > 0 for ratio in ratios)
    assert values_of(found.turns, "dies") == []
    assert len(found.preprocess_ms) == 4
    assert found.errors.keys() == {"wrong", "missing", "dies", "unknown"}
    assert "expected the served model's answer to photo " in found.errors["wrong"]
    assert "none.onnx" in found.errors["missing"]
    assert "the process exited" in found.errors["dies"]
    assert not any(psutil.pid_exists(peer.process.pid) for peer in started.values())


def test_paddlex_and_litserve_are_measured_by_the_same_load_generator(bench: Bench, paddlex_python: Path) -> None:
    found = compare_model(bench, list_peers(thorough=True), 1.0, 1, lambda step: None)
    assert found.errors == {}
    peers = {"served", "paddlex --serve", "LitServe", "bare process", "OpenVINO", "ONNX Runtime"}
    assert {name for name, value in found.turns if value} == peers
    assert len(ratios_of(found.latency_turns, "served", "PaddleX predict()")) == 4
