"""Adaptations: a gain on what the model puts out, and ways to get it wrong."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from bench import Algorithm, Role

CALLS = count(1)


class Gained(nn.Module):
    """A model whose outputs are multiplied by a number that is learnt."""

    def __init__(self, base, start=1.0, dtype=None, shape=()):
        super().__init__()
        weight = next(base.parameters())
        self.base = base
        self.gain = nn.Parameter(torch.full(shape, start, dtype=dtype or weight.dtype, device=weight.device))

    def forward(self, inputs):
        return self.base(inputs) * self.gain


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """A gain.

    Source: none, it is for tests.
    """

    name = "good-adapter"
    adapter_roles = {"gain": Role.ADAPTER}  # noqa: RUF012 - a class fact

    def adapt(self, model, run):
        return Gained(model)


def salted(model, value):
    """Return an adapted model with a buffer that does nothing."""
    adapted = Gained(model)
    adapted.register_buffer("salt", torch.tensor(float(value)).to(adapted.gain.device))
    return adapted


@dataclass(frozen=True, kw_only=True)
class Salted(Good):
    """Source: none."""

    name = "salted"

    def adapt(self, model, run):
        return salted(model, next(CALLS))


@dataclass(frozen=True, kw_only=True)
class SeededSalt(Good):
    """Source: none."""

    name = "seeded-salt"

    def adapt(self, model, run):
        return salted(model, run.seed)


@dataclass(frozen=True, kw_only=True)
class Unclaimed(Good):
    """Source: none."""

    name = "unclaimed"
    adapter_roles = {"loss": Role.ADAPTER}  # noqa: RUF012 - a class fact


@dataclass(frozen=True, kw_only=True)
class AdapterRemembers(Good):
    """Source: none."""

    name = "adapter-remembers"

    def adapt(self, model, run):
        object.__setattr__(self, "run", run)
        return super().adapt(model, run)


@dataclass(frozen=True, kw_only=True)
class Widens(Good):
    """Source: none."""

    name = "widens"

    def adapt(self, model, run):
        return Gained(model, dtype=torch.float32, shape=(1,))


class Offset(Gained):
    """A gain around a number that no state_dict holds."""

    offset = 0.0

    def forward(self, inputs):
        return super().forward(inputs) + self.offset * (self.gain - 1)


@dataclass(frozen=True, kw_only=True)
class HiddenOffset(Good):
    """Source: none."""

    name = "hidden-offset"

    def adapt(self, model, run):
        adapted = Offset(model)
        adapted.offset = 0.1 * (1 + run.seed)
        return adapted


@dataclass(frozen=True, kw_only=True)
class OtherShapeOnMeta(Good):
    """Source: none."""

    name = "other-shape-on-meta"

    def adapt(self, model, run):
        return Gained(model, shape=(1,) if run.device.type == "meta" else ())


@dataclass(frozen=True, kw_only=True)
class StartsElsewhere(Good):
    """Source: none."""

    name = "starts-elsewhere"

    def adapt(self, model, run):
        return Gained(model, start=1.5)


class Still(Gained):
    """A gain whose gradient is always zero, and which starts at zero so that weight decay does not move it either."""

    def forward(self, inputs):
        return self.base(inputs) + 0.0 * self.gain


@dataclass(frozen=True, kw_only=True)
class NeverMoves(Good):
    """Source: none."""

    name = "never-moves"

    def adapt(self, model, run):
        return Still(model, start=0.0)
