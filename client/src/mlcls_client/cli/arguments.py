"""Arguments that the subcommands of `mlcls-client` share: which server to ask, and how."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from mlcls_client.errors import InvalidRequestError
from mlcls_client.model import Model, create_model
from mlcls_client.transport.connection import DEFAULT_TIMEOUT_S, DEFAULT_URLS, URL_VARIABLE

API_KEY_VARIABLE: Final = "MLCLS_API_KEY"
ADMIN_KEY_VARIABLE: Final = "MLCLS_ADMIN_KEY"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `open_model` reads to a parser."""
    add = parser.add_argument
    add(
        "--url",
        metavar="HOST:PORT",
        help=f"address of the server (default: the environment variable {URL_VARIABLE}, or {DEFAULT_URLS['grpc']}; "
        f"with --protocol http {DEFAULT_URLS['http']}); for several servers over gRPC dns:///NAME:PORT or "
        "IP:PORT,IP:PORT",
    )
    add("--protocol", choices=list(DEFAULT_URLS), default="grpc", help="protocol (default: %(default)s)")
    add("--ssl", action="store_true", help="encrypt the connection (TLS)")
    for name, meaning in (
        ("root-certificates", "PEM file of the root certificates to trust"),
        ("private-key", "PEM file of this client's key"),
        ("certificate-chain", "PEM file of this client's certificates"),
    ):
        add(f"--ssl-{name}", metavar="FILE", help=f"{meaning}; implies --ssl")
    add(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header with every request; repeatable",
    )
    add(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(API_KEY_VARIABLE) or None,
        help=f"send 'authorization: Bearer KEY' (default: the environment variable {API_KEY_VARIABLE}, which other "
        "users of this machine cannot see)",
    )
    add(
        "--admin-key",
        metavar="KEY",
        default=os.environ.get(ADMIN_KEY_VARIABLE) or None,
        help="key of the APIs that `mlcls serve` closes: shared memory and the list of all models "
        f"(default: the environment variable {ADMIN_KEY_VARIABLE})",
    )
    add(
        "--shared-memory",
        action="store_true",
        help="pass images through shared memory; the server must be on this machine and allow it",
    )


def add_request_arguments(parser: argparse.ArgumentParser, default_retries: int) -> None:
    """Add `--timeout` and `--retries` to a parser."""
    add = parser.add_argument
    add(
        "--timeout",
        type=parse_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="time limit of one request with its retries, in seconds (default: %(default)g)",
    )
    add(
        "--retries",
        type=int,
        default=default_retries,
        metavar="N",
        help="how often to retry if the server is unreachable, within --timeout (default: %(default)s)",
    )


def open_model(args: argparse.Namespace, timeout_s: float, retries: int = 0) -> Model:
    """Make the model that the arguments of `add_server_arguments` describe."""
    return create_model(
        args.model,
        args.url,
        args.protocol,
        timeout_s,
        retries=retries,
        shared_memory=args.shared_memory,
        **read_server_arguments(args),
    )


def read_server_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that `create_model` and `list_models` share, except the address."""
    files = {name: getattr(args, f"ssl_{name}") for name in ("root_certificates", "private_key", "certificate_chain")}
    given = {key: path for key, path in files.items() if path is not None}
    return {
        "ssl": given or args.ssl,
        "headers": _read_headers(args.header),
        "api_key": args.api_key,
        "admin_key": args.admin_key,
    }


def _read_headers(texts: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if not colon:
            # The text may be a secret without its name.
            raise InvalidRequestError("Expected --header 'NAME: VALUE', got a text without a colon.")
        if name in headers:
            raise InvalidRequestError(f"Expected each --header once, got {name!r} twice.")
        headers[name] = value.strip()
    return headers


def parse_count(text: str) -> int:
    """Read a number of 1 or more."""
    if (number := int(text)) >= 1:
        return number
    raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")


def parse_seconds(text: str) -> float:
    """Read a time above 0."""
    if 0 < (number := float(text)) < float("inf"):
        return number
    raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
