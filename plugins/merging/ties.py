"""TIES: small changes are trimmed, each weight takes one direction, and only those who agree are averaged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from bench import Algorithm, Choice, Linear, Log, hyper

from ._vectors import Values, heads_of, moved, start_of, task_vector, visit, weights_of, with_values, zeros_like

if TYPE_CHECKING:
    from torch import nn

    from bench import Batch, Experts, Run

Aggregate = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class Ties(Algorithm):
    """TIES merging; see :func:`ties`.

    Scale 0.3, a share of 0.2 and the sum are FusionBench's settings for eight tasks. The paper's are the mean and,
    where nothing is tuned, scale 1.

    Source: arXiv:2306.01708, prateeky2806/ties-merging.
    Deviations: see ``deviations``.
    """

    name = "ties"
    information = "weights"
    needs = ("pretrained",)
    deviations = (
        "What agrees is added up, as in FusionBench, unless aggregate is mean, as in the paper.",
        "A weight whose trimmed changes cancel exactly stays where it was; the code gives it the sign of the majority.",
        "Exactly the top k changes of a task are kept; the code keeps one more.",
    )

    scale: Annotated[float, Gt(0)] = hyper(0.3, search=Log(0.1, 3.0), help="factor of the merged task vector, λ")
    density: Annotated[float, Gt(0), Le(1)] = hyper(
        0.2, search=Linear(0.05, 0.5), help="share of each task vector that is kept, k"
    )
    aggregate: Aggregate = hyper(
        "sum", search=Choice(("mean", "sum")), help="what becomes of the changes that agree: their mean or their sum"
    )

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        return ties(start_of(models, self.name), models, heads=heads_of(run), **self.hyperparameters())


def ties(
    pretrained: nn.Module,
    models: Sequence[nn.Module],
    *,
    scale: float = 0.3,
    density: float = 0.2,
    aggregate: Aggregate = "sum",
    heads: Collection[str] = (),
) -> nn.Module:
    """Return the start moved along the trimmed, elected and averaged task vector.

    With τ_t = θ_t - θ₀ over all weights as one vector:

        trim    τ̂_t = τ_t where |τ_t| is among its k largest, else 0
        elect   γ = sign(Σ_t τ̂_t)                                       sign(0) = 0
        merge   τ = sum (or mean) over the tasks t with sign(τ̂_t) = γ, 0 where γ = 0
                θ* = θ₀ + λ τ

    k is ``density`` times the number of weights, λ is ``scale``. Parameters named in ``heads`` stay those of the first
    model and take no part. Floating-point buffers are averaged. The models are read twice, for γ and then for τ, so
    memory does not grow with their number: a model, its task vector, θ₀ and three sums.

        >>> from torch import nn
        >>> merged = ties(nn.Linear(4, 2), [nn.Linear(4, 2), nn.Linear(4, 2)], density=0.5)

    Raises :class:`~bench.errors.BadValue` where architectures differ or a value is outside its domain.
    Source: arXiv:2306.01708. Deviations: see :class:`Ties`.
    """
    Ties.check(scale=scale, density=density, aggregate=aggregate)
    start = weights_of(pretrained, heads)
    total = zeros_like(start)
    thresholds: list[float] = []

    def elect(_: int, model: nn.Module) -> None:
        change = task_vector(model, start, heads)
        thresholds.append(kth_largest(change, density))
        for name, value in trimmed(change, thresholds[-1]).items():
            total[name] += value

    visit(models, elect, like=pretrained)
    signs = {name: value.sign() for name, value in total.items()}
    agreed, voters = zeros_like(start), zeros_like(start)

    def merge(index: int, model: nn.Module) -> None:
        for name, value in trimmed(task_vector(model, start, heads), thresholds[index]).items():
            agrees = (value.sign() == signs[name]) & (value != 0)
            agreed[name] += value * agrees
            voters[name] += agrees

    buffers = visit(models, merge, like=pretrained)
    if aggregate == "mean":
        for name, value in agreed.items():
            value.div_(voters[name].clamp_min_(1.0))
    return with_values(models[0], moved(start, agreed, scale), buffers)


def kth_largest(vector: Mapping[str, Tensor], density: float) -> float:
    """Return the smallest magnitude among the ``density`` largest of all entries of ``vector`` together."""
    magnitudes = torch.cat([value.flatten() for value in vector.values()]).abs_()
    kept = max(1, round(density * magnitudes.numel()))
    return float(magnitudes.kthvalue(magnitudes.numel() - kept + 1).values)


def trimmed(vector: Mapping[str, Tensor], threshold: float) -> Values:
    """Return ``vector`` with zeros in place of magnitudes below ``threshold``."""
    return {name: value * (value.abs() >= threshold) for name, value in vector.items()}
