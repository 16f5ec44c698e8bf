"""AuON: momentum divided by its Frobenius norm and by the root mean square of a hyperbolic cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Linear, Log, hyper

from ._base import Group, gradients_of
from ._hidden_matrices import (
    HiddenMatrixOptimizer,
    Scratch,
    aspect_factor,
    matrices_and_rest,
    nesterov_mix,
)

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Variant = Literal["paper", "repo"]

NORM_EPS = 1e-7
BRAKE_EPS = 1e-8
BRAKE_TOLERANCE = 2e-5
"""The part by which r may lie off in a batched step; the first published code, in bfloat16, rounds to 4e-3."""

LONGEST = 20.0
"""The g above which r is never one number: sinh(g)² would be 6e16, and soon more than a float holds."""


@dataclass(frozen=True, kw_only=True)
class AuON(Algorithm):
    """AuON for the matrices and convolutions of hidden roles, AdamW for everything else.

    See :class:`AuONOptimizer` for the rule. ``variant="paper"`` is the first version of the paper and the code of that
    time, ``"repo"`` the package of January 2026. Their learning rates differ in kind: a step of "paper" has the norm
    ``lr``, one of "repo" follows the gradient's. The search range belongs to "paper".

    The divisor r lies within 1e-3 of 1 for a matrix of 64 x 64 and within 1e-6 for one of 768 x 768: "paper" is in
    effect momentum of fixed Frobenius norm, "repo" Nesterov SGD. A comparison should hold one of these beside it.

    The default rate, 0.055, is that of the published language model of width 512; that of AdamW is a tenth of it, as in
    the code of that time, and its betas and ε are those of the later package's training script. The rates stay as
    published on small tiers, where a step of fixed norm has the larger entries: at width 128 four times those of the
    published model.

    Source: arXiv:2509.24320, ryyzn9/AuON ``auon/optimizer.py`` and, for "paper", ``Auon_Adam_train.py`` of its history.
    Deviations: see ``deviations``.
    """

    name = "auon"
    deviations: ClassVar[tuple[str, ...]] = (
        (
            'The default variant "paper" is that of the first paper and its code; the later package applies the '
            "unnormalised momentum, without the factor √max(1, m/n)."
        ),
        (
            "The factor √max(1, m/n) is in the code of the first paper, not in its formulas; for a convolution it "
            "comes from the (out, in*kh*kw) view."
        ),
        "Norm and divisor are computed in fp32; the first code casts to bfloat16, where the divisor is exactly 1.",
        'Weight decay is decoupled and comes first; the first code, variant "paper", has none for matrices.',
        "The auxiliary optimizer decays its weights if asked to (AdamW); the published one is Adam.",
        "The gradient is left as it is; the reference code overwrites it.",
    )

    lr: Annotated[float, Gt(0)] = hyper(0.055, search=Log(5e-3, 0.5), help="peak learning rate η of the matrices")
    momentum: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.95, search=Choice((0.9, 0.95, 0.98)), help="decay of the momentum, β"
    )
    variant: Variant = hyper("paper", help="which of the two published rules")
    gamma: Annotated[float, Gt(0)] = hyper(1.5, help='norm γ of the argument of cosh in "repo"; it is 1 in "paper"')
    weight_decay: Annotated[float, Ge(0)] = hyper(
        0.0, search=Linear(0.0, 0.1), help="decoupled weight decay λ of the matrices"
    )
    adamw_lr: Annotated[float, Gt(0)] = hyper(5.5e-3, search=Log(5e-4, 2e-2), help="peak learning rate of AdamW")
    adamw_beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.8, help="first decay of AdamW")
    adamw_beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.95, help="second decay of AdamW")
    adamw_eps: Annotated[float, Ge(0)] = hyper(1e-10, help="AdamW's ε")
    adamw_weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay of AdamW")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> HiddenMatrixOptimizer:
        """Return one optimizer with an AuON group and an AdamW group."""
        return AuONOptimizer(matrices_and_rest(self, named_parameters, run), **self.options())

    def options(self) -> dict[str, Any]:
        """Return the hyperparameters of the matrices, which are the optimizer's options."""
        return {name: value for name, value in self.hyperparameters().items() if not name.startswith("adamw_")}


