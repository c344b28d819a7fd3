"""`inference.yml`: PaddleX's form is read as PaddleX reads it, and whatever else it says is an error that names it."""

from __future__ import annotations

import copy
import time
import tracemalloc
from collections.abc import Callable
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
    tensorrt:
      dynamic_shapes:
        x:
        - [1, 3, 448, 448]
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

RESIZE = "PreProcess.transform_ops.ResizeImage"
NORMALIZE = "PreProcess.transform_ops.NormalizeImage"
OUTPUT = "PostProcess.MultiLabelThreshOutput"


def make_document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(OFFICIAL)
    return document


def parse_with(edit: Callable[[dict[Any, Any]], object]) -> InferenceConfig:
    """Parses the official document after an edit."""
    document = make_document()
    edit(document)
    return parse_inference_config(document)


def options_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The options of an operation of the document, to be changed in place."""
    if name == "MultiLabelThreshOutput":
        options: dict[str, Any] = document["PostProcess"][name]
        return options
    operations: list[dict[str, dict[str, Any]]] = document["PreProcess"]["transform_ops"]
    return next(item[name] for item in operations if name in item)


def parse_with_option(operation: str, option: str, value: object) -> InferenceConfig:
    return parse_with(lambda document: options_of(document, operation).update({option: value}))


def read_text(tmp_path: Path, text: str) -> InferenceConfig:
    path = tmp_path / "inference.yml"
    path.write_text(text, encoding="utf-8")
    return read_inference_yml(path)


# --- what PaddleX writes


@pytest.mark.parametrize("with_hpi", [True, False])
@pytest.mark.parametrize("size", ["448", "[448, 448]", "\n      - 448\n      - 448"])
def test_official_form(tmp_path: Path, size: str, with_hpi: bool) -> None:
    text = OFFICIAL.replace("size: 448", f"size: {size}")
    if not with_hpi:
        text = text[: text.index("Hpi:")] + text[text.index("PreProcess:") :]
    config = read_text(tmp_path, text)
    assert config == InferenceConfig(
        model_name="PP-LCNet_x1_0_ML",
        labels=("person", "bicycle", "traffic light"),
        thresholds=(0.5, 0.5, 0.5),
        transform=ImageTransform(448, 448, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )


def test_size_is_width_and_height() -> None:
    """PaddleX hands `size` to cv2 and PIL, which take the width first."""
    transform = parse_with_option("ResizeImage", "size", [64, 96]).transform
    assert (transform.height, transform.width) == (96, 64)


def test_defaults_of_resize() -> None:
    """PaddleX's `build_resize`: cv2, LINEAR."""
    transform = parse_with(
        lambda document: document["PreProcess"]["transform_ops"].__setitem__(0, {"ResizeImage": {"size": 448}})
    ).transform
    assert (transform.resize_backend, transform.interpolation) == ("cv2", "LINEAR")


@pytest.mark.parametrize("options", [None, {}])
def test_defaults_of_normalize(options: object) -> None:
    """PaddleX's `build_normalize`: 1/255 and ImageNet's mean and standard deviation."""
    transform = parse_with(
        lambda document: document["PreProcess"]["transform_ops"].__setitem__(1, {"NormalizeImage": options})
    ).transform
    assert transform.scale == 1 / 255
    assert transform.mean == (0.485, 0.456, 0.406)
    assert transform.std == (0.229, 0.224, 0.225)


def test_one_mean_for_all_channels() -> None:
    """PaddleX's `Normalize` repeats a float, and only a float."""
    assert parse_with_option("NormalizeImage", "mean", 0.25).transform.mean == (0.25, 0.25, 0.25)
    assert parse_with_option("NormalizeImage", "std", 0.5).transform.std == (0.5, 0.5, 0.5)
    for option in ("mean", "std"):
        with pytest.raises(SpecError, match=f"{option}: expected array, got 1"):
            parse_with_option("NormalizeImage", option, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "BILINEAR", "Bilinear", "nearest", "lanczos4"])
def test_case_of_interpolation(interpolation: str) -> None:
    config = parse_with_option("ResizeImage", "interpolation", interpolation)
    assert config.transform.interpolation == interpolation.upper()


@pytest.mark.parametrize("options", [None, {}])
def test_to_chw_has_no_options(options: object) -> None:
    edited = parse_with(
        lambda document: document["PreProcess"]["transform_ops"].__setitem__(2, {"ToCHWImage": options})
    )
    assert edited == parse_inference_config(make_document())


