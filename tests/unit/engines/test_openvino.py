"""The OpenVINO engine on a small graph."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnx
import pytest

from mlcls.base.machine import find_bf16_units, read_cpu_flags
from mlcls.engines import openvino as openvino_engine
from mlcls.engines.openvino import OpenVinoEngine
from mlcls.errors import ConfigError, ModelFormatError
from support.int8_graphs import assert_computed_in_bf16, make_pixels, make_served, spec_of

_MAKE_ENGINES = """
import gc, os, signal, sys, threading
import openvino
from support.int8_graphs import spec_of
from mlcls.engines.openvino import OpenVinoEngine
from pathlib import Path
first, second = (OpenVinoEngine(Path(sys.argv[1]), spec_of()) for _ in range(2))
"""
# Every inference does this first in OpenVINO's Python API; in half of all new processes it hung forever.
_FIRST_CALLS = """
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)

def convert():
    barrier.wait()
    openvino.Type.u8.to_dtype()

threads = [threading.Thread(target=convert, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
# It has ended in a segmentation fault on processors with AMX.
_SIGNAL_AFTER_ENGINES = """
del first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model.onnx"
    onnx.save(make_served(spec_of()), str(path))
    return path


@pytest.mark.parametrize("threads", [1, 3])
def test_images_of_several_arrays_come_back_in_order(model: Path, threads: int) -> None:
    """With one thread, a lone image runs on the same compilation as all others."""
    engine = OpenVinoEngine(model, spec_of(), threads)
    pixels = make_pixels(20)
    alone = np.concatenate([engine.logits(image[None]) for image in pixels])
    assert len(np.unique(alone, axis=0)) == len(pixels), "swapped answers would pass"
    np.testing.assert_allclose(engine.logits(pixels[:1], pixels[1:9], pixels[9:]), alone, rtol=0, atol=1e-4)
    assert engine.logits(pixels[:0]).shape == (0, alone.shape[1])


class Request:
    """A request that puts its outcome into a queue; once cancelled, nobody waits for it."""

    def __init__(self, pixels: Any, answers: SimpleQueue[Any], cancelled: bool = False) -> None:
        self.pixels, self.answers, self.cancelled = pixels, answers, cancelled

    def is_cancelled(self) -> bool:
        return self.cancelled

    def answer(self, outcome: Any) -> None:
        self.answers.put((self, outcome))


def test_requests_are_answered_one_by_one_each_with_its_own(model: Path) -> None:
    engine = OpenVinoEngine(model, spec_of(), threads=2)
    pixels = make_pixels(60)
    expected = engine.logits(pixels)
    answers: SimpleQueue[Any] = SimpleQueue()
    rows = [slice(start, end) for start, end in itertools.pairwise([0, 1, 4, 4, 9, 10, 30, 31, 60])]
    requests = [Request(pixels[each], answers) for each in rows]
    for first in range(0, len(requests), 3):
        engine.start(requests[first : first + 3])
    engine.close()
    assert answers.qsize() == len(requests), "all that was started is answered, once, before the engine closes"
    for _ in requests:
        request, logits = answers.get_nowait()
        np.testing.assert_allclose(logits, expected[rows[requests.index(request)]], rtol=0, atol=1e-4)


def test_start_waits_only_for_room(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: SimpleQueue[int] = SimpleQueue()
    engine = OpenVinoEngine(model, spec_of(), threads=2, on_progress=progress.put)
    gate, begun = threading.Event(), SimpleQueue[int]()

    def infer(_request: Any, _image: Any, logits: Any) -> None:
        begun.put(1)
        gate.wait(10)
        logits[:] = 1

    monkeypatch.setattr(openvino_engine, "_infer", infer)
    answers: SimpleQueue[Any] = SimpleQueue()
    request = Request(make_pixels(5), answers)
    starting = threading.Thread(target=engine.start, args=([request],))
    starting.start()
    for _ in range(2):
        begun.get(timeout=10)
    starting.join(0.3)
    assert starting.is_alive() and begun.empty(), "two streams are busy, one image waits, the others are not taken"
    assert progress.get_nowait() == 1 and progress.empty(), "nothing was done so far"
    gate.set()
    starting.join(10)
    assert not starting.is_alive()
    engine.close()
    assert answers.get_nowait()[1].shape == (5, spec_of().num_labels)
    ends = [progress.get_nowait() for _ in range(progress.qsize())]
    assert ends[-1] == 0 and len(ends) >= 5


def test_a_failed_image_fails_its_request_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(model, spec_of(), threads=2)
    real = openvino_engine._infer

    def infer(request: Any, image: Any, logits: Any) -> None:
        if image.max() == 0:
            raise RuntimeError("no memory")
        real(request, image, logits)

    monkeypatch.setattr(openvino_engine, "_infer", infer)
    good, bad = make_pixels(3), make_pixels(3)
    bad[1] = 0
    answers: SimpleQueue[Any] = SimpleQueue()
    requests = [Request(good, answers), Request(bad, answers), Request(good, answers, cancelled=True)]
    engine.start(requests)
    engine.close()
    outcomes = dict(answers.get_nowait() for _ in range(3))
    assert outcomes[requests[0]].shape == (3, spec_of().num_labels)
    assert isinstance(outcomes[requests[1]], RuntimeError)
    assert isinstance(outcomes[requests[2]], CancelledError), "no work for nobody"
    with pytest.raises(RuntimeError, match="no memory"):
        OpenVinoEngine(model, spec_of(), threads=2).logits(bad)


@pytest.mark.parametrize(
    ("code", "output", "processes"),
    [
        pytest.param(_FIRST_CALLS, "", 4, id="first calls of threads do not wait for one another"),
        pytest.param(_SIGNAL_AFTER_ENGINES, "interrupted\n", 1, id="a signal after engines are gone ends nothing"),
    ],
)
def test_faults_of_openvino_in_a_process_of_its_own(model: Path, code: str, output: str, processes: int) -> None:
    command = [sys.executable, "-c", _MAKE_ENGINES + code, str(model)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(processes):
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (process.returncode, process.stdout) == (0, output), process.stderr


def test_a_processor_without_units_for_it_refuses_bf16(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "read_cpu_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    with pytest.raises(ConfigError, match="engine_precision: expected f32 on a processor without avx512_bf16"):
        OpenVinoEngine(model, spec_of(), precision="bf16")


@pytest.mark.parametrize(("precision", "remedy"), [("f32", "import the model"), ("bf16", "set f32 in .*, or import")])
def test_a_graph_that_openvino_cannot_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, remedy: str
) -> None:
    monkeypatch.setattr(openvino_engine, "read_cpu_flags", lambda: frozenset({"amx_bf16"}))
    graph = make_served(spec_of())
    graph.graph.node[-1].op_type = "Unheard"
    onnx.save(graph, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelFormatError, match=rf"OpenVINO cannot load the graph in {precision} .*; {remedy}"):
        OpenVinoEngine(tmp_path / "model.onnx", spec_of(), precision=precision)


@pytest.mark.skipif(not find_bf16_units(read_cpu_flags()), reason="this processor has no bf16 units")
def test_bf16_is_near_and_another_arithmetic(model: Path) -> None:
    pixels = make_pixels(20)
    exact, rounded = (
        OpenVinoEngine(model, spec_of(), precision=precision).logits(pixels) for precision in ("f32", "bf16")
    )
    assert_computed_in_bf16(rounded, exact)
