"""Numbers from JSON, YAML and request parameters."""

from __future__ import annotations

import math


def finite_float(value: object) -> float | None:
    """Return a value as a float; None if it is not a finite number. An int is a number, a bool is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        return None
    return number if math.isfinite(number) else None
