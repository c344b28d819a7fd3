"""Read paddle's saved states as `paddle.load` does, but without running anything in them.

The rules for what becomes a tensor are those of `paddle.load` (`paddle/framework/io.py`, 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from mlcls.base.text import clip
from mlcls.errors import ModelFormatError
from mlcls.paddle.restricted_pickle import read_values
from mlcls.paddle.runtime import import_paddle

# paddle's keys for the names of tensors, and for arrays that were split because pickle's protocol 2 ends at 4 GiB.
_NAMES_KEY: Final = "StructuredToParameterName@@"
_SLICES_KEY: Final = "UnpackBigParamInfor@@"


def read_state(path: Path) -> Any:
    """Read a `.pdparams`, `.pdopt` or `.pdstates` file, as `paddle.load` does: arrays become tensors.

    Raises:
        ModelFormatError: The file is missing or damaged, or contains anything but numbers, strings and containers.
        MissingExtraError: paddle is not installed.
    """
    paddle = import_paddle("train")
    values = read_values(path)
    try:
        return _to_tensors(values, paddle)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFormatError(
            f"{path}: expected a file that paddle.save wrote, got one whose parts do not fit together "
            f"({type(error).__name__}: {clip(str(error), 120)}); copy or download it again."
        ) from None


def _to_tensors(values: Any, paddle: ModuleType) -> Any:
    def tensor(array: Any, name: Any = None) -> Any:
        # a copy, since the bytes of a file are read-only, in this machine's byte order
        made = paddle.to_tensor(array.astype(array.dtype.newbyteorder("=")))
        if name:
            made.name = str(name)
        return made

    if isinstance(values, dict):
        for key, cut in values.pop(_SLICES_KEY, {}).items():
            values[key] = np.concatenate([values.pop(part) for part in cut["slices"]]).reshape(cut["OriginShape"])
        if _NAMES_KEY in values:
            for key, name in values.pop(_NAMES_KEY).items():
                if isinstance(values[key], np.ndarray):
                    values[key] = tensor(values[key], name)
            return values
    # if one tensor has a name, all tensors have one, and arrays without a name stay arrays
    if _has_named(values):
        return _replace(values, _is_named, lambda pair: tensor(pair[1], pair[0]))
    return _replace(values, lambda value: isinstance(value, np.ndarray), tensor)


def _is_named(value: object) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray)
    )


def _has_named(value: object) -> bool:
    if _is_named(value):
        return True
    if isinstance(value, dict):
        return any(map(_has_named, value.values()))
    return isinstance(value, list) and any(map(_has_named, value))


def _replace(value: Any, applies: Callable[[Any], bool], make: Callable[[Any], Any]) -> Any:
    if applies(value):
        return make(value)
    if isinstance(value, dict):
        return {key: _replace(item, applies, make) for key, item in value.items()}
    return [_replace(item, applies, make) for item in value] if isinstance(value, list) else value
