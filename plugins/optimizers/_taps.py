r"""Taps: the mean input of a layer and the mean gradient of its output, noted while back-propagation runs.

For a layer with rows x_i in and y_i out (tokens, or examples of a convolution) and a loss that averages over N rows,

    a = mean_i clamp(x_i)            (d_in), with a 1 behind it where the layer has a bias
    g = mean_i clamp(N ∂loss/∂y_i)   (d_out)

in fp32. The rows of a convolution are its patches and outputs, averaged over positions before the clamp. Several
backward passes before a step add their g, since each holds its share of the loss, and average their a.

A tap sits on the weight that it belongs to, so an optimizer finds it there without knowing the model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

Layer: TypeAlias = nn.Linear | nn.Conv2d

_ATTRIBUTE = "_bench_tap"


class Tap:
    """What one layer has noted since :meth:`clear`; ``active = False`` makes it let everything pass.

    ``bias`` is the layer's bias; ``limit`` is the bound of the clamp.
    """

    def __init__(self, layer: Layer, limit: float) -> None:
        self.bias: Tensor | None = layer.bias
        self.limit = limit
        self.active = True
        self._spatial = isinstance(layer, nn.Conv2d)
        self.clear()

    def clear(self) -> None:
        """Forget what was noted."""
        self._inputs: Tensor | None = None
        self._output_gradients: Tensor | None = None
        self._passes = 0

    def means(self) -> tuple[Tensor, Tensor] | None:
        """Return a and g, or ``None`` if no backward pass went through the layer."""
        if self._inputs is None or self._output_gradients is None:
            return None
        return self._inputs / self._passes, self._output_gradients

    def watch(self, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Note a forward pass once its backward pass comes: a hook for ``register_forward_hook``.

        So passes without one, an evaluation for instance, leave no trace, and gradients may be zeroed in between.
        """
        if self.active and torch.is_grad_enabled() and output.requires_grad:
            mean_input = self._mean_input(layer, inputs[0].detach())
            output.register_hook(partial(self._receive, mean_input))  # type: ignore[no-untyped-call]

    def _mean_input(self, layer: Layer, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            padding = cast("tuple[int, int]", layer.padding)  # tappable() refuses the textual kinds
            patches = functional.unfold(x.float(), layer.kernel_size, layer.dilation, padding, layer.stride)
            rows = patches.mean(2)
        else:
            rows = x.reshape(-1, x.shape[-1]).float()
        mean = rows.clamp(-self.limit, self.limit).mean(0)
        return mean if self.bias is None else torch.cat([mean, mean.new_ones(1)])

    def _receive(self, mean_input: Tensor, gradient: Tensor) -> None:
        rows = gradient.detach().float()
        rows = rows.flatten(2).mean(2) if self._spatial else rows.reshape(-1, rows.shape[-1])
        mean = (rows * rows.shape[0]).clamp_(-self.limit, self.limit).mean(0)
        self._inputs = mean_input if self._inputs is None else self._inputs + mean_input
        self._output_gradients = mean if self._output_gradients is None else self._output_gradients + mean
        self._passes += 1


def tappable(module: nn.Module) -> bool:
    """Return whether ``module`` is a linear layer or a 2-D convolution in one group with zero padding."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def tap(layer: Layer, limit: float) -> Tap:
    """Put a tap on ``layer`` and return it; layers that share a weight share the tap."""
    found = tap_of(layer.weight)
    if found is None:
        found = Tap(layer, limit)
        setattr(layer.weight, _ATTRIBUTE, found)
    layer.register_forward_hook(found.watch)
    return found


def tap_layers(model: nn.Module, *, without: Sequence[nn.Module] = (), limit: float = 100.0) -> None:
    """Put taps on the linear layers and convolutions of ``model`` except ``without``; ``limit`` bounds the clamp."""
    for module in model.modules():
        if tappable(module) and all(module is not other for other in without):
            tap(cast("Layer", module), limit)


def tap_of(weight: Tensor) -> Tap | None:
    """Return the tap of the layer whose weight ``weight`` is, if it has one."""
    return getattr(weight, _ATTRIBUTE, None)
