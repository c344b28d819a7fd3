"""Print core-milliseconds per image of each process of the server and client: `python -m benchmarks.speed.profile`.

A served model is a chain of processes. If they share the cores, what counts is the CPU time that each takes per image,
not how long it seems to work. The times come from `/proc` before and after a number of requests.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.usage import cpu_since, read_usage, total_pss_bytes
from mlcls.base.machine import format_machine
from mlcls.errors import MlclsError
from mlcls.images.photos import sample_photo_paths
from mlcls.model.spec import ModelSpec
from mlcls.repository.models import Repository
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from mlcls.tuning.closed_loop import ensemble_calls


def main() -> int:
    """Parse the arguments and print the profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="imported model (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="requests (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        print(format_machine(describe_machine()))
        with TritonServer(ServerOptions.on_free_ports(arguments.repository, arguments.model)) as server:
            spec = Repository(arguments.repository).active(arguments.model).spec
            print(profile(server, spec, arguments.images, arguments.concurrency))
    except MlclsError as error:
        print(f"profile: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def profile(server: TritonServer, spec: ModelSpec, images: int, concurrency: int) -> str:
    """Send photos of 640x427 over gRPC and return what each process took per image."""
    _send(server, spec, max(images // 10, concurrency), concurrency)
    before, client_before, began = read_usage(server.pid), os.times(), time.monotonic()
    _send(server, spec, images, concurrency)
    wall_s, after, client_after = time.monotonic() - began, read_usage(server.pid), os.times()
    spent_s = cpu_since(before, after)
    spent_s["client"] = client_after.user + client_after.system - client_before.user - client_before.system
    lines = [f"{'':40}{'core-ms per image':>18}"]
    lines += [f"{name:40}{seconds / images * 1e3:18.2f}" for name, seconds in spent_s.items()]
    lines.append(f"{'all':40}{sum(spent_s.values()) / images * 1e3:18.2f}")
    lines.append(
        f"{images / wall_s:.1f} images/s at concurrency {concurrency}; {total_pss_bytes(after) / 1e6:.0f} MB (PSS)"
    )
    return "\n".join(lines)


def _send(server: TritonServer, spec: ModelSpec, count: int, concurrency: int) -> None:
    make_call = ensemble_calls(server.grpc_url, spec, [path.read_bytes() for path in sample_photo_paths()])

    def work(share: int) -> None:
        call = make_call()
        for _ in range(share):
            call()

    shares = [count // concurrency + (index < count % concurrency) for index in range(concurrency)]
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(work, shares))


if __name__ == "__main__":
    sys.exit(main())
