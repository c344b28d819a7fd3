"""Small model repositories without real graphs."""

from __future__ import annotations

import re
from pathlib import Path

from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_model
from mlcls.repository.staging import ConvertedVersion

RECORD = EngineRecord("model.onnx", "fp32", {}, {"mlcls": "0"})


def stage(root: Path, spec: ModelSpec, graph: str = "a graph") -> ConvertedVersion:
    """Write an ONNX file with this text beside the repository, for a version on its way into it."""
    root.mkdir(parents=True, exist_ok=True)
    path = root.parent / "given.onnx"
    path.write_text(graph)
    return ConvertedVersion(spec, path, RECORD)


def add(root: Path, spec: ModelSpec) -> None:
    """Import a model whose ONNX file names its labels."""
    add_model(Repository(root), stage(root, spec, f"graph of {spec.labels}"))


def snapshot(root: Path) -> dict[str, bytes]:
    """Return the content of every file, without the time in the manifests."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    return {path: re.sub(rb'"created": "[^"]+"', b"", content) for path, content in files.items()}
