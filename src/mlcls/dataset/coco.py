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
import dataclasses
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlcls.dataset.annotations import Sample
from mlcls.dataset.content import COCO_FOLDER, IMAGE_FOLDER, PART_FILES, DatasetContent, check_name
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.text_lines import is_line_safe
from mlcls.dataset.transaction import BACKUP_SUFFIX

# `instance_train.json` of PaddleX's examples, `instances_train.json`, `instances_train2017.json` of COCO itself.
_COCO_FILE_NAME: Final = re.compile(r"instances?_((train|val)\d*)\.json(\.bak)?")

# Lists that a file must have, with the kind of a problem in each, and what each entry must be.
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "images": ("image", "an object with an integer id and a file_name"),
    "annotations": ("annotation", "an object with integers image_id and category_id"),
    "categories": ("category", "an object with an integer id and a name in one line"),
}


@dataclasses.dataclass(frozen=True)
class _CocoFile:
    """The annotation file of one part: its path, the folders of its images (tried in this order), and its content.

    Paths are relative to the dataset. The content lacks polygons.
    """

    name: str
    folders: Sequence[str]
    document: Mapping[str, list[Any]]

    def entries(self, key: str, log: ProblemLog) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield the good entries of a list; log the others."""
        kind, wanted = _LISTS[key]
        for index, entry in enumerate(self.document[key]):
            place = Place(self.name, item=f"{key}[{index}]")
            if isinstance(entry, dict) and _is_good(key, entry):
                yield place, entry
            else:
                log.error(kind, place, f"expected {wanted}, got {_clip(entry)}")


def read_coco(root: Path, required: Sequence[str], log: ProblemLog) -> DatasetContent | None:
    """Read the annotation files; log what is wrong with them and what is left out.

    The required parts must have a file; if none is required, at least one part must. The images are in the order of
    their COCO ids, as in PaddleX. None if a file is not a COCO file.
    """
    paths = _find_files(root, required, log)
    files = {part: _read_file(path, part, log) for part, path in paths.items()} if not log.errors else {}
    if log.errors:
        return None
    categories: dict[int, str] = {}
    for file in files.values():
        _collect_categories(file, categories, log)
    if not categories:
        if not log.errors:
            log.error("no-categories", Place(COCO_FOLDER), "expected at least one category, got none")
        return None
    parts = {part: _convert_part(root, file, list(categories), log) for part, file in files.items()}
    retired = [file.name for file in files.values() if not file.name.endswith(BACKUP_SUFFIX)]
    return DatasetContent(tuple(categories.values()), parts, retired)


def _find_files(root: Path, required: Sequence[str], log: ProblemLog) -> dict[str, Path]:
    """Return the file of each part, or its `.bak` of an earlier conversion; log a missing or ambiguous one."""
    found: dict[str, dict[str, Path]] = {part: {} for part in PART_FILES}
    for path in sorted((root / COCO_FOLDER).glob("*.json*")):
        match = _COCO_FILE_NAME.fullmatch(path.name)
        if match and path.is_file():
            found[match[2]].setdefault(path.name.removesuffix(BACKUP_SUFFIX), path)  # sorted: .json before .json.bak
    for part, paths in found.items():
        if len(paths) > 1:
            message = f"expected one file for the part {part}, got {', '.join(sorted(paths))}; move the others away"
            log.error("ambiguous-file", Place(COCO_FOLDER), message)
        elif not paths and (part in required or not any(found.values())):
            message = f"expected instance_{part}.json, instances_{part}.json or instances_{part}2017.json, got none"
            log.error("missing-file", Place(COCO_FOLDER), message)
    return {part: path for part, paths in found.items() for path in paths.values()}


def _read_file(path: Path, part: str, log: ProblemLog) -> _CocoFile:
    name = f"{COCO_FOLDER}/{path.name}"
    match = _COCO_FILE_NAME.fullmatch(path.name)
    stem = match[1] if match else part
    folders = tuple(dict.fromkeys((IMAGE_FOLDER, f"{IMAGE_FOLDER}/{stem}", stem, part, "")))
    try:
        # polygons, which make up most of a file, are dropped while it is read
        document: Any = json.loads(path.read_bytes(), object_hook=_drop_outline)
    except (OSError, ValueError, RecursionError) as error:
        log.error("coco-file", Place(name), f"expected a JSON file, got one that cannot be read: {error}")
        return _CocoFile(name, folders, {})
    for key in _LISTS:
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            log.error("coco-file", Place(name), f"expected an object with the list {key!r}, got none")
    return _CocoFile(name, folders, document)


def _drop_outline(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("segmentation", None)
    return value


def _is_good(key: str, entry: dict[str, Any]) -> bool:
    if key == "annotations":
        return _has_id(entry, "image_id") and _has_id(entry, "category_id")
    text = entry.get("file_name" if key == "images" else "name")
    if not _has_id(entry, "id") or not isinstance(text, str) or not is_line_safe(text):
        return False
    return bool(text) and "\t" not in text if key == "images" else bool(text.strip())


def _has_id(entry: object, key: str) -> bool:
    return isinstance(entry, dict) and type(entry.get(key)) is int


def _collect_categories(file: _CocoFile, categories: dict[int, str], log: ProblemLog) -> None:
    seen: set[int] = set()
    for place, category in file.entries("categories", log):
        category_id, label = category["id"], category["name"].strip()
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


def _convert_part(root: Path, file: _CocoFile, category_ids: list[int], log: ProblemLog) -> list[Sample]:
    names = _collect_images(root, file, log)
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    rows = {image_id: np.zeros(len(index_of), dtype=np.bool_) for image_id in names}
    listed = {image["id"] for image in file.document["images"] if _has_id(image, "id")}
    unlisted: collections.Counter[int] = collections.Counter()
    for place, annotation in file.entries("annotations", log):
        image_id, category_id, box = annotation["image_id"], annotation["category_id"], annotation.get("bbox")
        if category_id not in index_of:
            log.error("unknown-category", place, f"expected the id of a listed category, got {category_id}")
            continue
        if box is not None and not _is_box(box):
            message = f"expected a box [x, y, width, height], got {_clip(box)}; the label counts anyway"
            log.warning("broken-box", place, message)
        if image_id not in listed:
            unlisted[image_id] += 1
        elif image_id in rows:
            rows[image_id][index_of[category_id]] = True
    for image_id, count in unlisted.items():
        message = f"the file does not list this image; its {count} annotations are ignored"
        log.warning("unknown-image", Place(file.name, item=f"image {image_id}"), message)
    return [Sample(names[each], Place(file.name, item=f"image {each}"), rows[each]) for each in sorted(names)]


def _collect_images(root: Path, file: _CocoFile, log: ProblemLog) -> dict[int, str]:
    """Return the path of each image by its id, relative to the dataset."""
    names: dict[int, str] = {}
    seen: set[int] = set()
    for _, image in file.entries("images", log):
        image_id, name = image["id"], image["file_name"]
        place = Place(file.name, item=f"image {image_id}")
        if image_id in seen:
            log.error("image", place, "expected each id once, got this one again")
            continue
        seen.add(image_id)
        check_name(name, place, log)
        # an absolute path stays as it is
        candidates = list(dict.fromkeys(posixpath.join(folder, name) for folder in file.folders))
        found = next((candidate for candidate in candidates if (root / candidate).is_file()), None)
        if found is None:
            log.warning("missing-image", place, f"there is no file {' or '.join(candidates)}; the image is left out")
        else:
            names[image_id] = found
    if not names and not log.errors:
        log.error("no-images", Place(file.name), f"expected images in {IMAGE_FOLDER}/, got none of those listed")
    return names


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) and math.isfinite(value) for value in box)
        and min(box[2:]) > 0
    )


def _clip(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
