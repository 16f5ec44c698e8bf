"""Conda: Adam whose second moment is tracked in the singular basis of the momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import HIDDEN_MATRICES, Algorithm, Choice, Linear, Log, hyper
from bench.errors import BadValue, SlotMismatch

from ._adam import bias_factor
from ._adam_state import advance
from ._base import BaseOptimizer, Group, bucketed, gradients_of, parameter_name, pieces
from ._low_rank import new_projection, stacked, store_projection, stored_projection
from ._projection import BasisFunction, Projection, gram_basis, side_of, svd_basis

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

__all__ = ["Conda", "CondaOptimizer", "gram_basis", "svd_basis"]

PUBLISHED_GAP = 2000


@dataclass(frozen=True, kw_only=True)
class Conda(Algorithm):
    """Conda for the matrices and convolutions of hidden roles, plain Adam for everything else.

    See :class:`CondaOptimizer` for the rule. The defaults are those of the published LLaMA runs, 60M to 1B alike; the
    rate acts unscaled on embeddings, head and norms. ``update_gap=None`` means 2000 steps, the published value, or a
    fifth of a shorter run: the published run of 10,000 steps has five bases, and so has every shorter one.

    Source: arXiv:2509.24218, jie040109/Conda ``conda_torch/conda.py`` and ``projector.py``.
    Deviations: see ``deviations``. What the abstract calls column-wise normalisation is an element-wise second moment
    in the rotated frame in the authors' code, which this follows.
    """

    name = "conda"
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "The basis comes from an fp64 eigendecomposition of the momentum's Gram matrix, not from an fp32 SVD: the "
            "same singular vectors in the same order; their signs do not matter."
        ),
        (
            "The first moment is kept in the rotated frame and turned when the basis changes, which saves one of three "
            "products of a step; the authors' code keeps it unrotated and rotates it at every step."
        ),
        "The default update gap is at most a fifth of the run, so that short runs renew the basis too.",
        (
            "Convolutions, of which the paper says nothing, are rotated in their (out, in*kh*kw) view; the authors' "
            "code leaves what is no linear layer of attention or MLP to Adam."
        ),
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-3, 2e-2), help="peak learning rate η")
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((50, 100, 200, 500, 2000)), help="steps between two bases, T; none: min(2000, steps / 5)"
    )
    scale: Annotated[float, Gt(0)] = hyper(0.25, search=Log(0.1, 1.0), help="factor of the rotated update, α")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.99, help="decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, search=Linear(0.0, 0.1), help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> CondaOptimizer:
        """Return one optimizer with a rotated group and a group of plain Adam."""
        matrices: list[tuple[str, Tensor]] = []
        rest: list[tuple[str, Tensor]] = []
        for name, parameter in named_parameters:
            hidden = run.role(name) in HIDDEN_MATRICES and parameter.ndim >= 2
            (matrices if hidden else rest).append((name, parameter))
        if not matrices:
            raise SlotMismatch(
                "conda found no parameter with a hidden role and two or more dimensions, so nothing to rotate",
                hint="use adamw, or give the workload's matrices their roles",
            )
        groups: list[Group] = [{"params": matrices}]
        return CondaOptimizer(
            [*groups, {"params": rest, "rotate": False}] if rest else groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            update_gap=self.update_gap or min(PUBLISHED_GAP, max(1, run.steps // 5)),
            scale=self.scale,
        )


class CondaOptimizer(BaseOptimizer):
    r"""Adam with a rotated second moment for matrices, and plain Adam for groups with ``"rotate": False``.

    With weight W (m, n), gradient G, moments M and V (m, n), zero at first, t = 0, 1, 2, ... steps made before this
    one, T = ``update_gap``, α = ``scale``, η = ``lr``:

        M ← β₁ M + (1-β₁) G
        if t mod T = 0:  Q = right singular vectors of M (n, n)   if m >= n
                         P = left singular vectors of M (m, m)    if m < n
        G' = G Q,  M' = M Q      or      G' = Pᵀ G,  M' = Pᵀ M
        V ← β₂ V + (1-β₂) G'²                             not rotated when the basis changes
        N = M' / (√V + ε)
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) α (N Qᵀ or P N)        k = t + 1
        W ← W - η λ W                                     λ = ``weight_decay``, not scaled by α

    The vectors stand in the order of descending singular values, so the i-th row or column of V belongs to the i-th
    direction before and after a renewal. State: M', V and the basis, 2 m n + min(m, n)² elements of the parameter's
    dtype; M is M' Qᵀ or P M' and needed for a renewal alone. A parameter of more than two dimensions is seen as
    (out, rest). Groups with ``"rotate": False`` take the same steps with the identity for a basis and α = 1;
    embeddings, the output head, biases and norms belong there:

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = CondaOptimizer([{"params": [matrix]}, {"params": rest, "rotate": False}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``basis`` finds P and Q: :func:`gram_basis` (fast and accurate) or :func:`svd_basis` (the published SVD).
    ``foreach=False`` steps one tensor at a time. Bad values and vectors in a rotated group raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``. A gradient that is not finite makes the weights
    NaN, as with any optimizer.

    Source: arXiv:2509.24218 and jie040109/Conda. Deviations: those of :class:`Conda`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        update_gap: int = PUBLISHED_GAP,
        scale: float = 0.25,
        basis: BasisFunction = gram_basis,
        foreach: bool = True,
    ) -> None:
        self.basis = basis
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, adam | {"update_gap": update_gap, "scale": scale, "rotate": True, "foreach": foreach})

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps; the basis function is not part of ``state_dict``."""
        return super().__getstate__() | {"basis": self.basis}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "scale")
        Conda.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        if options["update_gap"] is None:  # the field takes it, to be worked out from the length of a run
            raise BadValue("conda: update_gap = None is not allowed here", hint="update_gap is an int >= 1")
        Conda.check(update_gap=options["update_gap"])
        super().add_param_group(param_group)
        try:
            _refuse_vectors(self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        rotate = group["rotate"]
        buckets = bucketed(
            parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0), p.shape if rotate else None)
        )
        for bucket in buckets:
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                if rotate:
                    self._update_rotated(group, piece)
                else:
                    states = [self.state[parameter] for parameter in piece]
                    directions, factor = advance(states, gradients_of(piece), group, corrected=False)
                    torch._foreach_add_(piece, directions, alpha=-group["lr"] * factor)
                    _decay(piece, group)

    def _update_rotated(self, group: Group, parameters: list[Tensor]) -> None:
        """Make a step with ``parameters`` of one shape, device, dtype and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                matrix = parameter.flatten(1)
                state |= {"step": 0, "exp_avg": torch.zeros_like(matrix), "exp_avg_sq": torch.zeros_like(matrix)}
        if group["foreach"]:
            conda_batched(parameters, gradients_of(parameters), states, group, self.basis)
        else:
            for tensors in zip(parameters, gradients_of(parameters), states, strict=True):
                conda_single(*tensors, group, self.basis)


