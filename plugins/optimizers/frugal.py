"""FRUGAL: Adam for a part of each gradient, a rule without state for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from bench import Algorithm, Choice, Linear, Log, hyper
from bench.errors import BadValue

from ._adam_state import adamw_step, advance
from ._base import BaseOptimizer, Group, bucketed, cut, gradients_of, parameter_name, pieces
from ._low_rank import projected_and_rest
from ._projection import BasisFunction, Projection, gram_basis, subspace_basis, svd_basis
from ._state_full import Order, Subset, active_blocks, block_count, drawn_indices, draws, found_projection, put, taken

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

__all__ = ["Frugal", "FrugalAdamW", "gram_basis", "subspace_basis", "svd_basis"]

StateFree = Literal["sign", "sgd", "none"]


@dataclass(frozen=True, kw_only=True)
class Frugal(Algorithm):
    """FRUGAL for the matrices of attention and MLP roles, AdamW at the full learning rate for everything else.

    See :class:`FrugalAdamW` for the rule. The defaults are those of the published pre-training runs of 60M to 1B:
    blocks in descending order at density 0.25. ``update_gap=None`` means 200 steps, the published value, or a sixth of
    a shorter run, so that at that density every block has its turn; nothing else is scaled for small tiers. The
    published fine-tuning runs have ``subset="columns"``, ``state_free_scale`` 0.1 and a gap of 500.

    Source: arXiv:2411.07837, fzmushko/FRUGAL ``frugal/proj_optimizer_templates.py``.
    Deviations: see ``deviations``.
    """

    name = "frugal"
    deviations = (
        (
            "The gap is counted for the whole group, not by the step counter of its first tensor, so a first tensor "
            "without a gradient does not hold up the others."
        ),
        "The default weight decay is 0, as in the published pre-training runs; the reference class has 0.01.",
        "The default update gap is at most a sixth of the run, so that short runs renew the subset too.",
        (
            'The basis of subset="svd" comes from an fp64 eigendecomposition of the gradient\'s Gram matrix, not from '
            "an fp32 SVD: the same singular vectors with signs fixed."
        ),
        'State-full entries of subset="randk" are kept as one index each, not as a row and a column.',
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(3e-4, 3e-3), help="peak learning rate η")
    projected_scale: Annotated[float, Gt(0)] = hyper(1.0, help="factor of the rate of all split matrices, c")
    state_free_scale: Annotated[float, Ge(0)] = hyper(
        1.0, search=Log(0.03, 1.0), help="further factor of the rate of what has no state, c₀"
    )
    density: Annotated[float, Ge(0), Le(1)] = hyper(
        0.25, search=Linear(0.0, 0.5), help="fraction that has Adam's state, ρ; of the tensors if these are the blocks"
    )
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((50, 100, 200, 500, 1000)), help="steps between two subsets, T; none: min(200, steps / 6)"
    )
    subset: Subset = hyper("block", help="what has Adam's state: whole tensors or a part of each")
    order: Order = hyper("descending", help="in which order tensors have their turn as blocks")
    state_free: StateFree = hyper("sign", help="the rule of what has no state")
    reset: bool = hyper(True, help="discard the moments with each new subset; blocks always do")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> FrugalAdamW:
        """Return one optimizer with a group of split matrices and a group of AdamW."""
        matrices, rest = projected_and_rest(self.name, named_parameters, run)
        groups: list[Group] = [{"params": matrices, "density": self.density}]
        return FrugalAdamW(
            [*groups, {"params": rest}] if rest else groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            projected_scale=self.projected_scale,
            state_free_scale=self.state_free_scale,
            update_gap=self.update_gap or min(200, max(1, run.steps // 6)),
            subset=self.subset,
            order=self.order,
            state_free=self.state_free,
            reset=self.reset,
            generator=run.rng("subset") if draws(self.subset, self.order) else None,
        )


OPTIONS = ("density", "projected_scale", "state_free_scale", "update_gap", "subset", "order", "state_free", "reset")

CHOICE = frozenset({"indices", *Projection._fields})
"""The entries of a matrix's state that say which part of it is state-full."""


