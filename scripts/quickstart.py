"""Label photos on a real Triton server, from a PaddleX model to annotated pictures: `make quickstart`.

Run it from the root of a checkout: `python -m scripts.quickstart`.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import mlcls
from demo.recipe import DEMO_NAME
from mlcls.errors import DownloadError, MlclsError
from mlcls.images.photos import sample_photo_paths
from mlcls.paddle.model import PaddleXModel
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.server.installation import embedded_installation

_say: Final = functools.partial(print, flush=True)
_DEMO_MODEL: Final = Path(__file__).resolve().parent.parent / "demo_model" / "inference"


def main() -> int:
    """Parse the arguments and label the photos."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="*", help="photos or folders (default: two sample photos)")
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="official model (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/quickstart"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("output"), help="default: %(default)s")
    parser.add_argument("--demo-model", type=Path, default=_DEMO_MODEL, help="used if MODEL cannot be downloaded")
    arguments = parser.parse_args()
    try:
        return run_quickstart(**vars(arguments))
    except MlclsError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def run_quickstart(model: str, images: Sequence[Path], work: Path, output: Path, demo_model: Path) -> int:
    """Label photos with a model on a real tritonserver, and print each step.

    Args:
        model: Name of an official model.
        images: Photos; by default scikit-learn's two.
        work: Folder for the model and its repository; the next run reuses it.
        output: Folder for the annotated pictures.
        demo_model: The PaddleX inference model to use if the official one cannot be downloaded.

    Returns:
        Exit status of the client: 0 if every photo got its labels.

    Raises:
        MlclsError: The model cannot be imported or served.
    """
    from mlcls_client.cli.main import main as run_client

    photos = list(images) or sample_photo_paths()
    for photo in photos:
        if not photo.exists():
            raise MlclsError(f"Expected a photo or a folder of photos, got {photo}, which does not exist.")
    embedded_installation()  # what this machine lacks is reported before anything slow starts
    started = time.monotonic()
    root = work / "model_repository"
    name = _provide_model(model, root, demo_model)
    _say(f"Starting tritonserver with {name} ...")
    with mlcls.serve(name, repository=root) as server:
        _say(f"Ready at grpc {server.grpc_url} and http {server.http_url}. Labeling {len(photos)} photos:\n")
        status = run_client(["predict", name, *map(str, photos), "--url", server.grpc_url, "--save", str(output)])
    _say(f"\nServer stopped. {time.monotonic() - started:.0f} s in all.")
    if status == 0:
        _say(f"Annotated pictures: {', '.join(sorted(str(path) for path in output.iterdir() if path.is_file()))}")
    if name == DEMO_NAME:
        _say(
            f"{model} could not be downloaded. The demo model used instead names the basic colors that cover a "
            f"tenth of the picture or more; it was trained on generated scenes (docs/explanation/demo-model.md)."
        )
    return status


def _provide_model(model: str, root: Path, demo_model: Path) -> str:
    """Import the official model, or the demo model if it cannot be downloaded; return its name."""
    repository = Repository(root)
    if repository.is_imported(model):
        _say(f"{model} is already imported ({root}).")
        return model
    try:
        _say(f"Downloading the official {model} ...")
        report = import_model(model, repository)
    except DownloadError as error:
        _say(f"{error}\nGoing on with the demo model.")
        source_sha256 = PaddleXModel.open(demo_model).make_spec().source_sha256
        imported = repository.is_imported(DEMO_NAME) and repository.active(DEMO_NAME).spec
        if imported and imported.source_sha256 == source_sha256:
            return DEMO_NAME
        report = import_model(str(demo_model), repository, name=DEMO_NAME)
    _say(f"Imported {report.spec.name}: {report.parity}.")
    return report.spec.name


if __name__ == "__main__":
    sys.exit(main())
