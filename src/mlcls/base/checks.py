"""Numbers from JSON, YAML and request parameters."""

from __future__ import annotations

import math


def finite_float(value: object) -> float | None:
    """The value as a float; None where it is no finite number. An int is as good as a float, a bool is neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        return None
    return number if math.isfinite(number) else None
