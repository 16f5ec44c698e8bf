"""llama-c4-bf16: the same runs as ``llama-c4`` in pure bf16, as most published ones were made.

Weights, gradients and optimizer states are bf16 and there is no fp32 master copy: updates below 2⁻⁹ of a weight are
lost, and a second moment with β₂ = 0.999 cannot decay. Kept apart from ``llama-c4`` because both change rankings. No
target is set: no tuned reference run has been made in this precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from bench import Tier

from .llama_c4 import TIERS, LlamaC4


class LlamaC4Bf16(LlamaC4):
    """LLaMA decoder pre-training on C4 in pure bf16; see the module."""

    name = "llama-c4-bf16"
    tiers: ClassVar[Mapping[str, Tier]] = {
        name: replace(tier, precision="bf16", target=None, predicted_cv=None) for name, tier in TIERS.items()
    }
