"""Full fine-tuning: every weight that the workload leaves trainable moves, and nothing is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._base import FineTuning

if TYPE_CHECKING:
    from torch import nn

    from bench import Run


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(FineTuning):
    """AdamW over all that the workload leaves trainable: the yardstick of every adapter.

    With weights W, gradient G, moments M, V and k = 1, 2, ... steps:

        W ← W (1 - η λ)
        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        W ← W - η M/(1-β₁ᵏ) / (√(V/(1-β₂ᵏ)) + ε)

    η is ``lr`` (``head_lr`` for a classifier), λ is ``weight_decay``, β₁ = 0.9, β₂ = 0.999, ε = 1e-8. State: M and V,
    2 m n for each matrix. Published learning rates are about 1e-5 at 3B parameters; a model of 0.1M wants 6e-3.

    Source: arXiv:1711.05101 for the optimizer. Deviations: none.
    """

    name = "full-finetuning"

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Return ``model`` as it is."""
        return model
