"""Small datasets of generated pictures, the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = ("cat", "dog", "dining table", "犬")
# Number and vector of each picture of `write_dataset`: every label is in both parts.
TRAIN_SAMPLES = ((0, "1,0,0,0"), (1, "0,1,0,0"), (2, "0,0,1,1"), (3, "1,1,0,0"), (4, "0,0,0,0"), (5, "0,0,1,1"))
VAL_SAMPLES = ((6, "1,1,0,0"), (7, "0,0,1,1"))


def write_picture(path: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    """Write a picture of coarse colored tiles, different for each seed."""
    height, width = size
    tiles = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles).resize((width, height), Image.Resampling.NEAREST).save(path)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def annotation_lines(samples: Sequence[tuple[int, str]]) -> str:
    return "".join(f"images/{number:03}.png\t{vector}\n" for number, vector in samples)


def write_dataset(root: Path) -> Path:
    """Write a valid `MLClsDataset`: four labels, six training and two validation pictures."""
    for number, _ in (*TRAIN_SAMPLES, *VAL_SAMPLES):
        write_picture(root / f"images/{number:03}.png", number)
    (root / "label.txt").write_text("".join(f"{i} {label}\n" for i, label in enumerate(LABELS)), encoding="utf-8")
    (root / "train.txt").write_text(annotation_lines(TRAIN_SAMPLES), encoding="utf-8")
    (root / "val.txt").write_text(annotation_lines(VAL_SAMPLES), encoding="utf-8")
    return root


def write_random_dataset(root: Path, count: int, labels: int, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    """Write a valid dataset of random vectors, four fifths of it for training; every label is in both parts."""
    generator = np.random.default_rng(seed)
    vectors = generator.random((count, labels)) < generator.uniform(0.05, 0.5, labels)
    vectors[0] = vectors[-1] = True
    lines = []
    for number, vector in enumerate(vectors.astype(int)):
        write_picture(root / f"images/{number:05}.png", seed * 100_000 + number, size)
        lines.append(f"images/{number:05}.png\t{','.join(map(str, vector))}\n")
    (root / "label.txt").write_text("".join(f"{i} label {i}\n" for i in range(labels)), encoding="utf-8")
    (root / "train.txt").write_text("".join(lines[: count * 4 // 5]), encoding="utf-8")
    (root / "val.txt").write_text("".join(lines[count * 4 // 5 :]), encoding="utf-8")
    return root


def coco_document(
    images: Mapping[int, Sequence[int]], categories: Mapping[int, str], name: str = "{:03}.png"
) -> dict[str, Any]:
    """Return a COCO document from the category ids of each image, with boxes and outlines as in COCO."""
    pairs = [(image, category) for image, found in images.items() for category in found]
    return {
        "info": {"year": 2017},
        "images": [{"id": image, "file_name": name.format(image), "width": 32, "height": 24} for image in images],
        "categories": [
            {"id": category, "name": label, "supercategory": "thing"} for category, label in categories.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [1, 2, 10.5, 8],
                "area": 84.0,
                "iscrowd": 0,
                "segmentation": [[1, 2, 11.5, 2, 11.5, 10]],
            }
            for number, (image, category) in enumerate(pairs)
        ],
    }


def write_coco(root: Path, documents: Mapping[str, Mapping[str, Any]], folder: str = "images") -> Path:
    """Write a COCO dataset: documents by file name, and a picture for each image in them."""
    (root / "annotations").mkdir(parents=True)
    for file_name, document in documents.items():
        (root / "annotations" / file_name).write_text(json.dumps(document), encoding="utf-8")
        for image in document["images"]:
            write_picture(root / folder / image["file_name"], image["id"])
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    """Return the content of every file by its path, without the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".mlcls-lock"
    }