def conda_single(weight: Tensor, gradient: Tensor, state: Group, options: Group, basis: BasisFunction) -> None:
    """Step one matrix; the readable form."""
    beta2, exp_avg_sq = options["betas"][1], state["exp_avg_sq"]
    projection, rotated = _rotated([state], gradient.flatten(1).unsqueeze(0), options, basis)
    rotated = rotated.squeeze(0)
    exp_avg_sq.mul_(beta2).addcmul_(rotated, rotated, value=1.0 - beta2)
    direction = state["exp_avg"] / exp_avg_sq.sqrt().add_(options["eps"])
    state["step"] += 1
    size = options["lr"] * bias_factor(options["betas"], state["step"]) * options["scale"]
    weight.add_(projection.up(direction).reshape(weight.shape), alpha=-size)
    weight.add_(weight, alpha=-options["lr"] * options["weight_decay"])


def conda_batched(
    weights: list[Tensor], gradients: list[Tensor], states: list[Group], options: Group, basis: BasisFunction
) -> None:
    """Step matrices of one shape, dtype, device and number of steps, their rotations as batched products."""
    beta2 = options["betas"][1]
    projection, stack = _rotated(states, stacked([gradient.flatten(1) for gradient in gradients]), options, basis)
    rotated = list(stack.unbind())
    exp_avgs, exp_avg_sqs = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, rotated, rotated, value=1.0 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)  # noqa: SLF001 - as in torch
    torch._foreach_add_(denominators, options["eps"])
    directions = stacked(list(torch._foreach_div(exp_avgs, denominators)))  # noqa: SLF001 - as in torch
    for state in states:
        state["step"] += 1
    size = options["lr"] * bias_factor(options["betas"], states[0]["step"]) * options["scale"]
    steps = [step.reshape(weights[0].shape) for step in projection.up(directions).unbind()]
    torch._foreach_add_(weights, steps, alpha=-size)
    _decay(weights, options)


def _rotated(states: list[Group], gradients: Tensor, options: Group, basis: BasisFunction) -> tuple[Projection, Tensor]:
    """Advance the first moments M' in ``states`` by ``gradients`` (k, m, n); return the stacked bases and G'.

    Where the gap is over, M' is turned back to M, the bases are renewed from it, and it is turned to the new ones.
    """
    beta1 = options["betas"][0]
    exp_avgs = [state["exp_avg"] for state in states]
    stored = stored_projection(states)
    if stored is not None and states[0]["step"] % options["update_gap"]:
        rotated = stored.down(gradients)
        torch._foreach_mul_(exp_avgs, beta1)
        torch._foreach_add_(exp_avgs, list(rotated.unbind()), alpha=1.0 - beta1)
        return stored, rotated
    averages = stacked(exp_avgs)
    momenta = averages if stored is None else stored.up(averages)
    momenta = (beta1 * momenta).add_(gradients, alpha=1.0 - beta1)
    side = side_of(momenta.shape, "std")
    renewed = new_projection(basis, momenta, min(momenta.shape[-2:]), side, stored)
    store_projection(states, renewed)
    torch._foreach_copy_(exp_avgs, list(renewed.down(momenta).unbind()))
    return renewed, renewed.down(gradients)


def _decay(weights: list[Tensor], options: Group) -> None:
    if options["weight_decay"]:
        # As the authors' code has it; a product with 1 - η λ, rounded to fp32, would drift away from it.
        torch._foreach_add_(weights, weights, alpha=-options["lr"] * options["weight_decay"])


def _refuse_vectors(group: Group) -> None:
    for parameter in group["params"] if group["rotate"] else ():
        if parameter.ndim < 2:
            raise BadValue(
                f"conda: {parameter_name(group, parameter)} has fewer than two dimensions and cannot be rotated",
                hint='put it into a group with "rotate": False, where it takes plain Adam steps',
            )
