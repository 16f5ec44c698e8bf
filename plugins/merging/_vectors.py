"""What the merging plugins share: which tensors are merged, a pass that holds one model at a time, and the result.

*Weights* are the parameters, tied ones once, without the heads (which belong to one task and are never merged). Buffers
are no weights: floating-point ones become their mean, whatever the method, and integers stay those of the first model.
Sums are in fp32, or in fp64 where the weights are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench import Role
from bench.errors import BadValue, SlotMismatch

if TYPE_CHECKING:
    from torch import nn

    from bench import Experts, Run

Values = dict[str, Tensor]
"""A tensor for each name."""


def heads_of(run: Run) -> frozenset[str]:
    """Return the names of the parameters that are never merged."""
    return frozenset(name for name, role in run.roles.items() if role is Role.CLASSIFIER)


def start_of(models: Experts, algorithm: str) -> nn.Module:
    """Return the model that all experts were trained from.

    Raises:
        SlotMismatch: they have no common start.
    """
    pretrained = models.pretrained
    if pretrained is None:
        raise SlotMismatch(
            f"{algorithm} adds up what training changed, and these models share no start",
            hint="use a method that works on the weights themselves: average, or weight-matching",
        )
    return pretrained


def weights_of(model: nn.Module, heads: Collection[str] = ()) -> Values:
    """Return the weights of ``model``; those that are fp32 or fp64 already share its memory."""
    return {name: _wide(value) for name, value in model.named_parameters() if name not in heads}


def buffers_of(model: nn.Module) -> Values:
    """Return the floating-point buffers of ``model``."""
    return {name: _wide(value) for name, value in model.named_buffers() if value.is_floating_point()}


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def visit(
    models: Sequence[nn.Module], take: Callable[[int, nn.Module], None], like: nn.Module | None = None
) -> Mapping[str, Tensor]:
    """Call ``take(index, model)`` for each model and return the mean of their floating-point buffers.

    A model is dropped before the next one is asked for, so one is alive at a time if ``take`` keeps none.

    Raises:
        BadValue: there is no model, or its parameters are not those of the first one, or of ``like``.
    """
    if not len(models):
        raise BadValue("there is no model to merge", hint="give at least one")
    shapes = None if like is None else _shapes(like)
    buffers = Mean()
    for index in range(len(models)):
        model = models[index]
        shapes = shapes or _shapes(model)
        if _shapes(model) != shapes:
            raise BadValue(
                f"model {index} has other parameters: {_difference(_shapes(model), shapes)}",
                hint="models that are merged have one architecture",
            )
        take(index, model)
        buffers.add(buffers_of(model))
        del model
    return buffers.values


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.named_parameters()}


def _difference(these: Mapping[str, torch.Size], those: Mapping[str, torch.Size]) -> str:
    name = min(name for name in these.keys() | those.keys() if these.get(name) != those.get(name))
    here, there = (tuple(shapes[name]) if name in shapes else "missing" for shapes in (these, those))
    return f"{name!r} is {here}, elsewhere {there}"


class Mean:
    """A running mean m ← m + (x - m) / n; of equal values it is that value, to the bit."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take one more set of values into account."""
        self.count += 1
        if self.count == 1:
            self.values = {name: value.clone() for name, value in values.items()}
        for name, mean in self.values.items():
            mean.lerp_(values[name], 1.0 / self.count)


def task_vector(model: nn.Module, start: Mapping[str, Tensor], heads: Collection[str] = ()) -> Values:
    """Return τ = θ - θ₀ of the weights."""
    return {name: value - start[name] for name, value in weights_of(model, heads).items()}


def zeros_like(values: Mapping[str, Tensor]) -> Values:
    """Return a zero for each value."""
    return {name: torch.zeros_like(value) for name, value in values.items()}


def moved(start: Mapping[str, Tensor], vector: Mapping[str, Tensor], scale: float = 1.0) -> Values:
    """Return θ₀ + scale τ."""
    return {name: value.add(vector[name], alpha=scale) for name, value in start.items()}


def norm(values: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all values together."""
    squares = [torch.linalg.vector_norm(value, dtype=torch.float64).square() for value in values.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def with_values(model: nn.Module, *parts: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``model`` whose parameters and buffers named in ``parts`` have these values."""
    result = copy.deepcopy(model)
    tensors = dict(result.named_buffers()) | dict(result.named_parameters())
    with torch.no_grad():
        for part in parts:
            for name, value in part.items():
                tensors[name].copy_(value)
    return result
