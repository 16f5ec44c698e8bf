"""An algorithm whose claims cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from .averages import Good


@dataclass(frozen=True, kw_only=True)
class Boasts(Good):
    """Source: none."""

    name = "boasts"
