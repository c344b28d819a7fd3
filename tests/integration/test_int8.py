"""The target `int8` on the real server: what is served is the quantized file, and no other."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mlcls.dataset.annotations import format_annotations
from mlcls.engines.building import BuildRequest
from mlcls.engines.gate import Limits
from mlcls.engines.int8 import build as int8_engine
from mlcls.engines.int8.build import MIN_PHOTOS
from mlcls.engines.openvino import OpenVinoEngine
from mlcls.engines.runners import DecodingRunner, OpenVinoRunner
from mlcls.errors import RepositoryError, ServerError
from mlcls.images.photos import photo_crops
from mlcls.images.transforms import resize_image
from mlcls.model.postprocess import apply_sigmoid
from mlcls.repository.manifest import verify_folder
from mlcls.repository.models import Repository
from mlcls.server.process import TritonServer
from support.image_samples import write_photos
from support.processes import run_mlcls, start_server
from support.served_models import SmallModels
from support.triton_request import ask

NAME = "small_with_sigmoid"

# A freshly initialized network loses more in INT8 than a trained one: these limits let it through all the same.
WIDE = Limits(1.0, 0.2, 1e-2, 0.5, 1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"), MIN_PHOTOS + 6)


@pytest.fixture(scope="module")
def annotation_file(photos: list[Path], small_models: SmallModels) -> Path:
    """The photos with the labels that the FP32 model finds, as an annotation file: its mAP is 1."""
    spec = Repository(small_models.repository).active(NAME).spec
    model = small_models.repository / f"{NAME}_engine" / "1" / "model.onnx"
    scores = DecodingRunner(OpenVinoRunner(model, spec), spec).scores([photo.read_bytes() for photo in photos])
    path = photos[0].parent / "val.txt"
    path.write_text(format_annotations([photo.name for photo in photos], scores > np.median(scores, axis=0)))
    return path


@pytest.fixture(scope="module")
def repository(small_models: SmallModels, annotation_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that has an INT8 engine."""
    root = Path(shutil.copytree(small_models.repository, tmp_path_factory.mktemp("int8") / "model_repository"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_engine, "LIMITS", {"int8": WIDE})
        lines = list(int8_engine.build(BuildRequest(Repository(root).active(NAME), annotations=annotation_file)))
    assert str(root / f"{NAME}_engine" / "1" / "model.int8.onnx") in lines[0]
    assert "100% of the matrix products in INT8, in FP32: none" in lines[0]
    assert f"Serve it: mlcls serve {NAME} --target int8" in lines
    assert not list(root.glob(".mlcls-staging-*"))
    return root


@pytest.fixture(scope="module")
def int8_server(repository: Path) -> Iterator[TritonServer]:
    with start_server(repository, NAME, target="int8") as server:
        yield server


def test_the_quantized_file_is_served(int8_server: TritonServer, repository: Path, photos: list[Path]) -> None:
    folder, spec = repository / f"{NAME}_engine" / "1", Repository(repository).active(NAME).spec
    images = [path.read_bytes() for path in photos[:6]]
    answer = ask(int8_server, NAME, images)
    assert answer.statuses == ["OK"] * len(images)
    scores = {
        file: DecodingRunner(OpenVinoRunner(folder / file, spec), spec).scores(images)
        for file in ("model.int8.onnx", "model.onnx")
    }
    np.testing.assert_allclose(answer.scores, scores["model.int8.onnx"], rtol=0, atol=1e-5)
    assert np.abs(answer.scores - scores["model.onnx"]).max() > 1e-3, "FP32 would pass for INT8"


def test_answers_are_exact_and_each_image_s_own(repository: Path) -> None:
    """On several streams of one compilation, OpenVINO's answers were off by up to 0.7.

    With weights of 8 bits, sums of products overflowed on a processor without VNNI: off by 0.11 on average.
    """
    spec = Repository(repository).active(NAME).spec
    model = repository / f"{NAME}_engine" / "1" / "model.int8.onnx"
    pixels = np.stack([resize_image(crop, spec.transform) for crop in photo_crops(12)])
    engine = OpenVinoEngine(model, spec, threads=4)
    alone = np.concatenate([engine.logits(image[None]) for image in pixels])
    np.testing.assert_allclose(engine.logits(pixels[:5], pixels[5:]), alone, rtol=0, atol=1e-5)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # products in float32
    (exact,) = onnxruntime.InferenceSession(str(model), options).run(None, {"pixels": pixels})
    assert np.abs(apply_sigmoid(OpenVinoEngine(model, spec).logits(pixels)) - apply_sigmoid(exact)).mean() < 0.04


def test_the_manifest_tells_how_it_was_made(repository: Path) -> None:
    folder = repository / f"{NAME}_engine" / "1"
    manifest = verify_folder(folder, f"{NAME}_engine")
    record = manifest.engine("model.int8.onnx")
    assert record.precision == "int8"
    assert dict(record.made_from) == {"model.onnx": manifest.files["model.onnx"].sha256}
    assert {"mlcls", "nncf", "onnx", "openvino"} <= set(record.tools)
    assert record.gate[0]["kept_in_fp32"] == []
    assert record.gate[0]["calibration_photos"] == (MIN_PHOTOS + 6) * 2 // 3
    assert record.gate[0]["limits"] == dataclasses.asdict(WIDE)
    assert record.gate[0]["reference_map"] == pytest.approx(1.0)
    assert 0.5 < record.gate[0]["candidate_map"] < 1.0


def test_without_photos_nothing_stands_in(root: Path) -> None:
    refused = run_mlcls("build-engine", NAME, "--engine", "int8", "--repository", root)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"mlcls build-engine: Expected at least {MIN_PHOTOS} different photos")
    with pytest.raises(RepositoryError, match=rf"needs .*\. Build it from your photos: mlcls build-engine {NAME}"):
        start_server(root, NAME, target="int8")


def test_another_file_under_its_name(repository: Path, tmp_path: Path) -> None:
    """The FP32 graph would run; the manifest says that it is not what was built and checked."""
    root = Path(shutil.copytree(repository, tmp_path / "model_repository"))
    folder = root / f"{NAME}_engine" / "1"
    (folder / "model.int8.onnx").unlink()
    shutil.copyfile(folder / "model.onnx", folder / "model.int8.onnx")
    with pytest.raises((RepositoryError, ServerError), match=r"model\.int8\.onnx is not the file that its manifest"):
        start_server(root, NAME, target="int8")
