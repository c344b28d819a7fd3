"""What the demo model is evaluated on: unseen scenes, and crops of real photos, labeled by the same rule."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from demo.colors import has_colors
from demo.dataset import LABEL_TEXT, write_scenes
from mlcls.base.files import staged_folder, write_text
from mlcls.dataset.annotations import format_annotations
from mlcls.images.photos import photo_crops
from mlcls.images.transforms import resize_image
from mlcls.model.spec import ImageTransform

# Annotation file of each set, by its name in reports.
SETS: Final = {"scenes": "scenes.txt", "photos": "photos.txt"}


def write_test_images(folder: Path, scenes: int, crops: int, transform: ImageTransform, seed: int = 0) -> Path:
    """Write both sets.

    Args:
        folder: Where they go; replaced once both are complete.
        scenes: Number of generated scenes.
        crops: Number of crops of scikit-learn's two sample photos, some with swapped channels.
        transform: The network's transform; colors are determined after resizing with it.
        seed: Seed of scenes and crops.

    Returns:
        The folder.
    """
    with staged_folder(folder) as staging:
        write_text(staging / "label.txt", LABEL_TEXT)
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