def test_resize_short_that_is_not_set() -> None:
    assert parse_with_option("ResizeImage", "resize_short", None).transform == DEFAULT_TRANSFORM


def test_labels_are_texts() -> None:
    """PaddleX's `str(label)` of what YAML makes of them."""
    text = OFFICIAL.replace(
        "- person\n    - bicycle\n    - traffic light", "- no\n    - 1\n    - 2024-12-05\n    - 1.50"
    )
    document = yaml.safe_load(text)
    assert parse_inference_config(document).labels == ("False", "1", "2024-12-05", "1.5")


# --- thresholds


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.3, (0.3, 0.3, 0.3)),
        (1, (1.0, 1.0, 1.0)),
        (0, (0.0, 0.0, 0.0)),
        ([0.1, 0.2, 1], (0.1, 0.2, 1.0)),
        ({"default": 0.5, 1: 0.3}, (0.5, 0.3, 0.5)),
        ({"default": 0.5, "0": 0.3, "traffic light": 1}, (0.3, 0.5, 1.0)),
    ],
)
def test_threshold(tmp_path: Path, threshold: object, expected: tuple[float, ...]) -> None:
    document = make_document()
    options_of(document, "MultiLabelThreshOutput")["threshold"] = threshold
    assert read_text(tmp_path, yaml.safe_dump(document)).thresholds == expected


@pytest.mark.parametrize(
    "threshold",
    [
        *(None, "0.5", True, float("nan"), float("inf"), [0.5], [0.5] * 4, [0.5, 0.5, None], {}, {0: 0.5}),
        *({"default": None}, {"default": 0.5, 3: 0.5}, {"default": 0.5, "cow": 0.5}, {"default": 0.5, 0: "x"}),
    ],
)
def test_wrong_threshold(threshold: object) -> None:
    with pytest.raises(SpecError, match=rf"^{OUTPUT}\.threshold: threshold.*: expected "):
        parse_with_option("MultiLabelThreshOutput", "threshold", threshold)


# --- whatever else it says is an error that names it


@pytest.mark.parametrize("name", ["CropImage", "ResizeByShort", "RandomFlip", "resizeimage", "ToTensor", 1])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_unknown_operation(name: object, at: int) -> None:
    with pytest.raises(SpecError) as caught:
        parse_with(lambda document: document["PreProcess"]["transform_ops"].insert(at, {name: {"size": 224}}))
    assert str(caught.value).startswith(f"PreProcess.transform_ops.{name}: unknown operation; ")
    assert "ResizeImage, NormalizeImage, ToCHWImage" in str(caught.value)


@pytest.mark.parametrize("operation", ["ResizeImage", "NormalizeImage"])
def test_unknown_option(operation: str) -> None:
    for option in ("keep_ratio", "size_divisor", "Size", "to_float32", ""):
        with pytest.raises(SpecError, match=rf"^PreProcess.transform_ops.{operation}: unknown key '{option}'; "):
            parse_with_option(operation, option, 1)


def test_unknown_option_of_output() -> None:
    for option in ("delimiter", "class_id_map_file", "topk"):
        with pytest.raises(SpecError, match=rf"^{OUTPUT}: unknown key '{option}'; "):
            parse_with_option("MultiLabelThreshOutput", option, 1)


@pytest.mark.parametrize("options", [{"channels": 3}, True, "x", [1]])
def test_option_of_to_chw(options: object) -> None:
    with pytest.raises(SpecError, match=r"^PreProcess.transform_ops.ToCHWImage: expected no options, got "):
        parse_with(lambda document: document["PreProcess"]["transform_ops"].__setitem__(2, {"ToCHWImage": options}))


@pytest.mark.parametrize("section", ["Preprocess", "Infer", "hpi", 1])
def test_unknown_section(section: object) -> None:
    with pytest.raises(SpecError, match=rf"^the document: unknown key {section!r}; expected only Global, "):
        parse_with(lambda document: document.update({section: {}}))


@pytest.mark.parametrize("section", ["Global", "PreProcess", "PostProcess"])
def test_missing_section(section: str) -> None:
    with pytest.raises(SpecError, match=rf"^the document: the key {section!r} is missing; "):
        parse_with(lambda document: document.pop(section))


@pytest.mark.parametrize("section", ["Global", "PreProcess", "PostProcess"])
@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_section_that_is_no_mapping(section: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"^{section}: expected a mapping with "):
        parse_with(lambda document: document.update({section: value}))


