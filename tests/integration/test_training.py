"""Whole trainings: learning, resuming, several processes, and what they leave."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from msgspec.structs import replace
from PIL import Image

from mlcls import cli
from mlcls.base.download import cache_path
from mlcls.dataset.check import examine_dataset
from mlcls.errors import DatasetError, DownloadError, TrainingError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.metrics import mean_average_precision
from mlcls.paddle.runtime import import_paddle
from mlcls.paddlex.config import read_config
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.training.architectures import PPLCNET_SCALES, backbone_url, build_network, find_size, load_trained_network
from mlcls.training.data import TrainingData, read_batches
from mlcls.training.optimization import make_optimizer
from mlcls.training.processes import ProcessGroup, StopRequest
from mlcls.training.run_folder import RunFolder, TrainReport
from mlcls.training.settings import TrainSettings
from mlcls.training.train import train_in_process, train_model
from mlcls.training.trainer import Trainer, score_images
from support.dataset_samples import COLORS, write_colored_dataset
from support.processes import ROOT

MODEL = "PP-LCNet_x1_0_ML"
SIZE = (32, 32)
LEARNED_STEPS = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These images are too small to share out, and threads that wait for each other are slow on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, TrainReport]:
    """A training that learns eight images by heart."""
    folder = tmp_path_factory.mktemp("learned")
    settings = TrainSettings(
        MODEL,
        write_colored_dataset(folder / "dataset", train=8),
        output=folder / "output",
        epochs_iters=LEARNED_STEPS,
        batch_size=8,
        log_interval=10,
        eval_interval=30,
        save_interval=100,
        image_size=SIZE,
        cutout=False,
        rand_augment=False,
        num_workers=2,
        pretrain_weight_path=False,
    )
    return settings, train_model(settings)


def assert_equal_states(one: Path, other: Path) -> None:
    first, second = (import_paddle("train").load(str(path)) for path in (one, other))
    assert list(first) == list(second)
    for name, value in first.items():
        if hasattr(value, "numpy"):
            np.testing.assert_array_equal(value.numpy(), second[name].numpy(), err_msg=name)
        else:
            assert value == second[name], name


# --- learning


def test_eight_images_are_learned_by_heart_and_all_files_are_there(learned: tuple[TrainSettings, TrainReport]) -> None:
    settings, report = learned
    assert report.mean_average_precision > 0.95
    root = settings.output
    result = json.loads((root / "train_result.json").read_text())
    assert result["done_flag"] is True
    assert result["model_name"] == MODEL
    assert result["metrics"]["MultiLabelMAP"] == report.mean_average_precision
    best = result["models"]["best"]
    assert best["score"] == report.mean_average_precision
    for field in ("pdparams", "pdema", "pdopt", "pdstates", "inference_config", "pdmodel", "pdiparams"):
        assert (root / best[field]).is_file(), field
    for field in ("config", "label_dict", "train_log"):
        assert (root / result[field]).is_file(), field
    assert TrainSettings.from_config(yaml.safe_load((root / "config.yaml").read_text())) == settings
    assert (root / "label_dict.txt").read_bytes() == (settings.dataset_dir / "label.txt").read_bytes()
    log = (root / "train.log").read_text()
    assert "8 images to train on, 8 to evaluate on, 3 labels" in log
    assert "No pretrained weights: training from scratch." in log
    assert log.count(" images/s time left ") == LEARNED_STEPS // 10
    assert f"Done: mAP {report.mean_average_precision:.4f}" in log


def test_curves_of_a_training(learned: tuple[TrainSettings, TrainReport]) -> None:
    settings, report = learned
    folder = settings.output / "curves"
    steps = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in steps] == list(range(10, LEARNED_STEPS + 1, 10))
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"]) / 4
    evaluations = list(csv.DictReader((folder / "evaluations.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in evaluations] == [30, 60]
    scores = [float(row[name]) for row in evaluations for name in ("map_weights", "map_average")]
    assert max(scores) == report.mean_average_precision
    with Image.open(folder / "curves.png") as image:
        assert image.size == (880, 990)


def test_the_exported_model_scores_like_the_best_weights_and_is_imported(
    learned: tuple[TrainSettings, TrainReport], tmp_path: Path
) -> None:
    settings, report = learned
    paddle = import_paddle("train")
    data = TrainingData.read(settings.dataset_dir)
    network = load_trained_network(MODEL, len(data.labels), report.weights)
    (expected,) = score_images([network], data.val, settings, ProcessGroup())
    assert mean_average_precision(expected, data.val.targets) == report.mean_average_precision

    exported = paddle.jit.load(str(report.inference / "inference"))
    exported.eval()
    ((inputs, _),) = read_batches(data.val, settings.transform, [np.arange(len(data.val))], 0)
    np.testing.assert_allclose(exported(paddle.to_tensor(inputs)).numpy(), expected, rtol=0, atol=1e-5)

    spec = import_model(str(report.inference), Repository(tmp_path / "repository"), name="colors").spec
    assert spec.labels == tuple(COLORS)
    assert (spec.transform.height, spec.transform.width) == settings.size


# --- what mode `evaluate` says of the weights


def run_mode(settings: TrainSettings, output: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    options = [
        "Global.mode=evaluate",
        f"Global.dataset_dir={settings.dataset_dir}",
        f"Global.output={output}",
        f"Evaluate.weight_path={settings.output / 'best_model/best_model.pdparams'}",
        "Train.image_size=32",
        "Train.threshold=0.4",
        "Train.batch_size=4",
        *overrides,
    ]
    command = ["paddlex", "-c", str(ROOT / f"configs/{MODEL}.yaml"), *(x for option in options for x in ("-o", option))]
    status = cli.main(command)
    return status, json.loads((output / "evaluate_result.json").read_text())


def test_an_evaluation_gives_the_figure_of_the_training(
    learned: tuple[TrainSettings, TrainReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = run_mode(learned[0], tmp_path)
    assert status == 0
    assert list(result)[:2] == ["done_flag", "metrics"]
    assert result["done_flag"] is True
    assert result["metrics"]["MultiLabelMAP"] == pytest.approx(learned[1].mean_average_precision, abs=1e-4)
    assert (result["samples_expected"], result["samples_read"], result["runner"]) == (8, 8, "weights")
    assert [row["threshold"] for row in result["per_class"]] == [0.4] * 3
    for path in result["pictures"].values():
        Image.open(tmp_path / path).verify()
    rows = list(csv.DictReader((tmp_path / result["per_class_csv"]).read_text().splitlines()))
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["evaluated 4 images", "evaluated 8 images"]
    assert out[2] == "weights: 8 of 8 samples read, 3 of 3 labels counted"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "Evaluate.weight_path=none.pdparams",
            "Evaluate.weight_path: expected a .pdparams file or its URL, got 'none.pdparams', which does not exist",
        ),
        ("Train.image_size=64", "Train.image_size: expected (32, 32), the height and width that these weights were"),
        ("Train.num_classes=4", "expected 4 labels, as Train.num_classes says, got 3"),
        ("Global.model=ResNet50_ML", "expected the"),
    ],
)
def test_an_evaluation_that_cannot_be(
    learned: tuple[TrainSettings, TrainReport],
    tmp_path: Path,
    override: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, result = run_mode(learned[0], tmp_path, override)
    assert status == 1
    assert result["done_flag"] is False
    assert text in result["err_msg"]
    assert result["err_msg"] in capsys.readouterr().err


def test_an_evaluation_without_weights_takes_the_best_of_the_output(
    learned: tuple[TrainSettings, TrainReport], tmp_path: Path
) -> None:
    status, result = run_mode(learned[0], tmp_path, "Evaluate.weight_path=None")
    assert status == 1
    best = tmp_path / "best_model/best_model.pdparams"
    assert f"Evaluate.weight_path: expected a .pdparams file or its URL, got '{best}'" in result["err_msg"]
    shutil.copytree(learned[0].output / "best_model", best.parent)
    status, result = run_mode(learned[0], tmp_path, "Evaluate.weight_path=None")
    assert (status, result["weight_path"]) == (0, str(best))
    assert result["metrics"]["MultiLabelMAP"] == pytest.approx(learned[1].mean_average_precision, abs=1e-4)


def test_an_evaluation_with_an_unreadable_image(learned: tuple[TrainSettings, TrainReport], tmp_path: Path) -> None:
    dataset = shutil.copytree(learned[0].dataset_dir, tmp_path / "dataset")
    path = dataset / (dataset / "val.txt").read_text().splitlines()[6].split("\t")[0]
    path.write_bytes(path.read_bytes()[:50])
    status, result = run_mode(learned[0], tmp_path, f"Global.dataset_dir={dataset}")
    assert (status, result["err_type"]) == (1, "DatasetError")
    assert str(path) in result["err_msg"]


# --- resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """An uninterrupted training of two epochs of three steps, with everything random in it."""
    folder = tmp_path_factory.mktemp("whole")
    settings = TrainSettings(
        MODEL,
        write_colored_dataset(folder / "dataset", train=10, val=4),
        output=folder / "output",
        epochs_iters=2,
        batch_size=4,
        warmup_steps=1,
        log_interval=1,
        image_size=SIZE,
        num_workers=2,
        seed=11,
        pretrain_weight_path=False,
    )
    train_model(settings)
    return settings


def assert_same_training(one: Path, other: Path) -> None:
    for name in ("latest/latest", "best_model/best_model"):
        for suffix in ("pdparams", "pdema", "pdopt"):
            assert_equal_states(one / f"{name}.{suffix}", other / f"{name}.{suffix}")
    for name in ("steps.csv", "evaluations.csv"):
        assert (one / "curves" / name).read_text() == (other / "curves" / name).read_text()


def training_command(settings: TrainSettings, output: Path, **changes: Any) -> list[str]:
    """PaddleX's command line with each setting that is not in its file."""
    config = replace(settings, output=output, **changes).to_config()
    command = [sys.executable, str(ROOT / "scripts" / "main.py"), "-c", str(ROOT / "configs" / f"{MODEL}.yaml")]
    for section, values in config.items():
        for name, value in values.items():
            command += ["-o", f"{section}.{name}={json.dumps(value) if not isinstance(value, str) else value}"]
    return command


