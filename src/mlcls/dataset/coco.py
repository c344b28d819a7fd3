"""COCO's object annotations as an `MLClsDataset`: an image has the labels of the objects in it.

Decisions where COCO's format leaves a choice:

- Class ids are 0, 1, 2 and so on in the order of `categories`, which is that of PaddleX's vectors; PaddleX writes
  COCO's own ids to `label.txt`, which its own check then rejects. The categories of both files form one list, those of
  train first.
- Crowd annotations (`iscrowd`) count: a crowd of people is people. So do annotations with a missing or broken box,
  since boxes are not used; a broken one is a warning.
- Images without annotations are samples without labels.
- Images whose file is missing are left out, each with a warning, as in PaddleX.
- An annotation of an image that is not listed is ignored, with a warning; one of a category that is not listed is an
  error, since a label would be lost.
"""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlcls.dataset.annotations import Annotations
from mlcls.dataset.content import COCO_FOLDER, IMAGE_FOLDER, TRAIN, VAL, DatasetContent, fault_of_name
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.text_lines import is_line_safe
from mlcls.dataset.transaction import BACKUP_SUFFIX

# `instance_train.json` of PaddleX's examples, `instances_train.json`, `instances_train2017.json` of COCO itself.
_COCO_FILE_NAME: Final = re.compile(r"instances?_((train|val)\d*)\.json(\.bak)?")


class CocoFile:
    """The annotation file of one part.

    Attributes:
        path: The file; the `.bak` of an earlier conversion if there is no other.
        name: Its path relative to the dataset.
        part: `train` or `val`.
        folders: Folders to look for its images in, relative to the dataset, in this order.
    """

    def __init__(self, path: Path, stem: str, part: str) -> None:
        self.path = path
        self.name = f"{COCO_FOLDER}/{path.name}"
        self.part = part
        self.folders = tuple(dict.fromkeys((IMAGE_FOLDER, f"{IMAGE_FOLDER}/{stem}", stem, part, "")))


def find_coco_files(root: Path, required: tuple[str, ...], log: ProblemLog) -> dict[str, CocoFile]:
    """Return the annotation file of each part; log a missing or ambiguous one.

    Args:
        root: The dataset.
        required: Parts that must have a file.
        log: Where problems go.
    """
    found: dict[str, dict[str, Path]] = {TRAIN: {}, VAL: {}}
    for path in sorted((root / COCO_FOLDER).glob("*.json*")):
        match = _COCO_FILE_NAME.fullmatch(path.name)
        if match and path.is_file():
            found[match[2]].setdefault(path.name.removesuffix(BACKUP_SUFFIX), path)  # sorted: .json before .json.bak
    files = {}
    for part, paths in found.items():
        if len(paths) > 1:
            message = f"expected one file for the part {part}, got {', '.join(sorted(paths))}; move the others away"
            log.error("ambiguous-file", Place(COCO_FOLDER), message)
        elif paths:
            ((_, path),) = paths.items()
            match = _COCO_FILE_NAME.fullmatch(path.name)
            files[part] = CocoFile(path, match[1] if match else part, part)
        elif part in required:
            message = f"expected instance_{part}.json, instances_{part}.json or instances_{part}2017.json, got none"
            log.error("missing-file", Place(COCO_FOLDER), message)
    return files


def read_coco(root: Path, files: Mapping[str, CocoFile], log: ProblemLog) -> DatasetContent | None:
    """Read the annotation files; log what is wrong with them and what is left out.

    Args:
        root: The dataset.
        files: What `find_coco_files` found.
        log: Where problems go.

    Returns:
        The dataset, with the images in the order of their COCO ids, as in PaddleX; None if a file is not a COCO file.
    """
    documents = {part: _read_document(file, log) for part, file in files.items()}
    if not documents or any(document is None for document in documents.values()):
        return None
    categories: dict[int, str] = {}
    for part, document in documents.items():
        _collect_categories(files[part], document or {}, categories, log)
    if not categories:
        if not log.errors:
            log.error("no-categories", Place(COCO_FOLDER), "expected at least one category, got none")
        return None
    index_of = {category_id: index for index, category_id in enumerate(categories)}
    parts = {
        part: _convert_part(root, files[part], document or {}, index_of, log) for part, document in documents.items()
    }
    return DatasetContent(tuple(categories.values()), parts)


def _read_document(file: CocoFile, log: ProblemLog) -> dict[str, list[Any]] | None:
    place = Place(file.name)
    try:
        # polygons, which make up most of a file, are dropped while it is read
        document = json.loads(file.path.read_bytes(), object_hook=_drop_outline)
    except (OSError, ValueError, RecursionError) as error:
        log.error("coco-file", place, f"expected a JSON file, got one that cannot be read: {error}")
        return None
    names = ("images", "annotations", "categories")
    missing = [name for name in names if not isinstance(document, dict) or not isinstance(document.get(name), list)]
    for name in missing:
        log.error("coco-file", place, f"expected an object with the list {name!r}, got none")
    return None if missing else document


