"""The main job in one go: a model is imported and served, photos are labelled, the server is stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from mlcls import repository
from mlcls.demo.recipe import DEMO_NAME
from mlcls.errors import DownloadError, MlclsError
from mlcls.paddlex_import import import_model
from mlcls.paddlex_model import PaddleXModel
from mlcls.sample_photos import sample_photo_paths
from mlcls.server import ServerOptions, TritonServer
from mlcls.triton_installation import embedded_installation


def run_quickstart(model: str, images: Sequence[Path], work: Path, output: Path, demo_model: Path) -> int:
    """Labels photos with a model on a real tritonserver, and says on the way what happens.

    Args:
        model: Name of an official model.
        images: Photos; by default scikit-learn's two.
        work: Folder for the model and its repository; it is used again by the next run.
        output: Folder for the annotated pictures.
        demo_model: The PaddleX inference model that stands in where the official one cannot be downloaded.

    Returns:
        Exit status of the client: 0 where every photo got its labels.

    Raises:
        MlclsError: The model cannot be had or served.
    """
    from mlcls_client.cli import main as run_client

    photos = list(images) or sample_photo_paths()
    for photo in photos:
        if not photo.exists():
            raise MlclsError(f"Expected a photo or a folder of photos, got {photo}, which does not exist.")
    installation = embedded_installation()  # what this machine lacks is said before anything long begins
    started = time.monotonic()
    root = work / "model_repository"
    name = _provide_model(model, root, demo_model)
    _say(f"Starting tritonserver with {name} ...")
    with TritonServer(ServerOptions.on_free_ports(root, name), installation) as server:
        _say(f"Ready at grpc {server.grpc_url} and http {server.http_url}. Labelling {len(photos)} photos:\n")
        status = run_client(["predict", name, *map(str, photos), "--url", server.grpc_url, "--save", str(output)])
    _say(f"\nServer stopped. {time.monotonic() - started:.0f} s in all.")
    if status == 0:
        _say(f"Annotated pictures: {', '.join(sorted(str(path) for path in output.iterdir() if path.is_file()))}")
    if name == DEMO_NAME:
        _say(
            f"{model} could not be downloaded. The demo model that took its place names the basic colors that cover a "
            f"tenth of the picture or more (docs/explanation/demo-model.md)."
        )
    return status


def _provide_model(model: str, root: Path, demo_model: Path) -> str:
    """Imports the official model, or the demo model where it cannot be downloaded; gives the name it is served by."""
    if repository.is_imported(root, model):
        _say(f"{model} is imported already ({root}).")
        return model
    try:
        _say(f"Downloading the official {model} ...")
        report = import_model(model, root)
    except DownloadError as error:
        _say(f"{error}\nGoing on with the demo model.")
        source_sha256 = PaddleXModel.open(demo_model).make_spec().source_sha256
        imported = repository.is_imported(root, DEMO_NAME) and repository.read_spec(root, DEMO_NAME)
        if imported and imported.source_sha256 == source_sha256:
            return DEMO_NAME
        report = import_model(str(demo_model), root, name=DEMO_NAME)
    _say(f"Imported {report.spec.name}: {report.parity}.")
    return report.spec.name


def _say(text: str) -> None:
    print(text, flush=True)
