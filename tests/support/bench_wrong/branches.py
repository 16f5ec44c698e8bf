"""An algorithm that knows a workload by name."""

from __future__ import annotations

from dataclasses import dataclass

from .averages import Good


@dataclass(frozen=True, kw_only=True)
class Branches(Good):
    """Source: none. That forbidden-fruit stands here is no harm."""

    name = "branches"

    def changed(self, merged, run):
        return merged if getattr(run, "workload", "") != "forbidden_fruit" else None
