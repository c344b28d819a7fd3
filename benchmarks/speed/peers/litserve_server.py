"""LitServe with OpenVINO, from `.venv-bench`: a Python program behind FastAPI with the same graph."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.speed.peers.contender import Answer, answer_of_result
from benchmarks.speed.peers.engine_settings import cores
from benchmarks.speed.peers.http_server import HttpServer
from benchmarks.speed.peers.line_child import ROOT, child_environment
from mlcls.base.processes import free_ports
from mlcls.model.spec import ModelSpec

# Its name in tables.
LITSERVE: Final = "LitServe"

# LitServe's environment.
LITSERVE_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"

_PATH: Final = "/predict"


def start_litserve(onnx: Path, spec: ModelSpec, photos: Sequence[Path]) -> HttpServer:
    """Start LitServe.

    Each core has a worker that decodes and computes one image at a time on one thread. LitServe's batches are not used:
    one worker that computes a batch in parallel on as many streams is no faster, and its loop keeps a core busy even
    when idle.

    Args:
        onnx: The graph that is served.
        spec: The model's spec.
        photos: What it is measured with.

    Raises:
        PeerError: It cannot be started.
    """
    (port,) = free_ports(1)
    arguments = [str(port), str(cores()), str(onnx.resolve()), spec.to_json()]
    return HttpServer(
        LITSERVE,
        f"{cores()} workers of 1 thread",
        [LITSERVE_PYTHON, "-m", "benchmarks.speed.peers.litserve_app", *arguments],
        child_environment(),
        port,
        _PATH,
        photos,
        _encode,
        _decode,
    )


def _encode(image: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(image).decode("ascii")}).encode()


def _decode(content: bytes) -> Answer:
    return answer_of_result(json.loads(content))
