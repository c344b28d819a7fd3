"""`ModelSpec`: the one description of a served model that every other part reads.

The import of a PaddleX inference model writes it once, as `model_spec.json`; the Triton backends, the conversion and
the gate read it. Nothing else states labels, thresholds or the transform. What is the same for every model is in
`mlcls.model.contract`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from mlcls.base.checks import finite_float
from mlcls.base.text import has_control
from mlcls.errors import SpecError
from mlcls.model.contract import ACTIVATION, TENSORS

SCHEMA_VERSION: Final = 1
SPEC_FILE: Final = "model_spec.json"

ResizeBackend = Literal["pil", "cv2"]
Activation = Literal["sigmoid", "none"]

# The interpolations that PaddleX accepts, per resize backend (`paddlex/inference/models/common/vision/processors.py`).
INTERPOLATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "pil": ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS4"),
    "cv2": ("NEAREST", "LINEAR", "BICUBIC", "AREA", "LANCZOS4"),
}

MAX_LABEL_CHARACTERS: Final = 500

# Keys of the file, in order; `activation` and `tensors` have the same values in all files.
_KEYS: Final = (
    *("name", "architecture", "labels", "thresholds", "transform", "activation", "source_activation", "tensors"),
    *("source_sha256", "onnx_sha256"),
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclasses.dataclass(frozen=True)
class ImageTransform:
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

    height: int
    width: int
    resize_backend: ResizeBackend
    interpolation: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for field in ("height", "width"):
            size = getattr(self, field)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 8192:
                raise SpecError(f"transform.{field}: expected an integer from 1 to 8192, got {size!r}.")
        if not isinstance(self.resize_backend, str) or self.resize_backend not in INTERPOLATIONS:
            raise SpecError(f"transform.resize_backend: expected 'pil' or 'cv2', got {self.resize_backend!r}.")
        if self.interpolation not in INTERPOLATIONS[self.resize_backend]:
            raise SpecError(
                f"transform.interpolation: expected one of {', '.join(INTERPOLATIONS[self.resize_backend])} for the "
                f"resize backend {self.resize_backend!r}, got {self.interpolation!r}."
            )
        object.__setattr__(self, "scale", _finite("transform.scale", self.scale))
        for field in ("mean", "std"):
            values = getattr(self, field)
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise SpecError(f"transform.{field}: expected three numbers (R, G, B), got {values!r}.")
            object.__setattr__(self, field, tuple(_finite(f"transform.{field}", value) for value in values))
        if 0.0 in self.std:
            raise SpecError(f"transform.std: expected three numbers other than 0, got {list(self.std)!r}.")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that serving one model needs to know about it.

    Attributes:
        name: Name of the Triton ensemble.
        architecture: `Global.model_name` of the PaddleX model: one of the six, whatever `name` is.
        labels: Label of each class id, in order, each once.
        thresholds: Threshold of each label; a label is predicted if its score is strictly greater.
        transform: From a decoded image to the network's input.
        source_activation: What the Paddle graph ended in before the conversion cut it off; None before conversion.
        source_sha256: Digest of each file of the PaddleX model, by file name; empty before import.
        onnx_sha256: Digest of the FP32 ONNX file; None before conversion.
    """

    name: str
    architecture: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    transform: ImageTransform
    source_activation: Activation | None = None
    source_sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    onnx_sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SpecError(
                f"name: expected 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit (it becomes "
                f"a folder and a Triton model name), got {self.name!r}."
            )
        if not isinstance(self.architecture, str) or not self.architecture:
            raise SpecError(f"architecture: expected the model_name of a PaddleX model, got {self.architecture!r}.")
        for field in ("labels", "thresholds"):
            if not isinstance(getattr(self, field), (list, tuple)):
                raise SpecError(f"{field}: expected a list, got {getattr(self, field)!r}.")
        labels = tuple(self.labels)
        if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
            raise SpecError(f"labels: expected at least one label, none of them empty, got {list(labels)!r}.")
        for label in labels:
            if has_control(label):
                raise SpecError(f"labels: expected labels without control characters or line breaks, got {label!r}.")
            if len(label) > MAX_LABEL_CHARACTERS:
                raise SpecError(
                    f"labels: expected at most {MAX_LABEL_CHARACTERS} characters, got {len(label)}: {label[:60]!r}..."
                )
        if len(set(labels)) != len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise SpecError(f"labels: expected each label once, got several of {', '.join(map(repr, twice))}.")
        object.__setattr__(self, "labels", labels)
        thresholds = tuple(_finite("thresholds", value) for value in self.thresholds)
        if len(thresholds) != len(labels):
            raise SpecError(f"thresholds: expected one for each of the {len(labels)} labels, got {len(thresholds)}.")
        object.__setattr__(self, "thresholds", thresholds)
        if self.source_activation not in ("sigmoid", "none", None):
            raise SpecError(f"source_activation: expected 'sigmoid', 'none' or null, got {self.source_activation!r}.")
        if not isinstance(self.source_sha256, Mapping) or not all(map(_is_sha256, self.source_sha256.values())):
            raise SpecError(f"source_sha256: expected a SHA-256 for each file, got {self.source_sha256!r}.")
        if self.onnx_sha256 is not None and not _is_sha256(self.onnx_sha256):
            raise SpecError(f"onnx_sha256: expected a SHA-256 or null, got {self.onnx_sha256!r}.")

    @property
    def num_labels(self) -> int:
        """The number of labels, which is the length of `logits` and `scores`."""
        return len(self.labels)

    def to_json(self) -> str:
        """Return the text of `model_spec.json`, for `from_json`."""
        values = dataclasses.asdict(self) | {"activation": ACTIVATION, "tensors": TENSORS._asdict()}
        document = {"schema_version": SCHEMA_VERSION} | {key: values[key] for key in _KEYS}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = SPEC_FILE) -> ModelSpec:
        """Read the text of a `model_spec.json`.

        Args:
            text: The JSON document.
            origin: What to call it in errors, usually its path.

        Raises:
            SpecError: The text is not JSON or has another schema version, or a key is unknown, missing or wrong.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number with too many digits
            raise SpecError(f"{origin}: expected a JSON document, got invalid JSON ({error}).") from None
        try:
            if not isinstance(document, dict):
                raise SpecError(f"expected a JSON object, got {type(document).__name__}.")
            version = document.pop("schema_version", None)
            if version != SCHEMA_VERSION:
                raise SpecError(
                    f"schema_version: expected {SCHEMA_VERSION}, got {version!r}; import the model again with this "
                    f"version of mlcls."
                )
            _check_keys(document, _KEYS, "")
            _check_contract(document.pop("activation"), document.pop("tensors"))
            transform = document["transform"]
            _check_keys(transform, [field.name for field in dataclasses.fields(ImageTransform)], "transform.")
            return cls(**document | {"transform": ImageTransform(**transform)})
        except SpecError as error:
            raise SpecError(f"{origin}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> ModelSpec:
        """Read a `model_spec.json`.

        Raises:
            SpecError: The file does not exist, or is not a spec.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SpecError(f"{path} does not exist; import the model first: mlcls import MODEL.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path} cannot be read: {error}") from None
        return cls.from_json(text, str(path))


