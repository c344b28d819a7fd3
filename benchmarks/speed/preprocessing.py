"""Time of decoding and resizing on one core, in a child process bound to it.

Run as a module, this file is the child.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.peers.line_child import LineChild, obey
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ModelSpec
from mlcls.server.installation import ALLOCATOR_VARIABLES

# How often each photo is decoded.
_REPEATS: Final = 20


def measure_preprocessing(spec: ModelSpec, photos: Sequence[Path]) -> tuple[list[float], list[str]]:
    """Decode and resize photos as the server does.

    Returns:
        The median time of each photo in milliseconds, and the SHA-256 of the pixels (H, W, 3) uint8 RGB of each.

    Raises:
        PeerError: The child failed.
    """
    child = LineChild("preprocess", Path(sys.executable), __name__, spec.to_json(), **ALLOCATOR_VARIABLES)
    with child:
        times_ms, digests = child.ask("measure", photos=[str(photo.resolve()) for photo in photos])
    return times_ms, digests


def _load() -> dict[str, Callable[..., Any]]:
    import cv2

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    spec = ModelSpec.from_json(sys.argv[1])

    def measure(photos: list[str]) -> tuple[list[float], list[str]]:
        images = [Path(photo).read_bytes() for photo in photos]
        times_ms: list[list[float]] = [[] for _ in images]
        for _ in range(_REPEATS):  # a photo comes again only after all others, as on a server
            for image, own in zip(images, times_ms, strict=True):
                began = time.perf_counter()
                preprocess(image, spec.transform)
                own.append((time.perf_counter() - began) * 1e3)
        digests = [hashlib.sha256(preprocess(image, spec.transform).tobytes()).hexdigest() for image in images]
        return [statistics.median(own) for own in times_ms], digests

    return {"measure": measure}


if __name__ == "__main__":
    obey(_load)
