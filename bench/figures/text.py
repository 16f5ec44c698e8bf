"""Numbers as a person reads them, with units, for labels and for text alternatives."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence


def number(value: float, digits: int = 3) -> str:
    """Return so many significant digits, without an exponent for the sizes that occur here; ``unknown`` for NaN."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "infinity" if value > 0 else "minus infinity"
    return f"{value:.0f}" if 10**digits - 0.5 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def interval(value: float, low: float, high: float) -> str:
    """Return ``0.79 (0.71 to 0.88)``, or the value alone where the interval is not known."""
    if math.isnan(low) or math.isnan(high):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def ratio(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Return a ratio near 1 with three decimals, as ``1.002 (0.995 to 1.010)``, and one far from it as a number."""
    shown = [f"{each:.3f}" if 0.1 < each < 10 else number(each) for each in (value, low, high)]
    return shown[0] if math.isnan(low) or math.isnan(high) else f"{shown[0]} ({shown[1]} to {shown[2]})"


def real(value: object) -> float:
    """Return a cell of a table as a float; what is missing is NaN."""
    return float(value) if isinstance(value, numbers.Real) else float("nan")


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, or ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def time_unit(times_s: Iterable[float]) -> tuple[float, str]:
    """Return how many seconds the unit has that suits ``times_s``, and its symbol."""
    longest = max((value for value in times_s if math.isfinite(value)), default=0.0)
    return next(((size, unit) for size, unit in ((3600.0, "h"), (60.0, "min")) if longest >= 3 * size), (1.0, "s"))


def byte_unit(sizes_bytes: Iterable[float]) -> tuple[float, str]:
    """Return how many bytes the decimal unit has that suits ``sizes_bytes``, and its symbol."""
    largest = max((value for value in sizes_bytes if math.isfinite(value)), default=0.0)
    return next(((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size), (1.0, "B"))