class FrugalAdamW(BaseOptimizer):
    r"""FRUGAL with Adam and a state-free rule for matrices, and AdamW for groups without a density.

    P takes the state-full part of a matrix (m, n), P⁻¹ puts it back and has zeros elsewhere. Every T = ``update_gap``
    steps of the group P is chosen anew and, with ``reset``, M, V and k begin at 0 again. With gradient G, η = ``lr``,
    c = ``projected_scale``, c₀ = ``state_free_scale``:

        W ← (1 - η λ) W                                              λ = ``weight_decay``
        g = P(G),   r = G - P⁻¹(g)                                   orthogonal; P⁻¹(g) + r = G
        M ← β₁ M + (1-β₁) g,   V ← β₂ V + (1-β₂) g²,   k ← k + 1
        W ← W - η c P⁻¹( M/(1-β₁ᵏ) / (√(V/(1-β₂ᵏ)) + ε) ) - η c c₀ sign(r)

    ``subset`` is what P takes: "block" (whole tensors, round(ρ K) of the group's K at a time, in ``order``), "columns",
    "rows" or "randk" (drawn columns, rows, entries), "svd" or "random" (coordinates in a basis of the short side).
    ``state_free`` is "sign" (as above; sign(0) = 0), "sgd" (r instead of its sign) or "none" (no such term).

    A group with a ``density`` ρ is split and holds matrices only; a group without one takes AdamW steps at η. State
    in the gradient's dtype, s the short side and l the long one: 2 m n elements for each active block and none for the
    others; 2 m ⌊ρ n⌋, 2 n ⌊ρ m⌋ or 2 ⌊ρ m n⌋ and as many indices as columns, rows, entries; s r + 2 r l with
    r = round(ρ s) for a basis.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = FrugalAdamW([{"params": [matrix], "density": 0.25}, {"params": rest}], subset="columns")
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    Random subsets are drawn from ``generator``, by default one of the optimizer's own that starts from seed 0; to
    resume exactly, save its state. ``basis`` finds the vectors of "svd". ``foreach=False`` steps one tensor at a time.
    Bad values and split tensors that are no matrices raise :class:`~bench.errors.BadValue`, sparse gradients
    ``RuntimeError``.

    Source: arXiv:2411.07837, fzmushko/FRUGAL ``frugal/adamw.py``. Deviations: those of :class:`Frugal`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        density: float | None = None,
        projected_scale: float = 1.0,
        state_free_scale: float = 1.0,
        update_gap: int = 200,
        subset: Subset = "block",
        order: Order = "descending",
        state_free: StateFree = "sign",
        reset: bool = True,
        basis: BasisFunction = gram_basis,
        generator: torch.Generator | None = None,
        foreach: bool = True,
    ) -> None:
        self.basis = basis
        self.generator = generator or torch.Generator().manual_seed(0)
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        values = (density, projected_scale, state_free_scale, update_gap, subset, order, state_free, reset)
        super().__init__(params, adam | dict(zip(OPTIONS, values, strict=True)) | {"foreach": foreach})

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps; neither the basis function nor the generator is part of ``state_dict``."""
        return super().__getstate__() | {"basis": self.basis, "generator": self.generator}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        options = self.defaults | param_group
        beta1, beta2 = options["betas"]
        given = {name: options[name] for name in ("lr", "eps", "weight_decay", *OPTIONS)}
        if given["density"] is None:
            del given["density"]
        Frugal.check(beta1=beta1, beta2=beta2, **given)
        super().add_param_group(param_group)
        self.param_groups[-1]["steps"] = 0
        try:
            _refuse_bad_group(self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        if group["density"] is None:
            self._update_adamw(group, parameters)
            return
        epoch, age = divmod(group["steps"], group["update_gap"])
        if age == 0:
            self._renew(group, epoch)
        group["steps"] += 1
        if group["subset"] == "block":
            active = [parameter for parameter in parameters if "step" in self.state[parameter]]
            self._update_adamw(group, active, group["projected_scale"])
            self._update_state_free(group, [p for p in parameters if "step" not in self.state[p]])
            return
        for parameter, gradient in zip(parameters, gradients_of(parameters), strict=True):
            self._update_split(group, parameter, gradient)

    def _renew(self, group: Group, epoch: int) -> None:
        """Let blocks change, or forget what part of each matrix is state-full: it is chosen with the next gradient."""
        members = group["params"]
        for parameter in members:
            state = self.state[parameter]
            if group["reset"] or group["subset"] == "block":
                state.clear()
            for key in state.keys() & CHOICE:
                del state[key]
        if group["subset"] == "block":
            count = block_count(len(members), group["density"])
            for index in active_blocks(len(members), count, epoch, group["order"], self.generator):
                self.state[members[index]]["step"] = 0

    def _update_adamw(self, group: Group, parameters: list[Tensor], scale: float = 1.0) -> None:
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0))):
            for piece in pieces(bucket):
                adamw_step(piece, [self.state[parameter] for parameter in piece], group, scale=scale)

    def _update_state_free(self, group: Group, parameters: list[Tensor]) -> None:
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype)):
            gradients = gradients_of(bucket)
            alone = (([weight], [gradient]) for weight, gradient in zip(bucket, gradients, strict=True))
            for piece in cut(bucket, gradients) if group["foreach"] else alone:
                _step_state_free(group, *piece)

    def _update_split(self, group: Group, weight: Tensor, gradient: Tensor) -> None:
        """Step one matrix of which a part is state-full."""
        state, subset = self.state[weight], group["subset"]
        weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        if not state.keys() & CHOICE:
            state |= self._chosen(group, gradient)
        if "indices" in state:
            update = _state_free(gradient, group)
            (direction,), factor = advance([state], [taken(gradient, state["indices"], subset)], group, corrected=True)
            put(update, state["indices"], subset, direction.mul_(-group["lr"] * group["projected_scale"] * factor))
        else:
            projection = Projection(state.get("left"), state.get("right"))
            reduced = projection.down(gradient)
            update = _state_free(gradient - projection.up(reduced), group)
            (direction,), factor = advance([state], [reduced], group, corrected=True)
            update.sub_(projection.up(direction), alpha=group["lr"] * group["projected_scale"] * factor)
        weight.add_(update)

    def _chosen(self, group: Group, gradient: Tensor) -> dict[str, Tensor]:
        """Return the entries of the state that say which part of ``gradient`` is state-full."""
        density, subset = group["density"], group["subset"]
        if subset in {"svd", "random"}:
            projection = found_projection(gradient, density, subset, self.basis, self.generator)
            return {name: vectors for name, vectors in projection._asdict().items() if vectors is not None}
        return {"indices": drawn_indices(gradient.shape, density, subset, self.generator).to(gradient.device)}


