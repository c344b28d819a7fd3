"""Every source of a PaddleX model, and every kind of bad one: a clear message, and nothing changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from mlcls.conversion import onnx_edits
from mlcls.errors import MlclsError, ParityError
from mlcls.images.transforms import normalization_constants
from mlcls.model import catalog
from mlcls.model.spec import ImageTransform
from mlcls.releases.importing import import_model
from mlcls.repository.configurations import expected_specs, find_stale
from mlcls.repository.models import Repository
from support.dataset_samples import read_tree
from support.processes import ROOT, run_mlcls
from support.quiet_http import served_folder
from support.served_models import SMALL_LABELS, SMALL_SIZE, SmallModels


@pytest.fixture
def model_folder(small_models: SmallModels, tmp_path: Path) -> Path:
    """A copy of the small model that a test may damage."""
    return Path(shutil.copytree(small_models.with_sigmoid, tmp_path / "model"))


def pack(folder: Path, archive: Path) -> Path:
    """An archive of PaddleX's own layout."""
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=archive.stem)
    return archive


def edit_yml(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "inference.yml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")


@pytest.fixture
def archive_server(small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an archive of the official layout on this machine; a download cache of the test's own."""
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "cache"))
    web = tmp_path / "web"
    web.mkdir()
    pack(small_models.with_sigmoid, web / "PP-LCNet_x1_0_ML_infer.tar")
    with served_folder(web) as url:
        yield f"{url}/PP-LCNet_x1_0_ML_infer.tar"


def test_the_small_model_was_imported_as_it_is(small_models: SmallModels) -> None:
    spec = Repository(small_models.repository).active("small_with_sigmoid").spec
    assert spec.labels == SMALL_LABELS
    assert (spec.transform.height, spec.transform.width) == SMALL_SIZE
    assert (spec.architecture, spec.source_activation) == ("PP-LCNet_x1_0_ML", "sigmoid")
    assert Repository(small_models.repository).active("small_with_logits").spec.source_activation == "none"
    assert Repository(small_models.repository).models() == ["small_with_logits", "small_with_sigmoid"]
    own = [spec for spec in expected_specs(Repository(small_models.repository)) if spec.name.startswith("small")]
    assert not [path for path in find_stale(Repository(small_models.repository), own) if path.startswith("small")]


def test_the_served_graph_is_what_the_design_says(small_models: SmallModels) -> None:
    version = small_models.repository / "small_with_sigmoid_engine" / "1"
    model = onnx.load(str(version / "model.onnx"))
    height, width = SMALL_SIZE
    assert onnx_edits.describe_interface(model) == (
        ("pixels", "UINT8", ("batch", height, width, 3)),
        ("logits", "FLOAT", ("batch", len(SMALL_LABELS))),
    )
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Sigmoid", "Tile", "Shape", "Expand"}


def test_a_catalog_name_is_fetched_as_an_archive(
    archive_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = property(lambda model: archive_server.replace("PP-LCNet_x1_0_ML", model.name))
    monkeypatch.setattr(catalog.OfficialModel, "inference_url", url)
    report = import_model("PP-LCNet_x1_0_ML", Repository(tmp_path / "repository"))
    assert (report.spec.name, report.spec.labels) == ("PP-LCNet_x1_0_ML", SMALL_LABELS)
    assert report.parity.max_difference <= 1e-4
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_offline_a_catalog_name_says_what_to_do(tmp_path: Path) -> None:
    process = run_mlcls(
        "import", "PP-LCNet_x1_0_ML", "--repository", tmp_path / "repository",
        MLCLS_CACHE_DIR=str(tmp_path / "cache"), HTTPS_PROXY="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9",
    )  # fmt: skip
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("mlcls import: Could not download https://")
    assert "download this URL on another machine and pass the file" in line
    assert not (tmp_path / "repository").exists()


def test_the_older_format(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "old_format_model.py", folder], check=True, capture_output=True
    )
    assert {"inference.pdmodel", "inference.pdiparams"} <= {path.name for path in folder.iterdir()}
    report = import_model(str(folder), Repository(tmp_path / "repository"), name="old")
    assert set(report.spec.source_sha256) == {"inference.pdmodel", "inference.pdiparams", "inference.yml"}
    assert report.spec.source_activation == "sigmoid"
    assert report.parity.max_difference <= 1e-4


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Damage to one file of a model."""
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "inference.yml").unlink(), "got a folder without inference.yml"),
        (
            lambda folder: (folder / "inference.json").unlink(),
            "got a folder without inference.json or inference.pdmodel",
        ),
        (
            change("inference.pdiparams", lambda content: content[:-1000]),
            "got a file that is truncated or damaged (tensor 167 needs 1000 more bytes)",
        ),
        (
            change("inference.pdiparams", lambda content: content[: content.rindex(bytes(16), 0, -100)]),
            "expected the 167 parameters of inference.json, got 166",
        ),
        (
            change("inference.json", lambda content: content[:-1000]),
            "expected a graph in Paddle's PIR format, got a file that is truncated",
        ),
        (
            lambda folder: edit_yml(
                folder, lambda content: content["PostProcess"]["MultiLabelThreshOutput"]["label_list"].append("more")
            ),
            "one output, float32 (N, 6), one score for each label",
        ),
        (
            lambda folder: edit_yml(
                folder, lambda content: content["PreProcess"]["transform_ops"][0]["ResizeImage"].update(size=[96, 128])
            ),
            "Expected a graph with one input, float32 (N, 3, 128, 96), ",
        ),
    ],
)
def test_a_bad_model_is_refused_and_the_old_one_stays(
    root: Path, model_folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    before = read_tree(root)
    damage(model_folder)
    with pytest.raises(MlclsError) as caught:
        import_model(str(model_folder), Repository(root), name="small_with_sigmoid")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_tree(root) == before


def test_a_damaged_download_is_fetched_again(archive_server: str, tmp_path: Path) -> None:
    archive = tmp_path / "web" / "PP-LCNet_x1_0_ML_infer.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MlclsError, match="a truncated or damaged one"):
        import_model(archive_server, Repository(tmp_path / "repository"), name="fetched")
    archive.write_bytes(whole)
    assert import_model(archive_server, Repository(tmp_path / "repository"), name="fetched").spec.name == "fetched"


def test_a_conversion_that_changes_the_scores_is_refused(
    small_models: SmallModels, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted fault: the normalization put into the graph is slightly off."""
    before = read_tree(root)
    real = normalization_constants

    def slightly_off(transform: ImageTransform) -> tuple[Any, Any]:
        alpha, beta = real(transform)
        return alpha * np.float32(1.01), beta

    monkeypatch.setattr(onnx_edits, "normalization_constants", slightly_off)
    with pytest.raises(ParityError, match=r"onnxruntime to give the answers of paddle, got: .* Nothing was written"):
        import_model(str(small_models.with_sigmoid), Repository(root), name="small_with_sigmoid")
    assert read_tree(root) == before


def test_an_archive_replaces_the_model_of_its_name(root: Path, model_folder: Path, tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["PostProcess"]["MultiLabelThreshOutput"]["label_list"][0] = "lion"

    edit_yml(model_folder, rename)
    import_model(str(pack(model_folder, tmp_path / "model.tar")), Repository(root), name="small_with_sigmoid")
    assert Repository(root).active("small_with_sigmoid").spec.labels[0] == "lion"
    labels = root / "small_with_sigmoid" / "labels.txt"
    assert labels.read_text(encoding="utf-8").startswith("lion\n")
    assert Repository(root).active("small_with_logits").spec.labels[0] == "cat"
