"""`mlcls verify` and the gate on real runners: Paddle, ONNX Runtime, OpenVINO and the served ensemble."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mlcls.engines.gate import LIMITS, PROBED_IMAGES, GateReport, run_gate
from mlcls.engines.runner_selection import open_runner
from mlcls.engines.runners import DecodingRunner, ImageRunner, OnnxRuntimeRunner
from mlcls.engines.served_runner import ServedRunner
from mlcls.errors import MlclsError, ParityError
from mlcls.images.photos import photo_crops, photo_images
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.server.process import TritonServer
from support.processes import run_mlcls
from support.served_models import SMALL_LABELS, SmallModels

NAME = "small_with_sigmoid"


@pytest.fixture(scope="module")
def model(small_models: SmallModels) -> ModelVersion:
    return Repository(small_models.repository).active(NAME)


@pytest.fixture(scope="module")
def paddle(model: ModelVersion, small_models: SmallModels) -> Iterator[ImageRunner]:
    with contextlib.ExitStack() as stack:
        yield open_runner(f"paddle={small_models.with_sigmoid}", model, stack)


@pytest.fixture(scope="module")
def onnxruntime(model: ModelVersion) -> ImageRunner:
    return open_runner("onnxruntime", model, contextlib.ExitStack())


@pytest.fixture
def served(model: ModelVersion, small_server: TritonServer) -> ServedRunner:
    return ServedRunner(small_server.grpc_url, model.spec)


def compare(reference: ImageRunner, candidate: ImageRunner) -> GateReport:
    return run_gate(reference, candidate, photo_images([], PROBED_IMAGES), [0.5] * len(SMALL_LABELS))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve photos of several formats, and an annotation file for them."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(3)
    lines = []
    for index, crop in enumerate(photo_crops(12, seed=5)):
        file = f"{index:02}.{('png', 'jpg', 'webp')[index % 3]}"
        cv2.imwrite(str(folder / file), crop[:, :, ::-1])
        lines.append(f"{file}\t{','.join(map(str, generator.integers(0, 2, len(SMALL_LABELS))))}\n")
    (folder / "val.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("candidate", ["onnxruntime", "openvino", "served"])
def test_every_runner_answers_what_paddle_answers(
    candidate: str, small_models: SmallModels, small_server: TritonServer, photos: Path, tmp_path: Path
) -> None:
    where = f"={small_server.grpc_url}" if candidate == "served" else ""
    process = run_mlcls(
        "verify", NAME, "--repository", small_models.repository, "--reference", f"paddle={small_models.with_sigmoid}",
        "--candidate", candidate + where, "--annotations", photos / "val.txt", "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0].startswith(f"{candidate} against paddle on 12 images: highest difference ")
    assert process.stdout.splitlines()[-1] == "PASSED"
    report = json.loads((tmp_path / "report.json").read_text())
    ways = {figure["way"] for figure in report["figures"]}
    assert {"batch 1", "batch 2", "batch 7", "batch 8", "batch 32", "repeated rows", "permuted rows"} <= ways
    assert ("8 requests at once" in ways) is (candidate == "served")
    assert 0 < report["max_difference"] <= 1e-4
    assert report["spread"] > 0.05
    assert report["candidate_map"] == pytest.approx(report["reference_map"], abs=1e-4)
    assert 0.2 < report["candidate_map"] < 1


def test_exit_status_of_a_failure(small_models: SmallModels, tmp_path: Path) -> None:
    process = run_mlcls(
        "verify", NAME, "--repository", small_models.repository, "--max-difference", "1e-12", "--json",
        tmp_path / "report.json",
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.splitlines()[0].startswith("FAILED  batch 1: highest difference ")
    assert json.loads((tmp_path / "report.json").read_text())["failures"]


def test_exit_status_of_photos_that_tell_nothing(small_models: SmallModels, photos: Path) -> None:
    process = run_mlcls("verify", NAME, "--repository", small_models.repository, "--photos", photos / "00.png")
    assert process.returncode == 1
    assert process.stderr.startswith("FAILED  the scores of two photos differ by 0.0e+00 only")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate", "torch"], "Expected a runner, one of paddle, onnxruntime, openvino, "),
        (["--candidate", "openvino="], "or KIND=WHERE, got 'openvino='"),
        (["--candidate", "openvino=no.onnx"], "Expected an engine's file, got no.onnx, which does not exist"),
        (["--reference", "paddle"], "Expected paddle=FOLDER"),
        (["--candidate", "served=127.0.0.1:9"], "small_with_sigmoid at 127.0.0.1:9: "),
        (["--photos", "no.jpg"], "no.jpg: expected a photo"),
        (["--annotations", "no.txt"], "no.txt: expected this file, but it does not exist"),
    ],
)
def test_wrong_arguments(small_models: SmallModels, arguments: list[str], message: str) -> None:
    process = run_mlcls("verify", NAME, "--repository", small_models.repository, *arguments)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("mlcls verify: ")
    assert message in line


def test_a_paddle_model_that_is_not_the_imported_one(model: ModelVersion, small_models: SmallModels) -> None:
    with pytest.raises(MlclsError, match="Expected the PaddleX model that small_with_sigmoid was imported from"):
        open_runner(f"paddle={small_models.with_logits}", model, contextlib.ExitStack())


# --- faults in real runners; tests/unit/engines/test_gate.py plants more into others


def test_nothing_planted(paddle: ImageRunner, onnxruntime: ImageRunner, served: ServedRunner) -> None:
    for candidate in (onnxruntime, served):
        report = compare(paddle, candidate)
        assert report.failures == ()
        assert not report.is_blind


def test_cv2_instead_of_pil(paddle: ImageRunner, model: ModelVersion) -> None:
    """It does not antialias: other pixels, other scores."""
    transform = dataclasses.replace(model.spec.transform, resize_backend="cv2", interpolation="LINEAR")
    runner = OnnxRuntimeRunner(model.engine_folder / ONNX_FILE, model.spec)
    candidate = DecodingRunner(runner, dataclasses.replace(model.spec, transform=transform))
    with pytest.raises(ParityError, match="batch 1: highest difference"):
        compare(paddle, candidate).require()


def test_exchanged_labels(paddle: ImageRunner, model: ModelVersion, small_server: TritonServer) -> None:
    labels = (SMALL_LABELS[1], SMALL_LABELS[0], *SMALL_LABELS[2:])
    spec = dataclasses.replace(model.spec, labels=labels)
    exchanged = DecodingRunner(OnnxRuntimeRunner(model.engine_folder / ONNX_FILE, spec), spec)
    assert compare(paddle, exchanged).failures == ("2 labels differ, the first is class 0: 'dog' instead of 'cat'",)
    # a server whose results name other labels than the spec
    with pytest.raises(ParityError, match="Expected the result that follows from the scores"):
        compare(exchanged, ServedRunner(small_server.grpc_url, spec))


def test_an_image_that_the_server_refuses(served: ServedRunner) -> None:
    with pytest.raises(ParityError, match="Expected a result for image 1 of a batch, got: image: expected"):
        served.scores([photo_images([], 1)[0], b"no image"])


def test_limits_grow_with_less_precision() -> None:
    for one, other in (("fp32", "fp16"), ("fp16", "int8")):
        narrow, wide = dataclasses.astuple(LIMITS[one]), dataclasses.astuple(LIMITS[other])  # type: ignore[index]
        assert all(low <= high for low, high in zip(narrow, wide, strict=True))