def wait_for_line(log: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not log.exists() or text not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, text
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_was_ended_is_resumed_to_the_same_weights(
    whole: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: signal.Signals
) -> None:
    """Begun by PaddleX's command, stopped or killed in its second epoch, resumed by the same command."""
    output = tmp_path / "output"
    process = subprocess.Popen(training_command(whole, output), stderr=subprocess.PIPE, text=True)
    wait_for_line(output / "train.log", "epoch 2/2 step 1/3")
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    if ending == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert re.search(r"resume with Train\.resume_path=.*latest", errors)
    assert json.loads((output / "train_result.json").read_text())["done_flag"] is False
    # what was ended may be named in PaddleX's way, by its weights
    command = training_command(whole, output, resume_path=str(output / "latest" / "latest.pdparams"))
    assert cli.main(["paddlex", *command[2:]]) == 0  # what scripts/main.py does, without importing paddle again
    assert "Resumed after " in capsys.readouterr().out
    assert_same_training(whole.output, output)
    result = json.loads((output / "train_result.json").read_text())
    assert result["done_flag"] is True
    assert (output / result["models"]["best"]["inference_config"]).is_file()
    again = read_config(output / "config.yaml")
    assert (again.Global.mode, again.Train.seed, again.Train.image_size) == ("train", 11, 32)


def test_another_training_is_not_resumed(whole: TrainSettings, tmp_path: Path) -> None:
    latest = str(whole.output / "latest")
    with pytest.raises(TrainingError, match=r"Train\.batch_size was 4, is 5; Train\.seed was 11, is 12") as refused:
        train_model(replace(whole, resume_path=latest, batch_size=5, seed=12))
    assert "pretrain_weight_path" in str(refused.value)
    (changed,) = shutil.copytree(whole.dataset_dir, tmp_path / "dataset").glob("train.txt")
    changed.write_text("".join(sorted(changed.read_text().splitlines(keepends=True), reverse=True)))
    with pytest.raises(TrainingError, match=r"train\.txt of the dataset changed"):
        train_model(replace(whole, resume_path=latest, dataset_dir=changed.parent))


# --- what goes wrong


@pytest.mark.slow
def test_an_unreadable_image_stops_the_training_and_it_goes_on_when_mended(
    whole: TrainSettings, tmp_path: Path
) -> None:
    dataset = write_colored_dataset(tmp_path / "dataset", train=10, val=4)
    path = dataset / "images" / "012.png"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    settings = replace(whole, dataset_dir=dataset, output=tmp_path / "output")
    with pytest.raises(
        DatasetError, match=r"expected a dataset without errors, got 1, the first: val\.txt:3: images/012"
    ):
        train_model(settings)
    assert not settings.output.exists()
    with pytest.raises(DatasetError, match=r"images/012\.png: expected an image"):
        train_in_process(settings, ProcessGroup())  # as if it had been damaged later
    path.write_bytes(good)
    train_model(replace(settings, resume_path=str(tmp_path / "output" / "latest")))
    assert_same_training(whole.output, tmp_path / "output")


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = TrainSettings(MODEL, write_colored_dataset(tmp_path / "dataset", train=4), tmp_path / "output")
    if not import_paddle("train").device.is_compiled_with_cuda():
        for device in ("gpu:0", "gpu:0,1"):
            with pytest.raises(TrainingError, match=f"Global.device: expected paddle with CUDA for {device}"):
                train_model(replace(settings, device=device))
    (settings.dataset_dir / "val.txt").write_text("images/000.png\t0,1\n")
    with pytest.raises(DatasetError, match=r"val\.txt.*line 1.*expected 3 numbers"):
        train_model(settings)
    assert not settings.output.exists()


def test_train_says_what_the_check_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of an image in both parts is a warning, as PaddleX trains on it; a broken image is an error."""
    settings = TrainSettings(
        MODEL, write_colored_dataset(tmp_path / "dataset", train=4, val=2), tmp_path / "output", epochs_iters=1,
        batch_size=4, image_size=SIZE, pretrain_weight_path=False, decoder_width=24, backbone_scale=0.25,
    )  # fmt: skip
    shutil.copy(settings.dataset_dir / "images/000.png", settings.dataset_dir / "images/copy.png")
    with (settings.dataset_dir / "val.txt").open("a") as file:
        file.write("images/copy.png\t1,0,0\n")
    train_model(settings)
    warnings = capsys.readouterr().err.splitlines()[: len(examine_dataset(settings.dataset_dir).warnings)]
    assert warnings == [f"warning: {warning}" for warning in examine_dataset(settings.dataset_dir).warnings]
    assert any("images/copy.png, the same picture as images/000.png" in warning for warning in warnings)
    (settings.dataset_dir / "images/002.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"got 1, the first: train\.txt:3: images/002\.png") as caught:
        train_model(replace(settings, output=tmp_path / "other"))
    assert caught.value.details["problems"][0]["kind"] == "broken-image"
    assert not (tmp_path / "other").exists()


# --- the weights to start from


@pytest.mark.parametrize("source", [None, True])
def test_a_training_starts_from_the_backbone_of_paddleclas(
    source: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its file in the cache; the classifier of ImageNet is not used, and the head is fresh."""
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path))
    paddle = import_paddle("train")
    state = build_network(MODEL, 3, backbone_scale=0.25, decoder_width=24, seed=5).state_dict()
    backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
    url = backbone_url(MODEL, 0.25)
    paddle.save({**backbone, "fc.weight": paddle.zeros([1280, 1000])}, str(cache_path(url)))
    settings = TrainSettings(
        MODEL, write_colored_dataset(tmp_path / "dataset", train=4), tmp_path / "output", epochs_iters=1, batch_size=4,
        image_size=SIZE, pretrain_weight_path=source, decoder_width=24, backbone_scale=0.25, learning_rate=1e-9,
    )  # fmt: skip
    train_model(settings)
    log = (tmp_path / "output/train.log").read_text()
    assert f"Pretrained weights {url}: loaded {len(backbone)} of {len(state)} parameters." in log
    trained = import_paddle("train").load(str(tmp_path / "output/latest/latest.pdparams"))
    for name, value in backbone.items():
        if "_mean" not in name and "_variance" not in name:
            np.testing.assert_allclose(trained[name].numpy(), value.numpy(), atol=1e-6, err_msg=name)