@pytest.mark.parametrize("section", ["Global", "PreProcess", "PostProcess"])
def test_unknown_key_in_section(section: str) -> None:
    with pytest.raises(SpecError, match=rf"^{section}: unknown key 'more'; "):
        parse_with(lambda document: document[section].update(more=None))


def test_other_output_operation() -> None:
    with pytest.raises(SpecError, match=r"^PostProcess: unknown key 'Topk'; expected only MultiLabelThreshOutput"):
        parse_with(lambda document: document.update(PostProcess={"Topk": {"topk": 5, "label_list": ["a"]}}))


@pytest.mark.parametrize("name", [None, 1, ["PP-LCNet_x1_0_ML"]])
def test_model_name(name: object) -> None:
    with pytest.raises(SpecError, match=r"^Global.model_name: expected a name, got "):
        parse_with(lambda document: document["Global"].update(model_name=name))


@pytest.mark.parametrize("resize_short", [256, 0, "256"])
def test_resize_short(resize_short: object) -> None:
    with pytest.raises(SpecError, match=rf"^{RESIZE}\.resize_short: expected `size`"):
        parse_with_option("ResizeImage", "resize_short", resize_short)


@pytest.mark.parametrize("size", [None, 448.0, "448", True, [448], [448, 448, 3], [448, 448.0], [448, True], {}])
def test_wrong_size(size: object) -> None:
    with pytest.raises(SpecError, match=rf"^{RESIZE}\.size: expected an integer or \[width, height\], got "):
        parse_with_option("ResizeImage", "size", size)


@pytest.mark.parametrize("size", [0, -448, [0, 448], 9000])
def test_impossible_size(size: object) -> None:
    with pytest.raises(SpecError, match=r"^PreProcess\.transform_ops: width: expected int (>= 1|<= 8192), got "):
        parse_with_option("ResizeImage", "size", size)


@pytest.mark.parametrize("options", [None, {}])
def test_no_size(options: object) -> None:
    with pytest.raises(SpecError, match=rf"^{RESIZE}\.size: expected "):
        parse_with(lambda document: document["PreProcess"]["transform_ops"].__setitem__(0, {"ResizeImage": options}))


@pytest.mark.parametrize("interpolation", [None, 1, ["bilinear"]])
def test_interpolation_that_is_no_name(interpolation: object) -> None:
    with pytest.raises(SpecError, match=rf"^{RESIZE}\.interpolation: expected a name, got "):
        parse_with_option("ResizeImage", "interpolation", interpolation)


@pytest.mark.parametrize(("backend", "interpolation"), [("pil", "linear"), ("cv2", "bilinear"), ("cv2", "box")])
def test_interpolation_of_the_other_backend(backend: str, interpolation: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        options_of(document, "ResizeImage").update(backend=backend, interpolation=interpolation)

    with pytest.raises(SpecError, match=r"interpolation: expected one of .*, got ") as caught:
        parse_with(edit)
    assert repr(interpolation.upper()) in str(caught.value)


@pytest.mark.parametrize("backend", [None, "PIL", "turbojpeg", 1])
def test_wrong_backend(backend: object) -> None:
    with pytest.raises(SpecError, match=r"backend: expected (one of pil, cv2|'pil' or 'cv2'), got "):
        parse_with_option("ResizeImage", "backend", backend)


@pytest.mark.parametrize("backend", [["pil"], {"pil": None}])
def test_backend_that_is_no_name(backend: object) -> None:
    with pytest.raises(SpecError, match="backend: expected "):
        parse_with_option("ResizeImage", "backend", backend)


@pytest.mark.parametrize("order", ["chw", "hwc", None, 0, False])
def test_order(order: object) -> None:
    with pytest.raises(SpecError, match=rf"^{NORMALIZE}\.order: expected '' .*, got {order!r}"):
        parse_with_option("NormalizeImage", "order", order)


@pytest.mark.parametrize("channels", [1, 4, None, "3"])
def test_channel_num(channels: object) -> None:
    with pytest.raises(SpecError, match=rf"^{NORMALIZE}\.channel_num: expected 3, got {channels!r}"):
        parse_with_option("NormalizeImage", "channel_num", channels)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", None),
        ("scale", "1.0/255.0"),
        ("scale", True),
        ("mean", None),
        ("mean", []),
        ("mean", [0.5, 0.5, "0.5"]),
        ("std", [0.5, 0.5]),
        ("std", [0.5, 0.5, 0]),
        ("std", 0.0),
    ],
)
def test_wrong_normalization(option: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"{option}(\[\d\])?: expected "):
        parse_with_option("NormalizeImage", option, value)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_operation_missing(missing: int) -> None:
    with pytest.raises(SpecError, match=r"^PreProcess.transform_ops: expected .*, each once and in this order, got "):
        parse_with(lambda document: document["PreProcess"]["transform_ops"].pop(missing))


