"""The demo model's colors and scenes."""

from __future__ import annotations

import colorsys
import itertools
from pathlib import Path

import cv2
import numpy as np

from demo.colors import COLORS, color_shares, has_colors, name_pixels
from demo.dataset import write_demo_dataset
from demo.recipe import DemoRecipe
from demo.scenes import draw_scene
from mlcls.dataset.annotations import read_annotations
from mlcls.dataset.check import check_dataset


def name_color(red: int, green: int, blue: int) -> str:
    """The rule, line by line as the module's docstring has it, on the standard library's HSV."""
    hue, _, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    hue *= 360
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    pale = chroma < 0.5 * value
    if value < 0.2:
        return "black"
    if chroma < 0.1:
        return "white" if value >= 0.85 else "gray"
    if 10 <= hue < 50 and (value < 0.6 or (value < 0.85 and pale)):
        return "brown"
    around_red = hue >= 340 or hue < 15
    if (290 <= hue < 340 and value >= 0.6) or (around_red and value >= 0.7 and pale):
        return "pink"
    if 255 <= hue < 340:
        return "purple"
    if around_red:
        return "red"
    ends = {"orange": 42, "yellow": 70, "green": 160, "cyan": 195, "blue": 255}
    return next(name for name, end in ends.items() if hue < end)


def is_at_a_limit(red: int, green: int, blue: int) -> bool:
    """Whether rounding decides on which side of a limit of hue, or of half the value, a color lies."""
    hue, saturation, _ = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    limits = (10, 15, 42, 50, 70, 160, 195, 255, 290, 340)
    return min(abs(hue * 360 - limit) for limit in limits) < 1e-9 or abs(saturation - 0.5) < 1e-9


def test_rule_on_the_whole_cube() -> None:
    colors = np.array(list(itertools.product(range(0, 256, 15), repeat=3)), np.uint8)
    names = [COLORS[index] for index in name_pixels(colors)]
    assert set(names) == set(COLORS)
    decided = [index for index, color in enumerate(colors) if not is_at_a_limit(*map(int, color))]
    assert len(decided) > 0.9 * len(colors)
    assert [names[index] for index in decided] == [name_color(*map(int, colors[index])) for index in decided]


def test_a_tenth_of_the_pixels_is_enough() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[0] = (220, 20, 20)
    assert color_shares(pixels)[COLORS.index("red")] == 0.1
    assert has_colors(pixels)[COLORS.index("red")]
    pixels[0, 0] = 0
    assert not has_colors(pixels)[COLORS.index("red")]


def test_scenes_depend_on_their_generator_alone_and_have_every_color() -> None:
    scenes = [draw_scene(np.random.default_rng((0, 0, index)), 32) for index in range(150)]
    assert all(scene.shape == (32, 32, 3) and scene.dtype == np.uint8 for scene in scenes)
    assert np.array_equal(scenes[3], draw_scene(np.random.default_rng((0, 0, 3)), 32))
    shares = np.mean([has_colors(scene) for scene in scenes], axis=0)
    assert shares.min() > 0.04
    assert shares.max() < 0.6


def test_dataset_passes_the_check_and_its_labels_are_those_of_its_files(tmp_path: Path) -> None:
    folder = write_demo_dataset(tmp_path / "dataset", train=60, val=20, side=32)
    report = check_dataset(folder, tmp_path / "output")
    assert not report.log.errors
    images = read_annotations(folder / "val.txt", len(COLORS))
    pictures = [cv2.imread(str(path))[:, :, ::-1] for path in images.paths]
    assert np.array_equal(images.targets, [has_colors(np.asarray(picture, np.uint8)) for picture in pictures])
    trained = {path.read_bytes() for path in read_annotations(folder / "train.txt", len(COLORS)).paths}
    assert not trained & {path.read_bytes() for path in images.paths}
    again = write_demo_dataset(tmp_path / "again", train=60, val=20, side=32)
    assert all((again / path.relative_to(folder)).read_bytes() == path.read_bytes() for path in images.paths)


def test_recipe_changes_no_color() -> None:
    settings = DemoRecipe(side=32).train_settings(Path("dataset"), Path("output"))
    assert not settings.cutout
    assert not settings.rand_augment
    assert settings.size == (32, 32)
