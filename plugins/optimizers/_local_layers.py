r"""One layer that learns on its own: its error against a target of its own, and the gradient that ends at the layer.

For a layer with input x, output z = W x + b and activation σ, the error e of an output row against a target t is

    l2     e = (t - σ(z)) σ'(z)               half of -∂‖t - σ(z)‖²/∂z
    l1     e = sign(t - σ(z)) σ'(z)           -∂‖t - σ(z)‖₁/∂z
    drtp   e = -t σ'(z)                       direct random target projection: no distance, t is the error that arrives

and the gradients are ∂_W = -Σ e xᵀ, ∂_b = -Σ e over rows. Raw targets are moved into the range of σ, except for drtp:
½ + ½ t for the sigmoid, |t| for the ReLU.

Source: arXiv:2208.08503 (l2, l1), arXiv:1909.01311 (drtp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Activation = Literal["tanh", "sigmoid", "relu", "identity"]
LayerLoss = Literal["l2", "l1", "drtp"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def local_error(z: Tensor, raw: Tensor, activation: Activation, layer_loss: LayerLoss) -> Tensor:
    """Return e of outputs ``z``, where ``raw`` is the target of the same shape before it is moved into σ's range."""
    y, slope = _activated(z, activation)
    if layer_loss == "drtp":
        return -raw * slope
    target = {"sigmoid": 0.5 + 0.5 * raw, "relu": raw.abs()}.get(activation, raw)
    difference = target - y
    return (difference if layer_loss == "l2" else difference.sign()) * slope


def _activated(z: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return σ(z) and σ'(z)."""
    if activation == "tanh":
        y = z.tanh()
        return y, 1.0 - y * y
    if activation == "sigmoid":
        y = z.sigmoid()
        return y, y * (1.0 - y)
    if activation == "relu":
        return z.relu(), (z > 0).to(z.dtype)
    return z, torch.ones_like(z)


def accumulate(layer: Layer, features: Tensor, error: Tensor) -> None:
    """Add ∂_W and ∂_b to the gradients of ``layer``; ``features`` are x, ``error`` is e, in the shape of its output."""
    parameters = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    for parameter, gradient in zip(parameters, _local(layer, parameters, features.detach(), -error), strict=True):
        gradient = gradient.to(parameter.dtype)  # noqa: PLW2901 - the same gradient, as wide as its parameter
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _local(layer: Layer, parameters: Sequence[Tensor], features: Tensor, gradient: Tensor) -> Iterable[Tensor]:
    """Return the gradients of ``parameters`` of one ``layer`` alone, given the ``gradient`` at its output."""
    if isinstance(layer, nn.Linear):
        rows, columns = gradient.flatten(0, -2), features.flatten(0, -2).to(gradient.dtype)
        found = {id(layer.weight): lambda: rows.mT @ columns, id(layer.bias): lambda: rows.sum(dim=0)}
        return [found[id(parameter)]() for parameter in parameters]
    with torch.enable_grad():
        output = layer.forward(features)  # once more, of this layer alone and without its hooks
    return torch.autograd.grad(output, parameters, gradient.to(output.dtype))
