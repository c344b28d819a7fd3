"""Bad datasets, each with its message and its place, and what a good one leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls.dataset import image_inspection
from mlcls.dataset.check import CheckReport, check_dataset, examine_dataset
from mlcls.errors import DatasetError
from support.dataset_samples import append, read_tree, write_dataset, write_picture


def check(root: Path) -> CheckReport:
    return check_dataset(root, root.parent / "output")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def copy_picture(root: Path, source: str, target: str) -> None:
    """The same pixels in a file of another format."""
    with Image.open(root / source) as image:
        image.save(root / target)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_utf16(path: Path) -> None:
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))


def to_gbk(path: Path) -> None:
    path.write_bytes("0 cat\n1 dog\n2 dining table\n3 狗\n".encode("gbk"))


def leak_picture(root: Path) -> None:
    copy_picture(root, "images/002.png", "images/copy.bmp")
    append(root / "val.txt", "images/copy.bmp\t0,0,1,1\n")


def repeat_picture(root: Path) -> None:
    copy_picture(root, "images/000.png", "images/copy.bmp")
    append(root / "train.txt", "images/copy.bmp\t1,0,0,0\n")


def use_absolute_paths(root: Path) -> None:
    spoil(root / "val.txt", "images/006", f"{root}/images/006")


def climb(root: Path) -> None:
    spoil(root / "train.txt", "images/000", "../x/images/000")


def drop_label(root: Path) -> None:
    spoil(root / "val.txt", "1,1,0,0", "0,1,0,0")


def add_line(name: str, line: str) -> Callable[[Path], object]:
    return lambda root: append(root / name, f"{line}\n")


# A file of a good dataset, a text in it ("" for its end, None for all of it), what is put there, and the one error:
# its kind, its line if it has one, and the beginning of its message.
BAD_TEXTS: list[tuple[str, str | None, str, str]] = [
    ("train.txt", None, "", "empty-file: expected one image per line, got an empty file"),
    ("label.txt", None, "", "empty-file: expected a class id, a space and a label per line, got an empty file"),
    ("label.txt", "", "bird\n", "label-line:5: expected a class id, a space and a label, got 'bird'"),
    ("label.txt", "1 dog", "1 do\tg", r"label-line:2: expected a label without control characters, got 'do\tg'"),
    ("label.txt", "1 dog", "1 ", "empty-label:2: expected a label after the class id 1, got none"),
    ("label.txt", "1 dog", "1 cat", "duplicate-label:2: expected each label once, got 'cat' again, first on line 1"),
    ("label.txt", "", "1 bird\n", "duplicate-id:5: expected each class id once, got 1 again, first on line 2"),
    ("label.txt", "0 cat\n", "", "id-gap: expected class ids 0 to 3, each once, got no label for 0"),
    ("label.txt", "0", "\ufeff0", "byte-order-mark:1: expected UTF-8 without a byte order mark, got one; save it"),
    ("label.txt", "g t", "g\x0bt", r"control-character:3: expected text, got the control character '\x0b' at position"),
    ("train.txt", "", "a.png 1,0,0,0\n", "annotation-line:7: expected PATH, a tab and 4 numbers, got 'a.png 1,0,0,0'"),
    ("val.txt", "", "\n", "annotation-line:3: expected PATH, a tab and 4 numbers, got an empty line"),
    ("train.txt", "0,1,0,0", "0,1,0", "vector-length:2: expected 4 numbers, one for each label, got 3"),
    ("train.txt", "0,1,0,0", "0,2,0,0", "vector-value:2: expected 0 or 1 for each label, got '2'"),
    (
        "val.txt",
        "images",
        r"C:\data",
        r"missing-image:1: C:\data/006.png: expected an image file, but it does not exist",
    ),
    ("train.txt", "images/001", r"images\001", r"missing-image:2: images\001.png: expected an image file, but it does"),
]

# A file of a good dataset, what is done to it; kind, place and beginning of the one error.
BAD_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("label.txt", Path.unlink, "missing-file label.txt: expected this file, but it does not exist"),
    ("val.txt", Path.unlink, "missing-file val.txt: expected this file, but it does not exist"),
    ("train.txt", put_folder, "unreadable-file train.txt: expected a text file, got one that cannot be read: Is a"),
    ("val.txt", to_utf16, "encoding val.txt: expected UTF-8, got UTF-16; save it as UTF-8"),
    ("label.txt", to_gbk, r"encoding label.txt:4: expected UTF-8, got the bytes b'\xb9\xb7' at byte 3 of the line"),
    ("images/001.png", Path.unlink, "missing-image train.txt:2: images/001.png: expected an image file, but it does"),
    ("images/001.png", put_pipe, "unreadable-image train.txt:2: images/001.png: expected an image file, got something"),
    ("images/001.png", truncate, "broken-image train.txt:2: images/001.png: expected a whole PNG file"),
]


# What is done to a good dataset, which can be trained on as before; kind, place and beginning of the one finding.
DEFECTS: list[tuple[Callable[[Path], object], str]] = [
    (use_absolute_paths, "absolute-path val.txt:1: expected a path relative to the dataset's folder, got the absolute"),
    (climb, "climbing-path train.txt:1: expected a path inside the dataset's folder, got '../x/images/000.png'"),
    (
        add_line("train.txt", "images/000.png\t1,0,0,0"),
        "duplicate-path train.txt:7: expected each image once, got images",
    ),
    (add_line("train.txt", "./images//000.png\t0,1,0,0"), "duplicate-path train.txt:7: expected each image once, got"),
    (
        add_line("val.txt", "images/002.png\t0,0,1,1"),
        "leaked-path val.txt:3: expected each image in one part, got images",
    ),
    (
        leak_picture,
        "leaked-picture val.txt:3: expected no training picture in validation, got images/copy.bmp, the same",
    ),
    (
        repeat_picture,
        "duplicate-picture train.txt:7: images/copy.bmp is the same picture as images/000.png (train.txt:1)",
    ),
    (drop_label, "empty-class val.txt: no sample has label 0 'cat'; it cannot be evaluated"),
]


def spoil(path: Path, old: str | None, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert (old or "") in text
    path.write_text(new if old is None else text.replace(old, new, 1) if old else text + new, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "x")


@pytest.mark.parametrize(("file", "old", "new", "error"), BAD_TEXTS)
def test_bad_text(root: Path, file: str, old: str | None, new: str, error: str) -> None:
    spoil(root / file, old, new)
    kind, _, message = error.partition(":")
    expect_error(root, kind, f"{file}:{message}")


@pytest.mark.parametrize(("file", "change", "error"), BAD_FILES)
def test_bad_file(root: Path, file: str, change: Callable[[Path], object], error: str) -> None:
    change(root / file)
    expect_error(root, *error.split(" ", 1))


def expect_error(root: Path, kind: str, text: str) -> None:
    report = check(root)
    assert not report.passed
    assert not report.result
    found = [str(error) for error in report.log.errors if error.kind == kind]
    assert any(each.startswith(text) for each in found), found
    follow_ups = {"id-gap": {"vector-length"}, "encoding": {"id-gap", "vector-length"}, "label-line": {"vector-length"}}
    allowed = follow_ups.get(kind, set()) | {"id-gap"} if text.startswith("label.txt") else set()
    assert {error.kind for error in report.log.errors} - {kind} <= allowed


@pytest.mark.parametrize(("change", "finding"), DEFECTS)
def test_defect(root: Path, change: Callable[[Path], object], finding: str) -> None:
    """A warning, as PaddleX accepts such a dataset, an error if strict; and the same for who trains on it."""
    change(root)
    kind, text = finding.split(" ", 1)
    report = check(root)
    assert report.passed
    (warning,) = report.log.warnings
    assert (warning.kind, str(warning)[: len(text)]) == (kind, text)
    assert examine_dataset(root).warnings == [warning]
    strict = check_dataset(root, root.parent / "output", strict=True)
    assert [str(error) for error in strict.log.errors] == [str(warning)]
    assert not strict.log.warnings


def test_validation_without_labels_is_an_error(root: Path) -> None:
    """There would be no mAP, and so no best model."""
    for vector in ("1,1,0,0", "0,0,1,1"):
        spoil(root / "val.txt", vector, "0,0,0,0")
    (error,) = check(root).log.errors
    assert str(error).startswith("val.txt: expected images with labels, got none with any")


def test_who_trains_hears_of_the_same_errors(root: Path) -> None:
    truncate(root / "images/001.png")
    spoil(root / "val.txt", "1,1,0,0", "1,1,0")
    assert examine_dataset(root).errors == check(root).log.errors
    (root / "label.txt").unlink()
    assert [error.kind for error in examine_dataset(root).errors] == ["missing-file"]


def test_all_problems_are_reported_together(root: Path) -> None:
    spoil(root / "label.txt", "1 dog", "1 ")
    spoil(root / "train.txt", "0,1,0,0", "0,2,0,0")
    append(root / "train.txt", "images/000.png 1,0,0,0\n")
    append(root / "val.txt", "images/002.png\t0,0,1,0\n")
    (root / "images/005.png").unlink()
    log = check(root).log
    assert [f"{problem.kind} {problem}" for problem in log.errors + log.warnings] == [
        "empty-label label.txt:2: expected a label after the class id 1, got none",
        "vector-value train.txt:2: expected 0 or 1 for each label, got '2'",
        "annotation-line train.txt:7: expected PATH, a tab and 4 numbers, got 'images/000.png 1,0,0,0'",
        "missing-image train.txt:6: images/005.png: expected an image file, but it does not exist",
        (
            "leaked-path val.txt:3: expected each image in one part, got images/002.png, which is also in the other "
            "(train.txt:3, with other labels)"
        ),
    ]


def test_warnings(root: Path) -> None:
    """A dataset with these passes."""
    text = (root / "train.txt").read_bytes().replace(b"\n", b"\r\n")
    (root / "train.txt").write_bytes(text)
    append(root / "label.txt", "4 bird\n")
    for part in ("train.txt", "val.txt"):
        lines = (root / part).read_text(encoding="utf-8").splitlines()
        (root / part).write_bytes("".join(f"{line},0\r\n" for line in lines).encode())
    copy_picture(root, "images/000.png", "images/copy.bmp")
    append(root / "train.txt", "images/copy.bmp\t0,0,0,1,0\n")
    (root / "more/images").mkdir(parents=True)
    report = check(root)
    assert report.passed
    assert [str(warning) for warning in report.log.warnings] == [
        "train.txt: lines end with CRLF (Windows); they are read as if they ended with LF",
        "val.txt: lines end with CRLF (Windows); they are read as if they ended with LF",
        (
            ".: PaddleX itself expects one folder images here and no other below, got images, more/images; "
            "mlcls needs neither"
        ),
        "train.txt:7: images/copy.bmp is the same picture as images/000.png (train.txt:1), with other labels",
        "train.txt: no sample has label 4 'bird'; it cannot be learned",
        "val.txt: no sample has label 4 'bird'; it cannot be evaluated",
    ]


def test_good_dataset(root: Path) -> None:
    before = read_tree(root)
    report = check(root)
    output = root.parent / "output"
    names = {part: [f"check_dataset/demo_img/{n:03}.png" for n in numbers] for part, numbers in ORDER.items()}
    assert report.result == {
        "attributes": {
            "label_file": "../../x/label.txt",
            "num_classes": 4,
            "train_samples": 6,
            "train_sample_paths": names["train"],
            "val_samples": 2,
            "val_sample_paths": names["val"],
        },
        "analysis": {"histogram": "check_dataset/histogram.png"},
        "dataset_path": "x",
        "show_type": "image",
        "dataset_type": "MLClsDataset",
    }
    for path in (*names["train"], *names["val"], "check_dataset/histogram.png"):
        with Image.open(output / path) as picture:
            picture.load()
    with Image.open(output / "check_dataset/demo_img/002.png") as drawn, Image.open(root / "images/002.png") as image:
        left = (drawn.width - image.width) // 2
        assert np.array_equal(drawn.crop((left, 0, left + image.width, image.height)), image)
        assert drawn.height > image.height
    assert read_tree(root) == before


# The order in which PaddleX shows the samples.
ORDER = {"train": [3, 4, 1, 5, 2, 0], "val": [7, 6]}


def test_failed_check_keeps_earlier_pictures(root: Path) -> None:
    check(root)
    before = read_tree(root.parent / "output")
    truncate(root / "images/001.png")
    check(root)
    assert read_tree(root.parent / "output") == before


def test_samples_of_one_name(root: Path) -> None:
    """Of two folders, and of formats that Pillow cannot write."""
    write_picture(root / "images/more/000.png", 50)
    write_picture(root / "images/000.gif", 51)
    append(root / "train.txt", "images/more/000.png\t1,0,0,0\nimages/000.gif\t1,0,0,0\n")
    paths = check(root).result["attributes"]["train_sample_paths"]
    assert {Path(path).name for path in paths} >= {"000.png", "000_2.png", "000_3.png"}
    assert len(set(paths)) == 8


def test_dataset_inside_the_folder(root: Path) -> None:
    """An archive is unpacked to a folder of its own."""
    report = check(root.parent)
    assert (report.root, report.passed) == (root, True)
    assert [str(warning) for warning in report.log.warnings] == [
        f".: the dataset is in {root}; train with this Global.dataset_dir"
    ]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected the folder of a dataset, got a path that does not exist"):
        check(tmp_path / "no")
    with pytest.raises(DatasetError, match="or one folder images at any depth, got neither"):
        check(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"got several: .*a/images, .*b/images"):
        check(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="got a file; see"):
        check(tmp_path / "file")


def test_labels_in_any_order(root: Path) -> None:
    lines = (root / "label.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (root / "label.txt").write_text("".join(reversed(lines)), encoding="utf-8")
    assert check(root).passed


def test_many_images(root: Path) -> None:
    """In several threads, each finding belongs to its name."""
    names = [f"images/many{number:02}.png" for number in range(60)]
    for number, name in enumerate(names):
        write_picture(root / name, 1000 + number // 2)
    truncate(root / names[33])
    names.append("images/none.png")
    findings = image_inspection.inspect_images(root, names)
    assert list(findings) == names
    assert [name for name in names if findings[name].fault] == [names[33], "images/none.png"]
    digests = [findings[name].digest for name in names[:32]]
    assert digests[::2] == digests[1::2]
    assert len(set(digests)) == 16


def test_picture_digest_is_of_pixels(root: Path) -> None:
    copy_picture(root, "images/000.png", "images/copy.bmp")
    write_picture(root / "images/wide.png", 0, (12, 64))
    write_picture(root / "images/high.png", 0, (64, 12))
    names = ["images/000.png", "images/copy.bmp", "images/wide.png", "images/high.png"]
    original, copied, wide, high = image_inspection.inspect_images(root, names).values()
    assert original == copied
    assert wide != high
