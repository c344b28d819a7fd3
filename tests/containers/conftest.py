"""The engine, the images and one running set of services, shared by the tests."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.endurance.asker import Place
from benchmarks.endurance.identity_model import make_repository
from containers.engine import Compose, Engine
from containers.stand_in import ENVIRONMENT, PROMETHEUS_ENTRYPOINT, digest, fill, find_python, make_debian
from mlcls.base.processes import free_ports
from mlcls.server.model_control import ModelControl
from mlcls_client import Model, create_model
from support.gateway_process import make_certificate, make_key
from support.processes import ROOT

MODELS = ("numbers_a", "numbers_b")
# Images stay here between runs.
CACHE = ROOT / ".tools" / "containers"
_IMAGES = dict.fromkeys(("TRITON_IMAGE", "PYTHON_IMAGE", "ENVOY_IMAGE", "GRAFANA_IMAGE"), "mlcls-stand-in")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(CACHE / "docker") as engine:
        yield engine


@pytest.fixture(scope="session")
def images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that name the images: the stand-ins, on which the project's own image is built."""
    python = find_python()
    plain = f"mlcls-stand-in:{digest(python)}"
    prometheus = f"mlcls-stand-in-prometheus:{digest(python)}"
    if not all(engine.has_image(name) for name in (plain, prometheus)):
        archive = CACHE / "debian.tar"
        work = tmp_path_factory.mktemp("debian")
        make_debian(archive, work / "debootstrap")
        root = work / "root"
        root.mkdir()
        subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
        fill(root, python)
        environment = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        engine.import_image(plain, root, {"ENV": environment})
        engine.import_image(prometheus, root, {"ENTRYPOINT": PROMETHEUS_ENTRYPOINT})
        shutil.rmtree(root)
    engine.require(plain)
    names = ("TRITON_IMAGE", "PYTHON_IMAGE", "ENVOY_IMAGE", "GRAFANA_IMAGE")
    variables = {**dict.fromkeys(names, plain), "PROMETHEUS_IMAGE": prometheus}
    Compose(engine, "mlcls-build", {**variables, "MLCLS_ADMIN_KEY": "unused"})("build", "serve-cpu")
    return variables


@dataclasses.dataclass(frozen=True)
class Services:
    """The services of docker-compose.yml as a user configures them, and how to reach them.

    Attributes:
        compose: Docker Compose.
        repository: The model repository, on the host.
        secrets: Folder of the secrets.
        place: Where the server listens.
        gateway_url: `localhost:port` of the gateway.
        prometheus_url: `host:port` of Prometheus.
        api_key: A key of the gateway.
    """

    compose: Compose
    repository: Path
    secrets: Path
    place: Place
    gateway_url: str
    prometheus_url: str
    api_key: str

    @property
    def control(self) -> ModelControl:
        """Model control from the host."""
        return ModelControl(self.place.http_url, self.place.admin_key, timeout_s=120)

    def model(self, protocol: str, key: str, name: str = MODELS[0]) -> Model:
        """A client of a model behind the gateway."""
        certificate = self.secrets / "gateway" / "tls.crt"
        return create_model(name, url=self.gateway_url, protocol=protocol, ssl=certificate, api_key=key)


@pytest.fixture(scope="session")
def services(engine: Engine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Nothing is started yet; all is removed at the end."""
    folder = tmp_path_factory.mktemp("services")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # as a folder of a user's own; pytest's are private
    repository, secret_files = folder / "model_repository", folder / "secrets"
    repository.mkdir()
    make_repository(repository, *MODELS)
    (secret_files / "gateway").mkdir(parents=True)
    make_certificate(secret_files / "gateway")
    api_key, admin_key = make_key(), secrets.token_hex(32)
    (secret_files / "gateway" / "api_keys").write_text(f"alice {api_key}\n")
    (secret_files / "grafana_password").write_text("unused\n")
    for path in (secret_files, *secret_files.rglob("*")):  # as the documentation says
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.chown(path, 1000, 1000)
    names = ("HTTP", "GRPC", "METRICS", "GATEWAY", "PROMETHEUS")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    variables = {
        **images,
        **{f"MLCLS_{name}_PORT": str(port) for name, port in ports.items()},
        "MLCLS_ADMIN_KEY": admin_key,
        "MLCLS_MODEL_REPOSITORY": str(repository),
        "MLCLS_MODELS": " ".join(MODELS),
        "MLCLS_SECRETS": str(secret_files),
    }
    compose = Compose(engine, "mlcls-test", variables)
    place = Place(f"127.0.0.1:{ports['GRPC']}", f"127.0.0.1:{ports['HTTP']}", admin_key)
    gateway_url, prometheus_url = f"localhost:{ports['GATEWAY']}", f"127.0.0.1:{ports['PROMETHEUS']}"
    try:
        yield Services(compose, repository, secret_files, place, gateway_url, prometheus_url, api_key)
    finally:
        compose("down", "--volumes", "--timeout=30", check=False)
