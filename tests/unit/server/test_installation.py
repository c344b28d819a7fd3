"""Where the Python backends are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.errors import RepositoryError
from mlcls.server.installation import BACKENDS_VARIABLE, find_backends


def test_backends_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKENDS_VARIABLE, raising=False)
    assert find_backends() == Path(__file__).resolve().parents[3] / "python_backends"


def test_a_named_folder_without_backends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BACKENDS_VARIABLE, str(tmp_path))
    with pytest.raises(RepositoryError, match=f"got none there; set {BACKENDS_VARIABLE}"):
        find_backends()
