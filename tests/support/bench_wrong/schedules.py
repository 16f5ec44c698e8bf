"""Schedules: a line down to 0, and ways to get it wrong."""

# ruff: noqa: ARG002, ARG005 - slots take their contract's arguments
from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch

from bench import Algorithm


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """A line from 1 to 0.

    Source: none, it is for tests.
    """

    name = "good-schedule"

    def schedule(self, run):
        return lambda step: max(0.0, 1.0 - step / (run.steps + 1))


@dataclass(frozen=True, kw_only=True)
class Overshoots(Good):
    """Source: none."""

    name = "overshoots"

    def schedule(self, run):
        return lambda step: 1.0 - step / (run.steps + 1)


@dataclass(frozen=True, kw_only=True)
class HalfWay(Good):
    """Source: none."""

    name = "half-way"

    def schedule(self, run):
        line = super().schedule(run)
        return lambda step: 0.5 * line(step)


@dataclass(frozen=True, kw_only=True)
class CountsCalls(Good):
    """Source: none."""

    name = "counts-calls"

    def schedule(self, run):
        calls = count()
        return lambda step: 0.999 ** next(calls)


@dataclass(frozen=True, kw_only=True)
class ScheduleDraws(Good):
    """Source: none."""

    name = "schedule-draws"

    def schedule(self, run):
        line = super().schedule(run)
        return lambda step: line(step + 0 * int(torch.randint(3, ())))


@dataclass(frozen=True, kw_only=True)
class ScheduleRemembers(Good):
    """Source: none."""

    name = "schedule-remembers"

    def schedule(self, run):
        object.__setattr__(self, "run", run)
        return super().schedule(run)
