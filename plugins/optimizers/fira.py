"""Fira: GaLore, plus what GaLore throws away, scaled by what Adam does inside the subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper
from bench.errors import BadValue

from ._adam_state import adamw_step, advance
from ._base import BaseOptimizer, Group, bucketed, gradients_of, pieces
from ._low_rank import (
    new_projection,
    rank_groups,
    refuse_bad_shapes,
    refuse_foreign_options,
    stacked,
    store_projection,
    stored_projection,
)
from ._projection import BasisFunction, Projection, gram_basis, side_of, subspace_basis, svd_basis

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

__all__ = ["Fira", "FiraAdamW", "gram_basis", "subspace_basis", "svd_basis"]

Residual = Literal["published", "orthogonal"]

FLOOR = 1e-8
"""What is added to both denominators, ‖R‖ and the previous norm, as published."""

WELL_CONDITIONED = 0.5
"""The largest part of P R that may leave the residual for its norm to be taken from ‖G‖ and ‖R‖."""


@dataclass(frozen=True, kw_only=True)
class Fira(Algorithm):
    """Fira for the matrices of attention and MLP roles, plain Adam at the full learning rate for everything else.

    See :class:`FiraAdamW` for the rule. The defaults are those of the published LLaMA runs of 60M to 350M (the 1B run
    has ``scale`` 0.0625). ``rank=None`` means a quarter of the short side of each matrix, as published for 60M, 350M
    and 1B (the 130M run took a third); ``update_gap=None`` means 200 steps, the published value, or a sixth of a
    shorter run. Nothing else is scaled for small tiers.

    Source: arXiv:2410.01623, xichen-fy/Fira ``optimizer_torch/fira_adamw.py``.
    Deviations: see ``deviations``. Where the paper and the authors' code disagree on the residual this follows the
    code, which the published numbers come from; ``residual="orthogonal"`` is the paper's form.
    """

    name = "fira"
    deviations = (
        (
            "The default residual is that of the code, G less α P R; the paper subtracts P R, which "
            'residual="orthogonal" does.'
        ),
        (
            "The basis comes from an fp64 eigendecomposition of the gradient's Gram matrix, not from an fp32 SVD: the "
            "same singular vectors with signs fixed, where the reference takes the signs that its LAPACK returns."
        ),
        "A previous residual norm of zero counts as none; in the reference code it holds the residual near 1e-8.",
        "Norms are taken in fp32 whatever the dtype of the gradient, and stored so.",
        "The default rank is a quarter of each matrix's short side; the published 130M run used a third.",
        "The default update gap is at most a sixth of the run, so that short runs renew the basis too.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(2e-3, 2e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((50, 100, 200, 500, 1000)), help="steps between two bases, T; none: min(200, steps / 6)"
    )
    scale: Annotated[float, Gt(0)] = hyper(
        0.25, search=Log(0.03, 1.0), help="factor of the projected update, α; of the default residual too"
    )
    growth: Annotated[float, Ge(1)] = hyper(
        1.01, search=Log(1.005, 1.1), help="most by which the residual's norm may grow per step, γ"
    )
    residual: Residual = hyper("published", help="what the residual leaves out: α P R as in the code, or all of P R")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-6, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> FiraAdamW:
        """Return one optimizer with a projected group per rank and a group of plain Adam."""
        return FiraAdamW(
            rank_groups(self.name, named_parameters, run, self.rank),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap or min(200, max(1, run.steps // 6)),
            scale=self.scale,
            growth=self.growth,
            residual=self.residual,
        )


class FiraAdamW(BaseOptimizer):
    r"""Fira for matrices, and plain Adam for groups without a rank.

    With gradient G (m, n), t = 0, 1, 2, ... steps made before this one, T = ``update_gap``, α = ``scale``, η = ``lr``,
    γ = ``growth``; written for m < n (for m >= n with Q (n, r) on the right, and φ (m,) one factor per row):

        if t mod T = 0:  P = first r left singular vectors of G (m, r)
        R = Pᵀ G                                                            (r, n)
        M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²       neither reset nor rotated when the basis changes
        N = M / (√V + ε)                                                    no bias correction here
        φᵢ = ‖Nᵢ‖ / (‖Rᵢ‖ + 1e-8)                                           (n,), one factor per column
        S = φ (G - a P R)                                                   (m, n)
        c = min(1, γ / (‖S‖ / (p + 1e-8)))                1 at first; p = ‖S‖ of the step before, limited
        p ← c ‖S‖
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) (α P N + c S)          k = t + 1
        W ← W - η λ W                                     λ = ``weight_decay``

    ``residual="published"`` has a = α: with α < 1 part of the in-subspace gradient stays in S. ``"orthogonal"`` has
    a = 1. A group with a ``rank`` is projected and holds matrices only; a group without one takes plain Adam steps at
    η. State of a projected matrix: the basis, M and V in the gradient's dtype and p in fp32, s r + 2 r l + 1 elements
    for short side s and long side l.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = FiraAdamW([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``basis`` finds P: :func:`gram_basis` (fast and accurate), :func:`svd_basis` (the published SVD) or
    :func:`subspace_basis` (approximate). ``foreach=False`` steps one tensor at a time. Bad values, ranks above the
    short side and projected tensors that are no matrices raise :class:`~bench.errors.BadValue`.

    Source: arXiv:2410.01623, xichen-fy/Fira. Deviations: those of :class:`Fira`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float = 0.25,
        growth: float = 1.01,
        residual: Residual = "published",
        basis: BasisFunction = gram_basis,
        foreach: bool = True,
    ) -> None:
        self.basis = basis
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        fira = {"rank": rank, "update_gap": update_gap, "scale": scale, "growth": growth, "residual": residual}
        super().__init__(params, adam | fira | {"foreach": foreach})

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps; the basis function is not part of ``state_dict``."""
        return super().__getstate__() | {"basis": self.basis}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        refuse_foreign_options(Fira.name, param_group)
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "rank", "update_gap", "scale", "growth", "residual")
        Fira.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)
        try:
            refuse_bad_shapes(Fira.name, self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        projected = group["rank"] is not None
        for bucket in bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if projected else None)
        ):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                (self._update_projected if projected else self._update_plain)(group, piece)

    def _update_plain(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a plain Adam step with ``parameters`` of one device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        adamw_step(parameters, states, group | {"weight_decay": 0.0}, corrected=False)
        _decay(parameters, group)

    def _update_projected(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a Fira step with ``parameters`` of one shape, device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        gradients = stacked(gradients_of(parameters))
        projection = self._projection(group, states, gradients)
        reduced = projection.down(gradients)
        directions, factor = advance(states, list(reduced.unbind()), group, corrected=False)
        part = group["scale"] if group["residual"] == "published" else 1.0
        rule = updates_by_one_product if group["foreach"] and part <= WELL_CONDITIONED else updates
        previous = torch.stack([state["residual_norm"] for state in states])
        options = (group["scale"], part, group["growth"])
        steps, norms = rule(Terms(gradients, reduced, stacked(directions), projection, previous, *options))
        for state, norm in zip(states, norms.unbind(), strict=True):
            state["residual_norm"].copy_(norm)
        torch._foreach_add_(parameters, list(steps.unbind()), alpha=-group["lr"] * factor)
        _decay(parameters, group)

    def _projection(self, group: Group, states: list[dict[str, Any]], gradients: Tensor) -> Projection:
        """Return the stacked bases, renewed where the gap is over, and prepare the state at the first step."""
        previous = stored_projection(states)
        if previous is not None and states[0]["step"] % group["update_gap"] != 0:
            return previous
        side = side_of(gradients.shape, "std")
        projection = new_projection(self.basis, gradients, group["rank"], side, previous)
        store_projection(states, projection)
        for state in states:
            if "residual_norm" not in state:
                state["residual_norm"] = gradients.new_zeros((), dtype=_norm_dtype(gradients))
        return projection


class Terms(NamedTuple):
    """What a step is made of, for a batch of b matrices of one shape (m, n); the comments are the rule's symbols."""

    gradients: Tensor  # G (b, m, n)
    reduced: Tensor  # R
    directions: Tensor  # N, as R
    projection: Projection  # P or Q
    previous: Tensor  # p (b,)
    scale: float  # α
    part: float  # a
    growth: float  # γ


def updates(terms: Terms) -> tuple[Tensor, Tensor]:
    """Return α P N + c S (b, m, n) and c ‖S‖ (b,); the readable form."""
    gradients, projection = terms.gradients, terms.projection
    factors = column_factors(terms).to(gradients.dtype)
    residual = factors * (gradients - terms.part * projection.up(terms.reduced))
    norms = torch.linalg.vector_norm(residual, dim=(-2, -1), dtype=_norm_dtype(gradients))
    limits = growth_limits(norms, terms.previous, terms.growth)
    residual *= limits[:, None, None].to(gradients.dtype)
    return terms.scale * projection.up(terms.directions) + residual, limits * norms


def updates_by_one_product(terms: Terms) -> tuple[Tensor, Tensor]:
    r"""Return what :func:`updates` returns with one product by P instead of two, for a well below 1.

    φ lies along the long side, which P leaves alone, so α P N + c φ (G - a P R) = c φ G + P (α N - c a φ R). And since
    P is orthonormal, ‖S‖² = Σ φᵢ² (‖Gᵢ‖² - (2a - a²) ‖Rᵢ‖²); near a = 1 that difference cancels.
    """
    gradients, reduced, part = terms.gradients, terms.reduced, terms.part
    factors, axis = column_factors(terms), _rank_axis(terms.projection)
    energies = factors.square() * (energy(gradients, axis) - (2.0 * part - part**2) * energy(reduced, axis))
    norms = energies.sum(dim=(-2, -1)).clamp_(min=0.0).sqrt_()
    limits = growth_limits(norms, terms.previous, terms.growth)
    limited = (factors * limits[:, None, None]).to(gradients.dtype)
    steps = terms.projection.up(terms.scale * terms.directions - part * limited * reduced)
    return steps.addcmul_(limited, gradients), limits * norms


def column_factors(terms: Terms) -> Tensor:
    """Return φ (b, 1, n), or (b, m, 1) where the right side is projected: norms along the axis of the rank."""
    axis = _rank_axis(terms.projection)
    return energy(terms.directions, axis).sqrt_() / energy(terms.reduced, axis).sqrt_().add_(FLOOR)


def energy(matrices: Tensor, axis: int) -> Tensor:
    """Return the sums of squares along ``axis``, kept, in fp32 at least."""
    dtype = _norm_dtype(matrices)
    if axis == -1:
        norms: Tensor = torch.linalg.vector_norm(matrices, dim=axis, keepdim=True, dtype=dtype)
        return norms.square_()
    # Down the columns of 512 x 512 a vector norm takes ten times as long as this on the CPU, along the rows half.
    return matrices.to(dtype).square().sum(dim=axis, keepdim=True)


def growth_limits(norms: Tensor, previous: Tensor, growth: float) -> Tensor:
    """Return c (b,), which keeps c ``norms`` at ``growth`` times ``previous``; 1 where that is zero, as at first."""
    ratios = norms / (previous + FLOOR)
    return torch.where(previous > 0, growth / ratios.clamp(min=growth), torch.ones_like(norms))


def _rank_axis(projection: Projection) -> int:
    return -1 if projection.left is None else -2


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _decay(parameters: list[Tensor], group: Group) -> None:
    if group["weight_decay"]:
        # After the step, as in the authors' code; a product with 1 - η λ, rounded to fp32, would drift away from it.
        torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])
