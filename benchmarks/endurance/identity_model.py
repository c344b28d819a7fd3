"""A model whose answers identify their image.

An image shows a number below 4096 as black and white patches (12 bits and 4 check bits), and four gray patches that
follow from the number. The graph returns the mean of each patch as a logit. So every score is known in advance, an
answer identifies its image, and an answer mixed from two images fails the check. Versions differ in the order of the
patches and in the names of the labels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from mlcls.base.files import sha256_of
from mlcls.model.spec import ImageTransform, ModelSpec
from mlcls.releases import rollout
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.repository.publishing import add_model
from mlcls.repository.staging import ConvertedVersion
from mlcls.server.model_control import ModelControl

MODEL: Final = "numbers"
NUMBERS: Final = 4096
_BITS, _CHECKS, _GRAYS = 12, 4, 4
LABELS: Final = _BITS + _CHECKS + _GRAYS
# (rows, columns) of patches, and the side of one in pixels.
_GRID: Final = (4, 5)
_PATCH: Final = 16
# A patch of gray level g has the logit `_SLOPE * g / 255 - _SLOPE / 2`.
_SLOPE: Final = 16.0

FORMATS: Final = ("PNG", "BMP", "WEBP", "TIFF")

# Texts that must come back unchanged, whatever reads them.
_STRANGE: Final = ("../../etc/passwd", "=1+1", "<script>", 'a "b"', "%s{0}", "собака", "犬", "c:\\d", "a,b;c", "'; --")


def make_spec(version: int, name: str = MODEL) -> ModelSpec:
    """Return the spec of a version: labels contain the version, thresholds differ by label."""
    return ModelSpec(
        name=name,
        architecture="PP-LCNet_x1_0_ML",
        labels=tuple(f"{_STRANGE[index % len(_STRANGE)]} {index} v{version}" for index in range(LABELS)),
        thresholds=tuple(0.2 + 0.03 * index for index in range(LABELS)),
        transform=ImageTransform(
            height=_GRID[0] * _PATCH,
            width=_GRID[1] * _PATCH,
            resize_backend="pil",
            interpolation="BILINEAR",
            scale=1 / 255,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        source_activation="none",
    )


def levels_of(number: int) -> npt.NDArray[np.uint8]:
    """Return the gray levels (LABELS,) of the patches of a number."""
    bits = [number >> place & 1 for place in range(_BITS)]
    check = (number * 7 + (number >> 4) * 3 + (number >> 8)) % (1 << _CHECKS)
    bits += [check >> place & 1 for place in range(_CHECKS)]
    grays = np.random.default_rng(number).integers(60, 196, _GRAYS)
    levels: npt.NDArray[np.uint8] = np.concatenate([np.array(bits) * 255, grays]).astype(np.uint8)
    return levels


@functools.lru_cache(maxsize=NUMBERS * 2)
def make_image(number: int, image_format: str) -> bytes:
    """Return the losslessly encoded image of a number, in the size of the network's input."""
    from PIL import Image

    gray = np.kron(levels_of(number).reshape(_GRID), np.ones((_PATCH, _PATCH), np.uint8))
    content = io.BytesIO()
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    Image.fromarray(np.repeat(gray[:, :, None], 3, axis=2)).save(content, image_format, **lossless)
    return content.getvalue()


@functools.lru_cache(maxsize=NUMBERS * 2)
def expected_scores(number: int, version: int) -> npt.NDArray[np.float32]:
    """Return the scores (LABELS,) of a number by a version of the model."""
    logits = _SLOPE * levels_of(number).astype(np.float64)[_order(version)] / 255 - _SLOPE / 2
    scores: npt.NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores


def decode(scores: npt.NDArray[np.float32], version: int) -> str:
    """Describe which number scores belong to."""
    levels = np.empty(LABELS)
    levels[_order(version)] = scores
    number = sum(1 << place for place in range(_BITS) if levels[place] > 0.5)
    is_whole = np.abs(expected_scores(number, version) - scores).max() < 1e-3
    return f"the answer of {number}" if is_whole else f"a mixture that begins like the answer of {number}"


def make_repository(root: Path, *names: str) -> None:
    """Write a repository with version 1 of the model, under each name; by default, `MODEL`."""
    for name in names or (MODEL,):
        with convert(root, name, 1) as converted:
            add_model(Repository(root), converted)


def publish(root: Path, name: str, control: ModelControl) -> int:
    """Add the next version, have the server switch to it, and return its number.

    Raises:
        MlclsError: The server is down, or cannot load it.
    """
    version = max(Repository(root).numbers(name)) + 1
    with convert(root, name, version) as converted:
        rollout.publish(Repository(root), converted, control=control, keep=3)
    return version


@contextlib.contextmanager
def convert(root: Path, name: str, version: int) -> Iterator[ConvertedVersion]:
    """Yield a version as conversion leaves it, with its files beside the repository."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        path = Path(folder) / ONNX_FILE
        path.write_bytes(_make_graph(version))
        spec = msgspec.structs.replace(make_spec(version, name), onnx_sha256=sha256_of(path))
        yield ConvertedVersion(spec, path, EngineRecord(ONNX_FILE, "fp32", made_from={}, tools={}))


@functools.cache
def _order(version: int) -> npt.NDArray[np.int64]:
    """Return the patch of each label."""
    return np.random.default_rng(version).permutation(LABELS)


def _make_graph(version: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    constants: Mapping[str, npt.NDArray[Any]] = {
        "slope": np.array(_SLOPE / 255, np.float32),
        "offset": np.array(-_SLOPE / 2, np.float32),
        "flat": np.array([0, -1], np.int64),
        "order": np.eye(LABELS, dtype=np.float32)[:, _order(version)],
    }
    steps: Sequence[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["pixels"], "float", {"to": TensorProto.FLOAT}),
        ("Transpose", ["float"], "channels", {"perm": [0, 3, 1, 2]}),
        ("ReduceMean", ["channels"], "gray", {"axes": [1], "keepdims": 1}),
        ("AveragePool", ["gray"], "patches", {"kernel_shape": [_PATCH] * 2, "strides": [_PATCH] * 2}),
        ("Reshape", ["patches", "flat"], "levels", {}),
        ("Mul", ["levels", "slope"], "scaled", {}),
        ("Add", ["scaled", "offset"], "plain", {}),
        ("MatMul", ["plain", "order"], "logits", {}),
    ]
    nodes = [helper.make_node(kind, inputs, [output], name=output, **rest) for kind, inputs, output, rest in steps]
    height, width = _GRID[0] * _PATCH, _GRID[1] * _PATCH
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LABELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
