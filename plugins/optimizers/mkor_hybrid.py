"""MKOR-H: MKOR until the loss falls too slowly, the first-order rule alone from then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt

from bench import hyper
from bench.errors import BadValue

from .mkor import MKOR, MKOROptimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

    from ._base import Group


@dataclass(frozen=True, kw_only=True)
class MKORHybrid(MKOR):
    """MKOR with a switch to its base rule; see :class:`MKORHybridOptimizer` for the rule.

    The optimizer calls the closure itself, to see the loss. ``switch_window=None`` means a twentieth of the run, at
    least 10 steps. Everything else is as in MKOR.

    Source: arXiv:2306.01685 (NeurIPS 2023), Mohammad-Mozaffari/mkor ``examples/bert/optimizers/hkor.py``.
    Deviations: see ``deviations``. The authors' code holds a flag that nothing sets, and their script restarts from a
    checkpoint with LAMB by hand.
    """

    name = "mkor-hybrid"
    deviations = (
        *MKOR.deviations,
        (
            "It switches by a rule of our own, since the authors' code has none: once the mean loss of a window of "
            "steps lies less than a given share below that of the window before."
        ),
        "Base moments go on over the switch, as in the authors' restart from a checkpoint.",
    )
    closure = True

    switch_window: Annotated[int, Ge(1)] | None = hyper(
        None, help="steps whose losses are averaged, K; none: max(10, steps / 20)"
    )
    switch_threshold: Annotated[float, Gt(0), Lt(1)] = hyper(
        0.01, help="relative fall of the loss from one window to the next below which it switches, δ"
    )

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> MKORHybridOptimizer:
        """Return one optimizer with a group that decays and a group of norms and biases that does not."""
        window = self.switch_window or max(10, run.steps // 20)
        options = {"switch_window": window, "switch_threshold": self.switch_threshold}
        return self._build(MKORHybridOptimizer, named_parameters, run, **options)


class MKORHybridOptimizer(MKOROptimizer):
    r"""MKOR that falls back to its base rule for good.

    The rule of :class:`~bench.plugins.optimizers.mkor.MKOROptimizer`. Beside it, with K = ``switch_window`` and the
    mean loss ℓ_i of the i-th K steps, it switches after the first window with

        ℓ_{i-1} - ℓ_i < δ |ℓ_{i-1}|                    δ = ``switch_threshold``

    From then on the factors are dropped and the gradient goes to the base rule as it is; moments go on. A group's
    ``switched_at`` is the number of steps made before, ``None`` so far; it is saved in ``state_dict`` with the losses.

    ``step`` needs a closure that returns the loss:

        >>> import torch
        >>> from bench.plugins.optimizers.mkor import tap_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> tap_layers(model)
        >>> optimizer = MKORHybridOptimizer(model.parameters(), lr=0.1, base="sgd")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 8)).square().mean()
        ...     loss.backward()
        ...     return loss.detach()
        >>> for _ in range(3):
        ...     _ = optimizer.step(closure)

    Source: arXiv:2306.01685, abstract. Deviations: those of :class:`MKORHybrid`.
    """

    algorithm = MKORHybrid

    def __init__(
        self, params: ParamsT, *arguments: Any, switch_window: int = 100, switch_threshold: float = 0.01, **options: Any
    ) -> None:
        super().__init__(params, *arguments, **options)
        fresh = {"switch_window": switch_window, "switch_threshold": switch_threshold, "switched_at": None}
        self.defaults |= fresh | {"losses": 0, "loss_sum": 0.0, "previous_loss": None}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            _check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        _check(self.defaults | param_group)
        super().add_param_group(param_group)

    def _advance(self, closure: Callable[[], float] | None) -> float | None:
        if closure is None:
            raise BadValue(
                "mkor-hybrid: step() was called without a closure, and without the loss it can never switch",
                hint="call step(closure) with a function that computes gradients and returns the loss, or use mkor",
            )
        loss = super()._advance(closure)
        value = torch.as_tensor(loss).detach()
        for group in self.param_groups if not value.is_meta else ():  # an estimate has no values
            if group["switched_at"] is None:
                self._watch(group, float(value))
        self._arm()
        return loss

    def _due(self, weight: Tensor, group: Group) -> bool:
        return group.get("switched_at") is None and super()._due(weight, group)

    def _watch(self, group: dict[str, Any], loss: float) -> None:
        """Count ``loss`` in, and switch ``group`` where a window is over and lies too little below the last one."""
        group["losses"] += 1
        group["loss_sum"] += loss
        window = group["switch_window"]
        if group["losses"] % window:
            return
        mean, before = group["loss_sum"] / window, group["previous_loss"]
        group["previous_loss"], group["loss_sum"] = mean, 0.0
        if before is not None and before - mean < group["switch_threshold"] * abs(before):
            group["switched_at"] = group["losses"]
            for weight in group["params"]:
                for name in ("left", "right"):
                    self.state[weight].pop(name, None)


def _check(options: Group) -> None:
    """Refuse bad options of the switch; the rest is MKOR's."""
    names = {"switch_window", "switch_threshold"} & options.keys()  # both missing while MKOR's part is under way
    MKORHybrid.check(**{name: options[name] for name in names})
