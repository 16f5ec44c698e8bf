"""JSON from files that anybody may have written or damaged: what is not exactly one sound value is a ``ValueError``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

LONGEST_BYTES = 2**24
"""No file and no line of ours is longer."""


def loads(content: bytes) -> Any:
    """Return the value that ``content``, UTF-8, holds.

    Refused beside what is no JSON at all: more than ``LONGEST_BYTES``, ``NaN`` and the infinities, a number that no
    float holds, a key given twice, half a surrogate pair, and nesting deeper than Python's stack.
    """
    if len(content) > LONGEST_BYTES:
        raise ValueError(f"longer than {LONGEST_BYTES} bytes")
    text = content.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a pair is no text, and Parquet takes none
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is larger than any number")
    return value