def _check_keys(values: Any, expected: Sequence[str], prefix: str) -> None:
    """Check the keys of a JSON object; every unknown and every missing key is an error that names it."""
    if not isinstance(values, dict):
        raise SpecError(f"{prefix.rstrip('.')}: expected an object, got {values!r}.")
    unknown = sorted(set(values) - set(expected))
    if unknown:
        raise SpecError(f"unknown key {prefix}{unknown[0]}; expected only {', '.join(expected)}.")
    missing = [name for name in expected if name not in values]
    if missing:
        raise SpecError(f"missing key {prefix}{missing[0]}; expected {', '.join(expected)}.")


def _check_contract(activation: object, tensors: Any) -> None:
    """Check what the file says about the contract, which is the same for every model."""
    _check_keys(tensors, TENSORS._fields, "tensors.")
    given = {"activation": activation} | {f"tensors.{field}": tensors[field] for field in TENSORS._fields}
    expected = (ACTIVATION, *TENSORS)
    for (key, value), only in zip(given.items(), expected, strict=True):
        if value != only:
            text = f"{key}: expected {only!r}, as in every served model, got {value!r}; import the model again."
            raise SpecError(text)


def _finite(name: str, value: object) -> float:
    number = finite_float(value)
    if number is None:
        raise SpecError(f"{name}: expected a finite number, got {value!r}.")
    return number


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
