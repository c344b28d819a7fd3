"""How far logits in bf16 are from those in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: The most by which rounding to the 8 bits of bf16 moves a number, relative to it.
ROUNDING = 2.0**-8

#: Of the graph of `int8_graphs`, about; each rounds its result.
OPERATIONS = 16


def assert_computed_in_bf16(logits: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> None:
    """The error is that of one rounding at least, and at most that of one at each operation.

    It is taken relative to the spread of the exact logits. FP16 stays below these bounds, INT8 and exchanged answers
    are above.
    """
    error = np.sqrt(np.mean(np.square(logits - exact))) / exact.std()
    assert ROUNDING < error < OPERATIONS * ROUNDING
