"""The engines that a model can be served on; Triton chooses one by `--model-config-name`."""

from __future__ import annotations

from typing import Final, Literal

Target = Literal["embedded", "cpu", "int8", "gpu"]
TARGETS: Final[tuple[Target, ...]] = ("embedded", "cpu", "int8", "gpu")
