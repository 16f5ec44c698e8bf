"""Fisher merging: each model counts, weight by weight, for as much as its predictions depend on that weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper
from bench.errors import BadValue

from ._fisher import diagonal_fisher
from ._vectors import Values, heads_of, norm, visit, weights_of, with_values

if TYPE_CHECKING:
    from torch import nn

    from bench import Batch, Experts, Run


@dataclass(frozen=True, kw_only=True)
class FisherMerging(Algorithm):
    """Averaging weighted by the diagonal Fisher information; see :func:`fisher_merging`.

    Each model's Fisher is that of its own predictions on inputs of its own task; labels are not looked at. All models
    count alike, so nothing is tuned on validation data.

    Source: arXiv:2111.09832, mmatena/model_merging ``model_merging/merging.py``.
    Deviations: see ``deviations``.
    """

    name = "fisher-merging"
    information = "inputs"
    deviations = (
        "All coefficients are equal; the script picks them on validation data of one target task.",
        "Every Fisher has the floor, since no task is the target; with favor_target only the first, as in the script.",
        "A Fisher that is zero everywhere is normalised by the norm of its floor; the script divides by zero.",
        "256 examples, as in FusionBench; the script takes 4096.",
    )

    examples: Annotated[int, Ge(1)] = hyper(256, search=Choice((128, 256, 1024, 4096)), help="inputs per task for F")
    samples: Annotated[int, Ge(1)] | None = hyper(
        None, help="classes drawn from the prediction per input; empty: the exact expectation over all classes"
    )
    floor: Annotated[float, Gt(0)] = hyper(1e-6, search=Log(1e-12, 1e-6), help="lower bound of F before normalising")
    normalize: bool = hyper(True, search=Choice((True, False)), help="divide F by its norm over all weights")
    favor_target: bool = hyper(False, help="floor for the first model alone, which then decides where no F is above 0")

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        heads = heads_of(run)

        def fisher(index: int, model: nn.Module) -> Values:
            inputs = (batch["inputs"] for batch in calibration[index])
            generator = None if self.samples is None else run.rng(f"classes {index}")
            return diagonal_fisher(
                model, inputs, examples=self.examples, samples=self.samples, heads=heads, generator=generator
            )

        return fisher_merging(
            models,
            fisher,
            floor=self.floor,
            normalize=self.normalize,
            favor_target=self.favor_target,
            heads=heads,
        )


def fisher_merging(
    models: Sequence[nn.Module],
    fisher: Callable[[int, nn.Module], Mapping[str, Tensor]],
    *,
    coefficients: Sequence[float] | None = None,
    floor: float = 1e-6,
    normalize: bool = True,
    favor_target: bool = False,
    heads: Collection[str] = (),
) -> nn.Module:
    """Return the mode of the product of the models' Gaussian posteriors, whose precisions are their diagonal Fishers.

        θ* = Σ_t w_t θ_t / Σ_t w_t,    w_t = λ_t max(F_t, floor) / ‖F_t‖₂       elementwise

    F_t = ``fisher(t, model)`` has an entry for each weight, as :func:`diagonal_fisher` gives it, and is computed model
    by model, so the memory is that of two sums and of one model with its F. λ_t = ``coefficients[t]``, by default all
    alike. The norm is over all weights together, 1 unless ``normalize``. With ``favor_target`` only the first model has
    the floor, so a weight on which nobody depends is the first model's instead of an average. Parameters named in
    ``heads`` stay those of the first model; floating-point buffers are averaged plainly.

        >>> from torch import nn
        >>> inputs = [torch.randn(16, 4), torch.randn(16, 4)]
        >>> merged = fisher_merging(
        ...     [nn.Linear(4, 2), nn.Linear(4, 2)], lambda t, model: diagonal_fisher(model, [inputs[t]])
        ... )

    Raises :class:`~bench.errors.BadValue` where architectures differ or a value is outside its domain.
    Source: arXiv:2111.09832. Deviations: see :class:`FisherMerging`.
    """
    FisherMerging.check(floor=floor, normalize=normalize, favor_target=favor_target)
    coefficients = [1.0] * len(models) if coefficients is None else coefficients
    if len(coefficients) != len(models) or min(coefficients, default=1.0) < 0 or not sum(coefficients):
        raise BadValue(
            f"coefficients are {list(coefficients)!r}", hint="one for each model, none below 0 and not all of them 0"
        )
    mean, total = Values(), Values()

    def take(index: int, model: nn.Module) -> None:
        raw = fisher(index, model)
        floored = {name: value.clamp_min(floor) for name, value in raw.items()}
        share = coefficients[index] / ((norm(raw) or norm(floored)) if normalize else 1.0)
        weights = raw if favor_target and index else floored
        for name, value in weights_of(model, heads).items():
            weight = weights[name].to(value.dtype) * share
            if index == 0:
                mean[name], total[name] = value.clone(), weight
                continue
            total[name] += weight
            part = torch.where(total[name] > 0, weight / total[name], 0.0)  # nobody depends on it yet: the first stays
            mean[name].addcmul_(part, value - mean[name])

    buffers = visit(models, take)
    return with_values(models[0], mean, buffers)
