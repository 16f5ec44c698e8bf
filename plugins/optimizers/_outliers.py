"""Outliers of linear layers: weights that, times the size of their input, stand far above the mean of their block.

For a linear layer with weight W (m, n) and input features X_j, j = 1 .. n, over all positions of some batch,

    A_ij = ‖X_j‖ |W_ij|                  ‖X_j‖ the root mean square here: its scale cancels in what follows
    D = 100 #{A > τ mean(A)} / #A        A and its mean over all linear layers of one block together

Source: arXiv:2306.11695 (Wanda) for A, arXiv:2310.05175 (OWL) for D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def outlier_scores(blocks: Sequence[nn.Module], threshold: float, forward: Callable[[], object]) -> Tensor:
    """Return D of each of ``blocks`` (L,) in percent, fp64 on the CPU; ``forward`` makes the forward pass.

    ``threshold`` is τ. Layers that ``forward`` does not reach do not count; a block without a reached linear layer
    scores 0.
    """
    layers = [[module for module in block.modules() if isinstance(module, nn.Linear)] for block in blocks]
    sizes = _input_sizes([layer for block in layers for layer in block], forward)
    return torch.stack(
        [
            outlier_score([(layer.weight, sizes[layer]) for layer in block if layer in sizes], threshold)
            for block in layers
        ]
    )


def outlier_score(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Tensor:
    """Return D of one block as a scalar; ``pairs`` are its weights W (m, n), each with ‖X_j‖ (n,)."""
    metrics = [weight.detach().abs().float() * size for weight, size in pairs]
    elements = sum(metric.numel() for metric in metrics)
    if not elements:
        return torch.zeros((), dtype=torch.float64)
    mean = torch.stack([metric.sum(dtype=torch.float64) for metric in metrics]).sum() / elements
    count = torch.stack([(metric > threshold * mean).sum() for metric in metrics]).sum()
    return (100.0 * count.double() / elements).cpu()


def _input_sizes(layers: Sequence[nn.Linear], forward: Callable[[], object]) -> dict[nn.Module, Tensor]:
    """Return the root mean square of each input feature (n,), fp32, of those ``layers`` that ``forward`` reaches."""
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def gather(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].detach().flatten(0, -2).float()
        sums[layer] = sums.get(layer, 0.0) + features.square().sum(dim=0)
        counts[layer] = counts.get(layer, 0) + features.shape[0]

    handles = [layer.register_forward_pre_hook(gather) for layer in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return {layer: (total / max(1, counts[layer])).sqrt() for layer, total in sums.items()}
