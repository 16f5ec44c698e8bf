"""What the guards cost in each step: that of a model that computes next to nothing, with them and without."""

# Stand-ins take the arguments of what they stand for.
# ruff: noqa: ARG005
from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
import torch

from bench import assembly, loop
from bench.clock import Clock
from bench.guards.watch import Watch

PAIRS, STEPS = 60, 50
BOUND_S = 200e-6
"""CPU seconds of the guards in a step; steps of the tiers last from ten milliseconds on."""


class NoMarks:
    """Stands for the marks of a batch."""

    def __init__(self, batch):
        pass

    def check(self, who):
        pass


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Take every guard out of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "guarded", lambda owner, slot, function, *arguments: function(*arguments))
        patch.setattr(assembly, "DRAWS_NOTHING", frozenset())
        patch.setattr(loop, "BatchMarks", NoMarks)
        patch.setattr(type(loop.FENCE), "around", lambda self, who: contextlib.nullcontext())
        yield


@pytest.fixture
def take_steps(micro):
    """Return what takes a block of steps and returns its CPU seconds; the process is watched as a worker's is."""
    workload = micro.workload()
    with Watch.over_process() as watch:
        parts = micro.parts(workload=workload)
        watch.opened(type(workload))
        watch.begin("plain", ["a_plugin."], [])
        object.__setattr__(parts, "watch", watch)
        clock, batches = Clock(micro.cpu), workload.batches(0, 0, micro.cpu)

        def take() -> float:
            clock.resume("data")
            start = time.process_time()
            for step in range(STEPS):
                loop.take_step(parts, workload, clock, batches, step)
            seconds = time.process_time() - start
            clock.pause()
            return seconds

        yield take


def test_guards_of_a_step_cost_microseconds(side_by_side, take_steps):
    assert torch.get_num_threads() == 1

    def bare() -> float:
        with unguarded():
            return take_steps()

    ratio = side_by_side(take_steps, bare, PAIRS, f"{STEPS} steps of a toy with guards over without")
    cost_s = (min(one for one, _ in ratio.pairs) - min(other for _, other in ratio.pairs)) / STEPS
    print(f"{cost_s * 1e6:.1f} microseconds a step")  # noqa: T201 - the measurement is what this is for
    assert cost_s <= BOUND_S