def test_a_backbone_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # no network
    monkeypatch.setattr("mlcls.base.download.FIRST_BACKOFF_S", 0)
    settings = TrainSettings(MODEL, write_colored_dataset(tmp_path / "dataset", train=4), tmp_path / "output")
    with pytest.raises(DownloadError) as caught:
        train_model(settings)
    assert str(caught.value).startswith(f"Could not download {backbone_url(MODEL)}: ")
    assert "-o Train.pretrain_weight_path=/path/to/PPLCNet_x1_0_pretrained.pdparams" in str(caught.value)
    assert str(caught.value).endswith("To train from random weights, set Train.pretrain_weight_path=False.")
    assert not settings.output.exists()


# --- architectures; several processes


@pytest.mark.parametrize(
    "architecture",
    [MODEL] + [pytest.param(name, marks=pytest.mark.slow) for name in OFFICIAL_MODELS if name != MODEL],
)
def test_one_step_of_each_architecture(architecture: str, tmp_path: Path) -> None:
    paddle = import_paddle("train")
    dataset = write_colored_dataset(tmp_path / "dataset", train=2)
    settings = TrainSettings(architecture, dataset, tmp_path / "output", batch_size=2, image_size=SIZE)
    data = TrainingData.read(dataset)
    with paddle.utils.unique_name.guard():
        network = build_network(architecture, len(COLORS))
        before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
        trainer = Trainer(settings, data, network, RunFolder(settings), StopRequest(), ProcessGroup())
        generator = np.random.default_rng(0)
        inputs = paddle.to_tensor(generator.standard_normal((2, 3, *SIZE)).astype(np.float32))
        assert trainer._train_step(inputs, paddle.to_tensor([[1.0, 0, 1], [0, 1, 0]]), 1e-3) > 0
    still = {name for name, tensor in network.state_dict().items() if np.array_equal(tensor.numpy(), before[name])}
    frozen = {name for name in before if name.endswith("query_pos_embed.weight")}
    # CLIP's backbone ends in a projection that the head does not use; units of ReLU may be silent for two images
    assert frozen <= still
    assert len(still) < len(before) * 0.1, still


