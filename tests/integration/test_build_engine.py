"""`mlcls build-engine` on real models: what it writes and refuses, and that a refusal leaves everything as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from mlcls.base.files import sha256_of
from mlcls.base.machine import Gpu, Machine
from mlcls.engines.building import BuildRequest
from mlcls.engines.fp16 import build as fp16_engine
from mlcls.engines.fp16.conversion import convert_to_fp16
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.engines.tensorrt import build as tensorrt_engine
from mlcls.engines.tensorrt.builder import BuiltEngine, build_engine
from mlcls.engines.tensorrt.plan import describe_target
from mlcls.errors import ParityError, RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.server.installation import TritonInstallation
from mlcls.server.preflight import check_models
from support.dataset_samples import read_tree
from support.image_samples import write_photos
from support.processes import run_mlcls
from support.served_models import SMALL_LABELS, SMALL_SIZE, SmallModels

NAME = "small_with_sigmoid"
T4 = Gpu("Tesla T4", "7.5")


def engine_folder(root: Path, name: str = NAME) -> Path:
    return root / f"{name}_engine" / "1"


def test_fp16_goes_through_the_gate_into_the_repository(root: Path) -> None:
    built = run_mlcls("build-engine", NAME, "--engine", "fp16", "--repository", root)
    assert built.returncode == 0, built.stderr
    path = engine_folder(root) / "model.fp16.onnx"
    assert str(path) in built.stdout
    assert "fp16 onnxruntime against onnxruntime on 8 images: highest difference" in built.stdout
    assert path.stat().st_size < 0.6 * path.with_name("model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.zeros((3, *SMALL_SIZE, 3), np.uint8)
    assert session.run(["logits"], {"pixels": pixels})[0].shape == (3, len(SMALL_LABELS))

    record = Manifest.read(path.parent).engine("model.fp16.onnx")
    assert record.precision == "fp16"
    assert dict(record.made_from) == {"model.onnx": sha256_of(path.with_name("model.onnx"))}
    assert {"mlcls", "onnx", "onnxruntime"} <= record.tools.keys()
    (report,) = record.gate
    assert (report["candidate"], report["failures"]) == ("fp16 onnxruntime", [])
    assert report["max_difference"] > 1e-5

    checked = run_mlcls(
        "verify", NAME, "--candidate", f"onnxruntime={path}", "--precision", "fp16", "--repository", root
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_a_staged_version_gets_its_engine_before_it_is_switched_to(root: Path, small_models: SmallModels) -> None:
    staged = run_mlcls("publish", small_models.with_sigmoid, "--name", NAME, "--stage", "--repository", root)
    assert staged.returncode == 0, staged.stderr
    first = read_tree(engine_folder(root))
    assert len(list(fp16_engine.build(BuildRequest(Repository(root).version(NAME, 2))))) == 2
    assert (root / f"{NAME}_engine_2" / "2" / "model.fp16.onnx").is_file()
    assert read_tree(engine_folder(root)) == first
    missing = run_mlcls("build-engine", NAME, "--engine", "fp16", "--version", "3", "--repository", root)
    assert missing.returncode == 1
    assert "has no version 3" in missing.stderr


def test_rtx_engines_are_written_outside_with_their_records(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "engines"
    arguments = ("build-engine", NAME, "--engine", "tensorrt-rtx", "--repository", root, "--output", output)
    built = run_mlcls(*arguments, "--compute-capability", "7.5", "SM86", "--photos", *write_photos(tmp_path, 3))
    assert built.returncode == 0, built.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        f"{NAME}.{architecture}.{suffix}" for architecture in ("sm75", "sm86") for suffix in ("engine", "json")
    ]
    fp16 = engine_folder(root) / "model.fp16.onnx"
    record = json.loads((output / f"{NAME}.sm75.json").read_text())
    assert record["built_for"]["library"] == "tensorrt_rtx"
    assert record["built_for"]["compute_capability"] == "7.5"
    assert record["made_from"] == {"model.fp16.onnx": sha256_of(fp16)}
    assert record["sha256"] == sha256_of(output / f"{NAME}.sm75.engine")
    assert not list(root.rglob("*.engine"))

    made = fp16.stat().st_mtime_ns
    assert run_mlcls(*arguments, "--compute-capability", "8.9").returncode == 0
    assert fp16.stat().st_mtime_ns == made, "the FP16 graph that is there is used"
    refused = run_mlcls(*arguments, "--compute-capability", "9.0")
    assert refused.returncode == 1
    assert "got '9.0'" in refused.stderr


class PlayedRunner:
    """In place of a plan on a GPU: the FP16 graph on a CPU, with a fault where one is planted."""

    fault = 0.0
    opened: ClassVar[list[bytes]] = []

    def __init__(self, plan: bytes, spec: ModelSpec, library: str) -> None:
        self.opened.append(plan)
        self.name = library
        self._runner = OnnxRuntimeRunner(FP16_GRAPHS[0], spec)

    def scores(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores = self._runner.scores(pixels)
        scores[1:] += self.fault  # as plans that are wrong at batches above 1 have been reported
        return scores

    def __enter__(self) -> PlayedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        pass


FP16_GRAPHS: list[bytes] = []


def test_a_plan_enters_the_repository_through_the_gate_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of `--engine tensorrt` but the builder and the GPU: TensorRT-RTX builds, a CPU runs."""
    assert list(fp16_engine.build(BuildRequest(Repository(root).active(NAME))))
    FP16_GRAPHS[:] = [(engine_folder(root) / "model.fp16.onnx").read_bytes()]
    (tmp_path / "backends" / "tensorrt").mkdir(parents=True)
    installation = TritonInstallation(tmp_path / "tritonserver", tmp_path / "backends", ())  # nothing starts it

    built = dataclasses.replace(
        build_engine(FP16_GRAPHS[0], Repository(root).active(NAME).spec, "7.5"),
        library="tensorrt",
        version="10.13.2.6",
    )

    def build(content: bytes, spec: ModelSpec) -> BuiltEngine:
        assert content == FP16_GRAPHS[0]
        return built

    def check(gpu: Gpu | None) -> None:
        machine = Machine((gpu,) if gpu else (), "10.13.2.6")
        check_models(Repository(root), (NAME,), "gpu", installation, lambda: machine)

    monkeypatch.setattr(tensorrt_engine, "build_engine", build)
    monkeypatch.setattr(tensorrt_engine, "read_gpus", lambda: (T4,))
    monkeypatch.setattr(tensorrt_engine, "TensorRtRunner", PlayedRunner)
    monkeypatch.setattr(PlayedRunner, "fault", 0.3)
    before = read_tree(root)
    with pytest.raises(RepositoryError, match=rf"mlcls build-engine {NAME} --engine tensorrt"):
        check(T4)
    with pytest.raises(ParityError, match=r"batch 2: .*The engine was not kept\.$"):
        list(tensorrt_engine.build_plan(BuildRequest(Repository(root).active(NAME))))
    assert read_tree(root) == before

    monkeypatch.setattr(PlayedRunner, "fault", 0.0)
    lines = list(tensorrt_engine.build_plan(BuildRequest(Repository(root).active(NAME))))
    assert lines[0] == f"Building the plan of {NAME} for Tesla T4 (compute capability 7.5) ..."
    path = engine_folder(root) / "model.plan"
    assert path.read_bytes() == PlayedRunner.opened[-1]
    record = Manifest.read(engine_folder(root)).engine("model.plan")
    assert dict(record.built_for) == describe_target("tensorrt", "10.13.2.6", T4)
    assert record.gate[0]["candidate"] == "tensorrt"
    check(T4)
    for gpu, words in ((None, "the driver shows none here"), (Gpu("NVIDIA A10", "8.6"), "here is NVIDIA A10")):
        with pytest.raises(RepositoryError, match=words):
            check(gpu)
    path.write_bytes(b"another plan")
    with pytest.raises(RepositoryError, match=rf"^{path} is not the file that its manifest was written for"):
        check(T4)


@pytest.mark.timeout(900)  # the first one waits for six imports
@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_rtx_builds_every_model_for_every_architecture(name: str, official_repository: Path) -> None:
    folder = engine_folder(official_repository, name)
    spec = ModelSpec.read(folder / "model_spec.json")
    model = onnx.load(str(folder / "model.onnx"))
    products = sum(node.op_type in ("Conv", "MatMul") for node in model.graph.node)
    fp16 = convert_to_fp16(model).SerializeToString()
    for capability in ("7.5", "8.6", "8.9"):
        built = build_engine(fp16, spec, capability)
        assert 0.9 * len(fp16) < len(built.plan) < 1.5 * len(fp16)
        layers = built.layers
        assert {*layers["CONVOLUTION"], *layers["MATRIX_MULTIPLY"]} == {"float16"}
        assert layers["CONVOLUTION"]["float16"] + layers["MATRIX_MULTIPLY"]["float16"] == products
        assert set(layers["NORMALIZATION"]) == set(layers["SOFTMAX"]) == {"float32"}
