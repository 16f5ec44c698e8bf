"""A loss as a function of a model's outputs alone: its value and its gradient there, without knowing the batch's keys.

A workload's loss is called with a model and a batch. Here something else stands in the model's place: it answers with a
tensor of its own, so that the gradient of the loss ends at that tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.errors import SlotMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench import Batch, Loss


class AtOutputs(NamedTuple):
    """What a loss said of some outputs.

    ``loss`` is its scalar value, without a graph; ``outputs`` are the outputs z as they came, with the graph that they
    may have; ``gradient`` is ∂ loss / ∂z of the same shape; the model was given ``arguments`` and ``keywords``.
    """

    loss: Tensor
    outputs: Tensor
    gradient: Tensor
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class _Stand(nn.Module):
    """Stands in a model's place: answers with a leaf that has the values of what ``forward_pass`` returns."""

    def __init__(self, forward_pass: Callable[..., Any]) -> None:
        super().__init__()
        self.forward_pass = forward_pass
        self.calls: list[tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        outputs = self.forward_pass(*arguments, **keywords)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise SlotMismatch(f"the model returns {type(outputs).__name__}, not one tensor of outputs")
        leaf = outputs.detach().requires_grad_()
        self.calls.append((outputs, leaf, arguments, keywords))
        return leaf


def at_outputs(loss: Loss, forward_pass: Callable[..., Any], batch: Batch) -> AtOutputs:
    """Call ``loss`` on ``batch`` with the outputs of ``forward_pass`` (a model, or any function in its place).

    A loss that calls its model more or less than once, and outputs that are no tensor, raise
    :class:`~bench.errors.SlotMismatch`.
    """
    stand = _Stand(forward_pass)
    with torch.enable_grad():
        value = loss(stand, batch)
    if len(stand.calls) != 1:
        raise SlotMismatch(f"the loss calls the model {len(stand.calls)} times; it must call it once")
    ((outputs, leaf, arguments, keywords),) = stand.calls
    (gradient,) = torch.autograd.grad(value, leaf)
    return AtOutputs(value.detach(), outputs, gradient, arguments, keywords)


def loss_at(loss: Loss, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the scalar value of ``loss`` on ``batch`` if the model's outputs were ``outputs``."""
    with torch.no_grad():
        return loss(_Stand(lambda *_, **__: outputs), batch).detach()


def micro_batches(batch: Batch, number: int) -> Iterator[tuple[Batch, float]]:
    """Yield ``batch`` in at most ``number`` pieces along its first dimension, each with its share of the rows."""
    rows = next(iter(batch.values())).shape[0]
    size = -(-rows // number)
    for first in range(0, rows, size):
        piece = {key: value[first : first + size] for key, value in batch.items()}
        yield piece, min(size, rows - first) / rows