def _step_state_free(group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
    """Step whole tensors of one device and dtype that have no state."""
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
    if group["state_free"] != "none":
        signed = group["state_free"] == "sign"
        directions = torch._foreach_sign(gradients) if signed else gradients  # noqa: SLF001 - as in torch
        torch._foreach_add_(weights, directions, alpha=-_state_free_rate(group))


def _state_free_rate(group: Group) -> float:
    return float(group["lr"] * group["projected_scale"] * group["state_free_scale"])


def _state_free(residual: Tensor, group: Group) -> Tensor:
    """Return the update of what has no state: contiguous, and a tensor of its own."""
    if group["state_free"] == "none":
        return torch.zeros_like(residual, memory_format=torch.contiguous_format)
    direction = residual.sign() if group["state_free"] == "sign" else residual
    return torch.mul(direction, -_state_free_rate(group)).contiguous()


def _refuse_bad_group(group: Group) -> None:
    if group["density"] is None:
        return
    for parameter in group["params"]:
        if parameter.ndim != 2:
            raise BadValue(
                f"frugal: {parameter_name(group, parameter)} is no matrix and cannot be split",
                hint="put it into a group without a density, where it takes AdamW steps",
            )
    count = block_count(len(group["params"]), group["density"])
    if group["subset"] == "block" and group["order"] == "mirror" and count % 2:
        raise BadValue(
            f'frugal: order = "mirror" (str) is not allowed with {count} active blocks of {len(group["params"])}',
            hint="half of them come from each end: choose a density that makes their number even, or another order",
        )
