"""The public face `mlcls.__all__`: each name is documented, and the examples of the documentation run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlcls
from mlcls.evaluation.evaluate import Evaluation
from mlcls.images.photos import sample_photo_paths
from mlcls.repository.models import Repository
from support.dataset_samples import write_colored_dataset
from support.processes import ROOT

PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples take for granted: the demo model, photos and a dataset, in the working directory."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "demo_model").symlink_to(ROOT / "demo_model")
    photo = sample_photo_paths()[0]
    shutil.copyfile(photo, folder / "photo.jpg")
    (folder / "photos").mkdir()
    shutil.copyfile(photo, folder / "photos" / "photo.jpg")
    write_colored_dataset(folder / "dataset", 16)
    return folder


def test_the_examples_of_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    examples = python_blocks(PAGE.split("## mlcls_client")[0])
    assert {name for name in mlcls.__all__ if f"mlcls.{name}" in "".join(examples)} == {*mlcls.__all__} - {
        "__version__"
    }
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/reference/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("12 labels; ")
    assert "version 2, before it 1" in printed
    assert "no/such/folder" in printed
    assert Repository(Path("model_repository")).numbers("demo_colors") == [1, 2]
    evaluation = names["evaluation"]
    assert isinstance(evaluation, Evaluation)
    assert evaluation.samples_read == evaluation.samples_expected == 16


def test_the_example_of_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo_model", "photos"):
        (tmp_path / name).symlink_to(folder / name)
    (example,) = [block for block in python_blocks(README) if "import mlcls\n" in block]
    exec(compile(example, "README.md", "exec"), {})
    assert [path.suffix for path in (tmp_path / "output").iterdir()] == [".jpg"]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mlcls; print(sorted({name.split('.')[0] for name in sys.modules} & {'numpy', 'paddle', 'onnx'}))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
