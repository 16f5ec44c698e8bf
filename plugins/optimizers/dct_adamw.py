"""DCT-AdamW: Adam on the columns of a cosine basis that fit each gradient best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper
from bench.errors import BadValue

from ._adam_state import adamw_step, advance
from ._affine import Quantized, dequantize, packed, quantize, unpacked
from ._base import BaseOptimizer, Group, bucketed, gradients_of, pieces
from ._cosine import Norm, Transform, basis_rows, columns, coordinates, fitting_columns, moved
from ._low_rank import rank_groups, refuse_bad_shapes, stacked
from ._projection import Projection

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Feedback = Literal["exact", "8-bit", "4-bit", "none"]
State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DctAdamW(Algorithm):
    """DCT-AdamW for the matrices of attention and MLP roles, AdamW for everything else.

    See :class:`DctAdamWOptimizer` for the rule. ``rank=None`` means a quarter of the short side of each matrix, the
    ratio of the published 350M run (256 of 1024). The published learning rates are not known to us: 1e-3 is AdamW's,
    as nothing scales the update. The basis is renewed at every step, as published, in runs of any length.

    Source: arXiv:2505.17967, IST-DASLab/ISTA-DASLab-Optimizers ``fft_low_rank/dct_adamw.py``.
    Deviations: see ``deviations``. Where the defaults of the paper and of the authors' code disagree this follows the
    paper: error feedback and rotation are on.
    """

    name = "dct-adamw"
    deviations = (
        "Error feedback and rotation are on by default, as in the paper; the code has both off.",
        (
            "Indices are sorted; the code takes them in any order, which permutes the moments of an unchanged set when "
            "rotation is off."
        ),
        "Rotation moves moments by index instead of multiplying by a product of bases that is a 0/1 matrix.",
        "Matrices are chosen by role, where the code takes every matrix with both sides below 32000.",
        "A wide matrix is always projected on its left, where the code excepts shapes of Qwen and LLaMA.",
        "Steps are counted per parameter, where the code counts the steps of the optimizer.",
        'transform="fft" honours the selection norm, where the code always takes l1.',
        (
            "Quantized error feedback has a whole zero point and all levels of its bits; the code spends 16 levels on "
            "8 bits and decodes 4 bits in another order than it encodes."
        ),
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    update_gap: Annotated[int, Ge(1)] = hyper(
        1, search=Choice((1, 10, 50, 200)), help="steps between two choices of columns, T"
    )
    feedback: Feedback = hyper("exact", help="how what was projected away is kept for the next step")
    rotate: bool = hyper(True, help="let the moments of a column follow it when the choice changes")
    norm: Norm = hyper("l1", search=Choice(("l1", "l2")), help="norm by which columns are chosen")
    transform: Transform = hyper("matmul", help="product with Q, or the DCT-II by FFT: two different bases")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> DctAdamWOptimizer:
        """Return one optimizer with a projected group per rank and a group of AdamW."""
        return DctAdamWOptimizer(
            rank_groups(self.name, named_parameters, run, self.rank),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap,
            feedback=self.feedback,
            rotate=self.rotate,
            norm=self.norm,
            transform=self.transform,
        )


OPTIONS = ("rank", "update_gap", "feedback", "rotate", "norm", "transform")


class DctAdamWOptimizer(BaseOptimizer):
    r"""Adam in r columns of the cosine basis for matrices, and AdamW for groups without a rank.

    With gradient G, its long side first (l, s) (transposed where m < n), steps k = 1, 2, ..., T = ``update_gap`` and
    the orthogonal cosine matrix B (s, s), the same for all matrices:

        W ← (1 - η λ) W                                     η = ``lr``, λ = ``weight_decay``
        A = G + Ξ                                           Ξ = 0 without feedback
        if k = 1 or k mod T = 0:
            J = the r columns of A B with the largest norm  l1 or l2: ``norm``
            M ← M R,  V ← |V R|,  R = B_Iᵀ B_J              if ``rotate``
            I ← J
        a = A B_I                                           (l, r)
        Ξ ← A - a B_Iᵀ                                      rounded where ``feedback`` says so
        M ← β₁ M + (1-β₁) a,   V ← β₂ V + (1-β₂) a²
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) (M / (√V + ε √(1-β₂ᵏ))) B_Iᵀ

    B is Q with ``transform="matmul"`` and Qᵀ, by FFT, with "fft"; Q is the DCT-III matrix of the module ``_cosine``.
    R holds one 1 at most in each row: the moments of a column that stays are kept, those of a new one begin at zero
    (which makes its first steps large: k is that of the matrix).

    A group with a ``rank`` is projected and holds matrices only; a group without one takes AdamW steps. State of a
    projected matrix: M and V (l, r) in the gradient's dtype, r indices in int32, and Ξ: m n elements ("exact"), m n
    bytes ("8-bit") or m ⌈n/2⌉ bytes ("4-bit") with 5 bytes for each row, nothing ("none"). B is shared by all.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = DctAdamWOptimizer([{"params": [matrix], "rank": 4}, {"params": rest}], lr=1e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values, ranks above the short side and projected tensors that are
    no matrices raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2505.17967. Deviations: those of :class:`DctAdamW`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = None,
        update_gap: int = 1,
        feedback: Feedback = "exact",
        rotate: bool = True,
        norm: Norm = "l1",
        transform: Transform = "matmul",
        foreach: bool = True,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        values = (rank, update_gap, feedback, rotate, norm, transform)
        super().__init__(params, adam | dict(zip(OPTIONS, values, strict=True)) | {"foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", *OPTIONS)
        DctAdamW.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)
        try:
            refuse_bad_shapes(DctAdamW.name, self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        projected = group["rank"] is not None
        for bucket in bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if projected else None)
        ):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                states = [self.state[parameter] for parameter in piece]
                if projected:
                    _update_projected(piece, states, group)
                else:
                    adamw_step(piece, states, group)


