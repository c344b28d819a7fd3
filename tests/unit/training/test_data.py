"""Images of a training: augmentation, order, loading, and what a wrong dataset is told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls.errors import DatasetError
from mlcls.images.transforms import normalize, preprocess
from mlcls.training.augmentation import OPERATIONS, cut_out, rand_augment
from mlcls.training.data import PREFETCHED_BATCHES, TrainingData, epoch_batches, read_batches, sequential_batches
from mlcls.training.settings import TrainSettings
from support.dataset_samples import write_colored_dataset

TRANSFORM = TrainSettings("PP-LCNet_x1_0_ML", Path("d"), image_size=(32, 48)).transform


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_colored_dataset(tmp_path / "dataset", train=7, val=3)


def picture(seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


# --- augmentation


@pytest.mark.parametrize("change", [cut_out, rand_augment])
def test_augmentation_keeps_shape_and_source_and_repeats_itself(change: Any) -> None:
    pixels = picture()
    before = pixels.copy()
    for index in range(40):
        first = change(pixels, np.random.default_rng(index))
        assert (first.shape, first.dtype) == (pixels.shape, np.uint8)
        np.testing.assert_array_equal(first, change(pixels, np.random.default_rng(index)))
    np.testing.assert_array_equal(pixels, before)


def test_cut_out_covers_one_rectangle_with_one_color() -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    areas = []
    for index in range(60):
        covered = cut_out(pixels, np.random.default_rng(index)).any(axis=2)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 24 and len(columns) <= 32
        areas.append(int(covered.sum()))
    assert min(areas) < max(areas) == 24 * 32, "at times, some of it is outside"


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_the_picture(name: str) -> None:
    image = Image.fromarray(picture() // 2 + 20)
    changed = OPERATIONS[name](image, 1.0, 1, np.array([0.5, 0.5]))
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert np.abs(np.asarray(changed).astype(int) - np.asarray(image)).max() > 0


def test_rand_augment_leaves_about_a_quarter_unchanged_and_changes_the_others_in_many_ways() -> None:
    pixels = picture()
    results = [rand_augment(pixels, np.random.default_rng(index)) for index in range(200)]
    unchanged = sum(np.array_equal(result, pixels) for result in results)
    assert 200 * 0.15 < unchanged < 200 * 0.45  # neither of two operations: 1/4, and a few that do nothing here
    assert len({result.tobytes() for result in results}) > 100


# --- order


def test_an_epoch_has_every_image_once_in_batches_of_nearly_one_size() -> None:
    batches = epoch_batches(33, 8, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [7, 7, 7, 6, 6]
    assert sorted(np.concatenate(batches)) == list(range(33))
    assert [list(batch) for batch in epoch_batches(33, 8, seed=1, epoch=0)] == [list(batch) for batch in batches]
    for other in (epoch_batches(33, 8, seed=1, epoch=1), epoch_batches(33, 8, seed=2, epoch=0)):
        assert list(np.concatenate(other)) != list(np.concatenate(batches))


def test_processes_share_an_epoch_and_an_evaluation() -> None:
    shares = [epoch_batches(33, 4, seed=1, epoch=0, rank=rank, world_size=3) for rank in range(3)]
    assert {len(share) for share in shares} == {3}
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == list(range(33))
    shares = [sequential_batches(7, 2, rank, 2) for rank in range(2)]
    assert [[list(batch) for batch in share] for share in shares] == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    assert sequential_batches(1, 2, rank=1, world_size=2) == []


# --- loading


@pytest.mark.parametrize("num_workers", [0, 3])
def test_batches_are_those_of_the_one_transform(dataset: Path, num_workers: int) -> None:
    data = TrainingData.read(dataset)
    batches = list(read_batches(data.train, TRANSFORM, [np.array([5, 0]), np.array([3])], num_workers))
    for (inputs, targets), indices in zip(batches, ([5, 0], [3]), strict=True):
        expected = [preprocess(data.train.paths[index].read_bytes(), TRANSFORM) for index in indices]
        np.testing.assert_array_equal(inputs, normalize(np.stack(expected), TRANSFORM))
        np.testing.assert_array_equal(targets, data.train.targets[indices].astype(np.float32))


def test_threads_do_not_change_what_is_loaded(dataset: Path) -> None:
    def change(pixels: Any, index: int) -> Any:
        return rand_augment(pixels, np.random.default_rng(index))

    data = TrainingData.read(dataset)
    batches = epoch_batches(7, 2, 5, 1)
    results = [
        [inputs for inputs, _ in read_batches(data.train, TRANSFORM, batches, num_workers, change)]
        for num_workers in (0, 1, 4)
    ]
    for other in results[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_batches_are_uploaded_in_order_by_one_thread(dataset: Path) -> None:
    data = TrainingData.read(dataset)
    names: set[str] = set()

    def upload(array: Any) -> Any:
        names.add(threading.current_thread().name)
        return array.shape, float(array.sum())

    batches = epoch_batches(7, 2, 5, 1)
    plain = list(read_batches(data.train, TRANSFORM, batches, 3))
    uploaded = list(read_batches(data.train, TRANSFORM, batches, 3, upload=upload))
    assert uploaded == [tuple((array.shape, float(array.sum())) for array in batch) for batch in plain]
    assert len(names) == 1 and threading.current_thread().name not in names


@pytest.mark.parametrize(("num_workers", "ahead"), [(0, 0), (2, PREFETCHED_BATCHES)])
def test_few_images_are_read_ahead_and_threads_end(dataset: Path, num_workers: int, ahead: int) -> None:
    read: list[int] = []

    def note(pixels: Any, index: int) -> Any:
        read.append(index)
        return pixels

    before = threading.active_count()
    data = TrainingData.read(dataset)
    batches = read_batches(data.train, TRANSFORM, [np.array([0])] * 50, num_workers, note)
    for _ in range(4):
        next(batches)
    assert 4 <= len(read) <= 4 + ahead
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [b"no image", None])
def test_an_unreadable_image_is_an_error_with_its_path(dataset: Path, content: bytes | None, num_workers: int) -> None:
    data = TrainingData.read(dataset)
    path = dataset / "images" / "004.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"images/004\.png: expected an image"):
        list(read_batches(data.train, TRANSFORM, [np.array([index]) for index in range(7)], num_workers))


# --- datasets


def test_datasets_and_another_number_of_classes(dataset: Path) -> None:
    data = TrainingData.read(dataset, num_classes=3)
    assert data.labels == ("red", "green", "blue")
    assert (len(data.train), len(data.val)) == (7, 3)
    assert data.train.targets.shape == (7, 3)
    assert set(data.digests) == {"label.txt", "train.txt", "val.txt"}
    with pytest.raises(DatasetError, match=r"expected 80 labels, as Train\.num_classes says, got 3"):
        TrainingData.read(dataset, num_classes=80)
    with pytest.raises(DatasetError, match="expected the folder of a dataset"):
        TrainingData.read(dataset / "no")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("label.txt", "0 a\n1 b\n", "expected 2 numbers, one for each label, got 3"),
        ("val.txt", "images/no.png\t0,1,0\n", "expected image files, got paths without one: "),
        ("val.txt", "images/007.png\t0,0,0\n", "expected images with labels, got none with any"),
        ("train.txt", None, "train.txt"),
    ],
)
def test_wrong_datasets(dataset: Path, file: str, text: str | None, message: str) -> None:
    (dataset / file).unlink()
    if text is not None:
        (dataset / file).write_text(text)
    with pytest.raises(DatasetError) as caught:
        TrainingData.read(dataset)
    assert message in str(caught.value)
