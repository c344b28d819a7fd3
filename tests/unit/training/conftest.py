"""Paddle for tests of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlcls.paddle.runtime import import_paddle


@pytest.fixture
def paddle() -> Iterator[Any]:
    module = import_paddle("train")
    module.seed(0)
    with module.utils.unique_name.guard():
        yield module
