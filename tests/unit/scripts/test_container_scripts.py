"""The scripts of the containers, run as the containers run them."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.processes import ROOT

GATEWAY_START = ROOT / "docker" / "gateway" / "start.sh"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "tls.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (folder / "tls.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    (folder / "api_keys").write_text(f"alice {KEY}\n")
    return folder


def start_gateway(secrets: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs start.sh with a program that ends at once in Envoy's place."""
    programs = secrets.parent / "programs"
    programs.mkdir(exist_ok=True)
    envoy = programs / "envoy"
    envoy.write_text('#!/bin/sh\necho "envoy $*"\n')
    envoy.chmod(0o755)
    return subprocess.run(
        ["sh", GATEWAY_START],
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "TRITON_HOST": "triton",
            "SECRETS_FOLDER": str(secrets),
            "RUN_FOLDER": str(secrets.parent / "run"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_gateway_starts(secrets: Path) -> None:
    (secrets / "api_keys").write_text(f"# mine\n\nalice {KEY}\nalice {KEY[::-1]}\n  bob   {KEY}x")
    process = start_gateway(secrets, MAX_REQUEST_BYTES="1000", TIMEOUT_S="7")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"envoy --config-path {secrets.parent}/run/envoy.yaml ")
    assert KEY not in process.stdout + process.stderr
    bootstrap = (secrets.parent / "run" / "envoy.yaml").read_text()
    settings = [line for line in bootstrap.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in settings if "@" in line.replace('"@type"', "")], "a name was not filled in"
    routes = (secrets.parent / "run" / "routes.yaml").read_text()
    assert routes.count('exact: "Bearer') == 9
    assert routes.count('name: "alice"') == 6
    assert f'exact: "Bearer {KEY}x"' in routes
    assert "start: 1001," in routes and "value: 4000}" in routes and "timeout: 7s" in routes


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("alice short", "api_keys, line 1: expected a key of at least 32 characters (openssl rand -hex 32)"),
        ("alice", "api_keys, line 1: expected a key of at least 32 characters"),
        (f"# a comment\nal/ice {KEY}", "api_keys, line 2: expected a name of letters, digits and . _ -"),
        (f'alice {KEY}"', "api_keys, line 1: expected a key of letters, digits and . _ ~ + / = -"),
        (f"alice {KEY} {KEY}", "api_keys, line 1: expected NAME KEY and nothing after them"),
        (f"alice {KEY}\nbob {KEY}", "api_keys, line 2: expected each key once"),
        ("# nobody\n", "expected at least one line 'NAME KEY'"),
        ("", "expected at least one line 'NAME KEY'"),
    ],
)
def test_a_wrong_file_of_keys(secrets: Path, lines: str, words: str) -> None:
    (secrets / "api_keys").write_text(lines)
    process = start_gateway(secrets)
    assert process.returncode == 1
    assert words in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert KEY not in process.stdout + process.stderr
    assert not (secrets.parent / "run" / "routes.yaml").exists()


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "api_keys"])
def test_a_missing_secret(secrets: Path, name: str) -> None:
    (secrets / name).unlink()
    process = start_gateway(secrets)
    assert process.returncode == 1
    assert f"{secrets}/{name}" in process.stderr
    assert process.stderr.startswith("gateway: expected a ")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GATEWAY_PORT", "https", "expected GATEWAY_PORT to be a whole number above 0, got 'https'"),
        ("MAX_REQUEST_BYTES", "64m", "expected MAX_REQUEST_BYTES to be a whole number above 0, got '64m'"),
        ("BURST", "0", "expected BURST to be a whole number above 0, got '0'"),
        ("TRITON_HOST", "tri|ton", "expected TRITON_HOST to be letters, digits and . _ : / -, got 'tri|ton'"),
        ("TRITON_HOST", "", "expected the host name of Triton in TRITON_HOST"),
    ],
)
def test_wrong_settings(secrets: Path, variable: str, value: str, words: str) -> None:
    process = start_gateway(secrets, **{variable: value})
    assert process.returncode != 0
    assert words in process.stderr


@pytest.fixture
def tensorrt_check() -> dict[str, Callable[..., Any]]:
    return runpy.run_path(str(ROOT / "docker" / "check_tensorrt.py"))


def test_the_tensorrt_of_the_image_and_of_the_package(tensorrt_check: dict[str, Callable[..., Any]]) -> None:
    describe = tensorrt_check["describe_mismatch"]
    assert describe("11.4.0.106", "11.4.0") is None
    assert describe("11.4.0.106", "11.4.0.106") is None
    assert describe("10.14.1.48.post1", "10.14.1.48") is None
    assert describe("11.3.0.99", "11.4.0.106").startswith(
        "The image has TensorRT 11.4.0.106, and requirements/tensorrt.txt has tensorrt-cu13-bindings 11.3.0.99. Name"
    )
    assert describe("11.4.0.106", None) == "Expected TensorRT's libnvinfer in the image, got none."
