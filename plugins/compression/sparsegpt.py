"""SparseGPT: column after column, weights become zero and the later columns make up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bench import Algorithm, Batch, Choice, Log, Run, hyper

from ._calibration import Propagation, calibrated
from ._linears import asked_ratio, kept_count, with_weight
from ._masks import largest, largest_per_group


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Algorithm):
    """Prune every hidden matrix by the optimal brain surgeon's rule, in the order of its columns.

        H = C + δ mean(diag C) I,    R the upper Cholesky factor of H⁻¹,    H⁻¹ = Rᵀ R
        mask from the scores w² / R_jj²: of a block of columns, or of the M columns of each group of a pattern N:M
        e = (w_j - ŵ_j) / R_jj,    W_{j:} ← W_{j:} - e R_{j,j:}        ŵ_j = w_j where it stays, else 0

    C is the second moment of the inputs, δ is ``damping``. Within a block of ``block`` columns updates are made at
    once, to the columns behind it after the block. An input that is always zero loses its column. Of the kept ratio ρ
    that is asked for every block gets its share; a block is shortened to a multiple of M.

    Source: arXiv:2301.00774; locuslab/wanda ``lib/sparsegpt.py``.
    Deviations: the class fact ``deviations``.
    """

    name = "sparsegpt"
    deviations = (
        "Exactly the asked number of weights becomes zero; the code takes one more per block.",
        "Damping is a part of the mean of diag C as it is; the code first puts 1 where that is zero.",
        "Float64 instead of float32.",
    )
    information = "inputs"

    damping: Annotated[float, Gt(0)] = hyper(0.01, search=Log(1e-3, 1e-1), help="added to the diagonal of C, δ")
    block: Annotated[int, Ge(1)] = hyper(128, search=Choice((32, 64, 128)), help="columns that share one threshold")
    propagation: Propagation = hyper("sequential", help="whence the inputs of a block: pruned blocks, or dense ones")

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with zeros in every hidden matrix."""
        pattern = None if run.point is None else run.point.pattern
        ratio = None if pattern is not None else asked_ratio(run)

        def replacement(_name: str, linear: nn.Linear, surgeon: Surgeon) -> nn.Module:
            weight = linear.weight.detach()
            return with_weight(linear, surgeon.prune(weight, kept_ratio=ratio, pattern=pattern, block=self.block))

        return calibrated(
            model, calibration, run, self.propagation, lambda moment: surgeon_of(moment, self.damping), replacement
        )


class Surgeon(NamedTuple):
    """What the inputs say of the cost of a zero: ``factor`` R (n, n), and which inputs are ``dead`` (n)."""

    factor: Tensor
    dead: Tensor

    def prune(
        self,
        weight: Tensor,
        *,
        kept_ratio: float | None = None,
        pattern: tuple[int, int] | None = None,
        block: int = 128,
    ) -> Tensor:
        """Return ``weight`` (m, n) pruned, in float64; ``pattern`` goes before ``kept_ratio``."""
        start = weight.double().masked_fill(self.dead, 0.0)
        if pattern is not None:
            group = pattern[1]
            largest_per_group(start, pattern)  # refuses sizes that the groups do not divide
            return self.sweep(
                start, lambda scores, _: largest_per_group(scores, pattern), max(block // group, 1) * group, group
            )
        rows, ratio = len(weight), 1.0 if kept_ratio is None else kept_ratio

        def choose(scores: Tensor, first: int) -> Tensor:
            share = kept_count(ratio, rows * (first + scores.shape[1])) - kept_count(ratio, rows * first)
            return largest(scores, share)

        return self.sweep(start, choose, block, block)

    def sweep(self, weight: Tensor, choose: Callable[[Tensor, int], Tensor], block: int, group: int) -> Tensor:
        """Return ``weight`` (m, n) after all columns; ``choose(scores, first column)`` returns the mask of a group."""
        weight, factor, diagonal = weight.clone(), self.factor, self.factor.diagonal()
        columns = weight.shape[1]
        for start in range(0, columns, block):
            end = min(start + block, columns)
            errors = weight.new_zeros(len(weight), end - start)
            for first in range(start, end, group):
                last = min(first + group, end)
                mask = choose((weight[:, first:last] / diagonal[first:last]).square(), first)
                for j in range(first, last):
                    kept = weight[:, j] * mask[:, j - first]
                    errors[:, j - start] = (weight[:, j] - kept) / diagonal[j]
                    weight[:, j:end].addr_(errors[:, j - start], factor[j, j:end], alpha=-1.0)
                    weight[:, j] = kept  # the same but for rounding, and zeros shall be zeros
            weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1.0)
        return weight


def surgeon_of(moment: Tensor, damping: float = 0.01) -> Surgeon:
    """Return the surgeon for inputs of second ``moment`` C (n, n), up to a factor, computed in float64."""
    hessian = moment.double().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    damp = damping * diagonal.mean()
    diagonal.masked_fill_(dead, 1.0)
    diagonal += damp
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return Surgeon(torch.linalg.cholesky(inverse, upper=True), dead)


def prune_linear(
    weight: Tensor,
    moment: Tensor,
    *,
    kept_ratio: float | None = None,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Tensor:
    """Return ``weight`` W (m, n) pruned for inputs of second ``moment`` C (n, n), in float64.

    >>> import torch
    >>> inputs = torch.randn(100, 12)
    >>> pruned = prune_linear(torch.randn(8, 12), inputs.T @ inputs, pattern=(2, 4))
    >>> int((pruned == 0).sum())
    48
    """
    return surgeon_of(moment, damping).prune(weight, kept_ratio=kept_ratio, pattern=pattern, block=block)
