"""What a diagnostic is: a quantity with a reading, beside the same of torch's AdamW and SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from bench.diagnostics.ride import YARDSTICKS, Contestant


@dataclass(frozen=True)
class Diagnostic:
    """A quantity of an optimizer on an analytic problem.

    ``quantity`` names the number and its unit, ``what`` says in a sentence what is done, ``measure`` does it, ``read``
    says in plain words what a value means.
    """

    name: str
    quantity: str
    what: str
    measure: Callable[[Contestant], float] = field(repr=False)
    read: Callable[[float], str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a diagnostic found; ``value`` is ``None`` where the optimizer raised, infinite where it diverged."""

    name: str
    quantity: str
    value: float | None
    reading: str
    yardsticks: Mapping[str, float]


def examine(diagnostic: Diagnostic, contestant: Contestant) -> Finding:
    """Measure ``contestant`` and the yardsticks; whatever an optimizer raises is part of the finding."""
    yardsticks = {each.name: _of_yardstick(diagnostic, each) for each in YARDSTICKS}
    value: float | None = None
    try:
        value = diagnostic.measure(contestant)
        value = math.inf if math.isnan(value) else value
        reading = diagnostic.read(value)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what a plugin raises is its reading
        reason = str(error).partition("\n")[0]
        reading = f"it raised {type(error).__name__}: {reason}"
    return Finding(
        name=diagnostic.name, quantity=diagnostic.quantity, value=value, reading=reading, yardsticks=yardsticks
    )


@cache
def _of_yardstick(diagnostic: Diagnostic, contestant: Contestant) -> float:
    return diagnostic.measure(contestant)
