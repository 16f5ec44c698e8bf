"""The refined schedule: learning rates that follow from the gradient norms of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Gt, Lt
from scipy.ndimage import median_filter

from bench import Algorithm, Linear, hyper
from bench.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bench import Run

Norm = Literal["l1", "l2"]


@dataclass(frozen=True, kw_only=True)
class Refined(Algorithm):
    r"""The schedule that minimises a bound of the last iterate's loss, given the norms of the gradients.

    ``norms`` are gradient norms of a finished run of any reasonable schedule, as text: numbers separated by commas or
    spaces, at equal distances from its first step to its last. Every step is best; a few hundred values will do. Take
    them over all parameters together, before any clipping, at the batch size of the new run: the sum of the absolute
    values for Adam and other coordinate-wise methods (``norm="l1"``), the Euclidean norm for SGD (``norm="l2"``).
    ``gradient-norms`` writes them to a file: ``--set norms="$(cat FILE)"``. Without ``norms`` nothing is known of them,
    and what follows from constant norms is linear decay to zero.

    With Ĝ, those norms after a running median over the part τ = ``tau`` of them,

        w_t = 1/Ĝ_t  ("l1")   or   1/Ĝ_t²  ("l2")
        s_t = w_t Σ_{p>t} w_p                                     0 at the last step, divided by its maximum

    and the factor at a step of the new run is s at the same part of the run, interpolated linearly; 0 past its end.
    Only the shape is transferred: tune the learning rate anew. The earlier run is not charged to this one's time.

    Source: arXiv:2310.07831, B, C and D; facebookresearch/adaptive_scheduling for the edges of the median.
    Deviations: see ``deviations``.
    """

    name = "refined"
    deviations = (
        "The norms at both ends are kept; the authors' code drops the first and the last two.",
        "Smoothed norms below a millionth of the largest count as that, so that no single step takes the whole rate.",
    )

    norms: str | None = hyper(None, help="gradient norms of an earlier run, numbers >= 0; none: constant")
    norm: Norm = hyper("l1", help="which norm they are: l1 for Adam and its kin, l2 for SGD")
    tau: Annotated[float, Gt(0), Lt(1)] = hyper(0.1, search=Linear(0.05, 0.2), help="part of the run in a median, τ")

    def __post_init__(self) -> None:
        """Refuse norms that are none."""
        super().__post_init__()
        if self.norms is not None:
            parsed_norms(self.norms)

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return ``step -> factor``."""
        norms = np.ones(max(2, run.steps)) if self.norms is None else parsed_norms(self.norms)
        shape = refined_schedule(norms, self.norm, self.tau)
        places = np.linspace(0.0, len(shape) - 1.0, run.steps) if run.steps > 1 else np.zeros(1)
        factors = np.interp(places, np.arange(len(shape)), shape)
        return lambda step: float(factors[step]) if step < run.steps else 0.0


def parsed_norms(text: str) -> NDArray[np.float64]:
    """Return the finite numbers in ``text``.

    Raises:
        BadValue: something in it is no number or negative, or fewer than two are finite, or none is positive.
    """
    try:
        values = np.array([float(word) for word in text.replace(",", " ").split()])
    except ValueError as error:
        raise _refusal(text, str(error)) from None
    finite: NDArray[np.float64] = values[np.isfinite(values)]
    if len(finite) < 2 or finite.min() < 0 or finite.max() == 0:
        raise _refusal(text, "it needs two finite numbers or more, none of them negative and not all of them zero")
    return finite


def _refusal(text: str, reason: str) -> BadValue:
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return BadValue(
        f"refined: norms = {shown!r} ({type(text).__name__}) is not allowed: {reason}",
        hint="norms is numbers >= 0 separated by commas or spaces, one gradient norm per logged step, or none; from a "
        'file: --set norms="$(cat FILE)"',
    )


def refined_schedule(norms: Sequence[float] | NDArray[np.float64], norm: Norm, tau: float = 0.1) -> NDArray[np.float64]:
    """Return s for the gradient norms of a run: an array of the same length with maximum 1 that ends in 0."""
    smoothed = running_median(np.asarray(norms, dtype=np.float64), tau)
    weights = np.maximum(smoothed / smoothed.max(), 1e-6) ** (-1.0 if norm == "l1" else -2.0)
    tails = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    products = weights * tails
    shape: NDArray[np.float64] = products / products.max()
    return shape


def running_median(values: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """Return the median of a window of the part ``tau`` of ``values``, of odd width, around each of them.

    Left of the first value the first is repeated; right of the last the values are reflected, for the end of a schedule
    depends on the last norms most of all.
    """
    half = min(int(tau * len(values)) // 2, len(values) - 1)
    padded = np.pad(values, (0, half), mode="reflect")
    median: NDArray[np.float64] = median_filter(padded, size=2 * half + 1, mode="nearest")
    return median[: len(values)]
