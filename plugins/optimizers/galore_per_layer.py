"""GaLore inside the backward pass: each gradient becomes its step, and is freed, as soon as it is complete."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ._base import parameter_name
from .galore import GaLore, GaLoreAdamW

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class GaLorePerLayer(GaLore):
    """GaLore with per-layer updates; see :class:`GaLoreAdamWPerLayer`.

    Source: arXiv:2403.03507, jiaweizzhao/GaLore ``torchrun_main.py``.
    Deviations: see ``deviations``.
    """

    name = "galore-per-layer"
    needs = ("single-micro-batch",)
    deviations = (
        *GaLore.deviations,
        (
            "One optimizer and one schedule serve all parameters and advance once per step; the reference script has "
            "one of each per parameter and advances them at every micro-batch."
        ),
    )

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> GaLoreAdamWPerLayer:
        """Return one optimizer that steps inside the backward pass."""
        return self._build(GaLoreAdamWPerLayer, named_parameters, run)


class GaLoreAdamWPerLayer(GaLoreAdamW):
    """GaLore that steps each parameter from a hook of its gradient, so that few gradients live at a time.

    The rule, the groups and the state are those of :class:`~bench.plugins.optimizers.galore.GaLoreAdamW`. ``backward``
    makes the steps, with the learning rate that each group has at that moment, and leaves no gradient; :meth:`step`
    handles the parameters whose gradient was put there by hand or which began to require one later, and opens the next
    step. So the learning rate must be set before ``backward``; gradients can neither be accumulated nor clipped by
    their global norm, and cannot come through ``torch.amp.GradScaler``.

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = GaLoreAdamWPerLayer([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    A second gradient of a parameter before :meth:`step` raises ``RuntimeError`` from ``backward``.

    Source: arXiv:2403.03507, jiaweizzhao/GaLore ``torchrun_main.py``. Deviations: those of :class:`GaLorePerLayer`.
    """

    algorithm = GaLorePerLayer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking it, and hook its parameters."""
        super().add_param_group(param_group)
        self._hook(len(self.param_groups) - 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled optimizer, whose parameters have lost their hooks."""
        hooked = hasattr(self, "_stepped")
        super().__setstate__(state)
        if not hooked:
            for index in range(len(self.param_groups)):
                self._hook(index)

    def _hook(self, index: int) -> None:
        if not hasattr(self, "_stepped"):
            self._stepped: set[Tensor] = set()
        # A weak reference: an optimizer that nobody uses any more must not go on stepping the parameters.
        reference = weakref.WeakMethod(self._step_at_once)

        def on_gradient(parameter: Tensor) -> None:
            step_at_once = reference()
            if step_at_once is not None:
                step_at_once(index, parameter)

        for parameter in self.param_groups[index]["params"]:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(on_gradient)

    @torch.no_grad()
    def _step_at_once(self, index: int, parameter: Tensor) -> None:
        group = self.param_groups[index]
        if parameter in self._stepped:
            raise RuntimeError(
                f"a second gradient of {parameter_name(group, parameter)} arrived before step(): per-layer updates "
                "apply each gradient at once and cannot accumulate; call step() after every backward, or use galore"
            )
        self._update(group, [parameter])
        self._stepped.add(parameter)
        parameter.grad = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step the parameters that still have a gradient, after calling ``closure``, and open the next step."""
        loss = super().step(closure)
        self._stepped.clear()
        return loss
