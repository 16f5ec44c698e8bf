"""SGD with Nesterov momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Lt

from bench import Algorithm, Choice, Log, hyper

if TYPE_CHECKING:
    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class SGD(Algorithm):
    r"""torch.optim.SGD with Nesterov momentum for all parameters alike.

    With weights W, gradient G and buffer B:

        G ← G + λ W                             coupled decay, so its range lies far below AdamW's
        B ← μ B + G                             B = G at the first step, no dampening
        W ← W - η (G + μ B)

    η is ``lr``, μ is ``momentum``, λ is ``weight_decay``. State: B, of the parameter's shape and dtype. torch chooses
    the kernel, never the fused one: on the CPU of torch 2.13 that leaves bf16 and fp16 tensors of 16 elements or more
    unchanged, and raises where a parameter gets its first gradient later than its group.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, in
    torch.optim.SGD's form. Deviations: none.
    """

    name = "sgd"

    lr: Annotated[float, Gt(0)] = hyper(0.1, search=Log(0.02, 5.0), help="peak learning rate η")
    momentum: Annotated[float, Gt(0), Lt(1)] = hyper(
        0.9, search=Choice((0.7, 0.9, 0.95, 0.99)), help="decay of the buffer, μ"
    )
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, search=Log(1e-7, 5e-5), help="coupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.SGD:
        """Return torch.optim.SGD over all parameters."""
        return torch.optim.SGD(
            list(named_parameters), lr=self.lr, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay
        )
