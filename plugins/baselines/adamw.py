"""AdamW: the reference of every language-model workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Lt

from bench import Algorithm, Choice, Log, hyper

if TYPE_CHECKING:
    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class AdamW(Algorithm):
    r"""torch.optim.AdamW for all parameters alike.

    With weights W, gradient G, moments M, V and k = 1, 2, ... steps:

        W ← W (1 - η λ)
        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        W ← W - η M/(1-β₁ᵏ) / (√(V/(1-β₂ᵏ)) + ε)

    η is ``lr``, λ is ``weight_decay``. State: M and V, of the parameter's shape and dtype, and one counter. The
    defaults are those of torch.optim.AdamW.

    torch's fused kernel is used on CPU and CUDA: it reads and writes each tensor once and needs no temporaries, where
    the foreach form holds several copies of the gradients. It computes in fp32 for bf16 tensors and rounds at the end;
    moments and weights are stored in bf16 all the same. Other devices take torch's own choice.

    Source: arXiv:1711.05101. Deviations: none.
    """

    name = "adamw"

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.8, 0.9, 0.95, 0.98)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(1e-2, search=Log(5e-3, 1.0), help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.AdamW:
        """Return torch.optim.AdamW over all parameters."""
        parameters = list(named_parameters)
        has_kernel = all(parameter.device.type in {"cpu", "cuda"} for _, parameter in parameters)
        return torch.optim.AdamW(
            parameters,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True if has_kernel else None,
        )
