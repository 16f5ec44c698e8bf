"""Wanda: the smallest products of weight and input norm become zero, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bench import Algorithm, Batch, Run, hyper

from ._calibration import Propagation, calibrated
from ._linears import asked_ratio, kept_count, with_weight
from ._masks import largest_per_group, largest_per_row


@dataclass(frozen=True, kw_only=True)
class Wanda(Algorithm):
    """Keep in each output's row of every hidden matrix the weights of the largest score; the others become zero.

        score_ij = |W_ij| ||X_j||₂,    X_j the values of input j over the calibration tokens

    floor(ρ n) of the n weights of a row stay at the kept ratio ρ; at a pattern N:M the N best of each M consecutive
    ones along the input axis. Weights that stay are not changed.

    Source: arXiv:2306.11695, locuslab/wanda ``lib/prune.py``.
    Deviations: none.
    """

    name = "wanda"
    information = "inputs"

    propagation: Propagation = hyper("sequential", help="whence the inputs of a block: pruned blocks, or dense ones")

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with zeros in every hidden matrix."""
        pattern = None if run.point is None else run.point.pattern
        ratio = None if pattern is not None else asked_ratio(run)

        def replacement(_name: str, linear: nn.Linear, norms: Tensor) -> nn.Module:
            weight = linear.weight.detach()
            return with_weight(linear, weight * kept(weight, norms, kept_ratio=ratio, pattern=pattern))

        return calibrated(model, calibration, run, self.propagation, lambda c: c.diagonal().sqrt(), replacement)


def kept(
    weight: Tensor, norms: Tensor, *, kept_ratio: float | None = None, pattern: tuple[int, int] | None = None
) -> Tensor:
    """Return the mask of ``weight`` (m, n), true where a weight stays; ``norms`` (n) of the inputs, up to a factor."""
    scores = weight.double().abs() * norms.double()
    if pattern is not None:
        return largest_per_group(scores, pattern)
    return largest_per_row(scores, kept_count(1.0 if kept_ratio is None else kept_ratio, weight.shape[1]))