class AuONOptimizer(HiddenMatrixOptimizer):
    r"""AuON for matrices, with AdamW groups for what is no hidden matrix.

    With weight W (m, n) of N = m n entries, gradient G and momentum M (zero at first), g = 1 in the variant "paper" and
    g = γ in "repo":

        M ← β M + (1-β) G
        C = (1-β) G + β M
        X = g C / (‖C‖_F + 1e-7)
        r = √(mean over all entries of cosh(X)²)              1 <= r <= √(1 + sinh(g)²/N), the upper at one entry
        W ← W (1 - η λ)
        W ← W - η √max(1, m/n) X / (r + 1e-8)                 "paper": a step of the norm η √max(1, m/n) / r
        W ← W - η C / (r + 1e-8)                              "repo": as r is nearly 1, Nesterov SGD at the rate η (1-β)

    η is ``lr``, β is ``momentum``, γ is ``gamma``, λ is ``weight_decay``. A parameter of more than two dimensions is
    seen as (out, rest). State: M, of the parameter's shape and dtype.
    A group with ``"algorithm": "adamw"`` takes AdamW steps (torch.optim.AdamW's rule) and has the options ``lr``
    5.5e-3, ``betas`` (0.8, 0.95), ``eps`` 1e-10 and ``weight_decay`` 0; embeddings, the output head, biases and norms
    belong there:

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = AuONOptimizer([{"params": [matrix]}, {"params": rest, "algorithm": "adamw"}], lr=0.055)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. The batched form takes r from g alone for tensors so large that their
    entries change it by less than 2e-5 of itself, see :func:`settled_cosh_rms`. Bad values and vectors in an AuON
    group raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2509.24320 and ryyzn9/AuON. Deviations: those of :class:`AuON`.
    """

    algorithm: ClassVar[type[Algorithm]] = AuON

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.055,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        variant: Variant = "paper",
        gamma: float = 1.5,
        foreach: bool = True,
    ) -> None:
        options: Group = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "variant": variant,
            "gamma": gamma,
        }
        super().__init__(params, options | {"algorithm": "auon", "foreach": foreach})

    def _fresh(self, matrix: Tensor, group: Group) -> Group:
        return {"momentum": torch.zeros_like(matrix)}

    def _update_matrices(self, group: Group, matrices: list[Tensor], scratch: Scratch) -> None:
        momenta = [self.state[parameter]["momentum"] for parameter in matrices]
        if group["foreach"]:
            auon_batched(matrices, gradients_of(matrices), momenta, group, scratch)
        else:
            for tensors in zip(matrices, gradients_of(matrices), momenta, strict=True):
                auon_single(*tensors, group)


def auon_single(weight: Tensor, gradient: Tensor, momentum: Tensor, options: Group) -> None:
    """Step one matrix; the readable form."""
    beta, lr, paper = options["momentum"], options["lr"], options["variant"] == "paper"
    momentum.lerp_(gradient, 1.0 - beta)
    mixed = gradient.lerp(momentum, beta).float()
    x = mixed * ((1.0 if paper else options["gamma"]) / (torch.linalg.vector_norm(mixed) + NORM_EPS))
    step = (aspect_factor(weight.shape) * x if paper else mixed) / (cosh_rms(x) + BRAKE_EPS)
    weight.mul_(1.0 - lr * options["weight_decay"])
    weight.add_(step, alpha=-lr)


def auon_batched(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], options: Group, scratch: Scratch
) -> None:
    """Step tensors of one shape, dtype and device in four passes: momentum, mix, norm, and a step by a part of the mix.

    The entries are looked at once more, for r, only where the tensors are too small for r to be one number.
    """
    paper, lr = options["variant"] == "paper", options["lr"]
    length = 1.0 if paper else options["gamma"]
    mixed = nesterov_mix(gradients, momenta, options["momentum"], nesterov=True, scratch=scratch)
    mixed = [matrix.float() for matrix in mixed]  # the denominators would be rounded to the dtype of the mix
    norms = torch.stack(torch._foreach_norm(mixed)).add_(NORM_EPS)  # noqa: SLF001 - as in torch
    settled = settled_cosh_rms(length, weights[0].numel())
    if settled is None:
        brakes = torch.stack([cosh_rms(x * (length / norm)) for x, norm in zip(mixed, norms.unbind(), strict=True)])
        brakes += BRAKE_EPS
    else:
        brakes = torch.full_like(norms, settled + BRAKE_EPS)
    if options["weight_decay"]:
        torch._foreach_mul_(weights, 1.0 - lr * options["weight_decay"])
    rate = lr * aspect_factor(weights[0].shape) if paper else lr
    torch._foreach_addcdiv_(weights, mixed, (brakes.mul_(norms) if paper else brakes).unbind(), value=-rate)


def cosh_rms(x: Tensor) -> Tensor:
    r"""Return r = √mean(cosh(x)²) over all entries of ``x``.

    It is computed as √(1 + mean(sinh(x)²)), the same number: in fp32 the cosine of a small entry rounds to 1, and the
    mean would lose what it is there to measure.
    """
    return (1.0 + torch.sinh(x).square_().mean()).sqrt()


def settled_cosh_rms(norm: float, entries: int) -> float | None:
    r"""Return the r of every x of this ``norm`` g and N ``entries`` where it is one number, otherwise ``None``.

    As x² <= sinh(x)² <= x² sinh(g)²/g² for |x| <= g,

        1 + g²/N  <=  r²  <=  1 + sinh(g)²/N

    and where these lie within a relative 2e-5 the lower one is returned: from 9,528 entries on for g = 1, a matrix of
    98 x 98, and from 57,096 on for g = 1.5. (Where ‖C‖ is not far above the 1e-7 that guards it X is shorter than
    g, and its r lies between 1 and the lower bound.)
    """
    if norm > LONGEST:
        return None
    low, high = norm**2 / entries, math.sinh(norm) ** 2 / entries
    return math.sqrt(1.0 + low) if high - low <= 2.0 * BRAKE_TOLERANCE else None