def _update_projected(parameters: list[Tensor], states: list[State], group: Group) -> None:
    """Make a step with ``parameters`` of one shape, device, dtype and number of steps; with one, the readable form."""
    torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
    wide = parameters[0].shape[0] < parameters[0].shape[1]
    gradients = stacked(gradients_of(parameters))
    accumulated = gradients if group["feedback"] == "none" else gradients + _stored_feedback(states, gradients)
    reduced, chosen = _reduced(accumulated.mT if wide else accumulated, states, group)
    basis = Projection(left=chosen.mT, right=None) if wide else Projection(left=None, right=chosen.mT)
    if group["feedback"] != "none":
        kept = basis.up(reduced.mT if wide else reduced)
        _store_feedback(states, accumulated - kept, group["feedback"])
    directions, factor = advance(states, list(reduced.unbind()), group, corrected=True)
    updates = stacked(directions)
    basis.add_up(parameters, updates.mT if wide else updates, -group["lr"] * factor)


def _reduced(long: Tensor, states: list[State], group: Group) -> tuple[Tensor, Tensor]:
    """Return a = A B_I (b, l, r) of A = ``long`` (b, l, s), and B_Iᵀ (b, r, s); choose I anew where the gap is over."""
    rows, step = basis_rows(long, group["transform"]), states[0].get("step", 0) + 1
    if step == 1 or step % group["update_gap"] == 0:
        transformed = coordinates(long, group["transform"])
        indices = fitting_columns(transformed, group["rank"], group["norm"])
        _change_columns(states, indices, rows.shape[0], rotate=group["rotate"])
        return columns(transformed, indices), rows[indices]
    chosen = rows[torch.stack([state["indices"] for state in states]).long()]
    return long @ chosen.mT, chosen


def _change_columns(states: list[State], indices: Tensor, size: int, *, rotate: bool) -> None:
    """Put the new ``indices`` (b, r) into ``states``, and the moments where their columns are now."""
    if rotate and "indices" in states[0]:
        old = torch.stack([state["indices"] for state in states]).long()
        for name in ("exp_avg", "exp_avg_sq"):
            moments = moved(torch.stack([state[name] for state in states]), old, indices, size)
            for state, moment in zip(states, moments.unbind(), strict=True):
                state[name].copy_(moment)
    for state, chosen in zip(states, indices.to(torch.int32).unbind(), strict=True):
        state["indices"] = chosen.clone()


def _stored_feedback(states: list[State], gradients: Tensor) -> Tensor:
    """Return Ξ of each of ``states``, or zero before the first step."""
    if not states[0]:
        return torch.zeros_like(gradients)
    if "feedback" in states[0]:
        return stacked([state["feedback"] for state in states])
    size, parts = gradients.shape[-1], []
    for state in states:
        codes = state["feedback_codes"]
        codes = codes if codes.shape[-1] == size else unpacked(codes, size)
        parts.append(dequantize(Quantized(codes, state["feedback_scales"], state["feedback_zeros"])))
    return torch.stack(parts).to(gradients.dtype)


def _store_feedback(states: list[State], residuals: Tensor, feedback: Feedback) -> None:
    """Put Ξ (b, m, n) into ``states`` in the form that ``feedback`` names."""
    for state, residual in zip(states, residuals.unbind(), strict=True):
        if feedback == "exact":
            state["feedback"] = residual.clone(memory_format=torch.contiguous_format)
            continue
        codes, scales, zeros = quantize(residual, 4 if feedback == "4-bit" else 8)
        stored = packed(codes) if feedback == "4-bit" else codes
        state |= {"feedback_codes": stored, "feedback_scales": scales, "feedback_zeros": zeros}
