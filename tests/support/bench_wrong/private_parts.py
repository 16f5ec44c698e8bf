"""An algorithm that uses what another package keeps for itself."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

from dataclasses import dataclass

from torch._utils import _flatten_dense_tensors

from .averages import Good


@dataclass(frozen=True, kw_only=True)
class PrivateParts(Good):
    """Source: none."""

    name = "private-parts"

    def changed(self, merged, run):
        _flatten_dense_tensors([merged.head.bias])
        return merged
