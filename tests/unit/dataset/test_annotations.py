"""Annotation files: what is read, and every wrong line named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.dataset.annotations import read_annotations
from mlcls.errors import DatasetError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "val.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_samples(tmp_path: Path) -> None:
    path = write(tmp_path, "images/a b.jpg\t0,1,0\nimages/ü\u3000.jpg\t1, 1,0\r\n")
    images = read_annotations(path, 3)
    assert images.paths == (tmp_path / "images/a b.jpg", tmp_path / "images/ü\u3000.jpg")
    assert images.targets.tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\t0,1,0\n", "line 1: expected PATH, a tab and 3 numbers"),
        ("a\tb.jpg\t0,1,0\n", "line 1: expected PATH, a tab and 3 numbers"),
        ("a.jpg\t0,,0\n", "line 1: expected 0 or 1 for each label, got ''"),
        ("a.jpg\nb.jpg\t0,1,0\nc.jpg\t0\n", "got 'a.jpg'; line 3: expected 3 numbers, one for each label, got 1."),
        ("a\n" * 7, "; and 2 more."),
    ],
)
def test_wrong_lines(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DatasetError) as caught:
        read_annotations(path, 3)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
