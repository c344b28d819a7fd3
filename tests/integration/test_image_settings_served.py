"""Image settings in `serving.json`, on the real server: what is refused, and how the rest is read."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from mlcls.engines.runners import OpenVinoRunner
from mlcls.images.settings import ImageSettings
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import find_stale
from mlcls.repository.models import Repository
from mlcls.repository.publishing import change_settings
from support.image_samples import encode
from support.processes import start_server
from support.triton_request import ask

MODEL = "small_with_sigmoid"
SETTINGS = ImageSettings(
    max_pixels=4_000_000, max_frames=1, formats=("JPEG", "PNG", "GIF"), accept_truncated=True, jpeg_oversampling=1.5
)


def test_the_memory_that_a_request_takes_for_good_is_bounded(root: Path, sample_images: list[Path]) -> None:
    """Triton's shared memory for a step holds the largest batch there was: here 32 images of 10,000 bytes."""
    small = ImageSettings(max_bytes=10_000)
    change_settings(Repository(root), MODEL, lambda settings: msgspec.structs.replace(settings, images=small))
    image = encode(Image.open(sample_images[0]).resize((64, 64)), "JPEG")
    with start_server(root, MODEL) as server:
        before = ask(server, MODEL, [image] * 32)
        with pytest.raises(InferenceServerException, match="shared memory pool"):
            ask(server, MODEL, [bytes(100 << 20)])
        with pytest.raises(InferenceServerException, match="expected at most 10000 bytes, got 20971520"):
            ask(server, MODEL, [bytes(20 << 20)])
        pools = [path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"mlcls_{os.getpid()}_*")]
        assert max(pools) < 80 << 20
        np.testing.assert_array_equal(ask(server, MODEL, [image] * 32).statuses, before.statuses)


def test_a_model_is_served_with_its_own_image_settings(root: Path, sample_images: list[Path]) -> None:
    root = root
    changed = change_settings(
        Repository(root), MODEL, lambda settings: msgspec.structs.replace(settings, images=SETTINGS)
    )
    assert [path.parent.name for path in changed] == [f"{MODEL}_preprocess"]
    specs = [Repository(root).active(name).spec for name in (MODEL, "small_with_logits")]
    assert not find_stale(Repository(root), specs)
    version = root / f"{MODEL}_engine" / "1"
    spec = ModelSpec.read(version / "model_spec.json")
    runner = OpenVinoRunner(version / "model.onnx", spec)

    china, large = (next(path for path in sample_images if path.name.startswith(name)) for name in ("china", "large"))
    photo = Image.open(china)
    half = china.read_bytes()[: china.stat().st_size // 2]
    refused = {
        encode(photo, "WEBP"): "expected JPEG, PNG or GIF, which is all that this model accepts, got WebP",
        encode(photo.resize((2500, 2000)), "PNG"): "expected at most 4000000 pixels, got height 2000, width 2500",
        encode(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]): "at most 1 frames or pages, got more",
    }
    accepted = [half, large.read_bytes(), encode(photo, "PNG")]
    expected = [runner.scores(preprocess(data, spec.transform, SETTINGS)[None])[0] for data in accepted]
    assert not np.array_equal(
        preprocess(accepted[1], spec.transform, SETTINGS), preprocess(accepted[1], spec.transform)
    )
    with start_server(root, MODEL) as server:
        answer = ask(server, MODEL, [*accepted, *refused])
        for data, words in refused.items():
            with pytest.raises(InferenceServerException, match=words):
                ask(server, MODEL, [data])
    assert answer.statuses[:3] == ["OK"] * 3
    np.testing.assert_allclose(answer.scores[:3], expected, rtol=0, atol=2e-5)
    for status, words in zip(answer.statuses[3:], refused.values(), strict=True):
        assert words in status
