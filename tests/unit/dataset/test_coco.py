"""COCO datasets converted: what counts, what is left out, what is refused, and that nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcls.dataset.annotations import read_annotations
from mlcls.dataset.check import CheckReport, check_dataset
from mlcls.dataset.labels import read_labels
from support.dataset_samples import coco_document, read_tree, write_coco, write_picture

CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush"}
TRAIN = {3: [18], 1: [1, 18, 18], 2: []}
VAL = {7: [1], 9: [90, 18]}

Document = dict[str, Any]


def convert(root: Path, **options: Any) -> CheckReport:
    return check_dataset(root, root.parent / "output", **{"convert_coco": True, **options})


def documents(suffix: str = "", prefix: str = "instances") -> dict[str, Document]:
    return {
        f"{prefix}_train{suffix}.json": coco_document(TRAIN, CATEGORIES),
        f"{prefix}_val{suffix}.json": coco_document(VAL, CATEGORIES),
    }


EXPECTED = {
    "label.txt": "0 person\n1 dog\n2 toothbrush\n",
    "train.txt": "{0}/001.png\t1,1,0\n{0}/002.png\t0,0,0\n{0}/003.png\t0,1,0\n",
    "val.txt": "{1}/007.png\t1,0,0\n{1}/009.png\t0,1,1\n",
}


def written(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text(encoding="utf-8") for name in EXPECTED}


def expected(train: str = "images", val: str = "images") -> dict[str, str]:
    return {name: text.format(train, val) for name, text in EXPECTED.items()}


@pytest.mark.parametrize(("suffix", "prefix"), [("", "instance"), ("", "instances"), ("2017", "instances")])
def test_conversion(tmp_path: Path, suffix: str, prefix: str) -> None:
    root = write_coco(tmp_path / "x", documents(suffix, prefix))
    originals = read_tree(root / "annotations")
    report = convert(root)
    assert report.passed
    assert written(root) == expected()
    assert read_tree(root / "annotations") == {f"{name}.bak": content for name, content in originals.items()}
    assert report.backups == {f"annotations/{name}": f"annotations/{name}.bak" for name in originals}
    assert report.result["attributes"]["num_classes"] == 3


def test_conversion_again(tmp_path: Path) -> None:
    """A configuration may keep `convert.enable`; the second run reads the originals where they are kept."""
    root = write_coco(tmp_path / "x", documents())
    convert(root)
    before = read_tree(root)
    report = convert(root)
    assert report.passed
    assert not report.backups
    assert read_tree(root) == before


def test_older_files_are_kept(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "x", documents())
    (root / "label.txt").write_text("0 mine\n")
    (root / "train.txt").write_text("my own\n")
    (root / "train.txt.bak").write_text("even older\n")
    assert convert(root).passed
    assert (root / "label.txt.bak").read_text() == "0 mine\n"
    assert (root / "train.txt.bak").read_text() == "even older\n"
    assert (root / "train.txt.bak2").read_text() == "my own\n"


@pytest.mark.parametrize(
    "folders", [("train2017", "val2017"), ("images/train2017", "images/val2017"), ("train", "val")]
)
def test_folders_of_images(tmp_path: Path, folders: tuple[str, str]) -> None:
    root = tmp_path / "x"
    write_coco(root, documents("2017"), "unused")
    for folder, numbers in zip(folders, (TRAIN, VAL), strict=True):
        for number in numbers:
            write_picture(root / folder / f"{number:03}.png", number)
    assert convert(root).passed
    assert written(root) == expected(*folders)


def test_folder_in_the_file_name(tmp_path: Path) -> None:
    parts = {"train": TRAIN, "val": VAL}
    named = {f"instance_{part}.json": coco_document(parts[part], CATEGORIES, f"{part}/{{:03}}.png") for part in parts}
    root = write_coco(tmp_path / "x", named)
    assert convert(root).passed
    assert written(root) == expected("images/train", "images/val")


def write_one(tmp_path: Path, **fields: Any) -> Path:
    """A dataset whose training file has one more annotation."""
    both = documents()
    annotation = {"id": 99, "image_id": 2, "category_id": 90, "bbox": [0, 0, 4, 4], "iscrowd": 0, **fields}
    both["instances_train.json"]["annotations"].append(annotation)
    return write_coco(tmp_path / "x", both)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"iscrowd": 1, "segmentation": {"counts": [3, 4], "size": [24, 32]}}, None),
        ({"bbox": None}, None),
        ({"bbox": [0, 0, 0, 4]}, "expected a box [x, y, width, height], got [0, 0, 0, 4]; the label counts anyway"),
        ({"bbox": [0, 0, float("nan"), 4]}, "got [0, 0, NaN, 4]; the label counts anyway"),
        ({"bbox": "none"}, 'got "none"; the label counts anyway'),
    ],
)
def test_annotation_that_counts(tmp_path: Path, fields: dict[str, Any], warning: str | None) -> None:
    report = convert(write_one(tmp_path, **fields))
    assert report.passed
    assert "images/002.png\t0,0,1\n" in written(report.root)["train.txt"]
    assert len(report.log.warnings) == (warning is not None)
    assert (warning or "") in "".join(map(str, report.log.warnings))


def test_what_is_left_out(tmp_path: Path) -> None:
    root = write_one(tmp_path, image_id=77)
    (root / "images/003.png").unlink()
    report = convert(root)
    assert report.passed
    assert written(root)["train.txt"] == "images/001.png\t1,1,0\nimages/002.png\t0,0,0\n"
    assert [str(problem) for problem in report.log.warnings if problem.kind != "empty-class"] == [
        (
            "annotations/instances_train.json: image 3: there is no file images/003.png or images/train/003.png or "
            "train/003.png or 003.png; the image is left out"
        ),
        "annotations/instances_train.json: image 77: the file does not list this image; its 1 annotations are ignored",
    ]


# A list of the training document, an entry that is added to it, and the beginning of the error, after the file.
ANNOTATION = {"id": 99, "image_id": 2, "category_id": 90}
BAD_ENTRIES: list[tuple[str, Any, str]] = [
    ("annotations", {**ANNOTATION, "category_id": 5}, "annotations[4]: expected the id of a listed category, got 5"),
    ("annotations", {"id": 99, "category_id": 90}, "annotations[4]: expected an object with integers image_id and"),
    ("categories", {"id": 5, "name": "a\nb"}, "categories[3]: expected an object with an integer id and a name in one"),
    ("categories", {"id": 18, "name": "dog"}, "categories[3]: expected each id once, got 18 again"),
    ("categories", {"id": 5, "name": "dog"}, "categories[3]: expected each name once, got 'dog' again, with the id 5"),
    ("images", {"id": 3, "file_name": "003.png"}, "image 3: expected each id once, got this one again"),
    ("images", {"id": 55}, 'images[3]: expected an object with an integer id and a file_name, got {"id": 55}'),
]


@pytest.mark.parametrize(("key", "entry", "text"), BAD_ENTRIES)
def test_bad_entry(tmp_path: Path, key: str, entry: Any, text: str) -> None:
    expect_error(tmp_path, lambda document: {**document, key: [*document[key], entry]}, text)


def test_defects_do_not_stop_a_conversion(tmp_path: Path) -> None:
    """One picture for training and validation, one listed twice, and paths that leave the dataset."""
    root = write_coco(tmp_path / "x", documents())
    outside = tmp_path / "outside.png"
    write_picture(outside, 700)
    shutil.copy(root / "images/001.png", root / "images/copy.png")
    path = root / "annotations/instances_val.json"
    document = json.loads(path.read_text())
    names = {50: "copy.png", 51: "001.png", 52: str(outside), 53: "../../outside.png"}
    document["images"] += [{"id": number, "file_name": name} for number, name in names.items()]
    path.write_text(json.dumps(document))
    report = convert(root)
    assert report.passed
    added = (root / "val.txt").read_text(encoding="utf-8").splitlines()[-4:]
    assert [line.split("\t")[0] for line in added] == [
        "images/copy.png", "images/001.png", str(outside), "images/../../outside.png"
    ]  # fmt: skip
    kinds = [warning.kind for warning in report.log.warnings]
    assert {"leaked-picture", "leaked-path", "absolute-path", "climbing-path", "duplicate-picture"} <= set(kinds)


@pytest.mark.parametrize("wrong", [{}, {"images": None}])
def test_document_without_a_list(tmp_path: Path, wrong: Document) -> None:
    remaining: Document = {"annotations": [], "categories": []}
    expect_error(tmp_path, lambda _: {**remaining, **wrong}, "expected an object with the list 'images', got none")


def expect_error(tmp_path: Path, change: Callable[[Document], Document], text: str) -> None:
    root = write_coco(tmp_path / "x", documents())
    path = root / "annotations/instances_train.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = read_tree(root)
    report = convert(root)
    start = f"annotations/instances_train.json: {text}"
    assert any(str(error).startswith(start) for error in report.log.errors), report.log.errors
    assert read_tree(root) == before


def test_categories_that_contradict(tmp_path: Path) -> None:
    both = documents()
    both["instances_val.json"]["categories"][1]["name"] = "cat"
    (error,) = convert(write_coco(tmp_path / "x", both)).log.errors
    assert str(error) == (
        "annotations/instances_val.json: categories[1]: expected one name for the id 18, got 'dog' and 'cat'"
    )


def test_categories_of_both_files(tmp_path: Path) -> None:
    """In another order, and one in validation only."""
    both = documents()
    both["instances_train.json"]["categories"].pop()
    both["instances_val.json"]["categories"].reverse()
    root = write_coco(tmp_path / "x", both)
    assert convert(root).passed
    assert written(root) == expected()


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    both = documents()
    root = write_coco(tmp_path / "x", {"instances_train.json": both["instances_train.json"]})
    (error,) = convert(root).log.errors
    assert str(error) == (
        "annotations: expected instance_val.json, instances_val.json or instances_val2017.json, got none"
    )
    root = write_coco(tmp_path / "y", {**both, "instance_val.json": both["instances_val.json"]})
    (error,) = convert(root).log.errors
    assert "expected one file for the part val, got instance_val.json, instances_val.json" in str(error)
    for document in both.values():
        document["categories"] = []
    root = write_coco(tmp_path / "z", both)
    (error,) = convert(root).log.errors
    assert str(error) == "annotations: expected at least one category, got none"
    (root / "annotations/instances_val.json").write_text("{")
    (error,) = convert(root).log.errors
    assert str(error).startswith("annotations/instances_val.json: expected a JSON file, got one that cannot be read: ")


def test_one_file_with_a_split(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "x", {"instances_train.json": coco_document(TRAIN, CATEGORIES)})
    report = convert(root, train_percent=67)
    assert report.passed
    attributes = report.result["attributes"]
    assert (attributes["train_samples"], attributes["val_samples"]) == (2, 1)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    """Ids are contiguous, and every image has exactly the labels of its annotations, whatever COCO's ids are."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 12))
    ids = generator.choice(10_000, count, replace=False).tolist()
    categories = {category: f"label {number}" for number, category in enumerate(ids)}
    numbers = generator.choice(900, 14, replace=False).tolist()
    truth = {number: set(generator.choice(ids, int(generator.integers(0, count + 1))).tolist()) for number in numbers}
    parts = {"train": numbers[:10], "val": numbers[10:]}
    root = write_coco(
        tmp_path / "x",
        {
            f"instance_{part}.json": coco_document({n: sorted(truth[n]) for n in chosen}, categories)
            for part, chosen in parts.items()
        },
    )
    assert convert(root).passed
    labels = read_labels(root / "label.txt")
    for part, chosen in parts.items():
        images = read_annotations(root / f"{part}.txt", count)
        found = {
            int(path.stem): {label for label, has in zip(labels, vector, strict=True) if has}
            for path, vector in zip(images.paths, images.targets, strict=True)
        }
        assert found == {number: {categories[category] for category in truth[number]} for number in chosen}


def test_check_without_conversion(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "x", documents())
    problems = [str(error) for error in convert(root, convert_coco=False).log.errors]
    assert problems[0] == (
        "annotations: this looks like a COCO dataset; convert it with -o CheckDataset.convert.enable=True "
        "-o CheckDataset.convert.src_dataset_type=COCO"
    )
    assert problems[1:] == [f"{name}: expected this file, but it does not exist" for name in EXPECTED]
