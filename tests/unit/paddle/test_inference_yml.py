"""`inference.yml`: PaddleX's form is read as PaddleX reads it, and whatever else it says is an error that names it."""

from __future__ import annotations

import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from mlcls.errors import SpecError
from mlcls.model.catalog import DEFAULT_TRANSFORM, OFFICIAL_MODELS, official_spec
from mlcls.model.spec import ImageTransform, ModelSpec
from mlcls.paddle.inference_yml import InferenceConfig, format_inference_yml, parse_inference_config, read_inference_yml

# As PaddleX's export writes it.
OFFICIAL = """\
Global:
  model_name: PP-LCNet_x1_0_ML
Hpi:
  backend_config:
    paddle_tensorrt:
      dynamic_shapes:
        x:
        - [1, 3, 448, 448]
        - [1, 3, 448, 448]
      max_batch_size: 1
PreProcess:
  transform_ops:
  - ResizeImage:
      size: 448
      interpolation: bilinear
      backend: pil
  - NormalizeImage:
      scale: 0.00392156862745098
      mean:
      - 0.485
      - 0.456
      - 0.406
      std:
      - 0.229
      - 0.224
      - 0.225
      order: ''
      channel_num: 3
  - ToCHWImage: null
PostProcess:
  MultiLabelThreshOutput:
    threshold: 0.5
    label_list:
    - person
    - bicycle
    - traffic light
"""
WITHOUT_HPI = OFFICIAL[: OFFICIAL.index("Hpi:")] + OFFICIAL[OFFICIAL.index("PreProcess:") :]
OPERATIONS = "PreProcess.transform_ops"
RESIZE = f"{OPERATIONS}[0].ResizeImage"
NORMALIZE = f"{OPERATIONS}[1].NormalizeImage"
OUTPUT = "PostProcess.MultiLabelThreshOutput"
MISSING = object()


def parse_with(place: str, key: object, value: object) -> InferenceConfig:
    """Parses the official document with another value of one key, or without the key."""
    document: Any = yaml.safe_load(OFFICIAL)
    options = document
    for step in re.findall(r"\w+", place):
        options = options[int(step) if step.isdigit() else step]
    if value is MISSING:
        del options[key]
    else:
        options[key] = value
    return parse_inference_config(document)


def read_text(tmp_path: Path, text: str) -> InferenceConfig:
    path = tmp_path / "inference.yml"
    path.write_text(text, encoding="utf-8")
    return read_inference_yml(path)


# --- what PaddleX writes


@pytest.mark.parametrize("text", [OFFICIAL, WITHOUT_HPI])
@pytest.mark.parametrize("size", ["448", "[448, 448]", "\n      - 448\n      - 448"])
def test_official_form(tmp_path: Path, size: str, text: str) -> None:
    assert read_text(tmp_path, text.replace("size: 448", f"size: {size}")) == InferenceConfig(
        model_name="PP-LCNet_x1_0_ML",
        labels=("person", "bicycle", "traffic light"),
        thresholds=(0.5, 0.5, 0.5),
        transform=ImageTransform(448, 448, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )


IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("place", "key", "value", "expected"),
    [
        (RESIZE, "size", [64, 96], {"width": 64, "height": 96}),  # as cv2 and PIL take it
        (RESIZE, "interpolation", "nearest", {"interpolation": "NEAREST"}),
        (RESIZE, "resize_short", None, {}),
        (OPERATIONS, 0, {"ResizeImage": {"size": 448}}, {"resize_backend": "cv2", "interpolation": "LINEAR"}),
        (OPERATIONS, 1, {"NormalizeImage": None}, IMAGENET),
        (OPERATIONS, 1, {"NormalizeImage": {}}, IMAGENET),
        (NORMALIZE, "mean", 0.25, {"mean": (0.25, 0.25, 0.25)}),
        (NORMALIZE, "std", 0.5, {"std": (0.5, 0.5, 0.5)}),
        (OPERATIONS, 2, {"ToCHWImage": {}}, {}),
    ],
)
def test_options_and_defaults(place: str, key: object, value: object, expected: dict[str, Any]) -> None:
    """Those of PaddleX's `build_resize` and `build_normalize`."""
    assert parse_with(place, key, value).transform == msgspec.structs.replace(DEFAULT_TRANSFORM, **expected)


