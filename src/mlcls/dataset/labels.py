"""`label.txt` of PaddleX's `MLClsDataset`: on each line a class id, a space, and the label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mlcls.base.text import has_control
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.text_lines import read_lines
from mlcls.errors import DatasetError

DATASET_LABELS_FILE: Final = "label.txt"
# Highest class id that a file may have, so that a typo does not cost gigabytes.
_MAX_CLASS_ID: Final = 999_999


def read_dataset_labels(folder: Path, num_classes: int | None = None) -> tuple[str, ...]:
    """Return the labels of a dataset, which must be as many as `num_classes` if it is not None.

    Raises:
        DatasetError: There is no such folder, `label.txt` is missing or wrong, or has another number of labels.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: expected the folder of a dataset, got a path that is not a folder; see Global.dataset_dir."
        )
    labels = read_labels(folder / DATASET_LABELS_FILE)
    if num_classes is not None and num_classes != len(labels):
        raise DatasetError(
            f"{folder / DATASET_LABELS_FILE}: expected {num_classes} labels, as Train.num_classes says, got "
            f"{len(labels)}; correct one of them, or leave Train.num_classes out."
        )
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the labels in the order of their class ids, which must be 0, 1, 2 and so on, each once.

    Raises:
        DatasetError: The file cannot be read, is empty, or some lines are wrong; the text names the lines.
    """
    log = ProblemLog()
    labels = parse_labels(path, str(path), log)
    log.raise_errors(path)
    return labels or ()


def parse_labels(path: Path, name: str, log: ProblemLog) -> tuple[str, ...] | None:
    """Return the labels of a file, named `name` in problems; log what is wrong with them.

    None if their number is not known.
    """
    lines = read_lines(path, name, log)
    if lines is None:
        return None
    by_id: dict[int, str] = {}
    lines_of: dict[int | str, int] = {}  # the first line that has a class id or a label
    for number, line in lines:
        place = Place(name, number)
        digits, space, label = line.partition(" ")
        label = label.strip()
        if not (digits.isascii() and digits.isdecimal()) or int(digits) > _MAX_CLASS_ID:
            log.error("label-line", place, f"expected a class id, a space and a label, got {line[:80]!r}")
            continue
        class_id = int(digits)
        if not space or not label:
            log.error("empty-label", place, f"expected a label after the class id {class_id}, got none")
        elif has_control(label):
            log.error("label-line", place, f"expected a label without control characters, got {label[:80]!r}")
        elif label in lines_of:
            message = f"expected each label once, got {label!r} again, first on line {lines_of[label]}"
            log.error("duplicate-label", place, message)
        if class_id in by_id:
            message = f"expected each class id once, got {class_id} again, first on line {lines_of[class_id]}"
            log.error("duplicate-id", place, message)
            continue
        by_id[class_id] = label
        lines_of[class_id] = number
        lines_of.setdefault(label, number)
    if not by_id:
        if not log.errors:
            log.error("empty-file", Place(name), "expected a class id, a space and a label per line, got an empty file")
        return None
    missing = sorted(set(range(max(by_id) + 1)) - set(by_id))
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        log.error("id-gap", Place(name), f"expected class ids 0 to {max(by_id)}, each once, got no label for {shown}")
    return tuple(by_id.get(class_id, "") for class_id in range(max(by_id) + 1))


def format_labels(labels: Sequence[str]) -> str:
    """Return the content of a `label.txt`."""
    return "".join(f"{class_id} {label}\n" for class_id, label in enumerate(labels))
