"""What an algorithm says of itself, wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from bench import Linear, hyper

from .averages import Good


@dataclass(frozen=True, kw_only=True)
class Heavy(Good):
    """Source: none."""

    name = "heavy"


@dataclass(frozen=True)
class Positional(Good):
    """Source: none."""

    name = "positional"
    strength: Annotated[float, Gt(0)] = hyper(1.0, help="does nothing")


@dataclass(frozen=True, kw_only=True)
class Unended(Good):
    """Source: none.

    Deviations: one.
    """

    name = "unended"
    deviations = ("this sentence does not end",)


@dataclass(frozen=True, kw_only=True)
class Undocumented(Good):
    """An average."""

    name = "undocumented"


@dataclass(frozen=True, kw_only=True)
class SpacedSummary(Good):
    """Source: none."""

    name = "spaced-summary"


@dataclass(frozen=True, kw_only=True)
class Unbounded(Good):
    """Source: none."""

    name = "unbounded"
    strength: float = hyper(1.0, help="does nothing")


@dataclass(frozen=True, kw_only=True)
class SearchesOutside(Good):
    """Source: none."""

    name = "searches-outside"
    strength: Annotated[float, Ge(0), Le(1)] = hyper(1.0, search=Linear(0.0, 2.0), help="does nothing")


@dataclass(frozen=True, kw_only=True)
class TakesAnything(Good):
    """Source: none."""

    name = "takes-anything"
    strength: Annotated[float, Ge(0), Le(1)] = hyper(1.0, help="does nothing")

    def __post_init__(self):
        """Check nothing."""
