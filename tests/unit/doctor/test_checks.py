"""Each check of `mlcls doctor`, on one planted fault, and what is read for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlcls.base.files import LOCK_NAME, STAGING_PREFIX, held_folder
from mlcls.base.machine import Gpu, Machine
from mlcls.doctor.checks import (
    EMBEDDED_VERSIONS,
    Finding,
    check_disk,
    check_glibc,
    check_gpu,
    check_leftovers,
    check_memory,
    check_processor,
    check_python,
    check_queues,
    check_repository,
    check_server,
    check_shared_memory,
    check_triton,
    check_tuning,
    examine,
)
from mlcls.doctor.models import ImportedModel, read_models
from mlcls.errors import ServerError
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import write_configs
from mlcls.repository.models import Repository
from mlcls.repository.publishing import remove_leftovers
from mlcls.repository.settings import ModelSettings, ServingSettings, Target, TuningRecord
from mlcls.server.http_api import HttpApi
from support.quiet_http import QuietHttpServer, running
from support.repositories import add

MODEL = ImportedModel("animals", 448 * 448 * 3, {"model.onnx": 120_000_000})
RESNET = dataclasses.replace(MODEL, architecture="ResNet50_ML")
SMALL_RESNET = dataclasses.replace(RESNET, pixels_bytes=56 * 56 * 3)
EMBEDDED = ("embedded", "int8")
BROKEN = dataclasses.replace(MODEL, faults=["model.onnx is not the file"])
PLAN = dataclasses.replace(MODEL, weights_bytes={"model.onnx": 120_000_000, "model.plan": 60_000_000})
WRONG_PLAN = dataclasses.replace(PLAN, plan_faults=["built for A10"])
INT8 = dataclasses.replace(MODEL, weights_bytes={"model.int8.onnx": 1})
TUNED = dataclasses.replace(
    MODEL, settings=ModelSettings().with_target("cpu", ServingSettings(), TuningRecord(8, "today", "report.json"))
)
BF16 = dataclasses.replace(
    MODEL, settings=ModelSettings().with_target("embedded", ServingSettings(engine_precision="bf16"), None)
)
T4 = Machine((Gpu("Tesla T4", "7.5"),), "10.13.2.6")
VNNI = {"avx2", "avx512_vnni"}
GB = 1_000_000_000

# Sizes of the FP32 graphs of the six models, in megabytes.
SIX = {
    "CLIP_vit_base_patch16_448_ML": 367,
    "PP-HGNetV2-B0_ML": 42,
    "PP-HGNetV2-B4_ML": 98,
    "PP-HGNetV2-B6_ML": 319,
    "PP-LCNet_x1_0_ML": 31,
    "ResNet50_ML": 121,
}


def total(target: Target, *names: str) -> list[float]:
    """What the models need on a target with 2 cores, in gigabytes."""
    models = [
        ImportedModel(name, 448 * 448 * 3, {"model.onnx": SIX[name] * 10**6}, architecture=name) for name in names
    ]
    memory = [model.memory(target, 2) for model in models]
    return [sum(sizes) / GB for sizes in zip(*filter(None, memory), strict=True)]


def test_the_estimates_are_what_was_measured() -> None:
    """Within a tenth; see docs/how-to/doctor.md."""
    assert total("cpu", "PP-HGNetV2-B6_ML") == pytest.approx([1.9, 5.2], rel=0.1)
    assert total("cpu", *SIX) == pytest.approx([6.0, 13.5], rel=0.1)
    assert total("embedded", *SIX) == pytest.approx([5.7, 5.7], rel=0.1)
    assert total("gpu", *SIX) == []


# The check, its arguments, and level and text of one of its findings.
CASES: list[tuple[Callable[..., Finding | Iterable[Finding]], tuple[Any, ...], str, str]] = [
    (check_python, ((3, 12, 3),), "ok", "Python 3.12.3"),
    (check_python, ((3, 9, 2),), "problem", "Python 3.9.2"),
    (check_python, ((3, 13, 0),), "problem", "Python 3.13.0"),
    (check_glibc, ("glibc", "2.39"), "ok", "glibc 2.39"),
    (check_glibc, ("glibc", "2.31"), "problem", "glibc 2.31"),
    (check_glibc, ("", ""), "problem", "no glibc"),
    (check_processor, (8, VNNI, []), "ok", "8 cores without avx512_bf16 or amx_bf16"),
    (check_processor, (8, VNNI, []), "ok", "the processor has avx512_vnni"),
    (check_processor, (8, {"amx_bf16"}, [MODEL]), "ok", "8 cores with amx_bf16; no model computes in bf16"),
    (check_processor, (8, {"amx_bf16"}, [BF16]), "note", "with amx_bf16; animals set engine_precision bf16"),
    (check_processor, (8, VNNI, [BF16]), "problem", "without avx512_bf16 or amx_bf16; animals set engine_precision"),
    (check_processor, (8, set(), []), "note", "features unknown"),
    (check_processor, (8, {"avx2"}, [MODEL]), "note", "none of avx512_vnni"),
    (check_processor, (8, {"avx2"}, [INT8]), "warning", "none of avx512_vnni"),
    (check_gpu, (Machine(), [MODEL]), "note", "--target gpu cannot be served here"),
    (check_gpu, (T4, [MODEL]), "note", "Tesla T4 (compute capability 7.5); TensorRT 10.13.2.6"),
    (check_gpu, (T4, [PLAN]), "ok", "Tesla T4"),
    (check_gpu, (T4, [PLAN]), "ok", "the plan of animals fits this machine"),
    (check_gpu, (T4, [WRONG_PLAN]), "problem", "built for A10"),
    (check_gpu, (Machine(), [WRONG_PLAN]), "warning", "built for A10"),
    (check_repository, (Path("none"), []), "warning", "the folder does not exist"),
    (check_repository, (Path("/"), []), "note", "/ has no imported model"),
    (check_repository, (Path("/"), [MODEL]), "ok", "animals: model.onnx 120 MB; they match the manifest"),
    (check_repository, (Path("/"), [BROKEN]), "problem", "model.onnx is not the file"),
    (check_disk, (50 * GB, [PLAN]), "ok", "50.0 GB free"),
    (check_disk, (100_000_000, [PLAN]), "problem", "100 MB free, a new version or engine may take 360 MB"),
    (check_disk, (300_000_000, [PLAN]), "warning", "300 MB free"),
    (check_tuning, (8, [TUNED]), "ok", "animals: the settings of the target cpu were tuned for 8 cores"),
    (check_tuning, (4, [TUNED]), "warning", "were tuned for 8 cores, there are 4 here"),
    (
        check_memory,
        (200 * GB, [MODEL], EMBEDDED, 2),
        "ok",
        "200.0 GB available, all models on the target embedded need",
    ),
    (check_memory, (700_000_000, [RESNET], EMBEDDED, 2), "problem", "embedded need about 745 MB"),
    (check_memory, (900_000_000, [RESNET], EMBEDDED, 2), "warning", "900 MB available"),
    (check_memory, (3 * GB, [RESNET], EMBEDDED, 64), "warning", "embedded need about 2.3 GB"),
    (check_memory, (4 * GB, [RESNET], ("embedded", "cpu", "int8"), 64), "ok", "cpu need about 790 MB after the start"),
    (check_memory, (4 * GB, [SMALL_RESNET], ("cpu",), 2), "ok", "802 MB after their largest batches"),
    (check_memory, (700_000_000, [RESNET], ("cpu",), 2), "problem", "1.6 GB after their largest batches, whose memory"),
    (check_memory, (2 * GB, [RESNET, INT8], ("int8",), 2), "ok", "the target int8 need about"),
    (check_shared_memory, (GB, [MODEL]), "ok", "/dev/shm has 1.0 GB"),
    (check_shared_memory, (64 << 20, [MODEL]), "problem", "/dev/shm has 67 MB, the imported models need 125 MB"),
    (check_shared_memory, (None, [MODEL]), "problem", "no /dev/shm"),
    (check_queues, (200 * GB, [MODEL]), "ok", "up to 128 requests wait before each of 3 steps: 211 MB if each has one"),
    (check_queues, (5 * GB, [MODEL]), "note", "one image, 6.8 GB"),
    (check_queues, (100_000_000, [MODEL]), "warning", "211 MB"),
]


def only(findings: Finding | Iterable[Finding], found: str) -> Finding:
    findings = [findings] if isinstance(findings, Finding) else list(findings)
    (finding,) = [finding for finding in findings if found in finding.found]
    assert "\n" not in finding.found + finding.remedy
    assert bool(finding.remedy) == (finding.level != "ok") or "--target gpu" in finding.found
    return finding


@pytest.mark.parametrize(("check", "arguments", "level", "found"), CASES)
def test_check(
    check: Callable[..., Finding | Iterable[Finding]], arguments: tuple[Any, ...], level: str, found: str
) -> None:
    assert only(check(*arguments), found).level == level


def test_everything_is_checked(tmp_path: Path) -> None:
    topics = {finding.topic for finding in examine(tmp_path)}
    assert topics >= {"Python", "glibc", "Triton", "processor", "GPU", "repository", "disk", "shared memory"}
    assert not topics & {"server", "open APIs"}


def test_triton_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_SERVER_VERSION", raising=False)
    for name in ("bin/tritonserver", "backends/python/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert only(check_triton(tmp_path), "of an unknown version").level == "warning"
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.70.0")
    assert only(check_triton(tmp_path), "Triton 2.70.0").level == "problem"
    (tmp_path / "TRITON_VERSION").write_text("2.75.0\n")
    assert check_triton(tmp_path) == Finding("ok", "Triton", f"Triton 2.75.0 at {tmp_path}/bin/tritonserver")
    assert only(check_triton(tmp_path / "nowhere"), "Expected bin/tritonserver").level == "problem"


def test_the_embedded_triton_is_known() -> None:
    """The version of a newer wheel must be added by a person."""
    versions = [".".join(map(str, version)) for version in EMBEDDED_VERSIONS.values()]
    finding = only(check_triton(None), "the embedded one, older than the security fixes")
    assert finding.level == "note"
    assert finding.found.split()[1] in versions


def test_a_repository_with_an_incomplete_model(tmp_path: Path, custom_spec: ModelSpec) -> None:
    write_configs(Repository(tmp_path), custom_spec)
    assert read_models(tmp_path, Machine()) == [], "it is not imported"
    (tmp_path / "animals-v2" / "1").mkdir()
    (model,) = read_models(tmp_path, Machine())
    assert (model.name, len(model.faults)) == ("animals-v2", 1)


def test_what_killed_commands_left(tmp_path: Path, custom_spec: ModelSpec) -> None:
    root = tmp_path / "models"
    add(root, custom_spec)
    repository = Repository(root)
    with held_folder(root):
        assert list(check_leftovers(root)) == [], "its process lives"
    abandoned, old = root / f"{STAGING_PREFIX}abandoned", root / f"{STAGING_PREFIX}old"
    for folder in (abandoned, old):
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "model.onnx").write_bytes(bytes(20_000_000))
    (abandoned / LOCK_NAME).touch()
    (root / f"{custom_spec.name}_engine_3" / "3").mkdir(parents=True)
    (root / custom_spec.name / f"{STAGING_PREFIX}file").touch()
    first, second, third = check_leftovers(root)
    assert {finding.level for finding in (first, second, third)} == {"warning"}
    assert first.found == f"{abandoned}, 20 MB, was left by a killed command"
    assert first.remedy.startswith("The next import, publish or build")
    assert (second.found, second.remedy) == (f"{old}, 20 MB, was left by a killed command", "Remove it.")
    assert third.found == "a killed command left animals-v2_engine_3, animals-v2/.mlcls-staging-file"
    with repository.lock():
        assert list(check_leftovers(root)) == [], "it may be at work on them"
        remove_leftovers(repository, custom_spec.name)
    with held_folder(root):
        assert [finding.remedy for finding in check_leftovers(root)] == ["Remove it."]


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""


Answers = dict[str, tuple[int, bytes]]


@pytest.fixture
def http_server() -> Iterator[tuple[str, Answers]]:
    """Yield a server's address and its answers by path, which a test fills in."""
    answers: Answers = {}
    handler = type("Handler", (_Handler,), {"answers": answers})
    with running(QuietHttpServer(("127.0.0.1", 0), handler)) as server:
        yield f"127.0.0.1:{server.server_address[1]}", answers


