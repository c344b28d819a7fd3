"""Results look, print and save as PaddleX's do (texts below were printed by PaddleX 3.7.2)."""

import copy
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls_client import ImageRejectedError, InputError, MultiLabelResult, OutputError
from mlcls_client.base.files import FileNames
from mlcls_client.transport.contract import Answer
from support.client_images import encode

ANSWER = Answer("OK", (46, 49, 47), (0.99972, 0.99601, 0.5), ("banana", "orange", "äpple"))

PADDLEX_LINE = (
    "{'res': {'input_path': 'dir/a b.jpg', 'page_index': None, 'class_ids': [46, 49, 47], "
    "'scores': [0.99972, 0.99601, 0.5], 'label_names': ['banana', 'orange', 'äpple']}}\n"
)
PADDLEX_JSON = (
    '{\n  "res": {\n    "input_path": "dir/a b.jpg",\n    "page_index": null,\n    "class_ids": [\n      46,\n'
    '      49,\n      47\n    ],\n    "scores": [\n      0.99972,\n      0.99601,\n      0.5\n    ],\n'
    '    "label_names": [\n      "banana",\n      "orange",\n      "\\u00e4pple"\n    ]\n  }\n}\n'
)
PADDLEX_FILE = (
    '{\n    "input_path": "dir/a b.jpg",\n    "page_index": null,\n    "class_ids": [\n        46,\n        49,\n'
    '        47\n    ],\n    "scores": [\n        0.99972,\n        0.99601,\n        0.5\n    ],\n'
    '    "label_names": [\n        "banana",\n        "orange",\n        "äpple"\n    ]\n}'
)


def make_result(input_path: str | None = "dir/a b.jpg", page_index: int | None = None) -> MultiLabelResult:
    return MultiLabelResult(ANSWER, input_path=input_path, page_index=page_index, encoded_image=encode(side=48))


def test_is_a_dict_with_the_keys_of_paddlex() -> None:
    result = make_result()
    assert list(result) == ["input_path", "page_index", "class_ids", "scores", "label_names"]
    assert result.json == {"res": json.loads(PADDLEX_FILE)}
    assert type(result.json["res"]) is dict
    assert (result.input_path, result.page_index, result.error) == ("dir/a b.jpg", None, None)
    assert (result.class_ids.tolist(), result.scores.tolist()) == ([46, 49, 47], [0.99972, 0.99601, 0.5])
    assert result.label_names == ["banana", "orange", "äpple"]
    assert result.str == {"res": result}


def test_has_the_types_of_paddlex() -> None:
    for result in (make_result(), MultiLabelResult(Answer("OK"))):
        kinds = [(type(result[key]), result[key].dtype) for key in ("class_ids", "scores")]
        assert kinds == [(np.ndarray, np.int64), (np.ndarray, np.float64)]
        assert type(result["label_names"]) is list
    assert (make_result()["scores"] > 0.9).tolist() == [True, True, False]


def test_the_image_is_rgb_and_no_part_of_the_dict() -> None:
    result = MultiLabelResult(ANSWER, encoded_image=encode((250, 100, 0), side=3))
    assert result["input_img"].tolist() == [[[250, 100, 0]] * 3] * 3
    assert result["input_img"].flags.writeable
    assert "input_img" not in result
    with pytest.raises(KeyError, match="input_image"):
        result["input_image"]


def test_equal_results() -> None:
    assert make_result() == make_result()
    assert make_result() == json.loads(PADDLEX_FILE)
    assert make_result() != make_result(page_index=1)
    assert make_result() != "text"


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    result = make_result()
    result.print()
    assert capsys.readouterr().out == PADDLEX_LINE
    result.print(format_json=True, indent=2, ensure_ascii=True)
    assert capsys.readouterr().out == PADDLEX_JSON
    result.print(json_format=True, indent=2, ensure_ascii=True)
    assert capsys.readouterr().out == PADDLEX_JSON


def test_save_to_json(tmp_path: Path) -> None:
    result = make_result()
    result.save_to_json(tmp_path / "new" / "res.json")
    assert (tmp_path / "new" / "res.json").read_text(encoding="utf-8") == PADDLEX_FILE
    result.save_to_json(str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "a b_res.json").read_text(encoding="utf-8") == PADDLEX_FILE
    result.save_to_json(tmp_path / "line.json", indent=None, ensure_ascii=True)
    assert (tmp_path / "line.json").read_text(encoding="ascii") == json.dumps(json.loads(PADDLEX_FILE))
    result.save_to_json(tmp_path / "sorted.json", sort_keys=True)
    assert list(json.loads((tmp_path / "sorted.json").read_text(encoding="utf-8"))) == sorted(result)


