"""Each finding, from facts with one planted fault."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mlcls.base.machine import Gpu
from mlcls.doctor.facts import MachineFacts, RepositoryFacts, ServedModelFacts, ServerFacts, TritonFacts
from mlcls.doctor.findings import Finding, examine

PIXELS_BYTES = 448 * 448 * 3
MODEL = ServedModelFacts("animals", PIXELS_BYTES, {"model.onnx": 120_000_000})
REPOSITORY = RepositoryFacts("models", (MODEL,), disk_free_bytes=50_000_000_000)
CONTAINER = TritonFacts("/opt/tritonserver/bin/tritonserver", (2, 75, 0), is_embedded=False)
SERVER = ServerFacts("http://127.0.0.1:8000", is_local=True, version=(2, 75, 0))

# A container on a good machine.
SOUND = MachineFacts(
    python=(3, 12, 3),
    glibc=(2, 39),
    cores=8,
    memory_bytes=200_000_000_000,
    shared_memory_bytes=1_000_000_000,
    cpu_flags=frozenset({"avx2", "avx512_vnni"}),
    gpus=(Gpu("Tesla T4", "7.5"),),
    tensorrt="10.13.2.6",
    triton=CONTAINER,
    repository=dataclasses.replace(
        REPOSITORY,
        models=(dataclasses.replace(MODEL, weights_bytes={"model.onnx": 120_000_000, "model.plan": 60_000_000}),),
    ),
    server=SERVER,
)


def change(**facts: Any) -> MachineFacts:
    return dataclasses.replace(SOUND, **facts)


def change_model(**facts: Any) -> MachineFacts:
    model = dataclasses.replace(MODEL, **facts)
    return change(repository=dataclasses.replace(REPOSITORY, models=(model,)))


def change_server(**facts: Any) -> MachineFacts:
    return change(server=dataclasses.replace(SERVER, **facts))


def differing(facts: MachineFacts) -> list[Finding]:
    sound = examine(SOUND)
    return [finding for finding in examine(facts) if finding not in sound]


def test_a_sound_machine() -> None:
    assert [finding for finding in examine(SOUND) if finding.level != "ok"] == []
    topics = [finding.topic for finding in examine(SOUND)]
    assert set(topics) == {
        *("Python", "glibc", "Triton", "processor", "INT8", "GPU", "plan", "repository", "disk", "memory"),
        *("shared memory", "queues", "server", "open APIs"),
    }


PLANTED: dict[str, tuple[MachineFacts, str, str, str]] = {
    "old Python": (change(python=(3, 9, 2)), "problem", "Python", "Python 3.9.2"),
    "new Python": (change(python=(3, 13, 0)), "problem", "Python", "Python 3.13.0"),
    "old glibc": (change(glibc=(2, 31)), "problem", "glibc", "glibc 2.31"),
    "another C library": (change(glibc=None), "problem", "glibc", "no glibc"),
    "no Triton": (change(triton=None, triton_fault="not installed"), "problem", "Triton", "not installed"),
    "Triton before the floor": (
        change(triton=dataclasses.replace(CONTAINER, version=(2, 70, 0))),
        *("problem", "Triton", "Triton 2.70.0 at /opt/tritonserver/bin/tritonserver, older than 2.71 (26.07)"),
    ),
    "Triton of unknown version": (
        change(triton=dataclasses.replace(CONTAINER, version=None)),
        *("warning", "Triton", "of an unknown version"),
    ),
    "embedded Triton": (
        change(triton=TritonFacts("bin/tritonserver", (2, 51, 0), is_embedded=True)),
        *("note", "Triton", "the embedded one, older than the security fixes"),
    ),
    "bf16": (
        change(cpu_flags=frozenset({"avx512_vnni", "amx_bf16"})),
        *("note", "processor", "8 cores with amx_bf16: the target cpu may compute in bf16"),
    ),
    "unknown processor": (change(cpu_flags=frozenset()), "note", "processor", "features unknown"),
    "no INT8 units": (change(cpu_flags=frozenset({"avx2"})), "note", "INT8", "none of avx512_vnni"),
    "no GPU, no plan": (
        dataclasses.replace(change_model(), gpus=()),
        *("note", "GPU", "--target gpu cannot be served here"),
    ),
    "GPU without a plan": (change_model(), "note", "GPU", "Tesla T4 (compute capability 7.5); TensorRT 10.13.2.6"),
    "plan for another machine": (
        change_model(weights_bytes={"model.plan": 1}, plan_fault="built for A10"),
        *("problem", "plan", "built for A10"),
    ),
    "no repository": (change(repository=None), "warning", "repository", "the folder does not exist"),
    "empty repository": (
        change(repository=dataclasses.replace(REPOSITORY, models=())),
        *("note", "repository", "models has no imported model"),
    ),
    "mixed-up folder": (
        change_model(faults=("model.onnx is not the file",)),
        *("problem", "repository", "model.onnx is not the file"),
    ),
    "full disk": (
        change(repository=dataclasses.replace(SOUND.repository, disk_free_bytes=100_000_000)),  # type: ignore[type-var]
        *("problem", "disk", "100 MB free, a new version or engine may take 360 MB"),
    ),
    "nearly full disk": (
        change(repository=dataclasses.replace(SOUND.repository, disk_free_bytes=300_000_000)),  # type: ignore[type-var]
        *("warning", "disk", "300 MB free"),
    ),
    "too little memory": (change(memory_bytes=400_000_000), "problem", "memory", "400 MB available"),
    "hardly enough memory": (change(memory_bytes=600_000_000), "warning", "memory", "need about 540 MB"),
    "queues larger than memory": (
        change(memory_bytes=5_000_000_000),
        *("note", "queues", "up to 128 requests wait before each of 3 steps: 211 MB if each has one image, 6.8 GB"),
    ),
    "queues of single images larger than memory": (change(memory_bytes=100_000_000), "warning", "queues", "211 MB"),
    "Docker's shared memory": (
        change(shared_memory_bytes=64 << 20),
        *("problem", "shared memory", "/dev/shm has 67 MB, the imported models need 125 MB"),
    ),
    "no shared memory": (change(shared_memory_bytes=None), "problem", "shared memory", "no /dev/shm"),
    "no answer": (change_server(version=None, fault="refused"), "problem", "server", "http://127.0.0.1:8000: refused"),
    "no version": (change_server(version=None), "warning", "server", "does not report its version"),
    "old local server": (change_server(version=(2, 51, 0)), "note", "server", "Triton 2.51.0 at http://127.0.0.1:8000"),
    "old server for others": (
        change_server(version=(2, 51, 0), is_local=False),
        *("problem", "server", "older than 2.71 (26.07)"),
    ),
    "open model control": (
        change_server(open_apis=("model-repository", "trace")),
        *("problem", "open APIs", "answers without a key: model-repository, trace"),
    ),
    "open statistics": (change_server(open_apis=("statistics",)), "note", "open APIs", "shows its statistics"),
    "open statistics for others": (
        change_server(open_apis=("statistics",), is_local=False),
        *("warning", "open APIs", "shows its statistics"),
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted(case: str) -> None:
    facts, level, topic, found = PLANTED[case]
    findings = [finding for finding in differing(facts) if finding.topic == topic]
    (finding,) = [finding for finding in findings if finding.level != "ok"]
    assert finding.level == level
    assert found in finding.found
    assert finding.remedy or case == "no GPU, no plan"
    assert "\n" not in finding.found + finding.remedy


def test_int8_engine_on_a_processor_without_units() -> None:
    facts = dataclasses.replace(change_model(weights_bytes={"model.int8.onnx": 1}), cpu_flags=frozenset({"avx2"}))
    (finding,) = [finding for finding in examine(facts) if finding.topic == "INT8"]
    assert finding.level == "warning"


def test_a_plan_where_there_is_no_gpu_is_for_another_machine() -> None:
    facts = change_model(weights_bytes={"model.plan": 1}, plan_fault="needs a GPU")
    (finding,) = [finding for finding in examine(dataclasses.replace(facts, gpus=())) if finding.topic == "plan"]
    assert finding.level == "warning"


def test_without_a_server_nothing_is_said_about_one() -> None:
    topics = [finding.topic for finding in examine(change(server=None))]
    assert "server" not in topics
    assert "open APIs" not in topics
