"""Numbers and names as people read them: values with their intervals, in one unit, to as many digits as they carry."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

NONE = "–"
"""What stands where there is no number."""

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_JOULES = ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"))
_PLAIN = ((1.0, ""),)
UNITS = {"bytes": _BYTES, "s": _SECONDS, "j": _JOULES, "": _PLAIN}
"""The units of each kind of quantity, largest first, by the suffix of the column."""

_HOURS_FROM_S, _MINUTES_FROM_S = 7200.0, 120.0
_LARGEST, _SMALLEST = 1e7, 1e-4


def clean(text: object) -> str:
    """Return ``text`` without characters that could hide or reorder what is around them, and encodable as UTF-8."""
    # Cc: control, Cs: lone surrogates, Cf: among them the marks that turn the direction of writing around
    bad = {"Cc", "Cs", "Cf"}
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in bad and char not in "\n\t" else char
        for char in str(text)
    )


def known(value: Any) -> bool:
    """Return whether ``value`` is a number other than NaN (infinity is one)."""
    return not isinstance(value, bool) and isinstance(value, Real) and not math.isnan(value)


def number(value: Any, digits: int = 3) -> str:
    """Return a number to ``digits`` significant digits, integers below ten millions in full."""
    if not known(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not _SMALLEST <= size < _LARGEST:
        return f"{value:.{max(digits - 1, 0)}e}".replace("-", "−")
    places = 0 if not size else max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{places}f}".replace("-", "−")


def shortest(value: Any) -> str:
    """Return a number to six significant digits, without zeros at its end."""
    return f"{value:.6g}".replace("-", "−") if known(value) and math.isfinite(value) else number(value)


def fixed(value: Any, places: int) -> str:
    """Return a number with ``places`` decimals."""
    if not known(value):
        return NONE
    return number(value) if math.isinf(value) else f"{value:,.{places}f}".replace("-", "−")


def count(value: Any) -> str:
    """Return a whole number with separators."""
    return fixed(value, 0)


def percent(value: Any) -> str:
    """Return a share as per cent."""
    return f"{number(100 * value, 2)}%" if known(value) else NONE


def probability(value: Any) -> str:
    """Return a p-value."""
    if not known(value):
        return NONE
    return "< 0.001" if value < 1e-3 else fixed(value, 3)


def interval(low: Any, high: Any, show: Any = number) -> str:
    """Return ``[low, high]``; empty where it is not known."""
    return f"[{show(low)}, {show(high)}]" if known(low) and known(high) else ""


def scale(value: Any, kind: str) -> tuple[float, str]:
    """Return the size and the name of the unit in which ``value`` of this kind reads best."""
    units = UNITS[kind]
    if not known(value) or not value or math.isinf(value):
        return next(unit for unit in units if unit[0] == 1.0)
    if kind == "s" and abs(value) >= 1.0:
        limits = ((_HOURS_FROM_S, 3600.0, "h"), (_MINUTES_FROM_S, 60.0, "min"), (0.0, 1.0, "s"))
        return next((size, name) for limit, size, name in limits if abs(value) >= limit)
    return next((unit for unit in units if abs(value) >= unit[0]), units[-1])


def common_scale(values: Iterable[Any], kind: str) -> tuple[float, str]:
    """Return the unit in which a column of values reads best: that of its middle one."""
    finite = sorted(value for value in values if known(value) and math.isfinite(value))
    return scale(finite[len(finite) // 2] if finite else math.nan, kind)


def places(low: Any, high: Any, otherwise: int = 4) -> int:
    """Return how many decimals show an interval's width to two digits; ``otherwise`` where there is no interval."""
    if not (known(low) and known(high)) or not 0 < high - low < math.inf:
        return otherwise
    return min(max(1 - math.floor(math.log10(high - low)), 2), 8)


def quantity(value: Any, kind: str, digits: int = 3, unit: tuple[float, str] | None = None) -> str:
    """Return a quantity with its unit, such as ``69.7 s``; by default in the unit in which it reads best."""
    if not known(value) or math.isinf(value):
        return number(value)
    size, name = unit or scale(value, kind)
    return f"{number(value / size, digits)} {name}".rstrip()


def values_text(values: str | Mapping[str, Any] | None) -> str:
    """Return hyperparameters (a mapping or its JSON) as ``name=value, ...``."""
    if not values:
        return ""
    found = json.loads(values) if isinstance(values, str) else values
    return ", ".join(f"{name}={_plain(value)}" for name, value in found.items())


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plural(amount: int, one: str, many: str = "") -> str:
    """Return ``amount`` with its noun."""
    return f"{count(amount)} {one if amount == 1 else many or one + 's'}"


def listing(words: Sequence[str]) -> str:
    """Return words as an enumeration: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


LONGEST_ANCHOR = 100
"""Figures are files that are called after the identifiers of their sections, which strangers' names are part of."""


class Anchors:
    """Makes identifiers for the page, no two alike, of letters, digits and hyphens only."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, *words: object) -> str:
        """Return an identifier made of ``words``."""
        text = "-".join(str(word) for word in words if word not in {None, ""}).lower()
        base = _cut(re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "part")
        found, suffix = base, 2
        while found in self._taken:
            found, suffix = f"{base}-{suffix}", suffix + 1
        self._taken.add(found)
        return found


def _cut(name: str) -> str:
    """Return a name that is short enough for that of a file; what is left out is told apart by its hash."""
    if len(name) <= LONGEST_ANCHOR:
        return name
    return f"{name[:LONGEST_ANCHOR].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
