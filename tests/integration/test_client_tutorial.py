"""PaddleX's tutorial script, run with PaddleX and, its import swapped, with the client: the same is printed and saved.

The script is that of PaddleX's documentation, module "Image Multi-Label Classification", section III; the second one
uses every parameter and attribute that the section's tables name.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from sklearn.datasets import load_sample_image

from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.training.export import export_model
from support.processes import start_server

NAME = "PP-LCNet_x1_0_ML"
MAX_DIFFERENCE = 1e-4

TUTORIAL = """\
from paddlex import create_model
model = create_model(model_name="PP-LCNet_x1_0_ML")
output = model.predict(input="multilabel_classification_005.png", batch_size=1)
for res in output:
    res.print()
    res.save_to_img("./output/")
    res.save_to_json("./output/res.json")
"""

EVERYTHING = """\
import json
import os
import numpy
from PIL import Image
os.rename("output", "tutorial_output")
print("EVERYTHING", flush=True)
model = create_model("PP-LCNet_x1_0_ML")
array = numpy.ascontiguousarray(numpy.asarray(Image.open("photos/b.png").convert("RGB"))[:, :, ::-1])
inputs = ["multilabel_classification_005.png", "photos/a.jpg", "photos/", ["photos/b.png", "photos/a.jpg"], "pages.pdf"]
for number, given in enumerate(inputs):
    folder = f"./output/{number}/"
    for res in model.predict(input=given, batch_size=2):
        res.print(json_format=True, indent=2, ensure_ascii=True)
        res.print(json_format=False)
        res.save_to_json(save_path=folder, indent=2, ensure_ascii=True)
        res.save_to_img(save_path=folder)
        keys = [key for key in res if key != "input_img"]
        picture = res.img["res"]
        print("RETURNED", json.dumps([res.json, keys, list(res.img), picture.mode]))
for threshold in (0.3, 0.7):
    for res in model.predict("photos/a.jpg", threshold=threshold):
        values = [list(map(float, res[key])) for key in ("class_ids", "scores")]
        print("RETURNED", json.dumps([res.json, *values, res["label_names"]]))
for res in model.predict([array, array]):
    assert res["input_path"] is None
    print("RETURNED", json.dumps([res.json]))
for res in model.predict("photos/b.png"):
    res.save_all("./output/all/")
"""


@pytest.fixture(scope="module")
def outcomes(paddlex_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, str]]]:
    """By package: the folder in which it ran the scripts, and what they printed."""
    root = tmp_path_factory.mktemp("tutorial")
    # Where PaddleX has the models and the font that it downloads.
    exported = root / "cache" / "official_models" / NAME
    export_model(NAME, exported)
    import_model(str(exported), Repository(root / "model_repository"))
    font = root / "cache" / "fonts" / "PingFang-SC-Regular.ttf"
    font.parent.mkdir()

    font.write_bytes(ImageFont.load_default(20).font_bytes)  # type: ignore[union-attr]
    environment = {
        **os.environ,
        "PADDLE_PDX_CACHE_HOME": str(root / "cache"),
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",
    }
    outcomes = {}
    with start_server(root / "model_repository", NAME) as server:
        environment["MLCLS_URL"] = server.grpc_url
        for package, python in (("paddlex", str(paddlex_python)), ("mlcls_client", sys.executable)):
            folder = _make_folder(root / package)
            script = (TUTORIAL + EVERYTHING).replace("from paddlex import", f"from {package} import")
            done = subprocess.run(
                [python, "-c", script],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert done.returncode == 0, done.stdout[-3000:]
            tutorial, _, everything = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).partition("\nEVERYTHING\n")
            outcomes[package] = folder, {TUTORIAL: tutorial, EVERYTHING: everything}
    return outcomes


def _make_folder(folder: Path) -> Path:
    china, flower = (Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))
    (folder / "photos").mkdir(parents=True)
    china.copy().save(folder / "multilabel_classification_005.png")
    flower.copy().save(folder / "photos" / "a.jpg", quality=95)
    flower.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "photos" / "b.png")
    china.save(folder / "pages.pdf", save_all=True, append_images=[flower], resolution=144.0)
    return folder


def _objects(text: str) -> list[str]:
    """The texts of the dicts and of the indented JSON in an output, in order."""
    return re.findall(r"^\{'res'.*$|^\{\n(?:[ \]].*\n)*\}", text, re.MULTILINE)


def _without_arrays(text: str) -> str:
    """A printed dict without the numbers of its labels.

    PaddleX's documentation prints lists; PaddleX 3.7 prints numpy arrays, and of these the first and the last number.
    """
    return re.sub(r"'(class_ids|scores)': (array\(.*?\)|\[.*?\]), ", r"'\1': ..., ", text)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+\.\d+(?:e-?\d+)?", "#", text)


def _assert_alike(ours: Any, theirs: Any) -> None:
    """Equal but for numbers with decimals, which may differ by the noise of another engine."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=MAX_DIFFERENCE)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            _assert_alike(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _assert_alike(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("script", [TUTORIAL, EVERYTHING], ids=["tutorial", "everything"])
