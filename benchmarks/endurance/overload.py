"""Flood a server with ten times its load, and look at refusals, memory and a neighbor model: `make overload`.

The server has the demo model under two names. Ten times as many callers as keep it busy ask one of them, and come back
at once, or soon after a refusal. A single caller asks the other and measures its latency. Then the flood ends, and the
run measures whether the full speed returns.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.endurance.supervised_server import SupervisedServer
from benchmarks.machine import describe_machine
from mlcls.base.files import write_text
from mlcls.errors import MissingExtraError, MlclsError
from mlcls.images.photos import photo_images
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository

_ROOT: Final = Path(__file__).resolve().parents[2]
FLOODED, NEIGHBOR = "demo_a", "demo_b"
# Callers that keep the machine busy.
BUSY_CALLERS: Final = 32
FACTOR: Final = 10
# How soon a caller comes back after a refusal.
REFUSAL_PAUSE_S: Final = 0.05


@dataclasses.dataclass
class Phase:
    """What callers experienced in a phase of the run.

    Attributes:
        seconds: Length of the phase.
        latencies_s: Latency of each answer, by model.
        errors: Number of errors, by model and code.
        memory_mb: Peak memory of the server (PSS).
    """

    seconds: float
    latencies_s: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {FLOODED: [], NEIGHBOR: []})
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    memory_mb: float = 0.0

    def summarize(self) -> dict[str, Any]:
        """Return the figures of summary.json."""
        figures: dict[str, Any] = {"seconds": round(self.seconds, 1), "memory_mb": round(self.memory_mb)}
        for model, latencies in self.latencies_s.items():
            if latencies:
                p50, p99 = (round(float(np.percentile(latencies, p)) * 1e3, 1) for p in (50, 99))
                rate = round(len(latencies) / self.seconds, 1)
                figures[model] = {"answered_per_s": rate, "p50_ms": p50, "p99_ms": p99}
        return {**figures, "errors": dict(self.errors)}


def main() -> int:
    """Parse the arguments, run, and write summary.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=_ROOT / "output" / "overload", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mlcls-overload-") as folder:
            repository = Path(folder) / "model_repository"
            for name in (FLOODED, NEIGHBOR):
                import_model(str(_ROOT / "demo_model" / "inference"), Repository(repository), name=name)
            log = arguments.output / "serve.log"
            log.unlink(missing_ok=True)
            with SupervisedServer(repository, (FLOODED, NEIGHBOR), log) as server:
                phases = asyncio.run(run_phases(server, arguments.seconds))
    except MlclsError as error:
        print(f"overload: {error}", file=sys.stderr)
        return error.exit_code
    summary = {"machine": describe_machine(), **phases}
    write_text(arguments.output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(json.dumps(phases, indent=2))
    restarts = [line for line in log.read_text().splitlines() if "Restart" in line]
    foreign = [code for name, phase in phases.items() for code in phase["errors"] if not is_refusal(code)]
    for problem in (*restarts, *foreign):
        print(f"FAILED: {problem}")
    return 1 if restarts or foreign else 0


def is_refusal(error: str) -> bool:
    """Return whether an error is one that an overloaded server may return."""
    return error.endswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))


async def run_phases(server: SupervisedServer, seconds: float) -> dict[str, Any]:
    """Measure the neighbor alone, the flooded model at full speed, both, the flood, and the time after it."""
    callers = FACTOR * BUSY_CALLERS
    return {
        "neighbor alone": (await run_phase(server, seconds, 0, 1)).summarize(),
        "full speed": (await run_phase(server, seconds, BUSY_CALLERS, 0)).summarize(),
        "both busy": (await run_phase(server, seconds, BUSY_CALLERS, 1)).summarize(),
        f"flood of {callers} callers": (await run_phase(server, seconds, callers, 1)).summarize(),
        "two seconds after": (await run_phase(server, 2.0, BUSY_CALLERS, 0)).summarize(),
        "full speed again": (await run_phase(server, seconds, BUSY_CALLERS, 0)).summarize(),
    }


async def run_phase(server: SupervisedServer, seconds: float, flooding: int, neighbors: int) -> Phase:
    """Run callers of both models for a while; each waits for its answer before it asks again."""
    try:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.grpc.aio import InferenceServerClient
        from tritonclient.utils import InferenceServerException
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", str(error.name)) from error
    tensors = []
    for photo in photo_images((), 16):
        tensor = InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
        tensors.append(tensor)
    outputs = [InferRequestedOutput("result")]
    phase = Phase(seconds)
    end_s = time.monotonic() + seconds

    async def call(client: Any, model: str, number: int) -> None:
        while (sent_s := time.monotonic()) < end_s:
            number += 1
            try:
                await client.infer(model, [tensors[number % len(tensors)]], outputs=outputs)
            except InferenceServerException as error:
                phase.errors[f"{model}: {str(error.status()).removeprefix('StatusCode.')}"] += 1
                await asyncio.sleep(REFUSAL_PAUSE_S)
            else:
                phase.latencies_s[model].append(time.monotonic() - sent_s)

    async def watch_memory() -> None:
        while time.monotonic() < end_s:
            phase.memory_mb = max(phase.memory_mb, server.memory_bytes() / 1e6)
            await asyncio.sleep(1.0)

    async with InferenceServerClient(server.grpc_url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        calls = [call(client, FLOODED, number) for number in range(flooding)]
        calls += [call(client, NEIGHBOR, number) for number in range(neighbors)]
        await asyncio.gather(watch_memory(), *calls)
    return phase


if __name__ == "__main__":
    sys.exit(main())
