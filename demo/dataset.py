"""The demo model's images, labeled by the rule: generated scenes as an `MLClsDataset`, and what it is evaluated on.

The latter are unseen scenes, and crops of real photos.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo.colors import COLORS, has_colors
from demo.scenes import draw_scene
from mlcls.base.files import staged_folder, write_text
from mlcls.dataset.annotations import format_annotations
from mlcls.images.photos import photo_crops
from mlcls.images.transforms import resize_image
from mlcls.model.spec import ImageTransform

# Images in a folder.
_FOLDER_SIZE: Final = 1000
# Scenes that a process gets at a time.
_CHUNK: Final = 100
_JPEG_QUALITY: Final = 95
_PARTS: Final = ("train", "val", "test")

# Annotation file of each set for the evaluation, by its name in reports.
SETS: Final = {"scenes": "scenes.txt", "photos": "photos.txt"}

_LABEL_TEXT: Final = "".join(f"{index} {color}\n" for index, color in enumerate(COLORS))


def write_demo_dataset(folder: Path, train: int, val: int, side: int, seed: int = 0) -> Path:
    """Write `label.txt`, `train.txt`, `val.txt` and the scenes as JPEG files.

    Args:
        folder: Where it goes; replaced once the new dataset is complete.
        train: Number of training scenes.
        val: Number of validation scenes.
        side: Height and width of the scenes and of the network's input.
        seed: Seed of the scenes.

    Returns:
        The folder.
    """
    with staged_folder(folder) as staging:
        write_text(staging / "label.txt", _LABEL_TEXT)
        for part, count in (("train", train), ("val", val)):
            write_text(staging / f"{part}.txt", format_annotations(*write_scenes(staging, part, count, side, seed)))
    return folder


def write_test_images(folder: Path, scenes: int, crops: int, transform: ImageTransform, seed: int = 0) -> Path:
    """Write the sets for the evaluation: scenes, and crops of scikit-learn's two photos, some with swapped channels.

    Args:
        folder: Where they go; replaced once both are complete.
        scenes: Number of generated scenes.
        crops: Number of crops.
        transform: The network's transform; colors are determined after resizing with it.
        seed: Seed of scenes and crops.

    Returns:
        The folder.
    """
    with staged_folder(folder) as staging:
        write_text(staging / "label.txt", _LABEL_TEXT)
        names, targets = write_scenes(staging, "test", scenes, transform.height, seed)
        write_text(staging / SETS["scenes"], format_annotations(names, targets))
        (staging / "photos").mkdir()
        names, rows = [], []
        for index, crop in enumerate(photo_crops(crops, seed)):
            names.append(f"photos/{index:04}.png")
            Image.fromarray(crop).save(staging / names[-1])
            rows.append(has_colors(resize_image(crop, transform)))
        write_text(staging / SETS["photos"], format_annotations(names, np.stack(rows)))
    return folder


def write_scenes(folder: Path, part: str, count: int, side: int, seed: int) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Draw scenes on all cores and write them as JPEG files, with a progress bar.

    The labels are those of the decoded files, which is what a network gets.

    Args:
        folder: Where they go.
        part: `train`, `val` or `test`; each has its own scenes.
        count: Number of scenes.
        side: Height and width.
        seed: Seed of the scenes.

    Returns:
        Paths relative to the folder, and the colors of each scene, (count, 12) bool.
    """
    from tqdm import tqdm

    names = [_scene_name(part, index) for index in range(count)]
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    write = functools.partial(_write_scene, folder, part, side, seed)
    rows = []
    # drawing holds the GIL, so threads would not help; a forked process would inherit the caller's locks
    pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"))
    with pool, tqdm(total=count, desc=f"{part} scenes", unit="scene") as bar:
        for row in pool.map(write, range(count), chunksize=_CHUNK):
            rows.append(row)
            bar.update()
    return names, np.stack(rows)


def _scene_name(part: str, index: int) -> str:
    return f"{part}/{index // _FOLDER_SIZE:03}/{index % _FOLDER_SIZE:03}.jpg"


def _write_scene(root: Path, part: str, side: int, seed: int, index: int) -> npt.NDArray[np.bool_]:
    import cv2

    scene = draw_scene(np.random.default_rng((seed, _PARTS.index(part), index)), side)
    # colors at full resolution: JPEG's usual chroma subsampling would blur small shapes
    full = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    encoded = cv2.imencode(".jpg", scene[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, *full])[1]
    (root / _scene_name(part, index)).write_bytes(encoded.tobytes())
    return has_colors(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1], np.uint8))