@pytest.mark.parametrize(
    ("version", "is_local", "level", "found"),
    [
        ("2.75.0", True, "ok", "Triton 2.75.0 at http://"),
        ("2.51.0", True, "note", "older than 2.71 (26.07)"),
        ("2.51.0", False, "problem", "older than 2.71 (26.07), has known vulnerabilities"),
    ],
)
def test_version_of_a_server(
    http_server: tuple[str, Answers],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    is_local: bool,
    level: str,
    found: str,
) -> None:
    url, answers = http_server
    answers["/v2"] = (200, json.dumps({"name": "triton", "version": version}).encode())
    answers["/v2/models/stats"] = (200, b"{}")
    monkeypatch.setattr("mlcls.server.http_api._is_local", lambda host: is_local)
    findings = list(check_server(url))
    assert only(findings, found).level == level
    assert only(findings, "shows its statistics without a key").level == ("note" if is_local else "warning")


def test_a_server_with_some_open_apis(http_server: tuple[str, Answers]) -> None:
    url, answers = http_server
    assert only(check_server(url), "requires a key").level == "ok"
    answers["/v2/logging"] = (200, b"{}")
    answers["/v2/repository/index"] = (403, b"closed")
    finding = only(check_server(f"http://{url}/"), "without a key")
    assert (finding.level, finding.found) == ("problem", f"http://{url} answers without a key: logging")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"version": "?"}'])
def test_something_else_answers(http_server: tuple[str, Answers], body: bytes) -> None:
    url, answers = http_server
    answers["/v2"] = (200, body)
    assert only(check_server(url), "does not report its version").level == "warning"


def test_nothing_answers() -> None:
    with QuietHttpServer(("127.0.0.1", 0), _Handler) as server:
        port = server.server_address[1]
    (finding,) = check_server(f"127.0.0.1:{port}")
    assert finding.level == "problem"
    assert "no answer over HTTP (" in finding.found


@pytest.mark.parametrize("url", ["", "http://", "ftp://host", "host:port", "127.0.0.1:99999"])
def test_no_address(url: str) -> None:
    with pytest.raises(ServerError, match="Expected the address of Triton's HTTP API like 127"):
        list(check_server(url))


@pytest.mark.parametrize(
    ("host", "is_local"), [("localhost", True), ("127.0.0.2", True), ("[::1]", True), ("0.0.0.0", False)]
)
def test_addresses_of_this_machine_only(host: str, is_local: bool) -> None:
    assert HttpApi(f"{host}:1").is_local == is_local
