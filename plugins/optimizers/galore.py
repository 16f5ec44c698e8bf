"""GaLore: Adam whose moments live in a low-rank projection of each gradient matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

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
    stacked,
    store_projection,
    stored_projection,
)
from ._projection import (
    BasisFunction,
    Projection,
    ProjectionType,
    gram_basis,
    side_of,
    subspace_basis,
    svd_basis,
)

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Kind = TypeVar("Kind", bound="GaLoreAdamW")

__all__ = ["GaLore", "GaLoreAdamW", "gram_basis", "subspace_basis", "svd_basis"]

MISPLACED = {
    "basis": "give the basis function to the optimizer itself",
    "update_proj_gap": "it is called update_gap here",
    "proj_type": "it is called projection_type here",
}
"""Options that people write into a group, where torch would keep them without a word and nothing would use them."""


@dataclass(frozen=True, kw_only=True)
class GaLore(Algorithm):
    """GaLore for the matrices of attention and MLP roles, plain Adam at the full learning rate for everything else.

    See :class:`GaLoreAdamW` for the rule. ``rank=None`` means a quarter of the short side of each matrix, the ratio of
    the published LLaMA runs of 60M, 350M, 1B and 7B (128 of 512, 256 of 1024, 512 of 2048, 1024 of 4096; the 130M run
    used 256 of 768). ``update_gap=None`` means 200 steps, the published value, or a sixth of a shorter run.

    Source: arXiv:2403.03507, jiaweizzhao/GaLore.
    Deviations: see ``deviations``. Where the paper's Algorithm 2 and the authors' code disagree this follows the code:
    sign and shapes of M and V, ε 1e-6 (the paper says 1e-8) added to the uncorrected root of V.
    """

    name = "galore"
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "The basis comes from an fp64 eigendecomposition of the gradient's Gram matrix, not from an fp32 SVD: the "
            "same singular vectors with signs fixed, where the reference takes the signs that its LAPACK returns."
        ),
        "The default rank is a quarter of each matrix's short side; the published 130M run used a third.",
        "The default update gap is at most a sixth of the run, so that short runs renew the basis too.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-3, 2e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((50, 100, 200, 500, 1000)), help="steps between two bases, T; none: min(200, steps / 6)"
    )
    scale: Annotated[float, Gt(0)] = hyper(0.25, search=Log(0.1, 1.0), help="factor of the projected update, α")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-6, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")
    projection_type: ProjectionType = hyper("std", help="which side is projected")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> GaLoreAdamW:
        """Return one optimizer with a projected group per rank and a group of plain Adam."""
        return self._build(GaLoreAdamW, named_parameters, run)

    def _build(self, kind: type[Kind], named_parameters: NamedParameters, run: Run) -> Kind:
        return kind(
            self._groups(named_parameters, run),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap or min(200, max(1, run.steps // 6)),
            scale=self.scale,
            projection_type=self.projection_type,
        )

    def _groups(self, named_parameters: NamedParameters, run: Run) -> list[Group]:
        return rank_groups(self.name, named_parameters, run, self.rank)


class GaLoreAdamW(BaseOptimizer):
    r"""Adam in a low-rank projection of each matrix, and plain Adam for groups without a rank.

    With gradient G (m, n), t = 0, 1, 2, ... steps made before this one, T = ``update_gap``, α = ``scale``, η = ``lr``:

        if t mod T = 0:  Q = first r right singular vectors of G (n, r)  if m >= n
                         P = first r left singular vectors of G (m, r)   if m < n
        R = G Q   or   Pᵀ G
        M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²       neither reset nor rotated when the basis changes
        N = M / (√V + ε)
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) α (N Qᵀ or P N)        k = t + 1
        W ← W - η λ W                                     λ = ``weight_decay``, not scaled by α

    A group with a ``rank`` is projected and holds matrices only; a group without one takes the same steps with R = G
    and α = 1. State of a projected matrix: the basis, M and V, in the gradient's dtype: s r + 2 r l elements for short
    side s and long side l. ``projection_type`` is "std" (the short side, as above), "reverse_std" (the long one),
    "left", "right" or "full" (both sides, R of shape (r, r)).

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = GaLoreAdamW([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``basis`` finds P and Q: :func:`gram_basis` (fast and accurate), :func:`svd_basis` (the published SVD) or
    :func:`subspace_basis` (approximate). ``foreach=False`` steps one tensor at a time. Bad values,
    ranks above the short side and projected tensors that are no matrices raise :class:`~bench.errors.BadValue`, sparse
    gradients ``RuntimeError``. A gradient that is not finite makes the weights NaN, as with any optimizer.

    Source: arXiv:2403.03507 and jiaweizzhao/GaLore ``galore_torch/adamw.py``.
    Deviations: those of :class:`GaLore`.
    """

    algorithm: ClassVar[type[GaLore]] = GaLore
    """Where the domains of the options are written."""

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
        projection_type: ProjectionType = "std",
        basis: BasisFunction = gram_basis,
        foreach: bool = True,
    ) -> None:
        self.basis = basis
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        galore = {"rank": rank, "update_gap": update_gap, "scale": scale, "projection_type": projection_type}
        super().__init__(params, adam | galore | {"foreach": foreach})

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps; the basis function is not part of ``state_dict``."""
        return super().__getstate__() | {"basis": self.basis}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        for option in param_group.keys() & MISPLACED.keys():
            raise BadValue(f"{self.algorithm.name}: {option} is no option of a group", hint=MISPLACED[option])
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "rank", "update_gap", "scale", "projection_type")
        self.algorithm.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)
        try:
            refuse_bad_shapes(self.algorithm.name, self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        projected = group["rank"] is not None
        buckets = bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if projected else None)
        )
        for bucket in buckets:
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                if projected:
                    self._update_projected(group, piece)
                else:
                    self._update_plain(group, piece)
                _decay(piece, group)

    def _update_plain(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a plain Adam step with ``parameters`` of one device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        adamw_step(parameters, states, group | {"weight_decay": 0.0}, corrected=False)

    def _update_projected(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a GaLore step with ``parameters`` of one shape, device, dtype and number of steps."""
        gradients = stacked(gradients_of(parameters))
        projection = self._projection(group, parameters, gradients)
        directions, size = self._directions(group, parameters, list(projection.down(gradients).unbind()))
        projection.add_up(parameters, stacked(directions), -size * group["scale"])

    def _projection(self, group: Group, parameters: list[Tensor], gradients: Tensor) -> Projection:
        """Return the stacked bases of ``parameters``, renewed where the gap is over."""
        states = [self.state[parameter] for parameter in parameters]
        previous = stored_projection(states)
        if previous is not None and states[0]["step"] % group["update_gap"] != 0:
            return previous
        side = side_of(parameters[0].shape, group["projection_type"])
        projection = new_projection(self.basis, gradients, group["rank"], side, previous)
        store_projection(states, projection)
        return projection

    def _directions(
        self, group: Group, parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        """Advance the moments by ``gradients``; return N of each, and η √(1-β₂ᵏ)/(1-β₁ᵏ)."""
        states = [self.state[parameter] for parameter in parameters]
        directions, factor = advance(states, gradients, group, corrected=False)
        return directions, group["lr"] * factor


def _decay(parameters: list[Tensor], group: Group) -> None:
    if group["weight_decay"]:
        # As the authors' code has it; a product with 1 - η λ, rounded to fp32, would drift away from it.
        torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])