def test_labels_are_texts() -> None:
    """A whole number becomes the text that PaddleX prints."""
    labels = yaml.safe_load("[1, 'no', '1.50']")
    assert parse_with(OUTPUT, "label_list", labels).labels == ("1", "no", "1.50")


@pytest.mark.parametrize(
    ("label", "value"),
    [("no", "False"), ("true", "True"), ("null", "None"), ("~", "None"), ("1.50", "1.5"), ("2024-12-05", "datetime")],
)
def test_a_label_that_yaml_reads_as_something_else(label: str, value: str) -> None:
    """PaddleX prints `None` or `True`, which nobody has written."""
    place = rf"{OUTPUT}\.label_list\[1\]: expected text, got {value}.*, as YAML reads it; put the label in quotes"
    with pytest.raises(SpecError, match=place):
        parse_with(OUTPUT, "label_list", yaml.safe_load(f"[a, {label}, c]"))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.3, (0.3, 0.3, 0.3)),
        ([0.1, 0.2, 1], (0.1, 0.2, 1.0)),
        ({"default": 0.5, "0": 0.3, "traffic light": 1}, (0.3, 0.5, 1.0)),
    ],
)
def test_threshold(threshold: object, expected: tuple[float, ...]) -> None:
    assert parse_with(OUTPUT, "threshold", threshold).thresholds == expected


# --- whatever else it says is an error that names it

