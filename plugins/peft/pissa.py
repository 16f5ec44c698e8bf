"""PiSSA: LoRA whose factors start as the principal part of the weight, which the frozen weight loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bench import hyper
from bench.errors import BadValue

from ._svd import leading_triplets, randomized_triplets
from .lora import Lora, LoraLinear

if TYPE_CHECKING:
    from bench import Run


@dataclass(frozen=True, kw_only=True)
class Pissa(Lora):
    """LoRA's layer started from the leading singular triplets of each weight, trained by AdamW.

    See :class:`PissaLinear` for the start. r is ``rank``; ``alpha=None`` is r, so that s = 1, as in the paper's runs.
    Since the factors start with 1/√s, s only multiplies the learning rate by √s. λ pulls towards zero and so *away*
    from the pretrained weights; leave it at 0. Full decompositions of large weights take long: see ``iterations``.

    Published: r = 128, lr 2e-5 (LLaMA-2-7B, MetaMathQA); in a model of 0.1M parameters the best lr at r = 4 is 2e-2.

    Source: arXiv:2404.02948, and ``init_lora_weights="pissa"`` of huggingface/peft.
    Deviations: see ``deviations``.
    """

    name = "pissa"
    deviations: ClassVar[tuple[str, ...]] = (
        "All linear layers of attention and MLP are adapted by default.",
        "The starting factors are kept and saved with the adapter, so that it loads on the pretrained weights.",
        "Randomised decompositions draw from the run's own generator, without oversampling, as peft's do.",
    )

    alpha: Annotated[float, Gt(0)] | None = hyper(None, help="numerator α of the scale s = α/r; none: r")
    iterations: Annotated[int, Ge(0)] | None = hyper(
        None, help="power iterations of a randomised decomposition; none: the full decomposition"
    )

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def layer(self, linear: nn.Linear, run: Run) -> PissaLinear:
        """Return the layer whose factors are the principal part of its weight."""
        return PissaLinear(
            linear,
            rank=self.rank,
            scale=self.scale,
            dropout=self.dropout,
            iterations=self.iterations,
            generator=None if self.iterations is None else run.rng("decomposition"),
        )


class PissaLinear(LoraLinear):
    r"""A linear layer with a low-rank update that starts as the principal part of W, which the frozen weight loses.

    With the r leading triplets of W = U diag(S) Vᵀ, in fp32, and the scale s:

        A₀ = diag(√(S/s)) Vᵀ,   B₀ = U diag(√(S/s))
        y = (W - s B₀ A₀) x + b + s B (A x),     A = A₀, B = B₀ at first

    The base layer's weight becomes the residual W - s B₀ A₀, in its own dtype. A₀ and B₀ are the buffers ``start_a``
    and ``start_b``: they say what the residual is, so that a saved adapter loads on W itself wherever the decomposition
    comes out with other signs or roundings. The gradients are those of LoRA.

        >>> linear = nn.Linear(16, 4)
        >>> layer = PissaLinear(linear, rank=4)
        >>> float(linear.weight.detach().abs().max()) < 1e-6  # at full rank nothing is left
        True

    A ``rank`` above min(m, n) raises :class:`~bench.errors.BadValue`.

    Source: arXiv:2404.02948. Deviations: those of :class:`Pissa`.
    """

    start_a: Tensor
    start_b: Tensor

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int = 8,
        scale: float = 1.0,
        dropout: float = 0.0,
        iterations: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        Pissa.check(iterations=iterations)
        self.iterations = iterations
        super().__init__(base, rank=rank, scale=scale, dropout=dropout, generator=generator)
        self.register_buffer("start_a", self.lora_A.detach().clone())
        self.register_buffer("start_b", self.lora_B.detach().clone())
        self._shift(-self.scale * self.start_b @ self.start_a)

    def _start(self, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        weight = self.base.weight
        if rank > min(weight.shape):
            raise BadValue(
                f"pissa: rank = {rank!r} (int) is not allowed for a weight of shape {tuple(weight.shape)}",
                hint=f"rank is an int, 1 <= rank <= {min(weight.shape)}",
            )
        if self.iterations is None:
            left, values, right = leading_triplets(weight, rank)
        else:
            left, values, right = randomized_triplets(weight, rank, self.iterations, generator)
        root = (values / self.scale).sqrt()
        return root[:, None] * right.T, left * root

    @torch.no_grad()
    def _shift(self, change: Tensor) -> None:
        weight = self.base.weight
        weight.copy_((weight + change).to(weight.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load as any module does, and let the residual follow the starting factors that came."""
        before = self.scale * self.start_b @ self.start_a
        super()._load_from_state_dict(state_dict, prefix, *rest)
        after = self.scale * self.start_b @ self.start_a
        if not torch.equal(before, after):  # a state with a residual of its own overwrites this one afterwards
            self._shift(before - after)
