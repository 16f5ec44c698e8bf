"""Linear warm-up, linear decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, Lt

from bench import Algorithm, hyper

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import Run


@dataclass(frozen=True, kw_only=True)
class WarmupLinear(Algorithm):
    r"""Linear warm-up from zero, then a straight line down to ``final_factor``.

    With N = ``run.steps``, w = ``warmup_fraction`` N rounded to whole steps and f = ``final_factor``, the factor of the
    learning rate at step t = 0, 1, 2, ... is

        t / w                              t < w        so the very first step has learning rate 0
        1 - (1-f) (t-w)/(N-w)              w <= t < N
        f                                  t >= N

    Source: arXiv:1810.04805, where f = 0. Deviations: see ``deviations``.
    """

    name = "warmup-linear"
    deviations = ("The line ends at a tenth of the peak, as the cosine schedule does; in the paper it ends at 0.",)

    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = hyper(0.1, help="part of the run that warms up")
    final_factor: Annotated[float, Ge(0), Le(1)] = hyper(0.1, help="factor at the end of the run")

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return ``step -> factor``."""
        warmup = round(self.warmup_fraction * run.steps)
        decay = max(1, run.steps - warmup)

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return 1.0 - (1.0 - self.final_factor) * min(1.0, (step - warmup) / decay)

        return factor
