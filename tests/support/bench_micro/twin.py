"""The reference of ``micro`` under another name: whatever is found between the two is found by chance."""

from __future__ import annotations

from dataclasses import dataclass

from bench.plugins.baselines.adamw import AdamW


@dataclass(frozen=True, kw_only=True)
class AdamWTwin(AdamW):
    """AdamW, once more."""

    name = "adamw-twin"
