"""The split: shares of labels, sizes, seeds, copies that stay together, and what it does to the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlcls.dataset.check import CheckReport, check_dataset
from mlcls.dataset.stratification import choose_validation
from support.dataset_samples import append, read_tree, write_dataset, write_picture, write_random_dataset


def split(root: Path, train_percent: int, seed: int = 0) -> CheckReport:
    return check_dataset(root, root.parent / "output", train_percent=train_percent, seed=seed)


def lines_of(root: Path, *names: str) -> list[str]:
    return sorted(line for name in names for line in (root / name).read_text(encoding="utf-8").splitlines())


def random_targets(count: int, labels: int, seed: int) -> npt.NDArray[np.bool_]:
    """Labels of very different frequency, many of which come together."""
    generator = np.random.default_rng(seed)
    frequencies = generator.beta(0.6, 4, labels)
    themes = generator.random((count, 1)) < 0.3
    return generator.random((count, labels)) < np.where(themes, np.minimum(3 * frequencies, 0.9), frequencies)


# --- stratification


@pytest.mark.parametrize("percent", [5, 20, 50])
@pytest.mark.parametrize(("count", "labels"), [(200, 5), (1500, 80), (3000, 12)])
@pytest.mark.parametrize("seed", range(2))
def test_shares(count: int, labels: int, percent: int, seed: int) -> None:
    """Each label's validation samples are within 2 of its share, or within 2% of it; a random choice is farther off."""
    targets = random_targets(count, labels, seed)
    val_count = count * percent // 100
    is_val = choose_validation(targets, np.arange(count), val_count, seed)
    assert is_val.sum() == val_count
    wanted = targets.sum(axis=0) * percent / 100
    deviation = np.abs(targets[is_val].sum(axis=0) - wanted)
    assert np.all(deviation <= np.maximum(2, 0.02 * wanted)), deviation.max()
    random = np.random.default_rng(seed).permutation(count)[:val_count]
    assert deviation.sum() < 0.6 * np.abs(targets[random].sum(axis=0) - wanted).sum()


def test_rare_labels_are_split_first() -> None:
    """What the paper is about: of two samples with a rare label each side gets one."""
    for seed in range(20):
        targets = np.zeros((40, 3), dtype=np.bool_)
        targets[:, 0] = True
        targets[[3, 30], 1] = True
        targets[[4, 5, 20, 21], 2] = True
        is_val = choose_validation(targets, np.arange(40), 20, seed)
        assert targets[is_val].sum(axis=0).tolist() == [20, 1, 2]


def test_samples_without_labels_are_shared_too() -> None:
    targets = np.zeros((50, 2), dtype=np.bool_)
    targets[:10, 0] = True
    is_val = choose_validation(targets, np.arange(50), 10, 0)
    assert (is_val[:10].sum(), is_val[10:].sum()) == (2, 8)


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 120, 300)
    groups = np.unique(groups, return_inverse=True)[1]
    targets = random_targets(300, 8, seed)
    is_val = choose_validation(targets, groups, 60, seed)
    for group in range(groups.max() + 1):
        assert len(set(is_val[groups == group])) == 1
    assert abs(int(is_val.sum()) - 60) <= np.bincount(groups).max()


def test_group_that_fits_nowhere() -> None:
    """A group larger than the whole validation part goes to training."""
    groups = np.array([0] * 8 + [1, 2])
    is_val = choose_validation(np.ones((10, 1), dtype=np.bool_), groups, 2, 0)
    assert is_val.tolist() == [False] * 8 + [True, True]


# --- files


def test_files(tmp_path: Path) -> None:
    root = write_random_dataset(tmp_path / "x", 60, 4, 0)
    before = read_tree(root)
    report = split(root, 90)
    assert report.passed
    assert report.backups == {"train.txt": "train.txt.bak", "val.txt": "val.txt.bak"}
    assert len(lines_of(root, "train.txt")) == report.result["attributes"]["train_samples"] == 54
    assert len(lines_of(root, "val.txt")) == report.result["attributes"]["val_samples"] == 6
    assert lines_of(root, "train.txt", "val.txt") == lines_of(root, "train.txt.bak", "val.txt.bak")
    after = read_tree(root)
    kept = {"train.txt.bak": "train.txt", "val.txt.bak": "val.txt", "label.txt": "label.txt"}
    assert [after[new] for new in kept] == [before[old] for old in kept.values()]


