"""`mlcls export`: fresh and trained models as PaddleX inference models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcls.base.files import sha256_of
from mlcls.errors import ModelFormatError, SpecError
from mlcls.paddle.inference_yml import read_inference_yml
from mlcls.paddle.model import PaddleXModel
from mlcls.paddle.runtime import import_paddle
from mlcls.training.architectures import build_network, load_trained_network
from mlcls.training.export import export_model
from support.processes import run_mlcls

LABELS = ("red", "green", "blue")
ARCHITECTURE = "PP-LCNet_x1_0_ML"


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as a training would leave them: here those of a fresh network with five queries for three labels."""
    paddle = import_paddle("train")
    path = tmp_path_factory.mktemp("weights") / "model.pdparams"
    paddle.save(build_network(ARCHITECTURE, len(LABELS), query_num=2, seed=3).state_dict(), str(path))
    return path


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    digests = []
    for index, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(index)
        export_model(ARCHITECTURE, folder, labels=LABELS, size=(64, 64), seed=seed)
        digests.append(sha256_of(folder / "inference.pdiparams"))
    assert digests[0] == digests[1] != digests[2]


def test_the_command_writes_a_paddlex_model(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    folder = tmp_path / "model"
    process = run_mlcls(
        "export", ARCHITECTURE, "--output", folder, "--labels", labels, "--size", "64x96", "--threshold", "0.4"
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "freshly initialized (seed 0)" in process.stdout
    config = read_inference_yml(folder / "inference.yml")
    assert (config.model_name, config.labels, config.thresholds) == (ARCHITECTURE, LABELS, (0.4,) * 3)
    assert (config.transform.height, config.transform.width) == (64, 96)
    assert PaddleXModel.open(folder).graph.name == "inference.json"


def test_trained_weights_are_exported_as_they_are(tmp_path: Path, trained_weights: Path) -> None:
    export_model(ARCHITECTURE, tmp_path / "model", labels=LABELS, size=(64, 64), weights=trained_weights)
    paddle = import_paddle("train")
    network = load_trained_network(ARCHITECTURE, len(LABELS), trained_weights)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with paddle.no_grad():
        expected = paddle.nn.functional.sigmoid(network(paddle.to_tensor(inputs))).numpy()
    exported = paddle.jit.load(str(tmp_path / "model" / "inference"))
    exported.eval()
    np.testing.assert_allclose(exported(paddle.to_tensor(inputs)).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "arguments", "words"),
    [
        ("ResNet50_ML", {"weights": "trained"}, r"expected the \d+ parameters of ResNet50_ML, got \d+; missing"),
        (
            ARCHITECTURE,
            {"weights": "trained", "labels": "abcdefgh"},
            "for 8 labels. Use the label list that was trained",
        ),
        (ARCHITECTURE, {"weights": "broken"}, r"expected a file that paddle\.save wrote"),
        (ARCHITECTURE, {"labels": ["a", "a"]}, "expected different labels"),
        (ARCHITECTURE, {"labels": []}, "labels: expected array of length >= 1"),
        (ARCHITECTURE, {"size": (16, 16)}, "expected at least 32x32"),
        (ARCHITECTURE, {"threshold": float("nan")}, "expected a finite number"),
        ("AlexNet", {}, "'AlexNet' is not one of the six models"),
    ],
)
def test_what_cannot_be_served_is_not_exported(
    architecture: str, arguments: dict[str, Any], words: str, trained_weights: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pdparams"
    broken.write_bytes(b"no weights")
    if "weights" in arguments:
        arguments = {**arguments, "weights": {"trained": trained_weights, "broken": broken}[arguments["weights"]]}
    with pytest.raises((ModelFormatError, SpecError), match=words):
        export_model(architecture, tmp_path / "model", **{"labels": LABELS, **arguments})
    assert not (tmp_path / "model").exists()
