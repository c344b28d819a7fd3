"""`mlcls doctor` about real servers and a real repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls.base.processes import free_ports
from mlcls.server.installation import embedded_installation
from mlcls.server.options import CLOSED_APIS
from mlcls.server.process import TritonServer
from support.processes import run_mlcls
from support.served_models import SmallModels

NAME = "small_with_sigmoid"


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[str]:
    """The address of a tritonserver that was started as its documentation's first example does: all APIs open."""
    installation = embedded_installation()
    backends, models = tmp_path / "backends", tmp_path / "models"
    backends.mkdir()
    models.mkdir()
    installation.assemble_backends(backends)
    http_port, grpc_port, metrics_port = free_ports(3)
    command = [
        str(installation.executable),
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
    ]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=installation.environment())
    try:
        url = f"127.0.0.1:{http_port}"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://{url}/v2/health/live", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def findings_of(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    process = run_mlcls("doctor", "--json", *arguments)
    assert process.stderr == ""
    findings: list[dict[str, Any]] = json.loads(process.stdout)
    return process.returncode, findings


def test_an_open_server(open_server: str, small_models: SmallModels) -> None:
    status, findings = findings_of("--url", open_server, "--repository", small_models.repository)
    assert status == 1
    (problem,) = [finding for finding in findings if finding["level"] == "problem"]
    assert problem["topic"] == "open APIs"
    assert set(problem["found"].partition(" answers without a key: ")[2].split(", ")) == set(CLOSED_APIS)
    assert any("shows its statistics" in finding["found"] for finding in findings)


def test_the_server_of_mlcls_serve(small_server: TritonServer, small_models: SmallModels) -> None:
    status, findings = findings_of("--url", small_server.http_url, "--repository", small_models.repository)
    assert [finding for finding in findings if finding["level"] == "problem"] == []
    assert status == 0
    (server,) = [finding for finding in findings if finding["topic"] == "server"]
    assert server["found"].startswith("Triton 2.")
    named = [finding["found"] for finding in findings if finding["topic"] == "repository"]
    assert [found.split(":")[0] for found in named] == ["small_with_logits", NAME]


def test_a_mixed_up_folder(root: Path) -> None:
    path = root / f"{NAME}_engine" / "1" / "model.onnx"
    path.unlink()
    shutil.copyfile(root / "small_with_logits_engine" / "1" / "model_spec.json", path)
    printed = run_mlcls("doctor", "--repository", root)
    assert printed.returncode == 1
    lines = printed.stdout.splitlines()
    assert lines[-1] == "1 problem"
    assert lines[-3].startswith("problem  repository")
    assert str(path) in lines[-3]
