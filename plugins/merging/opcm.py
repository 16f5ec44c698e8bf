"""OPCM: models arrive one by one, and of each only what is orthogonal to what is there already is added."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from bench import Algorithm, Linear, hyper

from ._vectors import Values, heads_of, moved, norm, start_of, task_vector, visit, weights_of, with_values

if TYPE_CHECKING:
    from bench import Batch, Experts, Run


@dataclass(frozen=True, kw_only=True)
class Opcm(Algorithm):
    """Continual merging by orthogonal projection; see :class:`SequentialMerger`.

    Models are taken in the order in which they are handed over.

    Source: arXiv:2501.09522, tanganke/opcm ``fusion_bench/method/opcm``.
    Deviations: see ``deviations``.
    """

    name = "opcm"
    information = "weights"
    needs = ("pretrained",)
    deviations = (
        "The diagonal and the top-left block are removed, as in the code; the paper removes whole rows and columns.",
        "The diagonal is removed up to the numerical rank; the code goes on in a null space of arbitrary basis.",
        "Buffers are averaged and count in no norm; the code treats them as weights.",
        "With alpha = 1 all singular values are dominant in the text; as in the code only the diagonal is removed.",
    )

    alpha: Annotated[float, Ge(0), Le(1)] = hyper(
        0.5, search=Linear(0.1, 0.9), help="share of the sum of singular values that counts as dominant, α"
    )

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        return opcm(start_of(models, self.name), models, alpha=self.alpha, heads=heads_of(run))


def opcm(
    pretrained: nn.Module, models: Sequence[nn.Module], *, alpha: float = 0.5, heads: Collection[str] = ()
) -> nn.Module:
    """Return the models merged one after another by a :class:`SequentialMerger`; buffers as in the other methods.

    >>> from torch import nn
    >>> merged = opcm(nn.Linear(4, 2), [nn.Linear(4, 2), nn.Linear(4, 2)])
    """
    merger = SequentialMerger(pretrained, alpha=alpha, heads=heads)
    buffers = visit(models, lambda _, model: merger.add(model), like=pretrained)
    if len(models) == 1:  # θ₀ + (θ₁ - θ₀) is θ₁ up to rounding alone
        return with_values(models[0])
    return with_values(models[0], merger.weights(), buffers)


class SequentialMerger:
    """Merges models as they arrive and keeps nothing that grows with their number.

    With the start θ₀, τ_t = θ_t - θ₀, the merged task vector M (M_1 = τ_1), λ_1 = 1 and n̄_t the mean of ‖τ_1‖..‖τ_t‖,
    each arriving model t > 1 does

        M = U S Vᵀ,  P = Uᵀ τ_t V        for the weight of every linear layer
        r = number of singular values before the one whose running sum first exceeds α ΣS
        τ̃ = τ_t - U mask(P) Vᵀ           mask: the diagonal and the block [0:r, 0:r]; τ̃ = τ_t for all other parameters
        A = λ_{t-1} M + τ̃
        λ_t = ‖A‖ / n̄_t,  M = A / λ_t    norms over all weights together

    so that ⟨τ̃, M⟩ = 0 in every linear layer and ‖M_t‖ = n̄_t. α is ``alpha``, λ is ``scale``, n̄ is ``mean_norm``, M is
    ``vector``, t is ``count``. Parameters named in ``heads`` take no part. An attention whose projections are one bare
    parameter has no linear layer and is added without projection.

        >>> merger = SequentialMerger(nn.Linear(4, 2))
        >>> for _ in range(3):
        ...     merger.add(nn.Linear(4, 2))
        >>> weights = merger.weights()

    Source: arXiv:2501.09522. Deviations: see :class:`Opcm`.
    """

    def __init__(self, pretrained: nn.Module, *, alpha: float = 0.5, heads: Collection[str] = ()) -> None:
        Opcm.check(alpha=alpha)
        self.alpha, self.heads = alpha, frozenset(heads)
        self.start = weights_of(pretrained, heads)
        self.matrices = linear_weights(pretrained) & self.start.keys()
        self.vector: Values = {}
        self.count = 0
        self.scale = 1.0
        self.mean_norm = 0.0

    def add(self, model: nn.Module) -> None:
        """Merge one more model."""
        change = task_vector(model, self.start, self.heads)
        self.count += 1
        self.mean_norm += (norm(change) - self.mean_norm) / self.count
        if self.count == 1:
            self.vector = change
            return
        for name, merged in self.vector.items():
            fresh = orthogonal_part(change[name], merged, self.alpha) if name in self.matrices else change[name]
            merged.mul_(self.scale).add_(fresh)
        self._rescale(norm(self.vector))

    def _rescale(self, length: float) -> None:
        """Give M the mean length of a task vector; nothing can give it to zero."""
        self.scale = length / self.mean_norm if length and self.mean_norm else 1.0
        for merged in self.vector.values():
            merged.div_(self.scale)

    def weights(self) -> Mapping[str, Tensor]:
        """Return θ₀ + M; θ₀ before the first model."""
        return moved(self.start, self.vector) if self.count else self.start


def linear_weights(model: nn.Module) -> set[str]:
    """Return the names of the weights of the linear layers of ``model``, as :meth:`named_parameters` has them."""
    ours = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return {name for name, value in model.named_parameters() if id(value) in ours}


def orthogonal_part(change: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """Return τ̃ of ``change`` τ (m, n), given ``merged`` M (m, n).

    The thin SVD does: outside its k = min(m, n) columns the mask is empty, so τ̃ = τ - U_k mask(P) V_kᵀ is exact.
    """
    if not merged.any() or not change.any():
        return change
    driver = "gesvd" if merged.is_cuda else None  # the accurate one
    left, values, right = torch.linalg.svd(merged, full_matrices=False, driver=driver)
    coefficients: Tensor = left.T @ change @ right.T
    rank = int((values > values[0] * max(merged.shape) * torch.finfo(values.dtype).eps).sum())
    r = dominant(values, alpha)
    removed = torch.zeros_like(coefficients)
    removed.diagonal()[:rank] = coefficients.diagonal()[:rank]
    removed[:r, :r] = coefficients[:r, :r]
    part: Tensor = change - left @ removed @ right
    return part


def dominant(values: Tensor, alpha: float) -> int:
    """Return r: how many of the descending singular values come before the share ``alpha`` of their sum is exceeded.

    It is 0 where it never is, as with alpha = 1: so the published ablation has it.
    """
    sums = values.double().cumsum(0)
    exceeds = (sums > alpha * sums[-1]).nonzero()
    return int(exceeds[0]) if len(exceeds) else 0
