"""Adapted linear layers on any model: put them in, fold them into the weights, save and load what they learnt.

>>> from bench.plugins.peft.lora import LoraLinear
>>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
>>> adapted = adapted_linears(model, ["0", "2"], lambda linear: LoraLinear(linear, rank=2))
>>> sorted(adapter_state_dict(adapted))[:3]
['0.base.bias', '0.lora_A', '0.lora_B']
>>> type(merge_adapters(adapted)[0]).__name__
'Linear'
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bench.errors import BadValue


class AdaptedLinear(nn.Module):
    """A linear layer whose frozen weight W (m, n) is used as W + dW.

    ``base`` is the layer that it stands for, with the very parameters of before: W is frozen here, the bias stays as it
    was. A subclass owns the parameters of dW and writes :meth:`delta`; it writes :meth:`forward` too where that needs
    no m x n matrix. What its parameters cannot be computed back from W and themselves is a persistent buffer, so that
    :func:`adapter_state_dict` is complete; what can be computed is none.

    ``weight`` is W + dW, with its gradients, so that code which reads the weight instead of calling the layer (such as
    ``torch.nn.MultiheadAttention`` and the fast path of ``torch.nn.TransformerEncoderLayer``) sees the adapted one.
    """

    base: nn.Linear

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.base.weight.requires_grad_(False)
        self.train(base.training)

    @property
    def in_features(self) -> int:
        """n, the number of inputs."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """m, the number of outputs."""
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """W + dW (m, n), formed outside autocast in the wider dtype of the two and rounded once to that of W."""
        kind = self.base.weight.device.type
        # The meta device has no autocast, not even one to switch off.
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return (self.base.weight + self.delta()).to(self.base.weight.dtype)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the base layer (m,)."""
        return self.base.bias

    def delta(self) -> Tensor:
        """Return dW (m, n) in the dtype of the adapter's parameters."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """Return x (W + dW)ᵀ + b for ``features`` x (..., n)."""
        return nn.functional.linear(features, self.weight, self.base.bias)

    def fold(self) -> nn.Linear:
        """Make W + dW the weight of the base layer, in place, and return that layer."""
        with torch.no_grad():
            self.base.weight.copy_(self.weight)
        return self.base


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of an adapter's parameters beside a weight of ``dtype``: fp32, or better where that is."""
    return torch.promote_types(dtype, torch.float32)


def adapted_linears(model: nn.Module, names: Iterable[str], make: Callable[[nn.Linear], AdaptedLinear]) -> nn.Module:
    """Replace, in place, the layers ``names`` of ``model`` by ``make(layer)`` and return the model.

    ``names`` are those of ``model.named_modules()``; whatever their order, layers are made in that of the model. A
    layer that stands in several places is made once and stays shared. Only where the model itself is the layer to
    adapt (its name is ``""``) the returned module is another one.

    A name that is no ``torch.nn.Linear`` of the model, and a weight that other modules use as well, raise
    :class:`~bench.errors.BadValue`: the two users would disagree on it once it is adapted.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    users = Counter(id(weight) for module in set(modules.values()) for weight in module.parameters(recurse=False))
    chosen: set[nn.Linear] = set()
    for name in names:
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            kind = "nothing" if layer is None else f"a {type(layer).__name__}"
            known = [repr(name) for name, module in modules.items() if isinstance(module, nn.Linear)]
            raise BadValue(
                f"{name!r} is {kind}, not a torch.nn.Linear of the model",
                hint=f"the linear layers in model.named_modules() are {', '.join(known[:8]) or 'none'}",
            )
        if users[id(layer.weight)] > 1:
            raise BadValue(
                f"the weight of {name!r} is also the weight of another module", hint="untie them, or leave both as is"
            )
        chosen.add(layer)
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return _replaced(model, {layer: make(layer) for layer in linears if layer in chosen})


def merge_adapters(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with ordinary linear layers that hold W + dW; ``model`` stays as it is."""
    merged = copy.deepcopy(model)
    return _replaced(merged, {layer: layer.fold() for layer in merged.modules() if isinstance(layer, AdaptedLinear)})


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return what training ``model`` changed, by its name in ``model.state_dict()``.

    That is everything of the adapted layers but their base layers, and outside of these every trainable parameter (a
    head, a bias) and every persistent buffer. With :func:`load_adapter` it gives back the adapted model bit for bit on
    the base weights that it was trained on; ``torch.save`` and ``torch.load(..., weights_only=True)`` carry it.
    """
    layers = [(f"{name}.".lstrip("."), layer) for name, layer in _layers(model)]
    inside = {prefix + key for prefix, layer in layers for key in layer.state_dict() if not key.startswith("base.")}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in inside or name not in parameters or parameters[name].requires_grad
    }


def load_adapter(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put ``state``, an :func:`adapter_state_dict`, into ``model``, which was adapted in the same way.

    A state with other names or shapes raises :class:`~bench.errors.BadValue` and changes nothing.
    """
    own = adapter_state_dict(model)
    for what, names in (("lacks", own.keys() - state.keys()), ("has the unknown", state.keys() - own.keys())):
        if names:
            raise BadValue(
                f"the state of the adapter {what} {', '.join(sorted(names)[:4])} ({len(names)} in all)",
                hint="adapt and freeze the model as it was when the adapter was saved",
            )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise BadValue(
                f"{name} has shape {tuple(value.shape)} in the state and {tuple(own[name].shape)} in the model",
                hint="adapt the model with the hyperparameters of the adapter that was saved",
            )
    model.load_state_dict(state, strict=False)


def _layers(model: nn.Module) -> list[tuple[str, AdaptedLinear]]:
    modules = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if isinstance(module, AdaptedLinear)]


def _replaced(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and module in replacements:
            model.set_submodule(name, replacements[module])
    return replacements.get(model, model)
