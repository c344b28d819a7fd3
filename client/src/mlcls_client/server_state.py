"""`list_models` and `read_health`: which models a server has, and whether it is live and ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlcls_client.base.threads import shared_loop
from mlcls_client.errors import ModelNotFoundError, ServerError
from mlcls_client.transport.connection import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, Connection, Ssl, read_connection
from mlcls_client.transport.transports import Answered, Transport

# An ensemble of the served contract and its steps, by name.
_STEPS: Final = ("_preprocess", "_engine", "_postprocess")


@dataclass(frozen=True)
class ServedModel:
    """One model of a server.

    Attributes:
        name: The name for `create_model`.
        version: Version, e.g. `1`; empty if none is loaded.
        state: `READY`, or the server's own text, e.g. `UNAVAILABLE: unloaded`.

    Examples:
        >>> [model.name for model in list_models(url=server.url) if model.state == "READY"]
        ['PP-LCNet_x1_0_ML']
    """

    name: str
    version: str
    state: str


@dataclass(frozen=True)
class ServerHealth:
    """The state of a server.

    Attributes:
        live: Whether it answers.
        ready: Whether it can answer predictions.
        name: Name of the server, `triton`.
        version: Version of the server.
        models: Whether each requested model is ready.

    Examples:
        >>> health = read_health(url=server.url)
        >>> health.live, health.ready
        (True, True)
    """

    live: bool
    ready: bool
    name: str
    version: str
    models: Mapping[str, bool]


def list_models(
    url: str | None = None,
    protocol: str = "grpc",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    with_steps: bool = False,
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
    admin_key: str | None = None,
) -> list[ServedModel]:
    """List the models of a server, by name.

    The model-repository API lists all models. `mlcls serve` closes it to clients without `admin_key`; then the
    statistics API lists those that are loaded.

    `with_steps` lists every model of the server, including the steps of ensembles and models not made by mlcls. All
    other arguments are those of `create_model`.

    Raises:
        ServerError: Both APIs are closed.
        MlclsClientError: As for `Model.predict`.

    Examples:
        >>> list_models(url=server.url)
        [ServedModel(name='PP-LCNet_x1_0_ML', version='1', state='READY')]
    """
    connection = read_connection(None, url, protocol, timeout_s, ssl, headers, api_key, retries, admin_key)
    found = shared_loop().run(_ask(connection, _list_models))
    names = {model.name for model in found}
    return sorted(
        (model for model in found if with_steps or names.issuperset(model.name + step for step in _STEPS)),
        key=lambda model: model.name,
    )


def read_health(
    url: str | None = None,
    protocol: str = "grpc",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    models: Iterable[str] = (),
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
) -> ServerHealth:
    """Return the state of a server.

    `models` are names of models to check as well. All other arguments are those of `create_model`.

    Raises:
        ServerUnavailableError: No server answers.
        MlclsClientError: As for `Model.predict`.

    Examples:
        >>> read_health(url=server.url, models=["PP-LCNet_x1_0_ML", "other"]).models
        {'PP-LCNet_x1_0_ML': True, 'other': False}
    """
    connection = read_connection(None, url, protocol, timeout_s, ssl, headers, api_key, retries)
    names = list(models)

    async def ask(transport: Transport) -> ServerHealth:
        live = bool(await transport.call("is_server_live"))
        metadata = await transport.call("get_server_metadata")
        return ServerHealth(
            live=live,
            ready=bool(await transport.call("is_server_ready")),
            name=str(_field(metadata, "name")),
            version=str(_field(metadata, "version")),
            models={name: await _is_model_ready(transport, name) for name in names},
        )

    return shared_loop().run(_ask(connection, ask))


async def _ask(connection: Connection, question: Callable[[Transport], Awaitable[Answered]]) -> Answered:
    transport = Transport(connection)
    try:
        return await question(transport)
    finally:
        await transport.close()


async def _is_model_ready(transport: Transport, name: str) -> bool:
    try:
        return bool(await transport.call("is_model_ready", name))
    except ModelNotFoundError:
        return False


async def _list_models(transport: Transport) -> list[ServedModel]:
    try:
        index = await transport.call("get_model_repository_index", admin=True)
    except ServerError as error:
        try:
            statistics = await transport.call("get_inference_statistics")
        except ServerError:
            raise error from None
        found = {
            (str(_field(entry, "name")), str(_field(entry, "version")))
            for entry in _field(statistics, "model_stats", [])
        }
        return [ServedModel(name, version, "READY") for name, version in sorted(found)]
    return [
        ServedModel(
            name=str(_field(entry, "name")),
            version=str(_field(entry, "version")),
            state=": ".join(filter(None, (_field(entry, "state") or "not loaded", _field(entry, "reason")))),
        )
        for entry in (index if isinstance(index, list) else index.models)
    ]


def _field(message: Any, name: str, default: Any = "") -> Any:
    """Return a field of an answer over gRPC (a message) or HTTP (a dict)."""
    return message.get(name, default) if isinstance(message, dict) else getattr(message, name)
