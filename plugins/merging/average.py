"""The plain average of all weights: what every other way of merging has to beat."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import Algorithm

from ._vectors import Mean, heads_of, visit, weights_of, with_values

if TYPE_CHECKING:
    from torch import nn

    from bench import Batch, Experts, Run


@dataclass(frozen=True, kw_only=True)
class Average(Algorithm):
    """The plain average of the experts' weights; see :func:`average`.

    Nothing is tuned and nothing but the weights is looked at.

    Source: arXiv:2203.05482 (uniform soup).
    Deviations: none.
    """

    name = "average"
    information = "weights"

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        return average(models, heads=heads_of(run))


def average(models: Sequence[nn.Module], *, heads: Collection[str] = ()) -> nn.Module:
    """Return a model with the mean of the weights of ``models``.

        θ* = (1/N) Σ_t θ_t

    Parameters named in ``heads`` stay those of the first model. Floating-point buffers are averaged, integer ones are
    the first model's. One model and the mean are held at a time, however many there are.

        >>> from torch import nn
        >>> merged = average([nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)])

    Raises :class:`~bench.errors.BadValue` where architectures differ. Source: arXiv:2203.05482.
    """
    mean = Mean()
    buffers = visit(models, lambda _, model: mean.add(weights_of(model, heads)))
    return with_values(models[0], mean.values, buffers)