def _drop_outline(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("segmentation", None)
    return value


def _collect_categories(
    file: CocoFile, document: Mapping[str, list[Any]], categories: dict[int, str], log: ProblemLog
) -> None:
    seen: set[int] = set()
    for place, category in _entries(file, document, "categories"):
        category_id = _identifier(category, "id")
        label = category.get("name") if isinstance(category, dict) else None
        if category_id is None or not isinstance(label, str) or not label.strip() or not is_line_safe(label):
            message = f"expected an object with an integer id and a name in one line, got {_clip(category)}"
            log.error("category", place, message)
            continue
        label = label.strip()
        if category_id in seen:
            log.error("category", place, f"expected each id once, got {category_id} again")
        elif categories.get(category_id, label) != label:
            message = f"expected one name for the id {category_id}, got {categories[category_id]!r} and {label!r}"
            log.error("category", place, message)
        elif category_id not in categories and label in categories.values():
            log.error("category", place, f"expected each name once, got {label!r} again, with the id {category_id}")
        else:
            categories[category_id] = label
        seen.add(category_id)


def _convert_part(
    root: Path, file: CocoFile, document: Mapping[str, list[Any]], index_of: Mapping[int, int], log: ProblemLog
) -> Annotations:
    names = _collect_images(root, file, document, log)
    rows = {image_id: np.zeros(len(index_of), dtype=np.bool_) for image_id in names}
    listed = {_identifier(image, "id") for image in document["images"]}
    unlisted: collections.Counter[int] = collections.Counter()
    for place, annotation in _entries(file, document, "annotations"):
        image_id, category_id = _identifier(annotation, "image_id"), _identifier(annotation, "category_id")
        if image_id is None or category_id is None:
            message = f"expected an object with integers image_id and category_id, got {_clip(annotation)}"
            log.error("annotation", place, message)
            continue
        if category_id not in index_of:
            log.error("unknown-category", place, f"expected the id of a listed category, got {category_id}")
            continue
        fault = _fault_of_box(annotation)
        if fault:
            message = f"expected a box [x, y, width, height], got {fault}; the label counts anyway"
            log.warning("broken-box", place, message)
        if image_id not in listed:
            unlisted[image_id] += 1
        elif image_id in rows:
            rows[image_id][index_of[category_id]] = True
    for image_id, count in unlisted.items():
        message = f"the file does not list this image; its {count} annotations are ignored"
        log.warning("unknown-image", Place(file.name, item=f"image {image_id}"), message)
    ids = sorted(names)
    targets = np.array([rows[image_id] for image_id in ids], dtype=np.bool_).reshape(len(ids), len(index_of))
    places = tuple(Place(file.name, item=f"image {image_id}") for image_id in ids)
    return Annotations(tuple(names[image_id] for image_id in ids), places, targets)


def _collect_images(root: Path, file: CocoFile, document: Mapping[str, list[Any]], log: ProblemLog) -> dict[int, str]:
    """Return the path of each image by its id, relative to the dataset."""
    names: dict[int, str] = {}
    seen: set[int] = set()
    for place, image in _entries(file, document, "images"):
        image_id = _identifier(image, "id")
        name = image.get("file_name") if isinstance(image, dict) else None
        if image_id is None or not isinstance(name, str) or not name or not is_line_safe(name) or "\t" in name:
            message = f"expected an object with an integer id and a file_name, got {_clip(image)}"
            log.error("image", place, message)
            continue
        place = Place(file.name, item=f"image {image_id}")
        if image_id in seen:
            log.error("image", place, "expected each id once, got this one again")
            continue
        seen.add(image_id)
        fault = fault_of_name(name)
        if fault:
            log.error(fault[0], place, fault[1])
            continue
        candidates = [f"{folder}/{name}" if folder else name for folder in file.folders]
        found = next((candidate for candidate in candidates if (root / candidate).is_file()), None)
        if found is None:
            log.warning("missing-image", place, f"there is no file {' or '.join(candidates)}; the image is left out")
        else:
            names[image_id] = found
    if not names and not log.errors:
        log.error("no-images", Place(file.name), f"expected images in {IMAGE_FOLDER}/, got none of those listed")
    return names


def _entries(file: CocoFile, document: Mapping[str, list[Any]], key: str) -> Iterator[tuple[Place, Any]]:
    for index, entry in enumerate(document[key]):
        yield Place(file.name, item=f"{key}[{index}]"), entry


def _identifier(entry: object, key: str) -> int | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int else None


def _fault_of_box(annotation: Mapping[str, Any]) -> str:
    """Return a box that is wrong, as text; empty if the box is right or missing."""
    box = annotation.get("bbox")
    if box is None:
        return ""
    if (
        isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) and math.isfinite(value) for value in box)
        and min(box[2:]) > 0
    ):
        return ""
    return _clip(box)


def _clip(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