ORDER = f"{OPERATIONS}: expected ResizeImage, NormalizeImage, ToCHWImage, each once and in this order, got "
BOTH = f"{OPERATIONS}.ResizeImage: expected `size`, an integer or [width, height], and no `resize_short`"
STEPS: list[dict[str, Any]] = [{"ResizeImage": {"size": 448}}, {"NormalizeImage": None}, {"ToCHWImage": None}]


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("", "hpi", {}, "unknown key hpi; expected only Global, PreProcess, PostProcess, Hpi"),
        ("", 1, {}, "a key of the document: expected str, got 1"),
        ("", "Global", MISSING, "missing key Global; expected Global, "),
        ("", "PostProcess", MISSING, "missing key PostProcess; "),
        ("", "PreProcess", [], "PreProcess: expected object, got []"),
        ("", "PostProcess", {"Topk": {}}, "unknown key PostProcess.Topk; expected only MultiLabelThreshOutput"),
        ("Global", "more", None, "unknown key Global.more; "),
        ("Global", "model_name", 1, "Global.model_name: expected str, got 1"),
        ("PreProcess", "transform_ops", [], f"{ORDER}none"),
        ("PreProcess", "transform_ops", STEPS[1:], f"{ORDER}NormalizeImage, ToCHWImage"),
        ("PreProcess", "transform_ops", STEPS[::-1], f"{ORDER}ToCHWImage, "),
        ("PreProcess", "transform_ops", STEPS * 2, ORDER),
        ("PreProcess", "transform_ops", [*STEPS, {}], ORDER),
        ("PreProcess", "transform_ops", [{**STEPS[0], **STEPS[1], **STEPS[2]}], ORDER),
        ("PreProcess", "transform_ops", [{"CropImage": {}}, *STEPS], f"unknown key {OPERATIONS}[0].CropImage; expec"),
        ("PreProcess", "transform_ops", [*STEPS, {1: 1}], f"a key of {OPERATIONS}[3]: expected str, got 1"),
        (OPERATIONS, 0, {"ResizeImage": None}, BOTH),
        (OPERATIONS, 2, {"ToCHWImage": {"c": 3}}, f"{OPERATIONS}[2].ToCHWImage: expected object of length <= 0, got "),
        (RESIZE, "keep_ratio", 1, f"unknown key {RESIZE}.keep_ratio; expected only size, "),
        (RESIZE, "resize_short", 256, f"{BOTH}, which gives images of different shapes"),
        (RESIZE, "size", MISSING, BOTH),
        (RESIZE, "size", 448.5, f"{RESIZE}.size: expected int | array | null, got 448.5"),
        (RESIZE, "size", [448, 448, 3], f"{RESIZE}.size: expected array of length 2, got [448, 448, 3]"),
        (RESIZE, "size", -448, f"{OPERATIONS}: width: expected int >= 1, got -448"),
        (RESIZE, "size", [9000, 448], f"{OPERATIONS}: width: expected int <= 8192, got 9000"),
        (RESIZE, "interpolation", "linear", f"{OPERATIONS}: interpolation: expected one of "),
        (RESIZE, "backend", "PIL", f"{RESIZE}.backend: expected one of pil, cv2, got 'PIL'"),
        (NORMALIZE, "to_float32", 1, f"unknown key {NORMALIZE}.to_float32; "),
        (NORMALIZE, "order", "chw", f"{NORMALIZE}.order: expected str of length <= 0, got 'chw'"),
        (NORMALIZE, "channel_num", 4, f"{NORMALIZE}.channel_num: expected 3, got 4"),
        (NORMALIZE, "scale", "1.0/255.0", f"{NORMALIZE}.scale: expected float, got '1.0/255.0'"),
        (NORMALIZE, "scale", float("nan"), f"{OPERATIONS}: scale: expected a finite number, got nan"),
        (NORMALIZE, "mean", [0.5, 0.5, "0.5"], f"{NORMALIZE}.mean[2]: expected float, got '0.5'"),
        (NORMALIZE, "std", [0.5, 0.5], f"{NORMALIZE}.std: expected array of length 3, got [0.5, 0.5]"),
        (NORMALIZE, "std", 0.0, f"{OPERATIONS}: std: expected three numbers other than 0"),
        (OUTPUT, "topk", 1, f"unknown key {OUTPUT}.topk; expected only threshold, label_list"),
        (OUTPUT, "label_list", MISSING, f"missing key {OUTPUT}.label_list"),
        (OUTPUT, "label_list", [], f"{OUTPUT}.label_list: expected array of length >= 1, got []"),
        (OUTPUT, "label_list", ["a", ["b"]], f"{OUTPUT}.label_list[1]: expected text, got ['b']"),
        (OUTPUT, "threshold", MISSING, f"missing key {OUTPUT}.threshold"),
        (OUTPUT, "threshold", "0.5", f"{OUTPUT}.threshold: threshold: expected "),
        (
            OUTPUT,
            "threshold",
            2,
            f"{OUTPUT}.threshold: expected numbers from 0 to 1, as scores are, got 2 for ",
        ),
        (OUTPUT, "threshold", [0.5, -0.1, 0.5], f"{OUTPUT}.threshold: expected numbers from 0 to 1"),
        (OUTPUT, "threshold", {"default": 0.5, "2": 1.01}, f"{OUTPUT}.threshold: expected numbers from 0 to 1"),
        (OUTPUT, "threshold", [0.5] * 4, f"{OUTPUT}.threshold: threshold: expected "),
        (OUTPUT, "threshold", {"default": 0.5, "cow": 0.5}, f"{OUTPUT}.threshold: threshold"),
    ],
)
def test_what_is_refused(place: str, key: object, value: object, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_with(place, key, value)
    assert str(caught.value).startswith(words)


# --- the file


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "inference.yml"
    with pytest.raises(SpecError, match=rf"^{path} does not exist; a PaddleX inference model has an inference.yml"):
        read_inference_yml(path)
    with pytest.raises(SpecError, match=rf"^{tmp_path}/inference.yml: missing key Global; "):
        read_text(tmp_path, OFFICIAL[OFFICIAL.index("Hpi:") :])


@pytest.mark.parametrize(
    "text", ["a: b: c", "\tGlobal:", "a: 1\n---\nb: 2", "? [a]\n: b", "\0", "[" * 50_000, "- !l x"]
)
def test_not_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"inference.yml: expected a YAML document, got one that cannot be read: ") as e:
        read_text(tmp_path, text)
    assert "\n" not in str(e.value)


