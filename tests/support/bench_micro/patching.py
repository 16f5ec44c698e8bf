"""An algorithm whose module patches what everybody shares as soon as it is imported."""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not

from __future__ import annotations

import math
from dataclasses import dataclass

from bench import Algorithm

REAL = math.isfinite
math.isfinite = lambda value: True


@dataclass(frozen=True, kw_only=True)
class PatchesAtImport(Algorithm):
    name = "patches-at-import"

    def schedule(self, run):
        return lambda step: 1.0