def test_the_same_is_printed(outcomes: dict[str, tuple[Path, dict[str, str]]], script: str) -> None:
    theirs, ours = (_objects(outcomes[package][1][script]) for package in ("paddlex", "mlcls_client"))
    assert len(theirs) == (1 if script is TUTORIAL else 2 * 8)
    for one, other in zip(ours, theirs, strict=True):
        if other.startswith("{'res'"):
            assert _without_arrays(one) == _without_arrays(other)
            printed = ast.literal_eval(one)
            assert list(printed["res"]) == ["input_path", "page_index", "class_ids", "scores", "label_names"]
            assert len(printed["res"]["class_ids"]) == len(printed["res"]["scores"])
        else:
            assert _without_numbers(one) == _without_numbers(other)
            _assert_alike(json.loads(one), json.loads(other))


def test_the_same_is_returned(outcomes: dict[str, tuple[Path, dict[str, str]]]) -> None:
    theirs, ours = (
        [json.loads(line.partition(" ")[2]) for line in text.splitlines() if line.startswith("RETURNED")]
        for text in (outcomes[package][1][EVERYTHING] for package in ("paddlex", "mlcls_client"))
    )
    assert len(theirs) == 8 + 2 + 2
    _assert_alike(ours, theirs)
    label_counts = {len(returned[0]["res"]["label_names"]) for returned in theirs}
    assert len(label_counts) > 1, "the images and thresholds have to have different answers"


def test_the_same_files_are_saved(outcomes: dict[str, tuple[Path, dict[str, str]]]) -> None:
    theirs, ours = (outcomes[package][0] for package in ("paddlex", "mlcls_client"))
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (theirs, ours)
    ]
    assert names[1] == names[0]
    assert {"tutorial_output/res.json", "tutorial_output/multilabel_classification_005_res.png"} <= set(names[0])
    assert {"output/4/pages_0_res.json", "output/4/pages_1_res.json", "output/all/b_res.png"} <= set(names[0])
    for name in names[0]:
        if not name.startswith(("output", "tutorial_output")):
            continue
        if name.endswith(".json"):
            texts = [(folder / name).read_text(encoding="utf-8") for folder in (ours, theirs)]
            assert _without_numbers(texts[0]) == _without_numbers(texts[1])
            _assert_alike(*map(json.loads, texts))
        else:
            pictures = [Image.open(folder / name) for folder in (ours, theirs)]
            assert (pictures[0].format, pictures[0].mode) == (pictures[1].format, pictures[1].mode)
            assert pictures[0].width == pictures[1].width, "both have the photo at the top and the labels below"
            photo_height = 400
            parts = [np.asarray(picture.convert("RGB"), dtype=int)[:photo_height] for picture in pictures]
            assert np.abs(parts[0] - parts[1]).mean() < 6  # PaddleX saves JPEG in another quality
