"""The models that the integration tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# A custom model: other labels, another size, and not square, so that hard-coded or swapped values show.
SMALL_LABELS = ("cat", "dog", "собака", 'a "quoted" label', "no")
SMALL_SIZE = (96, 128)


@dataclasses.dataclass(frozen=True)
class SmallModels:
    """A PaddleX model of `SMALL_LABELS`, with and without its sigmoid, and a repository with both."""

    with_sigmoid: Path
    with_logits: Path
    repository: Path
