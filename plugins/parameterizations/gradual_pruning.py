r"""Gradual magnitude pruning: masks that close along a cubic curve while the network trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench import Algorithm, Choice, Linear, hyper
from bench.errors import BadValue, SlotMismatch
from bench.roles import HIDDEN_MATRICES

if TYPE_CHECKING:
    from bench import Run

REFRESHES = 15
"""How often the masks are renewed in a window of less than 1,500 steps: few enough to be cheap, and still a curve."""


@dataclass(frozen=True, kw_only=True)
class GradualPruning(Algorithm):
    r"""Gradual pruning of all weights of attention, MLP and convolution roles to the same sparsity.

    See :class:`GradualPruner` for the rule. Stay dense: embedding, head or classifier, norms, biases, what has the
    role ``other`` (the first convolution of a network on images), and convolutions over one channel at a time, whose
    few weights a uniform share would destroy.

    The window is given in parts of the run: t₀ = ``start`` T of T = run.steps, and the last refresh is the last one
    that ends by ``end`` T. Published: a window of 30 to 60% of training that ends well before the learning rate is at
    its floor, since the network must recover. ``interval=None`` is 100 steps, or a fifteenth of a shorter window.

    ``final_sparsity`` is what one asks for and has no search range: tuning would always choose the smallest. Set it and
    compare runs of equal s_f. Optimizer and schedule stay the reference's. The record's bytes are those of dense
    training; :func:`strip_masks` gives the network to store, of (1 - s_f) m n values and m n bits a weight.

    Source: arXiv:1710.01878; tensorflow/model-optimization ``pruning_schedule.py``, ``pruning_impl.py``.
    Deviations: see ``deviations``.
    """

    name = "gradual-pruning"
    deviations = (
        (
            "Weights that a mask takes are set to zero and never come back, as in the code; the paper keeps their "
            "values, so that a later mask may free them."
        ),
        "Exactly k weights stay where several are as large as the k-th, the first ones; the code keeps all of these.",
        "Layers are chosen by role, so embedding and head stay dense; the paper prunes both in its language models.",
        "The window is a part of the run and the interval of a short run a part of the window; the code counts steps.",
    )

    final_sparsity: Annotated[float, Ge(0), Lt(1)] = hyper(0.8, help="part of each weight that is zero in the end, s_f")
    initial_sparsity: Annotated[float, Ge(0), Lt(1)] = hyper(0.0, help="part that is zero from the window's start, s_i")
    start: Annotated[float, Ge(0), Lt(1)] = hyper(0.1, help="where the window begins, in parts of the run")
    end: Annotated[float, Gt(0), Le(1)] = hyper(
        0.6, search=Linear(0.4, 0.7), help="where the window ends, in parts of the run"
    )
    interval: Annotated[int, Ge(1)] | None = hyper(
        None, help="steps between two refreshes of the masks, Δt; none: min(100, window / 15)"
    )
    power: Annotated[float, Gt(0)] = hyper(3.0, search=Choice((1.0, 2.0, 3.0, 4.0)), help="exponent of the curve")

    def __post_init__(self) -> None:
        """Refuse a window that ends before it begins and a sparsity that falls."""
        super().__post_init__()
        for low, high, strictly in (("start", "end", True), ("initial_sparsity", "final_sparsity", False)):
            first, last = getattr(self, low), getattr(self, high)
            if last < first or (strictly and last == first):
                raise BadValue(
                    f"{self.name}: {high} = {last!r} (float) is not allowed with {low} = {first!r}",
                    hint=f"{high} is a float {'>' if strictly else '>='} {low}",
                )

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a mask over each weight that is pruned, in place, and return ``model``."""
        weights = dict(model.named_parameters())
        hidden = [name for name in weights if run.role(name) in HIDDEN_MATRICES]
        chosen = [name for name in hidden if not (weights[name].ndim > 2 and weights[name].shape[1] == 1)]
        if not chosen:
            raise SlotMismatch(
                f"{self.name} found no weight with an attention, MLP or convolution role to prune",
                hint="give the matrices of the model their roles",
            )
        attach_masks(model, chosen)
        return model

    def freezer(self, model: nn.Module, run: Run) -> GradualPruner:
        """Return what refreshes the masks of ``model``."""
        begin = round(self.start * run.steps)
        window = max(1, round(self.end * run.steps) - begin)
        interval = self.interval or min(100, max(1, window // REFRESHES))
        if interval > window:
            raise BadValue(
                f"{self.name}: interval = {interval!r} (int) is not allowed for a window of {window} steps",
                hint=f"interval is an int, 1 <= interval <= {window}, or none",
            )
        return GradualPruner(
            model,
            begin=begin,
            refreshes=window // interval,
            interval=interval,
            final_sparsity=self.final_sparsity,
            initial_sparsity=self.initial_sparsity,
            power=self.power,
        )


class GradualPruner:
    r"""Renews the masks of a model; call it with each step's number, from 0, before its forward pass.

    At the steps t = t₀, t₀ + Δt, ..., t₀ + n Δt, for each masked weight w of N elements:

        s_t = s_f + (s_i - s_f) (1 - (t - t₀) / (n Δt))³
        k = max(round(N (1 - s_t)), 1)
        mask = the k largest \|w\|, the first ones where several are equal;   w ← w ⊙ mask

    Afterwards the masks stay. In between, w ← w ⊙ mask before each step, since momentum and weight decay move what no
    gradient moves; what the network computes with is w ⊙ mask at any time, so a pruned weight is zero to the bit in
    training and in every evaluation, whatever the optimizer.

    t₀ is ``begin``, n ``refreshes``, Δt ``interval``, s_f and s_i the sparsities, the exponent ``power``. It has no
    state: the masks are buffers of the model. A refresh costs one selection in linear time per weight.

        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> attach_masks(model, ["0.weight"])
        >>> pruner = GradualPruner(model, begin=2, refreshes=3, interval=2, final_sparsity=0.75)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> for step in range(12):
        ...     pruner(step)
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 16)).square().mean().backward()
        ...     optimizer.step()
        >>> int(strip_masks(model)[0].weight.count_nonzero())
        256

    Raises:
        BadValue: a setting is outside its domain.

    Source: arXiv:1710.01878. Deviations: those of :class:`GradualPruning`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        begin: int,
        refreshes: int,
        interval: int,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        power: float = 3.0,
    ) -> None:
        GradualPruning.check(
            interval=interval, final_sparsity=final_sparsity, initial_sparsity=initial_sparsity, power=power
        )
        for name, value, least in (("begin", begin, 0), ("refreshes", refreshes, 1)):
            if value < least:
                raise BadValue(f"{name} = {value!r} is not allowed", hint=f"{name} is an int >= {least}")
        self.masked = masked_weights(model)
        self.begin, self.end, self.interval = begin, begin + refreshes * interval, interval
        self.initial_sparsity, self.final_sparsity, self.power = initial_sparsity, final_sparsity, power

    def sparsity(self, step: int) -> float:
        """Return s_t, s_i before the window and s_f after it."""
        return polynomial_sparsity(
            step,
            begin=self.begin,
            end=self.end,
            initial=self.initial_sparsity,
            final=self.final_sparsity,
            power=self.power,
        )

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Keep pruned weights at zero, and renew the masks if ``step`` is one of t₀, t₀ + Δt, ..., t₀ + n Δt."""
        if step < self.begin:
            return
        refresh = step <= self.end and (step - self.begin) % self.interval == 0
        for weight, mask in self.masked:
            weight.mul_(mask.kept)
            if refresh:
                count = max(round(weight.numel() * (1.0 - self.sparsity(step))), 1)
                mask.kept.copy_(largest(weight, count))
                weight.mul_(mask.kept)


def polynomial_sparsity(step: int, *, begin: int, end: int, initial: float, final: float, power: float = 3.0) -> float:
    """Return s_f + (s_i - s_f) (1 - p)^``power``, p = (``step`` - ``begin``) / (``end`` - ``begin``) cut to [0, 1]."""
    progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return float(final + (initial - final) * (1.0 - progress) ** power)


def largest(weight: Tensor, count: int) -> Tensor:
    r"""Return where the ``count`` largest \|w\| of ``weight`` are, bool; of equal ones the first are taken."""
    sizes = weight.abs().flatten()
    threshold = sizes.kthvalue(sizes.numel() - count + 1).values
    kept = sizes > threshold
    ties = (sizes == threshold).nonzero().flatten()
    kept[ties[: count - int(kept.sum())]] = True
    return kept.view_as(weight)


class Mask(nn.Module):
    """A parametrization, w ⊙ mask: ``kept`` is a buffer, bool, True at first and of the weight's shape."""

    kept: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight; the gradient of a masked element is zero."""
        return weight * self.kept


def attach_masks(model: nn.Module, names: Iterable[str]) -> None:
    """Put a :class:`Mask` over each parameter in ``names``, such as ``"layers.0.mlp.up.weight"``, in place.

    The parameters themselves stay, under the names that :mod:`torch.nn.utils.parametrize` gives them.
    """
    for name in names:
        path, _, tensor = name.rpartition(".")
        module = model.get_submodule(path)
        parametrize.register_parametrization(module, tensor, Mask(getattr(module, tensor)))


def masked_weights(model: nn.Module) -> list[tuple[Tensor, Mask]]:
    """Return each masked parameter of ``model`` with its mask."""
    lists = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    return [(found.original, mask) for found in lists for mask in found if isinstance(mask, Mask)]


def strip_masks(model: nn.Module) -> nn.Module:
    """Turn masked weights into plain ones with zeros, in place, and return ``model``: what is stored and deployed.

    To go on training, strip a ``copy.deepcopy`` of the model.
    """
    for module in list(model.modules()):
        for tensor, found in list(getattr(module, "parametrizations", {}).items()):
            if any(isinstance(part, Mask) for part in found):
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    return model
