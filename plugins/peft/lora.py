"""LoRA: a low-rank matrix is added to each frozen weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bench import Log, Role, hyper

from ._adapter import AdaptedLinear, wide
from ._base import AdapterTuning

if TYPE_CHECKING:
    from bench import Run


@dataclass(frozen=True, kw_only=True)
class Lora(AdapterTuning):
    """LoRA on the linear layers of attention and MLP, trained by AdamW.

    See :class:`LoraLinear` for the layer. r is ``rank``, s = α/r with α = ``alpha``; ``alpha=None`` is 2 r, so that
    s = 2 at any rank, as in most published runs. Compare runs by s: an α that was tuned at one rank says nothing of
    another. λ pulls towards the pretrained weights. State: 2 r (m + n) per weight (m, n), against 2 m n.

    Published: r = 8 on query and value with lr 4e-4 and α = 16 (RoBERTa-base), r = 32 with α = 64 and lr 1e-4
    (Llama-3.2-3B); in a model of 0.1M parameters the best lr is 1e-2.

    Source: arXiv:2106.09685, microsoft/LoRA ``loralib``.
    Deviations: see ``deviations``.
    """

    name = "lora"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?lora_[AB]": Role.ADAPTER}
    deviations: ClassVar[tuple[str, ...]] = (
        "A starts Kaiming-uniform with a = √5, as in the code; the paper draws it from a Gaussian.",
        "All linear layers of attention and MLP are adapted by default; the paper adapts query and value.",
        "Embeddings and convolutions are not adapted; loralib has layers for them.",
        "Weights are merged into a copy of the model; loralib adds and subtracts them at each change of mode.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-3, search=Log(3e-5, 3e-1), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] = hyper(8, help="rank r of the update")
    alpha: Annotated[float, Gt(0)] | None = hyper(None, help="numerator α of the scale s = α/r; none: 2 r")
    dropout: Annotated[float, Ge(0), Lt(1)] = hyper(0.0, help="dropout at the input of the adapter")

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def layer(self, linear: nn.Linear, run: Run) -> LoraLinear:
        """Return the layer with a low-rank update that starts as zero."""
        generator = run.rng("adapters")
        return LoraLinear(linear, rank=self.rank, scale=self.scale, dropout=self.dropout, generator=generator)


class LoraLinear(AdaptedLinear):
    r"""A linear layer with a low-rank update.

    With frozen W (m, n), b (m,), factors A (r, n), B (m, r) and the scale s:

        y = W x + b + s B (A x),                 dW = s B A
        ∂_B = s ∂_W Aᵀ,   ∂_A = s Bᵀ ∂_W

    A starts as U(-1/√n, 1/√n), drawn from ``generator`` (``None``: torch's global one), B as zeros: at first y has the
    bits of the base layer and only B moves. ``dropout`` acts on the x of the update alone. A and B are fp32 beside a
    half-precision W; r may exceed m and n.

        >>> layer = LoraLinear(nn.Linear(16, 4), rank=2, scale=2.0)
        >>> tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)
        ((2, 16), (4, 2))

    ``rank``, ``dropout`` and ``scale`` outside their domains raise :class:`~bench.errors.BadValue`.

    Source: arXiv:2106.09685. Deviations: those of :class:`Lora`.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int = 8,
        scale: float = 2.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        Lora.check(rank=rank, dropout=dropout)
        Lora.check(alpha=scale * rank)
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        self.lora_A, self.lora_B = (nn.Parameter(factor) for factor in self._start(rank, generator))

    def _start(self, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return A and B as they start."""
        weight = self.base.weight
        bound = 1.0 / math.sqrt(self.in_features)
        first = torch.empty(rank, self.in_features, dtype=wide(weight.dtype), device=weight.device)
        return first.uniform_(-bound, bound, generator=generator), first.new_zeros(self.out_features, rank)

    def delta(self) -> Tensor:
        """Return dW = s B A (m, n)."""
        return self.scale * self.lora_B @ self.lora_A

    def forward(self, features: Tensor) -> Tensor:
        """Return W x + b + s B (A x) for ``features`` x (..., n)."""
        outputs: Tensor = self.base(features)
        features = nn.functional.dropout(features, self.dropout, self.training).to(self.lora_A.dtype)
        narrow = nn.functional.linear(features, self.lora_A)
        return (outputs + self.scale * nn.functional.linear(narrow, self.lora_B)).to(outputs.dtype)
