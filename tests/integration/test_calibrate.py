"""`mlcls calibrate` on a real model and a real server: the served labels follow the new thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mlcls.cli import main
from mlcls.dataset.annotations import format_annotations
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, Scores
from mlcls.engines.served_runner import ServedRunner
from mlcls.evaluation.scoring import score_annotated
from mlcls.repository.models import Repository
from mlcls.server.options import ADMIN_KEY_VARIABLE
from support.image_samples import write_photos
from support.processes import run_mlcls, start_server
from support.served_models import SMALL_LABELS

NAME = "small_with_sigmoid"
COUNT = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"), COUNT, seed=5)


def write_annotations(path: Path, photos: list[Path], targets: npt.NDArray[np.bool_]) -> Path:
    path.write_text(format_annotations(list(map(str, photos)), targets))
    return path


@pytest.fixture
def labeled(root: Path, photos: list[Path], tmp_path: Path) -> Path:
    """What the model ranks highest has the label: 60% of the images, then 50% and so on; the last label is rare."""
    blank = write_annotations(tmp_path / "blank.txt", photos, np.zeros((COUNT, len(SMALL_LABELS)), np.bool_))
    ranks = np.argsort(np.argsort(score(root, blank), axis=0), axis=0)
    return write_annotations(tmp_path / "val.txt", photos, ranks >= COUNT - np.array([24, 20, 16, 12, 3]))


def score(root: Path, labeled: Path) -> Scores:
    spec = Repository(root).active(NAME).spec
    runner = OnnxRuntimeRunner(Repository(root).active(NAME).engine_folder / "model.onnx", spec)
    return score_annotated(DecodingRunner(runner, spec), labeled).scores


def calibrate(root: Path, labeled: Path, *options: str | Path, status: int = 0) -> None:
    arguments = ("calibrate", NAME, "--repository", root, "--annotations", labeled, *options)
    assert main(list(map(str, arguments))) == status


@pytest.mark.slow
def test_served_labels_follow_the_new_thresholds(
    root: Path, labeled: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a running server that is switched, and on one that starts afterwards; going back too."""
    output = tmp_path / "output"
    scores = score(root, labeled)
    targets = np.array([[int(bit) for bit in line.split("\t")[1].split(",")] for line in labeled.open()], np.bool_)
    with start_server(root, NAME) as server:
        old = Repository(root).active(NAME).spec
        process = run_mlcls(
            "calibrate", NAME, "--repository", root, "--annotations", labeled, "--output", output,
            "--runner", f"served={server.grpc_url}", "--url", f"http://{server.http_url}",
            **{ADMIN_KEY_VARIABLE: server.admin_key},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert f"Version 2 of {NAME} has the new thresholds and is active" in process.stdout
        new = Repository(root).active(NAME).spec
        assert new.thresholds[:4] != old.thresholds[:4]
        assert new.thresholds[4] == old.thresholds[4]
        assert "to fit on" in process.stdout
        images = [path.read_bytes() for path in photos]
        # the runner refuses a result that does not follow from the spec's thresholds
        served = np.concatenate([ServedRunner(server.grpc_url, new).scores(images[at : at + 8]) for at in (0, 8, 16)])
        predicted = served[:, :4] > np.asarray(new.thresholds[:4], np.float32)
        assert (predicted == targets[: len(predicted), :4]).mean() > 0.9
        assert abs(served - scores[: len(served)]).max() < 1e-4
    with start_server(root, NAME) as server:
        ServedRunner(server.grpc_url, new).scores(images[:8])
        monkeypatch.setenv(ADMIN_KEY_VARIABLE, server.admin_key)
        assert main(["rollback", NAME, "--repository", str(root), "--url", f"http://{server.http_url}"]) == 0
        ServedRunner(server.grpc_url, old).scores(images[:8])
    document = json.loads((output / "calibration.json").read_text())
    assert document["after"]["pooled"]["f1"] > document["before"]["pooled"]["f1"] + 0.1
    assert [label["label"] for label in document["labels"]] == list(SMALL_LABELS)
    assert [label["new"] for label in document["labels"]] == list(new.thresholds)
    assert document["runner"] == "served"
    assert cv2.imread(str(output / "calibration.png")) is not None


@pytest.mark.parametrize("runner", ["onnxruntime", "openvino"])
def test_repository_stays_whole(root: Path, labeled: Path, runner: str, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(root, labeled, "--runner", runner)
    assert "A running server without --poll keeps the old thresholds" in capsys.readouterr().out
    assert main(["repository", "--repository", str(root)]) == 0
    assert main(["repository", "--check", "--repository", str(root)]) == 0
    assert (Repository(root).active_number(NAME), Repository(root).numbers(NAME)) == (2, [1, 2])


def test_dry_run_and_version(root: Path, labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(root, labeled, "--dry-run")
    assert Repository(root).numbers(NAME) == [1]
    assert "Nothing was written" in capsys.readouterr().out
    calibrate(root, labeled)
    calibrate(root, labeled, "--version", "1", "--recall", "0.9")
    assert f"version 2 stays active. Switch: mlcls rollback {NAME} --to 3" in capsys.readouterr().out
    assert Repository(root).active_number(NAME) == 2
    calibrate(root, labeled, "--version", "1", "--runner", "served", status=1)
    assert (
        "Expected --version 2, which is the active one, or a runner other than served, got --version"
        in capsys.readouterr().err
    )
    calibrate(root, labeled)
    assert "No threshold changes" in capsys.readouterr().out


def test_worse_thresholds_need_force(
    root: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Targets that have nothing to do with the images: some choice of the held-out part is worse off."""
    targets = np.random.default_rng(0).random((COUNT, len(SMALL_LABELS))) < 0.5
    noise = write_annotations(tmp_path / "noise.txt", photos, targets)
    calibrate(root, noise, "--recall", "1", "--force")  # predicts nearly everything, which is hard to beat on noise
    for seed in map(str, range(10)):
        calibrate(root, noise, "--seed", seed, "--dry-run")
        if "Warning: worse on the held-out images" in capsys.readouterr().out:
            break
    calibrate(root, noise, "--seed", seed, status=1)
    assert "Nothing was written. Add images, or pass --force." in capsys.readouterr().err
    assert Repository(root).numbers(NAME) == [1, 2]
    calibrate(root, noise, "--seed", seed, "--force")
    assert Repository(root).active_number(NAME) == 3


def test_wrong_options(root: Path, labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in {
        ("--precision", "90"): "Expected a precision above 0 and at most 1, got 90.0.",
        ("--holdout", "1"): "Expected a share of held-out images between 0 and 1, got 1.0.",
        ("--version", "9"): "has no version 9; expected one of 1",
        ("--annotations", "missing.txt"): "missing.txt",
    }.items():
        calibrate(root, labeled, *options, status=1)
        assert message in capsys.readouterr().err
    assert Repository(root).numbers(NAME) == [1]
