"""A converted model loads in the oldest runtimes that it may meet, and gives there what it gives in the newest."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mlcls.engines.fp16.conversion import convert_to_fp16
from mlcls.engines.gate import LIMITS
from mlcls.engines.runners import OnnxRuntimeRunner, OpenVinoRunner
from mlcls.images.photos import photo_pixels
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.metrics import smallest_spread
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import SPEC_FILE, ModelSpec
from support.processes import ROOT

# The first test waits until the six are exported and imported, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)

IMAGES = 3
MAX_DIFFERENCE = 1e-4
MIN_SPREAD = 0.05

# The model whose FP16 graph is tried too.
FP16_MODEL = "PP-LCNet_x1_0_ML"

Answers = Mapping[str, Any]


def version_folder(repository: Path, name: str) -> Path:
    return repository / f"{name}_engine" / "1"


@pytest.fixture(scope="module")
def pixels(official_repository: Path) -> Any:
    """Crops of real photos as all six take them."""
    spec = ModelSpec.read(version_folder(official_repository, "PP-LCNet_x1_0_ML") / SPEC_FILE)
    return photo_pixels([], spec.transform, IMAGES)


def make_fp16(repository: Path) -> onnx.ModelProto:
    """The FP16 graph of the smallest model."""
    graph = onnx.load(str(version_folder(repository, FP16_MODEL) / "model.onnx"))
    return convert_to_fp16(graph)


@pytest.fixture(scope="module")
def oldest_answers(
    official_repository: Path, oldest_python: Path, pixels: Any, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """Logits of all six in the oldest runtimes, by the index of the model, the runtime and the batch size."""
    folder = tmp_path_factory.mktemp("runtimes")
    np.save(folder / "pixels.npy", pixels)
    models = [version_folder(official_repository, name) / "model.onnx" for name in OFFICIAL_MODELS]
    fp16 = folder / "fp16.onnx"
    onnx.save(make_fp16(official_repository), str(fp16))
    models.append(fp16)
    script = ROOT / "tests" / "support" / "runtime_oracle.py"
    process = subprocess.run(
        [oldest_python, script, folder / "answers.npz", folder / "pixels.npy", *models], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(np.load(folder / "answers.npz"))


def test_these_are_the_oldest_runtimes(oldest_answers: Answers) -> None:
    assert str(oldest_answers["onnxruntime"]).startswith("1.19.")
    assert str(oldest_answers["openvino"]).startswith("2024.4.")


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_the_oldest_runtimes_answer_what_the_newest_do(
    name: str, official_repository: Path, oldest_answers: Answers, pixels: Any
) -> None:
    folder = version_folder(official_repository, name)
    spec = ModelSpec.read(folder / SPEC_FILE)
    assert pixels.shape[1:] == (spec.transform.height, spec.transform.width, 3)
    index = list(OFFICIAL_MODELS).index(name)
    for runtime, runner in (
        ("onnxruntime", OnnxRuntimeRunner(folder / "model.onnx", spec)),
        ("openvino", OpenVinoRunner(folder / "model.onnx", spec)),
    ):
        newest = {
            1: np.concatenate([runner.scores(image[None]) for image in pixels]),
            IMAGES: runner.scores(pixels),
        }
        assert smallest_spread(newest[1]) >= MIN_SPREAD, "the images' scores are so alike that swapped ones would pass"
        for batch_size, expected in newest.items():
            got = apply_sigmoid(oldest_answers[f"{index}.{runtime}.{batch_size}"])
            np.testing.assert_allclose(got, expected, rtol=0, atol=MAX_DIFFERENCE, err_msg=f"{runtime}, {batch_size}")
            np.testing.assert_allclose(expected, newest[1], rtol=0, atol=MAX_DIFFERENCE, err_msg=runtime)


def test_an_fp16_graph_loads_in_the_oldest_runtimes(
    official_repository: Path, oldest_answers: Answers, pixels: Any, tmp_path: Path
) -> None:
    """The runtimes may compute it in other precisions: it is compared within the gate's limit for FP16."""
    spec = ModelSpec.read(version_folder(official_repository, FP16_MODEL) / SPEC_FILE)
    path = tmp_path / "fp16.onnx"
    onnx.save(make_fp16(official_repository), str(path))
    limit = LIMITS["fp16"].max_difference
    for runtime, runner in (("onnxruntime", OnnxRuntimeRunner(path, spec)), ("openvino", OpenVinoRunner(path, spec))):
        newest = runner.scores(pixels)
        assert smallest_spread(newest) >= 2 * limit, "the images' scores are so alike that swapped ones would pass"
        for batch_size in (1, IMAGES):
            got = apply_sigmoid(oldest_answers[f"{len(OFFICIAL_MODELS)}.{runtime}.{batch_size}"])
            np.testing.assert_allclose(got, newest, rtol=0, atol=limit, err_msg=f"{runtime}, {batch_size}")