def test_split_again(tmp_path: Path) -> None:
    """The same command changes nothing; another split starts from all samples, and the first originals are kept."""
    root = write_random_dataset(tmp_path / "x", 60, 4, 0)
    originals = {name: (root / name).read_bytes() for name in ("train.txt", "val.txt")}
    split(root, 90)
    first = read_tree(root)
    assert not split(root, 90).backups
    assert read_tree(root) == first
    assert split(root, 50).backups == {"train.txt": "train.txt.bak2", "val.txt": "val.txt.bak2"}
    split(root, 90, seed=1)
    assert (root / "val.txt").read_bytes() != first["val.txt"]
    split(root, 90)
    again = read_tree(root)
    assert (again["train.txt"], again["val.txt"]) == (first["train.txt"], first["val.txt"])
    assert {name: again[f"{name}.bak"] for name in originals} == originals


@pytest.mark.parametrize("missing", ["train.txt", "val.txt"])
def test_one_file_is_enough(tmp_path: Path, missing: str) -> None:
    root = write_random_dataset(tmp_path / "x", 40, 3, 0)
    samples = lines_of(root, "train.txt" if missing == "val.txt" else "val.txt")
    (root / missing).unlink()
    assert split(root, 50).passed
    assert lines_of(root, "train.txt", "val.txt") == samples


def test_no_file_is_not_enough(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "x")
    for name in ("train.txt", "val.txt"):
        (root / name).unlink()
    assert [(error.kind, error.place.file) for error in split(root, 50).log.errors] == [
        ("missing-file", "train.txt"),
        ("missing-file", "val.txt"),
        ("too-few", "."),
    ]


def test_copies_stay_together(tmp_path: Path) -> None:
    """Pictures that are the same in several files would otherwise leak into validation."""
    root = write_dataset(tmp_path / "x")
    lines = []
    for number in range(30):
        write_picture(root / f"images/copy{number:02}.png", 500 + number // 3)
        lines.append(f"images/copy{number:02}.png\t{'1,0,0,1' if number % 2 else '0,1,1,0'}\n")
    append(root / "val.txt", "".join(lines))
    report = split(root, 70)
    assert report.passed
    val = {line.split("\t")[0] for line in lines_of(root, "val.txt")}
    for first in range(0, 30, 3):
        assert len({f"images/copy{number:02}.png" in val for number in range(first, first + 3)}) == 1


def test_repeated_samples(tmp_path: Path) -> None:
    """A split keeps a sample once, or, if its labels contradict one another, all of it on one side."""
    root = write_dataset(tmp_path / "x")
    append(root / "val.txt", "images/000.png\t1,0,0,0\n")
    report = split(root, 50)
    assert report.passed
    assert "val.txt:3: images/000.png occurs twice (first at train.txt:1); the split keeps it once" in map(
        str, report.log.warnings
    )
    assert len(lines_of(root, "train.txt", "val.txt")) == 8
    append(root / "val.txt", "./images/000.png\t0,0,0,0\n")
    report = split(root, 50)
    assert report.passed
    (warning,) = (each for each in report.log.warnings if each.kind == "duplicate-path")
    assert "images/000.png again" in str(warning) and "with other labels" in str(warning)
    assert len(lines_of(root, "train.txt", "val.txt")) == 9
    sides = [any("/000.png" in line for line in lines_of(root, part)) for part in ("train.txt", "val.txt")]
    assert sorted(sides) == [False, True]


@pytest.mark.parametrize("percent", [1, 99])
def test_neither_part_is_empty(tmp_path: Path, percent: int) -> None:
    root = write_dataset(tmp_path / "x")
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(text.replace("0,0,0,0", "0,0,1,0"))  # one validation image needs a label
    assert split(root, percent).passed
    assert lines_of(root, "train.txt")
    assert lines_of(root, "val.txt")
