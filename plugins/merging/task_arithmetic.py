"""Task arithmetic: what each fine-tuning changed, added up, goes a part of the way onto the common start."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from bench import Algorithm, Log, hyper

from ._vectors import heads_of, moved, start_of, task_vector, visit, weights_of, with_values, zeros_like

if TYPE_CHECKING:
    from torch import nn

    from bench import Batch, Experts, Run


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Algorithm):
    """Task arithmetic with one scale for all tasks; see :func:`task_arithmetic`.

    The best scale falls with the number of tasks: 1/N gives the plain average, 0.3 is the published value for eight.

    Source: arXiv:2212.04089.
    Deviations: none.
    """

    name = "task-arithmetic"
    information = "weights"
    needs = ("pretrained",)

    scale: Annotated[float, Gt(0)] = hyper(0.3, search=Log(0.05, 1.0), help="factor of the sum of task vectors, λ")

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        return task_arithmetic(start_of(models, self.name), models, scale=self.scale, heads=heads_of(run))


def task_arithmetic(
    pretrained: nn.Module, models: Sequence[nn.Module], *, scale: float = 0.3, heads: Collection[str] = ()
) -> nn.Module:
    """Return the start moved along the sum of the task vectors τ_t = θ_t - θ₀.

        θ* = θ₀ + λ Σ_t τ_t

    θ₀ are the weights of ``pretrained``, θ_t those of ``models[t]``, λ is ``scale``. Parameters named in ``heads`` stay
    those of the first model. Floating-point buffers are averaged. One model, θ₀ and the sum are held at a time.

        >>> from torch import nn
        >>> merged = task_arithmetic(nn.Linear(4, 2), [nn.Linear(4, 2), nn.Linear(4, 2)], scale=0.3)

    Raises :class:`~bench.errors.BadValue` where architectures differ or a value is outside its domain.
    Source: arXiv:2212.04089.
    """
    TaskArithmetic.check(scale=scale)
    start = weights_of(pretrained, heads)
    total = zeros_like(start)

    def take(_: int, model: nn.Module) -> None:
        for name, change in task_vector(model, start, heads).items():
            total[name] += change

    buffers = visit(models, take, like=pretrained)
    return with_values(models[0], moved(start, total, scale), buffers)
