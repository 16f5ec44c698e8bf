"""SVFit: the singular values of each weight are trained, its singular vectors are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor, nn

from bench import Log, Role, hyper
from bench.errors import BadValue

from ._adapter import AdaptedLinear
from ._base import AdapterTuning
from ._svd import leading_triplets

if TYPE_CHECKING:
    from bench import Run


@dataclass(frozen=True, kw_only=True)
class SVFit(AdapterTuning):
    """The leading singular values of the linear layers of attention and MLP, trained by AdamW.

    See :class:`SVFitLinear` for the layer. r is ``rank``; ``rank=None`` takes all min(m, n) values of each weight, the
    setting in which the paper's "16 times fewer than LoRA" comes out. The coordinates are few and well conditioned, so
    η is large; it is absolute, though the values span decades. λ pulls towards zero, not towards the pretrained
    weights; leave it at 0. State: 2 r per weight (m, n), against 2 m n; the frozen vectors are r (m + n) numbers more.

    It can re-weight directions and not turn them: what lies off the diagonal of Uᵀ W* V stays out of reach. Learning
    rates are not published; in a model of 0.1M parameters the best one is 2e-1.

    Source: arXiv:2409.05926.
    Deviations: see ``deviations``.
    """

    name = "svfit"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?singular_values": Role.ADAPTER}
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "There is no public code, and of the paper only the abstract was at hand: rank, targets, learning rate and "
            "the absence of a scale are inferred."
        ),
        "W itself is kept and the change of the values added, so that the start is exact; the paper splits W.",
        "All linear layers of attention and MLP are adapted by default; the published counts fit query and value.",
        "Convolutions are not adapted.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-2, search=Log(3e-4, 3.0), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="trained singular values r per weight; none: all")

    def layer(self, linear: nn.Linear, run: Run) -> SVFitLinear:
        """Return the layer whose leading singular values are parameters."""
        return SVFitLinear(linear, rank=self.rank)


class SVFitLinear(AdaptedLinear):
    r"""A linear layer whose r leading singular values are trained.

    With the r leading triplets of the frozen W (m, n), W ≈ U diag(s₀) Vᵀ, computed in fp32:

        y = W x + b + U ((s - s₀) · Vᵀ x),       dW = U diag(s - s₀) Vᵀ
        ∂_s = diag(Uᵀ ∂_W V) = Σ over tokens of (X V) · (∂_Y U)

    ``singular_values`` s starts as s₀: at first y has the bits of the base layer. This is W_e + U diag(s) Vᵀ with the
    residual W_e = W - U diag(s₀) Vᵀ, without the rounding of the split. U and V are buffers in W's dtype, s₀ one in
    fp32; they are saved with the adapter, since signs and, among equal values, directions depend on the machine. A
    value may become negative: its direction flips.

        >>> layer = SVFitLinear(nn.Linear(16, 4))
        >>> layer.singular_values.numel()
        4

    A ``rank`` above min(m, n) raises :class:`~bench.errors.BadValue`.

    Source: arXiv:2409.05926. Deviations: those of :class:`SVFit`.
    """

    left: Tensor
    right: Tensor
    start: Tensor

    def __init__(self, base: nn.Linear, *, rank: int | None = None) -> None:
        SVFit.check(rank=rank)
        largest = min(base.weight.shape)
        if rank is not None and rank > largest:
            raise BadValue(
                f"svfit: rank = {rank!r} (int) is not allowed for a weight of shape {tuple(base.weight.shape)}",
                hint=f"rank is an int, 1 <= rank <= {largest}, or none",
            )
        super().__init__(base)
        left, values, right = leading_triplets(base.weight, rank or largest)
        self.register_buffer("left", left.to(base.weight.dtype))
        self.register_buffer("right", right.to(base.weight.dtype))
        self.register_buffer("start", values)
        self.singular_values = nn.Parameter(values.clone())

    def delta(self) -> Tensor:
        """Return dW = U diag(s - s₀) Vᵀ (m, n)."""
        change = self.singular_values - self.start
        return (self.left * change) @ self.right.to(change.dtype).T

    def forward(self, features: Tensor) -> Tensor:
        """Return W x + b + U ((s - s₀) · Vᵀ x) for ``features`` x (..., n)."""
        outputs: Tensor = self.base(features)
        change = (self.singular_values - self.start).to(features.dtype)
        return outputs + nn.functional.linear((features @ self.right) * change, self.left)
