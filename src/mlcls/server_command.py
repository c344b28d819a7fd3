"""The command line of a tritonserver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlcls.admin_key import ADMIN_KEY_HEADER

if TYPE_CHECKING:
    from mlcls.server import ServerOptions


def build_command(
    options: ServerOptions, executable: Path, backends: Path, shared_memory_prefix: str, admin_key: str
) -> list[str]:
    """The command line of tritonserver.

    Args:
        options: How to serve.
        executable: The program.
        backends: Folder of all backends.
        shared_memory_prefix: Of the names of the server's regions in /dev/shm.
        admin_key: Of the closed APIs.
    """
    key = f"{ADMIN_KEY_HEADER}={admin_key}"
    command = [
        str(executable),
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in options.models),
        "--disable-auto-complete-config",
        # Strict, the server is not ready while any model loads, nor ever again once one was unloaded: a load balancer
        # would take it out at the first new version. At the start it is ready after its models in any case.
        "--strict-readiness=false",
        "--exit-on-error=true",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        f"--http-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-address={options.host}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--http-restricted-api={','.join(options.closed_apis)}:{key}",
        f"--grpc-restricted-protocol={','.join(options.closed_apis)}:{key}",
        "--metrics-config=summary_latencies=true",
        "--log-format=ISO8601",
    ]
    if options.trace is not None:
        command += options.trace.arguments()
    if options.target != "embedded":
        command.append(f"--model-config-name={options.target}")
    return command
