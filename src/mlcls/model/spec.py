"""`ModelSpec`: the one description of a served model that every other part reads.

The import of a PaddleX inference model writes it once, as `model_spec.json`; the Triton backends, the conversion and
the gate read it. Nothing else states labels, thresholds or the transform.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from mlcls.base import documents
from mlcls.base.documents import Document, Finite, VersionedDocument
from mlcls.base.text import clip, has_control
from mlcls.errors import SpecError
from mlcls.model.contract import TENSORS, TensorNames

SPEC_FILE: Final = "model_spec.json"

ResizeBackend = Literal["pil", "cv2"]
Activation = Literal["sigmoid", "none"]

# The interpolations that PaddleX accepts, per resize backend (`paddlex/inference/models/common/vision/processors.py`).
INTERPOLATIONS: Final[Mapping[ResizeBackend, tuple[str, ...]]] = {
    "pil": ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS4"),
    "cv2": ("NEAREST", "LINEAR", "BICUBIC", "AREA", "LANCZOS4"),
}

MAX_LABEL_CHARACTERS: Final = 500

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REMEDY: Final = "import the model again: mlcls import MODEL"

_Side = Annotated[int, Meta(ge=1, le=8192)]
_Label = Annotated[str, Meta(max_length=MAX_LABEL_CHARACTERS)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ImageTransform(Document, frozen=True):
    """From a decoded image to the network's input.

    Attributes:
        height: Rows of `pixels`.
        width: Columns of `pixels`.
        resize_backend: Library that resizes; the two give different pixels (Pillow antialiases, cv2 does not).
        interpolation: Name of the filter as PaddleX spells it, upper case.
        scale: Factor applied to the uint8 values before `mean` and `std`.
        mean: Mean per channel, RGB.
        std: Standard deviation per channel, RGB, none of them 0.
    """

    height: _Side
    width: _Side
    resize_backend: ResizeBackend
    interpolation: str
    scale: Finite
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Finite, Finite, Finite]

    def __post_init__(self) -> None:
        known = INTERPOLATIONS[self.resize_backend]
        if self.interpolation not in known:
            text = f"interpolation: expected one of {', '.join(known)} for the resize backend {self.resize_backend!r}"
            raise ValueError(f"{text}, got {clip(self.interpolation)}")
        if 0.0 in self.std:
            raise ValueError(f"std: expected three numbers other than 0, got {list(self.std)!r}")


class ModelSpec(VersionedDocument, frozen=True):
    """Everything that serving one model needs to know about it.

    Attributes:
        name: Name of the Triton ensemble.
        architecture: `Global.model_name` of the PaddleX model: one of the six, whatever `name` is.
        labels: Label of each class id, in order, each once.
        thresholds: Threshold of each label; from 0 to 1; a label is predicted if its score is strictly greater.
        transform: From a decoded image to the network's input.
        activation: What postprocess applies to `logits`, once.
        source_activation: What the Paddle graph ended in before the conversion cut it off; None before conversion.
        tensors: Names of the tensors, the same for every model.
        source_sha256: Digest of each file of the PaddleX model, by file name; empty before import.
        onnx_sha256: Digest of the FP32 ONNX file; None before conversion.
    """

    name: str
    architecture: Annotated[str, Meta(min_length=1)]
    labels: Annotated[tuple[_Label, ...], Meta(min_length=1)]
    thresholds: tuple[Finite, ...]
    transform: ImageTransform
    activation: Literal["sigmoid"] = "sigmoid"
    source_activation: Activation | None = None
    tensors: TensorNames = TENSORS
    source_sha256: dict[str, _Sha256] = {}  # noqa: RUF012 (msgspec copies it)
    onnx_sha256: _Sha256 | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                "name: expected 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit (it becomes "
                f"a folder and a Triton model name), got {clip(self.name)}"
            )
        seen: set[str] = set()
        for label in self.labels:
            if not label.strip() or has_control(label) or label in seen:
                text = "labels: expected different labels, none empty, without control characters or line breaks, got"
                raise ValueError(f"{text} {clip(label)}{' twice' if label in seen else ''}")
            seen.add(label)
        if len(self.thresholds) != self.num_labels:
            text = f"thresholds: expected one for each of the {self.num_labels} labels"
            raise ValueError(f"{text}, got {len(self.thresholds)}")
        for label, threshold in zip(self.labels, self.thresholds, strict=True):
            if not 0 <= threshold <= 1:
                text = "thresholds: expected numbers from 0 to 1, as scores are, got"
                raise ValueError(f"{text} {threshold:g} for {clip(label)}")

    @property
    def num_labels(self) -> int:
        """The number of labels, which is the length of `logits` and `scores`."""
        return len(self.labels)

    def to_json(self) -> str:
        """Return the text of `model_spec.json`, for `from_json`."""
        return documents.to_json(self)

    @classmethod
    def from_json(cls, text: str, origin: str = SPEC_FILE) -> ModelSpec:
        """Read the text of a `model_spec.json`.

        Args:
            text: The JSON document.
            origin: What to call it in errors, usually its path.

        Raises:
            SpecError: The text is not JSON or has another schema version, or a key is unknown, missing or wrong.
        """
        return documents.decode(text, cls, SpecError, origin, _REMEDY)

    @classmethod
    def read(cls, path: Path) -> ModelSpec:
        """Read a `model_spec.json`.

        Raises:
            SpecError: The file does not exist, or is not a spec.
        """
        return documents.read(path, cls, SpecError, _REMEDY)
