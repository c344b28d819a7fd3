"""What Helm makes of the chart in deploy/helm/mlcls."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from support.processes import ROOT
from support.programs import find_program

CHART: Final = ROOT / "deploy" / "helm" / "mlcls"
# What has no default.
REQUIRED: Final[Mapping[str, Any]] = {
    "image": f"registry.example/mlcls-serve@sha256:{'0' * 64}",
    "models": ["animals", "PP-LCNet_x1_0_ML"],
    "adminKeySecret": "mlcls-admin",
    "repository": {"claim": "models"},
}

Object = dict[str, Any]


def run_helm(
    command: str, values: Mapping[str, Any], *arguments: str, chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    """Run `helm lint` or `helm template` with these values beside the required ones."""
    helm = find_program("helm", "helm")
    release = ["animals"] if command == "template" else []
    return subprocess.run(
        [helm, command, *release, chart, "--values=-", *arguments],
        input=json.dumps({**REQUIRED, **values}),
        capture_output=True,
        text=True,
    )


def render(values: Mapping[str, Any], kubernetes: str = "1.37", namespace: str = "vision") -> list[Object]:
    """Return the objects of a release named animals."""
    process = run_helm("template", values, f"--kube-version={kubernetes}", f"--namespace={namespace}")
    assert process.returncode == 0, process.stderr
    return [each for each in yaml.safe_load_all(process.stdout) if each is not None]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of a kind and a name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def container_of(deployment: Object) -> Object:
    """Return the container of a Deployment's pods."""
    container: Object
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container
