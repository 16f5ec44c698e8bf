"""What an event may be: its fields and their types, checked when it is written and when it is read.

``started``    a worker began: whether from a checkpoint, at which step, and the facts of machine and workload
``evaluated``  one evaluation with all that was spent until then
``saved``      a checkpoint is on the disk; ``unsaved``: it could not be written, and the trial goes on without
``finished``   the trial ended: outcome and reason

Other events and other fields are let through: they change no column.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from bench.record import COST, FACTS, NOT_FINITE
from bench.trial import OUTCOMES

Check = Callable[[Any], bool]
LARGEST = 2**63


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value < LARGEST


def _is_step(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_real(value: Any) -> bool:
    """Whether this is a number, or the text as which one that is not finite travels."""
    if isinstance(value, str):
        return value in NOT_FINITE
    return _is_whole(value) or isinstance(value, float)


def _is_time(value: Any) -> bool:
    return _is_real(value) and not isinstance(value, str) and math.isfinite(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


_KINDS: Mapping[pa.DataType, Check] = {
    pa.string(): _is_text,
    pa.int64(): _is_whole,
    pa.float64(): _is_real,
    pa.bool_(): lambda value: isinstance(value, bool),
}

_COST = {name: _or_null(_KINDS[kind]) for name, kind in COST}
_FACTS = {name: _or_null(_KINDS[kind]) for name, kind in FACTS} | {"judged_from_step": _is_step}
_FIELDS: Mapping[str, Mapping[str, Check]] = {
    "started": {"resumed": _KINDS[pa.bool_()], "step": _is_step},
    "evaluated": {
        "step": _is_step,
        "quality": _is_real,
        "train_loss": _or_null(_is_real),
        "learning_rate": _or_null(_is_real),
    },
    "saved": {"step": _is_step},
    "unsaved": {"step": _is_step, "reason": _is_text},
    "finished": {"outcome": lambda value: value in OUTCOMES, "reason": _is_text, "at": _is_text},
}
"""The fields that each kind of event must have."""

_GROUPS: Mapping[str, Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]]] = {
    "started": {"facts": (_FACTS, ())},
    "evaluated": {"cost": (_COST | {"time_s": _is_time, "wall_s": _is_time}, ("time_s", "wall_s"))},
    "finished": {"cost": (_COST, ())},
}
"""The objects that they must have: which of their values are checked, and which must be there."""


def fault_of(event: Any) -> str:
    """Return what keeps ``event`` from being one, such as ``step = 'x' (str)``; an empty text where nothing does."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return "it names no event"
    kind = event["event"]
    fault = _fault(event, _FIELDS.get(kind, {}), tuple(_FIELDS.get(kind, {})))
    for group, (checks, needed) in _GROUPS.get(kind, {}).items():
        fault = fault or _fault_of_group(event, group, checks, needed)
    if kind == "evaluated":
        metrics = event.get("metrics")
        names = metrics if isinstance(metrics, dict) else {}
        fault = fault or _fault_of_group(event, "metrics", dict.fromkeys(names, _or_null(_is_real)), ())
    return fault


def _fault_of_group(event: Mapping[str, Any], group: str, checks: Mapping[str, Check], needed: tuple[str, ...]) -> str:
    if not isinstance(event.get(group), dict):
        return _told(group, event.get(group))
    fault = _fault(event[group], checks, needed)
    return f"{group}.{fault}" if fault else ""


def _fault(values: Mapping[str, Any], checks: Mapping[str, Check], needed: tuple[str, ...]) -> str:
    for name in needed:
        if name not in values:
            return f"{name} is missing"
    for name, check in checks.items():
        if name in values and not check(values[name]):
            return _told(name, values[name])
    return ""


def _told(name: str, value: Any) -> str:
    return f"{name} = {reprlib.repr(value)} ({type(value).__name__})"