def test_a_file_name_that_is_not_utf8_is_saved_as_valid_json(tmp_path: Path) -> None:
    result = make_result(input_path="x\udce4.jpg")
    result.save_to_json(tmp_path / "res.json")
    assert json.loads((tmp_path / "res.json").read_text(encoding="utf-8"))["input_path"] == "x\udce4.jpg"


@pytest.mark.parametrize(
    ("input_path", "page_index", "name"),
    [
        ("dir/a b.jpg", None, "a b_res.jpg"),
        ("dir/a b.jpg", 3, "a b_3_res.jpg"),
        ("dir/c.tif", 3, "c_3_res.tif"),
        ("x.pdf", 3, "x_3_res.png"),
        ("photo.WEBP", None, "photo_res.WEBP"),
        ("scan.ppm", None, "scan_res.ppm"),
        ("photo.avif", None, "photo_res.png"),
        ("no_suffix", None, "no_suffix_res.png"),
    ],
)
def test_saved_names_are_those_of_paddlex(tmp_path: Path, input_path: str, page_index: int | None, name: str) -> None:
    make_result(input_path, page_index).save_to_img(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_image_from_memory_is_named_by_time_and_chance_and_keeps_its_name(tmp_path: Path) -> None:
    result = make_result(input_path=None)
    result.save_to_img(tmp_path)
    result.save_to_json(tmp_path)
    image_name, json_name = sorted((path.name for path in tmp_path.iterdir()), key=lambda name: name[-4:] != ".png")
    assert re.fullmatch(r"\d{10}_\d{4}_res\.png", image_name)
    assert json_name == image_name.replace(".png", ".json")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"])
def test_save_to_img_writes_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    result = make_result()
    result.save_to_img(tmp_path / f"picture.{suffix}")
    with Image.open(tmp_path / f"picture.{suffix}") as saved:
        assert saved.format == {"jpg": "JPEG", "jpe": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        assert saved.size == result.img["res"].size


@pytest.mark.parametrize("name", ["x.ico", "x.svg", "x.txt", "x.json"])
def test_a_file_of_another_format_is_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"ends in \.jpg, .*, got '.*x\..*'"):
        make_result().save_to_img(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match=r"ends in \.json, got '.*x\.png'"):
        make_result().save_to_json(tmp_path / "x.png")
    (tmp_path / name).mkdir()
    make_result().save_all(tmp_path / name)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["a b_res.jpg", "a b_res.json"]


def test_a_name_of_another_image_gets_a_number(tmp_path: Path) -> None:
    names = FileNames()
    for path in ("a/x.png", "b/X.png", "a/x.png", "c/x.png", None, None):
        result = MultiLabelResult(ANSWER, input_path=path, encoded_image=encode(), file_names=names)
        result._memory_name = "memory"
        result.save_all(tmp_path)
    found = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json")
    assert found == ["X_res_2.json", "memory_res.json", "memory_res_2.json", "x_res.json", "x_res_3.json"]
    assert sorted(path.stem for path in tmp_path.iterdir() if path.suffix == ".png") == [name[:-5] for name in found]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "res.jpg").write_bytes(b"old")
    result = make_result()
    monkeypatch.setattr(Image.Image, "save", lambda self, file, **options: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save_to_img(tmp_path / "res.jpg")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"res.jpg": b"old"}
    with pytest.raises(OutputError, match="Cannot write"):
        result.save_to_json(tmp_path / "res.jpg" / "res.json")


def test_a_failed_result_says_so_everywhere(tmp_path: Path) -> None:
    error = ImageRejectedError("no result for 'x.jpg': broken", input_path="x.jpg", reason="broken")
    result = MultiLabelResult(Answer("broken"), input_path="x.jpg", error=error)
    assert result.json["res"]["error"] == "no result for 'x.jpg': broken"
    assert (result.class_ids.tolist(), result.label_names) == ([], [])
    with pytest.raises(ImageRejectedError):
        result["input_img"]
    with pytest.raises(ImageRejectedError):
        result.save_to_img(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_pillow_cannot_decode_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match=r"image that Pillow can decode, got: unknown format\.$"):
        _ = MultiLabelResult(ANSWER, encoded_image=b"not an image").img


def test_results_and_errors_can_be_copied_and_pickled() -> None:
    result = make_result()
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other == result
        assert other.img["res"].size == result.img["res"].size
    error = pickle.loads(pickle.dumps(ImageRejectedError("text", input_path="x.jpg", reason="broken")))
    assert (str(error), error.input_path, error.reason) == ("text", "x.jpg", "broken")
