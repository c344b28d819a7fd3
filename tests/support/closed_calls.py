"""What a server must refuse without its admin key, and the gateway whatever the key: calls by API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

Headers = Sequence[tuple[str, str]]

_REGISTER: Final = json.dumps({"key": "/x", "offset": 0, "byte_size": 64}).encode()
_CUDA_REGISTER: Final = json.dumps({"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}).encode()


def http_calls(model: str) -> list[tuple[str, str, str, bytes]]:
    """Return API, method, path and body of every path of the closed APIs."""
    load = f"/v2/repository/models/{model}"
    return [
        ("model-repository", "POST", "/v2/repository/index", b"{}"),
        ("model-repository", "POST", f"{load}/load", b"{}"),
        ("model-repository", "POST", f"{load}/unload", b"{}"),
        *(
            ("shared-memory", method, f"/v2/{kind}sharedmemory{path}", body)
            for kind, body in (("system", _REGISTER), ("cuda", _CUDA_REGISTER))
            for method, path in (
                ("GET", "/status"),
                ("GET", "/region/x/status"),
                ("POST", "/region/x/register"),
                ("POST", "/region/x/unregister"),
                ("POST", "/unregister"),
            )
        ),
        ("logging", "GET", "/v2/logging", b""),
        ("logging", "POST", "/v2/logging", b'{"log_file": "/tmp/x"}'),
        ("trace", "GET", "/v2/trace/setting", b""),
        ("trace", "POST", "/v2/trace/setting", b'{"trace_file": "/tmp/x"}'),
        ("trace", "GET", f"/v2/models/{model}/trace/setting", b""),
        ("trace", "POST", f"/v2/models/{model}/trace/setting", b'{"trace_level": ["TIMESTAMPS"]}'),
        ("statistics", "GET", "/v2/models/stats", b""),
        ("statistics", "GET", f"/v2/models/{model}/stats", b""),
        ("statistics", "GET", f"/v2/models/{model}/versions/1/stats", b""),
    ]


def grpc_calls(model: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return API, method and fields of every RPC of the closed APIs."""
    return [
        ("model-repository", "RepositoryIndex", {}),
        ("model-repository", "RepositoryModelLoad", {"model_name": model}),
        ("model-repository", "RepositoryModelUnload", {"model_name": model}),
        ("shared-memory", "SystemSharedMemoryStatus", {}),
        ("shared-memory", "SystemSharedMemoryRegister", {"name": "x", "key": "/x", "byte_size": 64}),
        ("shared-memory", "SystemSharedMemoryUnregister", {}),
        ("shared-memory", "CudaSharedMemoryStatus", {}),
        ("shared-memory", "CudaSharedMemoryRegister", {"name": "x", "raw_handle": b"x", "byte_size": 64}),
        ("shared-memory", "CudaSharedMemoryUnregister", {}),
        ("trace", "TraceSetting", {}),
        ("logging", "LogSettings", {}),
        ("statistics", "ModelStatistics", {}),
    ]


def call_grpc(channel: grpc.Channel, method: str, fields: Mapping[str, Any], headers: Headers) -> str:
    """Return the name of the status, and its text."""
    request = getattr(service_pb2, f"{method}Request")(**fields)
    try:
        getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(request, timeout=20, metadata=headers)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"
