"""Per-example directional derivatives of a language model's loss in one weight matrix, from forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Forward = Callable[[Tensor], Tensor]

_IGNORED = -100


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's mean next-token loss, (B,): logits (B, T, V) at t against the label at t+1.

    It is computed in fp32, in fp64 if the logits are. Labels of -100 count neither in the sum nor in the number, so
    padding changes nothing; an example without any other label has loss 0.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none"
    ).view_as(targets)
    return losses.sum(dim=1) / (targets != _IGNORED).sum(dim=1).clamp_min(1)


def slopes(
    model: nn.Module, name: str, batch: Mapping[str, Tensor], directions: Tensor, eps: float, *, mixed: bool = False
) -> Tensor:
    """Return the two-sided differences of each example's loss along each direction, (B, m).

        a_ik = (L_i(θ + ε z_k) - L_i(θ - ε z_k)) / (2 ε)

    with z_k = ``directions[k]``, θ the parameter ``name`` and L_i the example's mean token loss. ``model`` maps
    ``batch["input_ids"]`` (B, T) to logits. It computes in evaluation mode, without gradients, and is left as it was: θ
    itself is never changed.

    All weights of less than fp32 are widened for the passes, since in bf16 the difference would drown in rounding.
    ``mixed`` lets bf16 autocast run what lies before the block of θ. Where θ is the weight of a linear layer in one of
    a list of blocks, everything up to that block runs once for all differences.
    """
    modes = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            widened = {
                key: tensor.detach().float()
                for key, tensor in chain(model.named_parameters(), model.named_buffers())
                if tensor.dtype in {torch.bfloat16, torch.float16}
            }
            place = _place(model, name)
            if place is None:
                losses = _losses_by_whole_passes(model, widened, name, batch, directions, eps)
            else:
                losses = _losses_by_shared_trunk(model, widened, place, batch, directions, eps, mixed=mixed)
            return ((losses[:, 0] - losses[:, 1]) / (2 * eps)).T
    finally:
        for module in modes:
            module.training = True


def _losses_by_whole_passes(
    model: nn.Module,
    widened: Mapping[str, Tensor],
    name: str,
    batch: Mapping[str, Tensor],
    directions: Tensor,
    eps: float,
) -> Tensor:
    """Return the losses (m, 2, B) at θ + ε z_k and θ - ε z_k, one pass for each: the specification."""
    theta = widened.get(name, model.get_parameter(name).detach())
    found = []
    for direction in directions.to(theta.dtype):
        for sign in (1.0, -1.0):
            moved = {**widened, name: theta + sign * eps * direction}
            found.append(example_losses(functional_call(model, moved, (batch["input_ids"],)), batch["labels"]))
    return torch.stack(found).view(len(directions), 2, -1)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, nn.Linear] | None:
    """Return the outermost block of a list that holds the linear layer whose weight is ``name``, and that layer."""
    path = name.split(".")
    layer = model.get_submodule(".".join(path[:-1]))
    if type(layer) is not nn.Linear or path[-1] != "weight":
        return None
    for depth in range(1, len(path)):
        if isinstance(model.get_submodule(".".join(path[: depth - 1])), nn.ModuleList):
            return model.get_submodule(".".join(path[:depth])), layer
    return None


def _losses_by_shared_trunk(
    model: nn.Module,
    widened: Mapping[str, Tensor],
    place: tuple[nn.Module, nn.Linear],
    batch: Mapping[str, Tensor],
    directions: Tensor,
    eps: float,
    *,
    mixed: bool,
) -> Tensor:
    """Return the same losses by one pass.

    What enters the block is repeated 2 m times along the batch, and the layer's output x θᵀ gets ± ε x z_kᵀ in the copy
    that belongs to (k, ±): by linearity that is the output of θ ± ε z_k, and more exactly so than a sum of weights.
    """
    block, layer = place
    rows, copies = len(batch["input_ids"]), 2 * len(directions)

    def entered(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        stack.enter_context(torch.autocast(args[0].device.type, enabled=False))
        widen = partial(_repeated, rows=rows, copies=copies)
        return tuple(map(widen, args)), {key: widen(value) for key, value in kwargs.items()}

    def moved(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(len(directions), 2, -1, args[0].shape[-1])
        signed = eps * directions.to(x.dtype)
        change: Tensor = x @ torch.stack((signed, -signed), dim=1).transpose(-2, -1)
        return output + change.reshape(output.shape)

    forward: Forward = partial(functional_call, model, dict(widened)) if widened else model
    hooks: list[RemovableHandle] = [
        block.register_forward_pre_hook(entered, with_kwargs=True),
        layer.register_forward_hook(moved),
    ]
    kind = batch["input_ids"].device.type
    try:
        with torch.autocast(kind, torch.bfloat16, enabled=mixed), ExitStack() as stack:
            logits = forward(batch["input_ids"])
        return example_losses(logits, batch["labels"].repeat(copies, 1)).view(-1, 2, rows)
    finally:
        for hook in hooks:
            hook.remove()


def _repeated(value: Any, *, rows: int, copies: int) -> Any:
    """Return a tensor over the batch ``copies`` times, in fp32 at least, and anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim < 3 or len(value) != rows:
        return value
    value = value.float() if value.dtype in {torch.bfloat16, torch.float16} else value
    return value.repeat(copies, *[1] * (value.ndim - 1))
