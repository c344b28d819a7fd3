"""Ports to listen on: whether they are free, and ones that are."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from mlcls.errors import ServerError


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Checks that ports differ and are free.

    Args:
        host: Address to listen on.
        ports: Each port by the option that sets it.

    Raises:
        ServerError: One is taken.
    """
    if len(set(ports.values())) != len(ports):
        raise ServerError(f"Expected different ports, got {', '.join(f'{k} {v}' for k, v in ports.items())}.")
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"Port {port} on {host} cannot be used ({error.strerror}); choose another with {option}."
                ) from None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that are free right now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in sockets]