@pytest.mark.parametrize("twice", [0, 1, 2])
def test_operation_twice(twice: int) -> None:
    def edit(document: dict[str, Any]) -> None:
        operations = document["PreProcess"]["transform_ops"]
        operations.insert(twice, copy.deepcopy(operations[twice]))

    with pytest.raises(SpecError, match=r"^PreProcess.transform_ops: expected .*, each once and in this order, got "):
        parse_with(edit)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_operations_in_other_order(order: tuple[int, ...]) -> None:
    def edit(document: dict[str, Any]) -> None:
        operations = document["PreProcess"]["transform_ops"]
        document["PreProcess"]["transform_ops"] = [operations[index] for index in order]

    with pytest.raises(SpecError, match=r"^PreProcess.transform_ops: expected .*, each once and in this order, got "):
        parse_with(edit)


@pytest.mark.parametrize(
    "operations", [None, {}, "x", [None], ["ToCHWImage"], [{}], [{"ResizeImage": None, "ToCHWImage": None}], [[]]]
)
def test_operations_that_are_none(operations: object) -> None:
    with pytest.raises(SpecError, match=r"^PreProcess.transform_ops: expected (a list of )?operations"):
        parse_with(lambda document: document["PreProcess"].update(transform_ops=operations))


def test_no_operations() -> None:
    with pytest.raises(SpecError, match=r"in this order, got none\.$"):
        parse_with(lambda document: document["PreProcess"].update(transform_ops=[]))


@pytest.mark.parametrize("option", ["label_list", "threshold"])
def test_output_option_missing(option: str) -> None:
    with pytest.raises(SpecError, match=rf"^{OUTPUT}: the key '{option}' is missing; "):
        parse_with(lambda document: options_of(document, "MultiLabelThreshOutput").pop(option))


@pytest.mark.parametrize("label_list", [None, [], "labels.txt", {0: "a"}, 3])
def test_wrong_label_list(label_list: object) -> None:
    with pytest.raises(SpecError, match=rf"^{OUTPUT}\.label_list: expected a list of labels, got "):
        parse_with_option("MultiLabelThreshOutput", "label_list", label_list)


# --- the file


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "inference.yml"
    with pytest.raises(SpecError, match=rf"^{path} does not exist; a PaddleX inference model has an inference.yml"):
        read_inference_yml(path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^{tmp_path}/inference.yml: the document: the key 'Global' is missing"):
        read_text(tmp_path, OFFICIAL[OFFICIAL.index("Hpi:") :])


@pytest.mark.parametrize("text", ["a: b: c", "a: [", "\tGlobal:", "a: *b", "%", "a: 1\n---\nb: 2", "? [a]\n: b", "\0"])
def test_not_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"inference.yml: expected a YAML document, got one that cannot be read: ") as e:
        read_text(tmp_path, text)
    assert "\n" not in str(e.value)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "inference.yml"
    path.write_bytes(b"Global: \xff\xfe")
    with pytest.raises(SpecError, match="expected a YAML document, got one that cannot be read: "):
        read_inference_yml(path)
    with pytest.raises(SpecError, match="expected a YAML document, got one that cannot be read: "):
        read_inference_yml(tmp_path)


@pytest.mark.parametrize(("text", "got"), [("", "None"), ("[]", r"\[\]"), ("text", "'text'"), ("1", "1")])
def test_not_a_mapping(tmp_path: Path, text: str, got: str) -> None:
    with pytest.raises(SpecError, match=rf"the document: expected a mapping with Global, .*, got {got}\.$"):
        read_text(tmp_path, text)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object:pathlib.Path {}",
        "!!python/object/new:pathlib.Path ['x']",
        "!!python/object/apply:os.mkdir ['{folder}']",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!!python/tuple [a]",
        "!label x",
    ],
)
def test_tags_make_no_objects(tmp_path: Path, tag: str) -> None:
    made = tmp_path / "made"
    text = OFFICIAL.replace("- person", f"- {tag.replace('{folder}', str(made))}")
    with pytest.raises(SpecError, match="expected a YAML document, got one that cannot be read: could not determine"):
        read_text(tmp_path, text)
    assert not made.exists()


