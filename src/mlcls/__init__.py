"""Serve PaddleX image multi-label classification models on Triton Inference Server.

The functions of this module are the library's public API: import a model, publish its next version, serve it, evaluate
it, and train one. Each imports what it needs when it is called, so that `import mlcls` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcls.errors import MlclsError

if TYPE_CHECKING:
    from mlcls.evaluation.evaluate import Evaluation
    from mlcls.releases.importing import ImportReport
    from mlcls.releases.rollout import Rollout
    from mlcls.server.process import TritonServer
    from mlcls.training.run_folder import TrainReport

__version__ = "0.1.0"
__all__ = ["MlclsError", "__version__", "evaluate", "import_model", "publish", "serve", "train"]


def import_model(
    source: str | Path,
    repository: str | Path = "model_repository",
    *,
    name: str | None = None,
    photos: Iterable[str | Path] = (),
    replace_versions: bool = False,
) -> ImportReport:
    """Convert a PaddleX model, check it against Paddle on real photos, and add it to a model repository.

    Args:
        source: A folder, an archive, a URL, or the name of an official model.
        repository: The model repository; created if it does not exist.
        name: Name to serve the model under; by default PaddleX's.
        photos: Photos for the check; by default crops of scikit-learn's two sample photos.
        replace_versions: Whether to replace a model that has several versions.

    Returns:
        The model's spec, and how far its scores are from Paddle's.

    Raises:
        MlclsError: The model cannot be read or converted, or its scores differ. The repository stays as it was.
    """
    from mlcls.releases import importing
    from mlcls.repository.models import Repository

    return importing.import_model(
        str(source),
        Repository(Path(repository)),
        name=name,
        photos=[Path(photo) for photo in photos],
        replace_versions=replace_versions,
    )


def publish(
    source: str | Path,
    repository: str | Path = "model_repository",
    *,
    name: str | None = None,
    photos: Iterable[str | Path] = (),
    server: TritonServer | None = None,
    keep: int = 3,
) -> Rollout:
    """Convert a PaddleX model as `import_model` does, and make it the next version of the model with its name.

    Args:
        source: A folder, an archive, a URL, or the name of an official model.
        repository: The model repository.
        name: Name to serve the model under; by default PaddleX's.
        photos: Photos for the check; by default crops of scikit-learn's two sample photos.
        server: A server that `serve` started on this repository; it switches without a failed request.
        keep: How many versions to keep in the repository.

    Returns:
        The new version, and the one that was active before.

    Raises:
        MlclsError: The model cannot be converted or loaded. The version that was active stays active.
    """
    from mlcls.releases import importing, rollout
    from mlcls.repository.models import Repository
    from mlcls.server.model_control import ModelControl

    control = None if server is None else ModelControl(f"http://{server.http_url}", server.admin_key)
    root = Repository(Path(repository))
    images = [Path(photo) for photo in photos]
    with importing.convert_model(str(source), root, name=name, photos=images) as (_, staged):
        return rollout.publish(root, staged, control=control, keep=keep)


def serve(*models: str, repository: str | Path = "model_repository", **options: Any) -> TritonServer:
    """Start the embedded tritonserver on this machine and wait until the models are ready.

    Use it as a context manager, which stops the server at the end, or call its `stop()`.

    Args:
        *models: Names of imported models.
        repository: The model repository.
        **options: Fields of `ServerOptions`, for example `target="int8"` or `http_port=8000`. By default the server
            listens on free ports of the loopback interface.

    Returns:
        The server; `grpc_url` and `http_url` are where it listens.

    Raises:
        MlclsError: A model is not imported or incomplete, or the server does not become ready.
    """
    import dataclasses

    from mlcls.server.options import ServerOptions
    from mlcls.server.process import TritonServer

    chosen = dataclasses.replace(ServerOptions.on_free_ports(Path(repository), *models), **options)
    return TritonServer(chosen).start()


def evaluate(
    model: str, annotations: str | Path, repository: str | Path = "model_repository", *, runner: str = "openvino"
) -> Evaluation:
    """Measure an imported model on annotated images, and show a progress bar.

    Args:
        model: Name of the model; its active version is measured.
        annotations: `val.txt` of an `MLClsDataset`, or a file in the same format.
        repository: The model repository.
        runner: What computes the scores: `openvino`, `onnxruntime`, `served=HOST:PORT`, `paddle=FOLDER` and more.

    Returns:
        Scores, targets and all metrics: mAP, precision, recall and F1, overall and for each label.

    Raises:
        MlclsError: The model is not imported, the annotation file is wrong, or an image cannot be used.
    """
    import contextlib

    from mlcls.engines.runner_selection import open_runner
    from mlcls.evaluation import evaluate as evaluation
    from mlcls.repository.models import Repository

    version = Repository(Path(repository)).active(model)
    with contextlib.ExitStack() as stack:
        opened = open_runner(runner, version, stack)
        return evaluation.evaluate(opened, Path(annotations), version.spec.thresholds)


def train(
    model: str, dataset: str | Path, output: str | Path = "output", *, device: str = "cpu", **settings: Any
) -> TrainReport:
    """Train one of the six architectures on a dataset, and export the best weights as a PaddleX model.

    Args:
        model: The architecture, for example `PP-LCNet_x1_0_ML`.
        dataset: Folder of an `MLClsDataset`.
        output: Folder for all results; the model is in `best_model/inference`.
        device: `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; several numbers start as many processes.
        **settings: Fields of PaddleX's section `Train`: `epochs_iters`, `batch_size`, `learning_rate` and more.

    Returns:
        The best metrics, and where the weights and the exported model are.

    Raises:
        MlclsError: The dataset, the weights or the settings are wrong, or the training diverged.
    """
    from mlcls.training.settings import TrainSettings
    from mlcls.training.train import train_model

    shared = {"model": model, "dataset_dir": dataset, "output": output, "device": device}
    return train_model(TrainSettings.from_config({"Global": shared, "Train": settings}))
