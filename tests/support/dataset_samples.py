"""Small datasets of generated pictures, the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 210)}
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
    _write_lists(root, LABELS, annotation_lines(TRAIN_SAMPLES), annotation_lines(VAL_SAMPLES))
    return root


def write_random_dataset(root: Path, count: int, num_labels: int, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    """Write a valid dataset of random vectors, four fifths of it for training; every label is in both parts."""
    generator = np.random.default_rng(seed)
    vectors = generator.random((count, num_labels)) < generator.uniform(0.05, 0.5, num_labels)
    vectors[0] = vectors[-1] = True
    lines = []
    for number, vector in enumerate(vectors.astype(int)):
        write_picture(root / f"images/{number:05}.png", seed * 100_000 + number, size)
        lines.append(f"images/{number:05}.png\t{','.join(map(str, vector))}\n")
    labels = [f"label {index}" for index in range(num_labels)]
    _write_lists(root, labels, "".join(lines[: count * 4 // 5]), "".join(lines[count * 4 // 5 :]))
    return root


def write_colored_dataset(folder: Path, train: int, val: int | None = None, size: int = 40) -> Path:
    """Write a dataset of gray noise with squares, and a label for each color of square.

    Without `val`, the training images are the validation images too, to see whether a network can memorize them.
    """
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = [_write_squares(folder, number, size, generator) for number in range(train + (val or 0))]
    _write_lists(folder, COLORS, "".join(lines[:train]), "".join(lines[train:] if val else lines))
    return folder


def _write_squares(folder: Path, number: int, size: int, generator: np.random.Generator) -> str:
    present = generator.integers(0, 2, len(COLORS))
    pixels = generator.integers(108, 148, (size, size, 3)).astype(np.uint8)
    for index in generator.permutation(len(COLORS)):
        if present[index]:
            # each color has its own band, so that none covers another
            top = int(index) * size // len(COLORS)
            left = int(generator.integers(0, size // 2))
            pixels[top : top + size // len(COLORS), left : left + size // 2] = list(COLORS.values())[int(index)]
    name = f"images/{number:03}.png"
    Image.fromarray(pixels).save(folder / name)
    return f"{name}\t{','.join(map(str, present))}\n"


def _write_lists(root: Path, labels: Iterable[str], train: str, val: str) -> None:
    texts = {"label": "".join(f"{index} {label}\n" for index, label in enumerate(labels)), "train": train, "val": val}
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text, encoding="utf-8")


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
    """Return the content of every file by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
