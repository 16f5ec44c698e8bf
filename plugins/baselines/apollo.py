"""APOLLO: the raw gradient, each channel scaled as Adam scales it in a random projection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper
from bench.errors import BadValue

from ..optimizers._adam_state import adamw_step, advance  # noqa: TID252 - a sibling
from ..optimizers._base import BaseOptimizer, Group, bucketed, gradients_of, pieces  # noqa: TID252 - a sibling
from ..optimizers._low_rank import rank_groups, refuse_bad_shapes, stacked  # noqa: TID252 - a sibling

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Scaling = Literal["channel", "tensor"]

FLOOR = 1e-8
"""What is added to the norm of the projected gradient and to the previous norm, as published."""

MISNAMED = {
    "update_proj_gap": "it is called update_gap here",
    "scale_type": "it is called scaling here",
    "proj": "the projection is random here; there is no other kind",
    "proj_type": "the short side is projected; there is no other kind here",
}
"""Options that people write into a group, where torch would keep them without a word and nothing would use them."""


@dataclass(frozen=True, kw_only=True)
class Apollo(Algorithm):
    """APOLLO for the matrices of attention and MLP roles, plain Adam at the full learning rate for everything else.

    See :class:`ApolloAdamW` for the rule. The defaults are those of the published LLaMA runs of 60M to 7B: one factor
    per channel and ``scale`` 1. ``rank=None`` means a quarter of the short side of each matrix, as published for 60M,
    130M and 350M (1B and 7B took 256); ``update_gap=None`` means 200 steps, the published value, or a sixth of a
    shorter run. Nothing else is scaled for small tiers. APOLLO-Mini is ``scaling="tensor"``, ``rank=1`` and ``scale``
    √128 = 11.3. ``scale`` is α itself; the authors' code takes the root of an option of that name.

    Source: arXiv:2412.05270, zhuhanqing/APOLLO ``apollo_torch/apollo.py`` 1.0.3.
    Deviations: see ``deviations``.
    """

    name = "apollo"
    deviations = (
        (
            "Matrices of one short side and rank have the same projection, drawn again from its seed in each step; the "
            "authors' code draws one for each matrix and keeps it in memory."
        ),
        "A previous norm of zero counts as none; in the authors' code it holds the update near 1e-8.",
        "Norms are taken in fp32 whatever the dtype of the gradient, and stored so.",
        "The default update gap is at most a sixth of the run, so that short runs renew the projection too.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(2e-3, 2e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((50, 100, 200, 500, 1000)), help="steps between two projections, T; none: min(200, steps/6)"
    )
    scale: Annotated[float, Gt(0)] = hyper(1.0, search=Log(0.5, 20.0), help="factor of the projected matrices' step, α")
    scaling: Scaling = hyper("channel", help="what has a factor of its own: each channel, or the matrix as a whole")
    growth: Annotated[float, Ge(1)] = hyper(1.01, help="most by which the norm of the update may grow per step, γ")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-6, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> ApolloAdamW:
        """Return one optimizer with a projected group per rank and a group of plain Adam."""
        generator = run.rng("projection")
        return ApolloAdamW(
            rank_groups(self.name, named_parameters, run, self.rank),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap or min(200, max(1, run.steps // 6)),
            scale=self.scale,
            scaling=self.scaling,
            growth=self.growth,
            seed=int(torch.randint(2**62, (1,), generator=generator, device=generator.device)),
        )


class ApolloAdamW(BaseOptimizer):
    r"""APOLLO for matrices, and plain Adam for groups without a rank.

    With gradient G (m, n), t = 0, 1, 2, ... steps made before this one, T = ``update_gap``, η = ``lr``, α = ``scale``,
    γ = ``growth``; written for m < n (for m >= n R = G P with P (n, r), and φ (m,) has one factor per row):

        P (m, r) of independent N(0, 1/r), drawn anew where t mod T = 0
        R = Pᵀ G                                                            (r, n)
        M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²       neither reset nor rotated when P changes
        N = M / (√V + ε)                                                    no bias correction here
        φᵢ = ‖Nᵢ‖ / (‖Rᵢ‖ + 1e-8)                                           (n,), one factor per column
        S = φ G                                                             (m, n)
        c = min(1, γ / (‖S‖ / (p + 1e-8)))                1 at first; p = ‖S‖ of the step before, limited
        p ← c ‖S‖
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) α c S                  k = t + 1
        W ← W - η λ W                                     λ = ``weight_decay``

    ``scaling="tensor"`` has the one factor φ = ‖N‖ / (‖R‖ + 1e-8) of Frobenius norms. Whether α stands before or
    behind the limiter, an option of the authors' code, makes no difference: it cancels in c.

    A group with a ``rank`` is projected and holds matrices only; a group without one takes plain Adam steps at η. No
    step writes P anywhere: it follows from ``seed`` and t. State of a projected matrix: M and V in the gradient's dtype
    and p in fp32, 2 r l + 1 elements for the long side l.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = ApolloAdamW([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values, ranks above the short side and projected tensors that are
    no matrices raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2412.05270, zhuhanqing/APOLLO. Deviations: those of :class:`Apollo`.
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
        scale: float = 1.0,
        scaling: Scaling = "channel",
        growth: float = 1.01,
        seed: int = 0,
        foreach: bool = True,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        apollo = {"rank": rank, "update_gap": update_gap, "scale": scale, "scaling": scaling, "growth": growth}
        super().__init__(params, adam | apollo | {"seed": seed, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        for option in param_group.keys() & MISNAMED.keys():
            raise BadValue(f"{Apollo.name}: {option} is no option of a group", hint=MISNAMED[option])
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "rank", "update_gap", "scale", "scaling", "growth")
        Apollo.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        seed = options["seed"]
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise BadValue(
                f"{Apollo.name}: seed = {seed!r} ({type(seed).__name__}) is not allowed",
                hint="seed is an int, 0 <= seed < 2**63",
            )
        super().add_param_group(param_group)
        try:
            refuse_bad_shapes(Apollo.name, self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        projected = group["rank"] is not None
        for bucket in bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if projected else None)
        ):
            projection = self._projection(group, bucket[0]) if projected else None
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                if projection is None:
                    self._update_plain(group, piece)
                else:
                    self._update_projected(group, piece, projection)

    def _projection(self, group: Group, parameter: Tensor) -> Tensor:
        """Return P for ``parameter`` and all others of its short side, rank, device, dtype and number of steps."""
        number = self.state[parameter].get("step", 0) // group["update_gap"]
        size = (min(parameter.shape), group["rank"])
        return random_projection(size, group["seed"] + number, parameter.device).to(parameter.dtype)

    def _update_plain(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a plain Adam step with ``parameters`` of one device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        adamw_step(parameters, states, group | {"weight_decay": 0.0}, corrected=False)
        _decay(parameters, group)

    def _update_projected(self, group: Group, parameters: list[Tensor], projection: Tensor) -> None:
        """Make an APOLLO step with ``parameters`` of one shape, device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        gradients = stacked(gradients_of(parameters))
        wide = gradients.shape[-2] < gradients.shape[-1]
        reduced = projection.mT @ gradients if wide else gradients @ projection
        directions, factor = advance(states, list(reduced.unbind()), group, corrected=False)
        for state in states:
            if "update_norm" not in state:
                state["update_norm"] = gradients.new_zeros((), dtype=_norm_dtype(gradients))
        previous = torch.stack([state["update_norm"] for state in states])
        factors = channel_factors(reduced, stacked(directions), -2 if wide else -1, group["scaling"])
        limits, norms = limited(gradients, factors, previous, group["growth"])
        for state, norm in zip(states, norms.unbind(), strict=True):
            state["update_norm"].copy_(norm)
        factors = (limits[:, None, None] * factors).to(gradients.dtype)
        size = group["lr"] * factor * group["scale"]
        for parameter, gradient, scales in zip(parameters, gradients, factors, strict=True):
            parameter.addcmul_(gradient, scales, value=-size)
        _decay(parameters, group)


def random_projection(size: tuple[int, int], seed: int, device: torch.device) -> Tensor:
    """Return P (s, r) = ``size`` in fp32, independent N(0, 1/r) that follow from ``seed`` alone."""
    if device.type == "meta":
        return torch.empty(size, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(size, generator=generator, device=device) / math.sqrt(size[1])


def channel_factors(reduced: Tensor, directions: Tensor, axis: int, scaling: Scaling) -> Tensor:
    """Return φ (b, 1, n) or (b, m, 1) of R and N, both (b, r, n) or (b, m, r) with the rank along ``axis``.

    With ``scaling="tensor"`` it is (b, 1, 1).
    """
    along = (-2, -1) if scaling == "tensor" else axis
    adam, raw = (
        torch.linalg.vector_norm(matrix, dim=along, keepdim=True, dtype=_norm_dtype(matrix))
        for matrix in (directions, reduced)
    )
    factors: Tensor = adam / (raw + FLOOR)
    return factors


def limited(gradients: Tensor, factors: Tensor, previous: Tensor, growth: float) -> tuple[Tensor, Tensor]:
    """Return c (b,) and c ‖S‖ (b,) for S = ``factors`` G; c is 1 where ``previous`` is zero, as at first.

    φ scales whole columns or rows, so ‖S‖² = Σ φᵢ² ‖Gᵢ‖² and S itself is not needed.
    """
    axis = -2 if factors.shape[-2] == 1 else -1
    channels = torch.linalg.vector_norm(gradients, dim=axis, keepdim=True, dtype=_norm_dtype(gradients))
    norms = torch.linalg.vector_norm(factors * channels, dim=(-2, -1))
    limits = torch.where(previous > 0, growth / (norms / (previous + FLOOR)).clamp(min=growth), torch.ones_like(norms))
    return limits, limits * norms


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _decay(parameters: list[Tensor], group: Group) -> None:
    if group["weight_decay"]:
        # After the step, as in the authors' code; a product with 1 - η λ, rounded to fp32, would drift away from it.
        torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])