def test_nested_too_deeply(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"expected a YAML document, got one that cannot be read: a document that is nested too deeply"
    ):
        read_text(tmp_path, "[" * 50_000)


def test_date_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a YAML document"):
        read_text(tmp_path, OFFICIAL.replace("- person", "- 2024-13-45"))


def make_bomb(depth: int) -> str:
    """Lists of ten lists of ten ..., by reference, in a section that is not looked at."""
    lists = [["x"] * 10, *([f"*a{level}"] * 10 for level in range(depth - 1))]
    return "Hpi:\n" + "".join(f"- &a{level} [{', '.join(items)}]\n" for level, items in enumerate(lists))


def test_alias_bomb_is_not_expanded(tmp_path: Path) -> None:
    """A thousand million items, if it were."""
    text = OFFICIAL[: OFFICIAL.index("Hpi:")] + make_bomb(9) + OFFICIAL[OFFICIAL.index("PreProcess:") :]
    started = time.monotonic()
    assert read_text(tmp_path, text).labels == ("person", "bicycle", "traffic light")
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
    text = make_bomb(5) + OFFICIAL[: OFFICIAL.index("Hpi:")] + OFFICIAL[OFFICIAL.index("PreProcess:") :]
    assert old in text
    text = text.replace(old, new)
    path = tmp_path / "inference.yml"
    path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(SpecError) as caught:
            read_inference_yml(path)
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


def test_round_trip_of_custom_model(tmp_path: Path, custom_spec: ModelSpec) -> None:
    config = read_text(tmp_path, format_inference_yml(custom_spec))
    assert config.model_name == custom_spec.architecture
    assert config.labels == custom_spec.labels
    assert config.thresholds == custom_spec.thresholds
    assert config.transform == custom_spec.transform
    assert "- 犬\n" in format_inference_yml(custom_spec)


@pytest.mark.parametrize(
    "label",
    [
        *("no", "yes", "1", "1.5", "0x10", "1e3", "null", "~", "=", "true", "2024-12-05", "1:60", "<<", "- a", "a: b"),
        *("# a", "a # b", "'", '"', "it's", '"a"', "\\n", "%a", "@a", "`a`", "&a", "*a", "!a", "|", ">", "{a}", "[a]"),
        *("人", "犬", "é", "😀", "\ufeffa", "a\u00a0b", " a", "a ", "a" * 500, "a b " * 100 + "c"),
    ],
)
def test_round_trip_of_labels(tmp_path: Path, custom_spec: ModelSpec, label: str) -> None:
    spec = msgspec.structs.replace(custom_spec, labels=(label, "b", "c"))
    config = read_text(tmp_path, format_inference_yml(spec))
    assert config.labels == spec.labels
    assert yaml.safe_load(format_inference_yml(spec))["PostProcess"]["MultiLabelThreshOutput"]["label_list"][0] == label


@pytest.mark.parametrize(
    "thresholds", [(0.5, 0.5, 0.5), (0.1, 1e-05, 0.30000000000000004), (0.0, 1.0, -1.0), (0.0,) * 3]
)
def test_round_trip_of_thresholds(tmp_path: Path, custom_spec: ModelSpec, thresholds: tuple[float, ...]) -> None:
    spec = msgspec.structs.replace(custom_spec, thresholds=thresholds)
    assert read_text(tmp_path, format_inference_yml(spec)).thresholds == thresholds


def test_written_form_is_what_paddlex_takes() -> None:
    """PaddleX passes every option by name: a threshold for all labels is a float, the size is the width first."""
    spec = msgspec.structs.replace(
        official_spec("ResNet50_ML"), transform=msgspec.structs.replace(DEFAULT_TRANSFORM, height=96)
    )
    assert yaml.safe_load(format_inference_yml(spec)) == {
        "Global": {"model_name": "ResNet50_ML"},
        "PreProcess": {
            "transform_ops": [
                {"ResizeImage": {"size": [448, 96], "interpolation": "bilinear", "backend": "pil"}},
                {
                    "NormalizeImage": {
                        "scale": 1 / 255,
                        "mean": [0.485, 0.456, 0.406],
                        "std": [0.229, 0.224, 0.225],
                        "order": "",
                        "channel_num": 3,
                    }
                },
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"MultiLabelThreshOutput": {"threshold": 0.5, "label_list": list(spec.labels)}},
    }