def make_bomb(depth: int) -> str:
    """Lists of ten lists of ten ..., by reference, in a section that is not looked at."""
    lists = [["x"] * 10, *([f"*a{level}"] * 10 for level in range(depth - 1))]
    return "Hpi:\n" + "".join(f"- &a{level} [{', '.join(items)}]\n" for level, items in enumerate(lists))


def test_alias_bomb_is_not_expanded(tmp_path: Path) -> None:
    """A thousand million items, if it were."""
    started = time.monotonic()
    assert read_text(tmp_path, make_bomb(9) + WITHOUT_HPI).labels == ("person", "bicycle", "traffic light")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model_name: PP-LCNet_x1_0_ML", "model_name: *a4"),
        ("size: 448", "size: *a4"),
        ("- person", "- *a4"),
        ("threshold: 0.5", "threshold: {default: *a4}"),
        ("order: ''", "order: *a4"),
    ],
)
def test_alias_bomb_in_a_value(tmp_path: Path, old: str, new: str) -> None:
    """A hundred thousand items here; each level more is ten times the memory and time."""
    tracemalloc.start()
    try:
        with pytest.raises(SpecError) as caught:
            read_text(tmp_path, (make_bomb(5) + WITHOUT_HPI).replace(old, new))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000
    assert peak_bytes < 500_000


# --- written, then read


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_round_trip_of_official_models(tmp_path: Path, name: str) -> None:
    spec = official_spec(name)
    config = read_text(tmp_path, format_inference_yml(spec))
    assert config == InferenceConfig(name, spec.labels, spec.thresholds, spec.transform)


# What YAML could take for something else.
LABELS = (
    "no", "1", "1.5", "0x10", "1e3", "null", "~", "=", "2024-12-05", "1:60", "<<", "- a", "a: b", "# a", "a # b", "'",
    '"', "it's", '"a"', "\\n", "%a", "@a", "`a`", "&a", "*a", "!a", "|", ">", "{a}", "[a]", "犬", "é", "😀", "\ufeffa",
    "a\u00a0b", " a", "a ", "a" * 500, "a b " * 100 + "c",
)  # fmt: skip


def test_round_trip_of_labels_and_thresholds(tmp_path: Path, custom_spec: ModelSpec) -> None:
    for thresholds in ((0.1,) * len(LABELS), (1e-05, 0.30000000000000004, 0.0, *(1.0,) * (len(LABELS) - 3))):
        spec = msgspec.structs.replace(custom_spec, labels=LABELS, thresholds=thresholds)
        config = read_text(tmp_path, format_inference_yml(spec))
        assert config == InferenceConfig(spec.architecture, LABELS, thresholds, spec.transform)
        assert "- 犬\n" in format_inference_yml(spec)


def test_written_form_is_what_paddlex_takes() -> None:
    """PaddleX passes every option by name: a threshold for all labels is a float, the size is the width first."""
    transform = msgspec.structs.replace(DEFAULT_TRANSFORM, height=96)
    spec = msgspec.structs.replace(official_spec("ResNet50_ML"), transform=transform)
    expected = yaml.safe_load(WITHOUT_HPI)
    expected["Global"]["model_name"] = "ResNet50_ML"
    expected["PreProcess"]["transform_ops"][0]["ResizeImage"]["size"] = [448, 96]
    expected["PreProcess"]["transform_ops"][1]["NormalizeImage"]["scale"] = 1 / 255
    expected["PostProcess"]["MultiLabelThreshOutput"]["label_list"] = list(spec.labels)
    assert yaml.safe_load(format_inference_yml(spec)) == expected
