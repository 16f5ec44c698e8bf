"""What the fine-tuning plugins share: AdamW with a rate of its own for new heads, and which layers are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import nn

from bench import Algorithm, Log, Role, hyper
from bench.errors import SlotMismatch

from ._adapter import AdaptedLinear, adapted_linears

if TYPE_CHECKING:
    from bench import NamedParameters, Run

_QUERY_VALUE = frozenset({Role.ATTENTION_Q, Role.ATTENTION_V})
_ATTENTION = _QUERY_VALUE | {Role.ATTENTION_K, Role.ATTENTION_O}
_TARGETS = {"all": _ATTENTION | {Role.MLP}, "attention": _ATTENTION, "query-value": _QUERY_VALUE}
"""The roles of the weights that each choice of ``targets`` adapts."""


def head_parameters(model: nn.Module, run: Run, role: Role) -> list[nn.Parameter]:
    """Return all parameters of the modules that own one with the ``role`` of a head: its weight brings its bias."""
    inside = {id(parameter) for name, parameter in model.named_parameters() if run.role(name) is role}
    owned = [list(module.parameters(recurse=False)) for module in model.modules()]
    return [parameter for own in owned if inside & set(map(id, own)) for parameter in own]


@dataclass(frozen=True, kw_only=True)
class FineTuning(Algorithm):
    """Base of the track: torch.optim.AdamW with β₁ = 0.9, β₂ = 0.999, ε = 1e-8 over what is trainable.

    Heads (modules with a parameter of the classifier role) start from noise where everything else is pretrained, so
    they have a learning rate of their own, which a search over ``lr`` leaves alone.
    """

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-5, 1e-1), help="peak learning rate η")
    head_lr: Annotated[float, Gt(0)] = hyper(1e-3, help="peak learning rate of a classifier that is trained")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.AdamW:
        """Return AdamW with a group for the body and one for the head, where there are such parameters."""
        named = list(named_parameters)
        heads = {name.rpartition(".")[0] for name, _ in named if run.role(name) is Role.CLASSIFIER} - {""}
        body: list[tuple[str, nn.Parameter]] = []
        head: list[tuple[str, nn.Parameter]] = []
        for name, parameter in named:
            is_head = run.role(name) is Role.CLASSIFIER or name.rpartition(".")[0] in heads
            (head if is_head else body).append((name, parameter))
        has_kernel = all(parameter.device.type in {"cpu", "cuda"} for _, parameter in named)
        groups: list[dict[str, Any]] = [{"params": body, "lr": self.lr}, {"params": head, "lr": self.head_lr}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            weight_decay=self.weight_decay,
            fused=True if has_kernel else None,
        )


@dataclass(frozen=True, kw_only=True)
class AdapterTuning(FineTuning):
    """Base of the adapters: a subclass names its parameters in ``adapter_roles`` and makes its layer in :meth:`layer`.

    Trained are the adapters and, where the workload leaves it trainable, the head; embeddings, norms, biases and all
    weights of the pretrained model are frozen.
    """

    needs: ClassVar[tuple[str, ...]] = ("pretrained",)
    adapter_roles: ClassVar[Mapping[str, Role]] = {}

    targets: Literal["all", "attention", "query-value"] = hyper(
        "all", help="which linear layers are adapted; all: those of attention and MLP"
    )

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Put adapted layers in the places of the targeted ones and freeze all else of ``model`` but its head."""
        roles = {id(parameter): run.role(name) for name, parameter in model.named_parameters()}
        linears = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        names = [name for name, layer in linears if roles[id(layer.weight)] in _TARGETS[self.targets]]
        if not names:
            raise SlotMismatch(
                f"{self.name} found no torch.nn.Linear with a role that targets = {self.targets!r} (str) adapts",
                hint="build the model of torch.nn.Linear and give its attention and MLP matrices their roles",
            )
        heads = {id(parameter) for parameter in head_parameters(model, run, Role.CLASSIFIER)}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in heads)
        return adapted_linears(model, names, lambda linear: self.layer(linear, run))

    def layer(self, linear: nn.Linear, run: Run) -> AdaptedLinear:
        """Return the adapted layer that stands for ``linear``."""
        raise NotImplementedError
