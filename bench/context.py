"""What an algorithm may know of its run: seed, budget, device, precision, the roles of the parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from bench.errors import BadValue
from bench.roles import Role, assign_roles

if TYPE_CHECKING:
    from bench.after_training import Axes, Point
    from bench.algorithm import Loss


def derive_seed(seed: int, *purpose: str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and ``purpose`` alone, on every platform."""
    text = "\0".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Run:
    """The facts of one run, handed to every slot.

    ``steps`` and ``budget_s`` are the budget (``None``: no limit in seconds); ``micro_batches`` is how many backward
    passes make one step; ``roles`` maps each parameter's name to what it is for; ``algorithm`` keeps the random
    streams of different algorithms apart; ``loss`` is the training loss of a model on a batch (after training: only
    for algorithms that may see labels). Neither the workload's name nor its validation data is here, on purpose.

    After training ``point`` says what is asked of this call, ``blocks`` names the model's blocks in forward order, and
    ``axes`` maps each parameter to the permutations that may act on its axes.
    """

    seed: int
    steps: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    budget_s: float | None = None
    micro_batches: int = 1
    roles: Mapping[str, Role] = field(default_factory=dict)
    algorithm: str = ""
    generators: dict[str, torch.Generator] = field(default_factory=dict, repr=False)
    loss: Loss | None = field(default=None, repr=False)
    point: Point | None = None
    blocks: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)

    def rng(self, purpose: str) -> torch.Generator:
        """Return the generator of ``purpose``: the same object at each call, its state part of every checkpoint."""
        if purpose not in self.generators:
            seed = derive_seed(self.seed, "algorithm", self.algorithm, purpose)
            device = "cpu" if self.device.type == "meta" else self.device  # estimates draw nothing
            self.generators[purpose] = torch.Generator(device).manual_seed(seed)
        return self.generators[purpose]

    def role(self, name: str) -> Role:
        """Return the role of the parameter ``name``."""
        try:
            return self.roles[name]
        except KeyError:
            raise BadValue(
                f"no role is known for the parameter {name!r}", hint=f"known: {sorted(self.roles)[:8]} ..."
            ) from None


def autocast(run: Run) -> torch.autocast:
    """Return the autocast context of the run's precision."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "amp-bf16")


def adapted_roles(
    before: Iterable[tuple[str, nn.Parameter]],
    roles: Mapping[str, Role],
    after: nn.Module,
    patterns: Mapping[str, Role],
) -> dict[str, Role]:
    """Return the roles of the parameters of an adapted model.

    A parameter that was there before keeps its role, whatever its name is now; each new one must be claimed exactly
    once by the algorithm's ``adapter_roles`` ``patterns``.
    """
    known = {id(parameter): roles[name] for name, parameter in before}
    kept = {name: known[id(p)] for name, p in after.named_parameters() if id(p) in known}
    fresh = [name for name, p in after.named_parameters() if id(p) not in known]
    return kept | assign_roles(fresh, patterns if fresh else {})
