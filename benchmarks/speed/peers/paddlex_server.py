"""PaddleX's own server, `paddlex --serve`, from `.venv-paddlex`, which has PaddleX's serving plugin."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from benchmarks.speed.peers.contender import Answer, PeerError
from benchmarks.speed.peers.http_server import HttpServer
from benchmarks.speed.peers.line_child import ROOT
from mlcls.base.files import write_text
from mlcls.base.processes import free_ports
from mlcls.paddle.model import PaddleXModel

# Its name in tables.
PADDLEX_SERVER: Final = "paddlex --serve"

# PaddleX's environment; its Python has paddlex and paddle, and nothing of mlcls.
PADDLEX_BIN: Final = ROOT / ".venv-paddlex" / "bin"

_PIPELINE: Final = "image_multilabel_classification"
_ENDPOINT: Final = "/multilabel-image-classification"


def paddlex_variables(cache: Path) -> dict[str, str]:
    """Return the environment variables of PaddleX in its best setting.

    Paddle's oneDNN kernels are on, as in PaddleX by default. There is one thread per core: PaddleX's default of 10 is
    slower on two cores. The server passes images to the pipeline one after the other, as by default: PaddleX does so
    because of a bug in Paddle Inference, and in parallel it was no faster.

    Args:
        cache: Folder for PaddleX's cache, instead of the home folder.
    """
    return {
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",  # else it asks its model hosts, even for a folder
        "PADDLE_PDX_CPU_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "PADDLE_PDX_CACHE_HOME": str(cache),
    }


def start_paddlex_server(model: Path, folder: Path, photos: Sequence[Path]) -> HttpServer:
    """Start `paddlex --serve` on the CPU.

    Args:
        model: A PaddleX inference model.
        folder: Folder for the pipeline's configuration and PaddleX's cache.
        photos: What it is measured with.

    Raises:
        PeerError: It cannot be started.
        ModelFormatError: The folder has no PaddleX model.
    """
    (port,) = free_ports(1)
    name = PaddleXModel.open(model).config.model_name
    configuration = folder / f"{name}.yaml"
    write_text(configuration, yaml.safe_dump(_pipeline(model, name)))
    variables = paddlex_variables(folder / "paddlex_cache")
    return HttpServer(
        PADDLEX_SERVER,
        f"oneDNN, {variables['PADDLE_PDX_CPU_NUM_THREADS']} threads, no drawing",
        [
            *(PADDLEX_BIN / "paddlex", "--serve", "--pipeline", configuration.resolve()),
            *("--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
        ],
        {**os.environ, **variables},
        port,
        _ENDPOINT,
        photos,
        _encode,
        _decode,
    )


def _pipeline(model: Path, name: str) -> dict[str, object]:
    """Return PaddleX's own configuration of this pipeline for a model on disk; a request is one image."""
    module = {"module_name": _PIPELINE, "model_name": name, "model_dir": str(model.resolve()), "batch_size": 1}
    return {"pipeline_name": _PIPELINE, "SubModules": {"ImageMultiLabelClassification": module}}


def _encode(image: bytes) -> bytes:
    """Return a request body; by default, PaddleX would draw the labels and return the picture."""
    return json.dumps({"image": base64.b64encode(image).decode("ascii"), "visualize": False}).encode()


def _decode(content: bytes) -> Answer:
    document = json.loads(content)
    if document.get("errorCode") != 0:
        raise PeerError(f"{PADDLEX_SERVER}: expected errorCode 0, got {str(document)[:300]}.")
    return {int(entry["id"]): float(entry["score"]) for entry in document["result"]["categories"]}