@pytest.mark.parametrize("scale", PPLCNET_SCALES)
def test_a_file_of_weights_tells_its_size(scale: float, tmp_path: Path) -> None:
    paddle = import_paddle("train")
    size: dict[str, Any] = {"query_num": 2, "backbone_scale": scale, "decoder_width": 48}
    network = build_network(MODEL, len(COLORS), seed=3, **size)
    assert find_size(MODEL, network.state_dict()) == size
    paddle.save(network.state_dict(), str(tmp_path / "small.pdparams"))
    loaded = load_trained_network(MODEL, len(COLORS), tmp_path / "small.pdparams")
    inputs = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, *SIZE)).astype(np.float32))
    assert np.array_equal(loaded(inputs).numpy(), network(inputs).numpy())


def test_clipped_gradients_make_a_smaller_step() -> None:
    paddle = import_paddle("train")
    changes = []
    for clip in (0.0, 1e-12):  # below AdamW's epsilon, so that its step is no longer that of the sign
        paddle.seed(0)
        layer = paddle.nn.Linear(3, 2)
        before = layer.weight.numpy().copy()
        optimizer = make_optimizer(layer, weight_decay=0.0, gradient_clip=clip)
        optimizer.set_lr(0.1)
        layer(paddle.ones([1, 3])).sum().backward()
        optimizer.step()
        changes.append(float(np.abs(layer.weight.numpy() - before).max()))
    assert changes[0] == pytest.approx(0.1, rel=1e-3)
    assert changes[1] < 1e-4


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = write_colored_dataset(tmp_path / "dataset", train=6, val=3)
    settings = TrainSettings(
        MODEL, dataset, tmp_path / "output", device="cpu:0,1", epochs_iters=1, batch_size=2, warmup_steps=0,
        log_interval=1, image_size=SIZE, num_workers=0, pretrain_weight_path=False,
    )  # fmt: skip
    report = train_model(settings)
    log = (tmp_path / "output" / "train.log").read_text()
    assert "2 processes: 6 images to train on" in log
    assert "epoch 1/1 step 2/2" in log
    assert "epoch 1/1 mAP of the moving average" in capfd.readouterr().out
    data = TrainingData.read(dataset)
    network = load_trained_network(MODEL, len(COLORS), report.weights)
    (scores,) = score_images([network], data.val, settings, ProcessGroup())
    assert mean_average_precision(scores, data.val.targets) == pytest.approx(report.mean_average_precision, abs=1e-6)
