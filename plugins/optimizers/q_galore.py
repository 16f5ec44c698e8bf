"""Q-GaLore: GaLore with 8-bit weights, 4-bit projectors, 8-bit moments and bases that are renewed ever less often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from bench import Algorithm, Choice, Linear, Log, hyper
from bench.errors import BadValue

from ._adam import bias_factor, corrected_eps
from ._affine import grouped, noise_for, rounded, ungrouped
from ._base import BaseOptimizer, Group, bucketed, gradients_of, pieces
from ._lazy_projector import GROUP, is_due, renew, stored
from ._low_rank import new_projection, rank_groups, refuse_bad_shapes, refuse_foreign_options, stacked
from ._projection import BasisFunction, Projection, gram_basis, side_of, subspace_basis, svd_basis
from ._quantized import SMALLEST, quantized_adam_direction, start_moments

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

__all__ = ["QGaLore", "QGaLoreAdamW8bit", "gram_basis", "subspace_basis", "svd_basis"]

Rounding = Literal["stochastic", "nearest"]
Similarity = Literal["signed", "absolute"]
State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class QGaLore(Algorithm):
    """Q-GaLore for the matrices of attention and MLP roles, 8-bit Adam at the full learning rate for everything else.

    See :class:`QGaLoreAdamW8bit` for the rule. The defaults are those of the published LLaMA runs of 60M and 130M.
    ``rank=None`` means a quarter of the short side of each matrix, as published for 60M, 350M and 1B (the 130M run took
    a third); ``update_gap=None`` means 200 steps at first, the published value, or a sixth of a shorter run, where the
    first decision to renew less often then falls to the last renewal.

    Source: arXiv:2407.08296, VITA-Group/Q-GaLore ``q_galore_torch/q_galore_adamw8bit.py``.
    Deviations: see ``deviations``. Where the paper compares whole projections and the authors' code the first vectors
    this follows the code, which the published numbers come from.
    """

    name = "q-galore"
    deviations = (
        (
            "Weights have the values of 8-bit codes and are kept in the model's dtype, as in the authors' simulation: "
            "a parameter of integers cannot require a gradient, so this saves none of the weights' memory."
        ),
        "The initial weights are not rounded: the first forward pass sees them as they are.",
        "Matrices of fewer than 4096 elements keep their weights as they are; the code wants a multiple of 256.",
        "The range of a group of codes is extended to hold 0; in the code a group of one sign is clipped.",
        "A group whose range is below 1e-5 keeps its own scale; the code does not go below 1e-5 / 255.",
        "4-bit codes are packed two to a byte; the code stores one per byte.",
        (
            "The basis comes from an fp64 eigendecomposition of the gradient's Gram matrix, not from an fp32 SVD: the "
            "same singular vectors with signs fixed, so the signed similarity does not depend on the LAPACK."
        ),
        "Parameters are stepped by step(), not inside the backward pass.",
        "The direction is rounded to the gradient's dtype once; the code rounds the displacement η N.",
        "The default update gap is at most a sixth of the run, so that short runs renew the basis too.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1.5e-2, search=Log(2e-3, 2e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((100, 200, 500, 1000)), help="steps between two bases at first; none: min(200, steps / 6)"
    )
    scale: Annotated[float, Gt(0)] = hyper(0.25, search=Log(0.1, 1.0), help="factor of the projected update, α")
    threshold: Annotated[float, Ge(-1)] = hyper(
        0.4, search=Linear(0.2, 0.8), help="mean similarity from which the gap grows; above 1: never"
    )
    gap_factor: Annotated[float, Ge(1)] = hyper(2.0, help="by which the gap grows, γ")
    queue_size: Annotated[int, Ge(1)] = hyper(5, help="similarities in that mean, k")
    similarity: Similarity = hyper("signed", help="of the first vectors: their cosine, or its magnitude")
    projector_bits: Annotated[int, Ge(2), Le(8)] | None = hyper(4, help="bits of the projector; none: not quantized")
    weight_bits: Annotated[int, Ge(2), Le(8)] | None = hyper(8, help="bits of projected weights; none: not quantized")
    rounding: Rounding = hyper("stochastic", help="how updated weights are rounded to their codes")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> QGaLoreAdamW8bit:
        """Return one optimizer with a projected group per rank and a group of 8-bit Adam."""
        drawn = self.weight_bits is not None and self.rounding == "stochastic"
        return QGaLoreAdamW8bit(
            rank_groups(self.name, named_parameters, run, self.rank),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap or min(200, max(1, run.steps // 6)),
            **{name: getattr(self, name) for name in OPTIONS if name not in {"rank", "update_gap"}},
            generator=run.rng("rounding") if drawn else None,
        )


OPTIONS = (
    "rank",
    "update_gap",
    "scale",
    "threshold",
    "gap_factor",
    "queue_size",
    "similarity",
    "projector_bits",
    "weight_bits",
    "rounding",
)


class QGaLoreAdamW8bit(BaseOptimizer):
    r"""Adam with 8-bit moments in a 4-bit projection of each matrix whose weights have 8-bit values.

    With gradient G (m, n), t = 0, 1, 2, ... steps made before this one, α = ``scale``, η = ``lr`` and D(C(X)) for X
    rounded to codes by groups of 256 consecutive elements (the module ``_affine``); written for m < n:

        if t mod T = 0:  P = D(C(first r left singular vectors of G))  (m, r), rounded to ``projector_bits``
                         push cos(u, u') of the first vectors u before and u' after into a queue of k = ``queue_size``
                         if the queue is full and its mean >= ``threshold``:  T ← ⌊``gap_factor`` T⌋
        R = Pᵀ G
        M, V, N: block-wise 8-bit Adam of R, with ε in the corrected root           8-bit from 4096 elements on
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) α P N                  k = t + 1
        W ← W - η λ W                                     λ = ``weight_decay``
        W ← D(C(W))                                       rounded stochastically to ``weight_bits``

    T is each matrix's own and starts at ``update_gap``; the queue is not emptied when T grows. For m >= n the right
    singular vectors are taken. ``similarity="absolute"`` takes \|cos\|, which no sign of a singular vector changes.
    A group with a ``rank`` is projected and holds matrices only; a group without one takes 8-bit Adam steps at η.

    State of a projected matrix with short side s and long side l: s r / 2 bytes of projector codes (s r above 4 bits)
    and 5 bytes for each 256; 2 r l bytes of moments and 8 for each 256, or 8 r l bytes below 4096 elements; the first
    vector, s elements in the gradient's dtype; at most k similarities in fp32.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = QGaLoreAdamW8bit([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    Rounding draws from ``generator``, by default one of the optimizer's own on the CPU that starts from seed 0; one on
    the parameters' device spares copying what is drawn. To resume exactly, save its state. ``foreach=False`` steps one
    tensor at a time. Bad values, ranks above the short side and projected tensors that are no matrices raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2407.08296, VITA-Group/Q-GaLore. Deviations: those of :class:`QGaLore`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.5e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float = 0.25,
        threshold: float = 0.4,
        gap_factor: float = 2.0,
        queue_size: int = 5,
        similarity: Similarity = "signed",
        projector_bits: int | None = 4,
        weight_bits: int | None = 8,
        rounding: Rounding = "stochastic",
        basis: BasisFunction = gram_basis,
        generator: torch.Generator | None = None,
        foreach: bool = True,
    ) -> None:
        self.basis = basis
        self.generator = generator or torch.Generator().manual_seed(0)
        adaptive = (scale, threshold, gap_factor, queue_size, similarity)
        values = (rank, update_gap, *adaptive, projector_bits, weight_bits, rounding)
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, adam | dict(zip(OPTIONS, values, strict=True)) | {"foreach": foreach})

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps; neither the basis function nor the generator is part of ``state_dict``."""
        return super().__getstate__() | {"basis": self.basis, "generator": self.generator}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        refuse_foreign_options(QGaLore.name, param_group)
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", *OPTIONS)
        QGaLore.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)
        try:
            refuse_bad_shapes(QGaLore.name, self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        projected = group["rank"] is not None
        for bucket in bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if projected else None)
        ):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                self._step(group, piece, [self.state[parameter] for parameter in piece])

    def _step(self, group: Group, parameters: list[Tensor], states: list[State]) -> None:
        """Step ``parameters`` of one device, dtype and number of steps, and of one shape if they are projected."""
        gradients = gradients_of(parameters)
        if group["rank"] is None:
            directions, factor = _directions(states, gradients, group)
            torch._foreach_add_(parameters, directions, alpha=-group["lr"] * factor)
        else:
            projection = self._projection(group, states, stacked(gradients))
            reduced = projection.down(stacked(gradients))
            directions, factor = _directions(states, list(reduced.unbind()), group)
            projection.add_up(parameters, stacked(directions), -group["lr"] * factor * group["scale"])
        if group["weight_decay"]:
            torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])
        if group["rank"] is not None and group["weight_bits"] is not None:
            for parameter in parameters:
                if parameter.numel() >= SMALLEST:
                    self._round(parameter, group)

    def _projection(self, group: Group, states: list[State], gradients: Tensor) -> Projection:
        """Return the stacked projections as they are stored, those renewed whose gap is over."""
        side = side_of(gradients.shape, "std")
        right, size = side == "right", (min(gradients.shape[1:]), group["rank"])
        due = [index for index, state in enumerate(states) if is_due(state, group)]
        if due:
            these = gradients if len(due) == len(states) else gradients[due]
            found = new_projection(self.basis, these, group["rank"], side, None)
            vectors = found.right if found.left is None else found.left
            for index, basis in zip(due, () if vectors is None else vectors.unbind(), strict=True):
                renew(states[index], basis, group, right=right)
        bases = stacked([stored(state, size, group, right=right) for state in states]).to(gradients.dtype)
        return Projection(left=None, right=bases) if right else Projection(left=bases, right=None)

    def _round(self, weight: Tensor, group: Group) -> None:
        """Round ``weight`` to the values of its codes."""
        groups = grouped(weight, GROUP)
        noise = noise_for(groups, self.generator) if group["rounding"] == "stochastic" else None
        weight.copy_(ungrouped(rounded(groups, group["weight_bits"], noise), weight.shape))


def _directions(states: list[State], gradients: list[Tensor], group: Group) -> tuple[list[Tensor], float]:
    """Advance the 8-bit moments by ``gradients`` (projected or not); return N of each, and √(1-β₂ᵏ)/(1-β₁ᵏ)."""
    for state, gradient in zip(states, gradients, strict=True):
        if "step" not in state:
            start_moments(state, gradient)
        state["step"] = state.get("step", 0) + 1
    betas, step = group["betas"], states[0]["step"]
    eps = corrected_eps(group["eps"], betas, step)
    directions = [
        quantized_adam_direction(gradient, state, betas, eps).to(gradient.dtype)
        for gradient, state in zip(gradients, states, strict=True)
    ]
    return directions, bias_factor(betas, step)
