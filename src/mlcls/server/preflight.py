"""Check, before Triton starts, whether it can serve models on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlcls.base.machine import Machine, read_machine
from mlcls.conversion.onnx_file import check_onnx_file
from mlcls.engines.tensorrt.plan import check_plan
from mlcls.errors import ServerError
from mlcls.repository.configurations import require_fresh
from mlcls.repository.models import Repository
from mlcls.repository.names import ENGINE_SUFFIX, PLAN_FILE
from mlcls.repository.settings import Target
from mlcls.repository.triton_config import ENGINE_TARGETS
from mlcls.server.installation import TritonInstallation


def check_models(
    repository: Repository,
    models: Sequence[str],
    target: Target,
    installation: TritonInstallation,
    read_machine: Callable[[], Machine] = read_machine,
) -> None:
    """Check everything that can be checked before a server starts on some ensembles.

    Args:
        repository: The model repository.
        models: Names of the ensembles.
        target: Which engine.
        installation: The tritonserver.
        read_machine: Describes this machine's GPUs and TensorRT; called for the target `gpu` only.

    Raises:
        RepositoryError: A model cannot be served; for example, its plan is not for this machine.
        ModelFormatError: An ONNX file is damaged, or needs other files.
        ServerError: The target's backend is not installed.
    """
    backend = ENGINE_TARGETS[target].backend
    if backend != "mlcls_engine" and not (installation.backends / backend).is_dir():
        raise ServerError(
            f"The target {target!r} needs Triton's backend {backend!r}, which {installation.executable} does "
            f"not have; use the container (docker-compose.yml) or --target embedded."
        )
    if not models:
        raise ServerError("Expected at least one model to serve, got none.")
    for name in models:
        version = repository.active(name)
        version.check()
        weights = version.weights(target)
        if backend != "mlcls_engine":  # Triton's own backends check no manifest
            version.verify(ENGINE_SUFFIX, weights.name)
            if weights.suffix == ".onnx":
                check_onnx_file(weights)
        if weights.name == PLAN_FILE:
            check_plan(weights.parent, weights.name, read_machine())
        require_fresh(version)
