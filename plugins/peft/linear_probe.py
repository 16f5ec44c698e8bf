"""Linear probing: the head is trained on the features of a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn

from bench import Algorithm, Log, Role, hyper
from bench.errors import SlotMismatch

from ._base import FineTuning, head_parameters

if TYPE_CHECKING:
    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Algorithm):
    """AdamW over the head alone: what no adapter of the body may fall behind.

    The head is every module with a parameter of the classifier role, biases included; in a model without one, of the
    lm_head role. All else is frozen, whatever the workload says. η is ``lr``, λ is ``weight_decay``, β₁ = 0.9,
    β₂ = 0.999, ε = 1e-8. Compare adapters with it at their ``head_lr``: much of what is published as the gain of a very
    small adapter over probing is a better rate for the head.

    Source: arXiv:1610.01644 for the term, arXiv:1711.05101 for the optimizer. Deviations: none.
    """

    name = "linear-probe"
    needs = ("pretrained",)

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-5, 1e-1), help="peak learning rate η of the head")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay λ")

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze all of ``model`` but its head, and return it."""
        head = head_parameters(model, run, Role.CLASSIFIER) or head_parameters(model, run, Role.LM_HEAD)
        if not head:
            raise SlotMismatch(
                f"{self.name} found no parameter with the role {Role.CLASSIFIER.value!r} or {Role.LM_HEAD.value!r}",
                hint="give the head of the model its role; a head that shares its weight with the embedding is none",
            )
        model.requires_grad_(False)
        for parameter in head:
            parameter.requires_grad_(True)
        return model

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.AdamW:
        """Return AdamW over all parameters."""
        tuning = FineTuning(lr=self.lr, head_lr=self.lr, weight_decay=self.weight_decay)
        return tuning.optimizer(named_parameters, run)
