"""Linear decay to zero: the best schedule for the last iterate when nothing is known of the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from bench import Algorithm, Choice, hyper

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import Run


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Algorithm):
    r"""A straight line down to zero, which the last step reaches, after a short warm-up.

    With T = ``run.steps`` and w = ``warmup_fraction`` T rounded to whole steps, at least one, the factor of the
    learning rate at step t = 1, 2, ..., T (``step`` + 1) is

        t / w                     t <= w
        (T - t) / (T - w)         t > w          0 past the end

    The theory has no warm-up: then the factor falls from exactly 1 to exactly 0, s_t = 1 - t/T divided by its maximum.
    For a convex G-Lipschitz loss and a start at distance D from a minimum, the learning rate D/(G√T) then ends within
    D G/√T of the minimum, which no schedule improves on in the worst case. ``warmup-linear`` starts with a step of zero
    and ends at a tenth of the peak.

    Source: arXiv:2310.07831, A in its notation of a schedule with maximum 1; a warm-up of 5% is common in practice.
    Deviations: see ``deviations``.
    """

    name = "linear-decay"
    deviations = ("The warm-up is rounded to whole steps, so that its peak is a step of the run.",)

    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.05, search=Choice((0.0, 0.02, 0.05, 0.1)), help="part of the run that warms up"
    )

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return ``step -> factor``."""
        warmup = max(1, round(self.warmup_fraction * run.steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return max(0, run.steps - step - 1) / max(1, run.steps - warmup)

        return factor
