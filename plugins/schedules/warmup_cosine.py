"""Linear warm-up, cosine decay: the schedule of the published LLaMA pre-training runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, Lt

from bench import Algorithm, hyper

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import Run


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Algorithm):
    r"""Linear warm-up from zero, then half a cosine down to ``final_factor``.

    With N = ``run.steps``, w = ``warmup_fraction`` N rounded to whole steps and f = ``final_factor``, the factor of the
    learning rate at step t = 0, 1, 2, ... is

        t / w                                            t < w        so the very first step has learning rate 0
        f + (1-f) (1 + cos(π (t-w)/(N-w))) / 2           w <= t < N
        f                                                t >= N

    Source: arXiv:1608.03983 for the cosine; the ReLoRA and GaLore training scripts for the form.
    Deviations: see ``deviations``.
    """

    name = "warmup-cosine"
    deviations = ("The factor stays at its final value past the end of the run; the reference schedule is cyclic.",)

    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = hyper(0.1, help="part of the run that warms up")
    final_factor: Annotated[float, Ge(0), Le(1)] = hyper(0.1, help="factor at the end of the run")

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return ``step -> factor``."""
        warmup = round(self.warmup_fraction * run.steps)
        decay = max(1, run.steps - warmup)

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            progress = min(1.0, (step - warmup) / decay)
            return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return factor
