"""MiSS: one small matrix, tiled along the inputs of a weight (the later default of Bone)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bench import Log, Role, hyper
from bench.errors import BadValue

from ._adapter import AdaptedLinear, wide
from ._base import AdapterTuning

if TYPE_CHECKING:
    from bench import Run


@dataclass(frozen=True, kw_only=True)
class Miss(AdapterTuning):
    """Matrix shard sharing on the linear layers of attention and MLP, trained by AdamW.

    See :class:`MissLinear` for the layer. r is ``rank``. λ pulls towards the pretrained weights. State: 2 r m per
    weight (m, n), against 2 m n; on square weights that is the size of LoRA at rank r/2, for half of its work.

    The inputs that are folded together have nothing to do with each other, so the result depends on the order of the
    features; the fold of a wide input is large, as if its learning rate were. Reruns of others saw it forget four times
    as much as LoRA: look at forgetting beside the quality.

    Published: r = 64 with lr 2e-5 (LLaMA-2-7B) or 1e-4 (Llama-3.2-3B); in a model of 0.1M parameters the best lr at
    r = 8 is 1e-2.

    Source: arXiv:2409.15371 (v2 and later), JL-er/MiSS.
    Deviations: see ``deviations``.
    """

    name = "miss"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?shard": Role.ADAPTER}
    deviations: ClassVar[tuple[str, ...]] = (
        "The rank is 16 by default, with the parameters of LoRA at rank 8; published runs take 64.",
        "There is no dropout at the input of the adapter; peft has it as an option.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-3, search=Log(3e-5, 3e-1), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] = hyper(16, help="rank r: how many entries the input is folded into")

    def layer(self, linear: nn.Linear, run: Run) -> MissLinear:
        """Return the layer with a shard that starts as zeros."""
        return MissLinear(linear, rank=self.rank)


class MissLinear(AdaptedLinear):
    r"""A linear layer with a shard that all groups of r inputs share.

    With frozen W (m, n), b (m,) and the shard D (r, m):

        y = W x + b + Dᵀ x̂,                      x̂_q = Σ_i x_{i r + q}
        dW_{:, i r + q} = D_{q, :},              ∂_D = x̂ᵀ ∂_y summed over tokens

    x is padded with zeros where r does not divide n. ``shard`` starts as zeros: at first y has the bits of the base
    layer. It is fp32 beside a half-precision W.

        >>> layer = MissLinear(nn.Linear(10, 8), rank=4)
        >>> tuple(layer.shard.shape)
        (4, 8)

    A ``rank`` above n raises :class:`~bench.errors.BadValue`.

    Source: arXiv:2409.15371. Deviations: those of :class:`Miss`.
    """

    def __init__(self, base: nn.Linear, *, rank: int = 16) -> None:
        Miss.check(rank=rank)
        if rank > base.in_features:
            raise BadValue(
                f"miss: rank = {rank!r} (int) is not allowed for a weight of shape {tuple(base.weight.shape)}",
                hint=f"rank is an int, 1 <= rank <= {base.in_features}",
            )
        super().__init__(base)
        shard = torch.zeros(rank, self.out_features, dtype=wide(base.weight.dtype), device=base.weight.device)
        self.shard = nn.Parameter(shard)

    def delta(self) -> Tensor:
        """Return dW (m, n), D transposed and tiled."""
        tiles = -(-self.in_features // len(self.shard))
        return self.shard.T.repeat(1, tiles)[:, : self.in_features]

    def forward(self, features: Tensor) -> Tensor:
        """Return W x + b + Dᵀ x̂ for ``features`` x (..., n)."""
        outputs: Tensor = self.base(features)
        rank = len(self.shard)
        padded = nn.functional.pad(features, (0, -self.in_features % rank))
        groups = padded.reshape(*features.shape[:-1], padded.shape[-1] // rank, rank)
        folded = groups.sum(-2, dtype=self.shard.dtype)
        updated: Tensor = outputs + folded @ self.shard
        return updated.to(outputs.dtype)
