"""Evaluations: when they come, what is evaluated, and that they leave no trace in the trajectory."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002, ARG005
from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from bench import Algorithm, hyper
from bench.clock import Clock
from bench.errors import SlotFault
from bench.loop import train


class Kind:
    """Make an instance of an algorithm called ``toy`` with these slots and class facts."""

    def __new__(cls, **members):
        kind = type("Toy", (Algorithm,), {"name": "toy", "__annotations__": {}} | members)
        return dataclass(frozen=True, kw_only=True)(kind)()


def test_evaluations_come_at_zero_at_the_spacing_and_at_the_end(micro):
    workload = micro.workload(steps=8)
    evaluations = micro.train(micro.parts(workload=workload), workload)
    assert [e.step for e in evaluations] == [0, 3, 6, 8]
    assert evaluations[0].metrics["rows"] == 6.0


def test_the_observer_can_stop_at_any_evaluation(micro):
    workload = micro.workload()
    for stop in (0, 3, 9):
        parts = micro.parts(workload=workload)
        assert [e.step for e in micro.train(parts, workload, stop_at=stop)] == list(range(0, stop + 1, 3))


def test_going_on_from_a_step_evaluates_only_what_comes_after(micro):
    workload = micro.workload()
    parts = micro.parts(workload=workload)
    micro.train(parts, workload, stop_at=6)
    assert [e.step for e in micro.train(parts, workload, start=6)] == [9, 12]


@dataclass(frozen=True, kw_only=True)
class Restless(Algorithm):
    """Draws from every global generator and from its own in each step, and keeps one layer in evaluation mode."""

    name = "restless"
    scale: float = hyper(0.01, help="size of the noise")

    def adapt(self, model, run):
        model.dropout.eval()
        return model

    def selector(self, run):
        def disturb(batch, model):
            noise = torch.rand(3) + torch.rand(3, generator=run.rng("noise"))
            with torch.no_grad():
                model.head.bias.add_(noise, alpha=self.scale * (random.random() + np.random.rand()))  # noqa: NPY002
            return batch

        return disturb

    def finish(self, model, run):
        return copy.deepcopy(model)


@pytest.mark.parametrize("algorithm", [(), (Restless(),)], ids=["plain", "restless"])
def test_how_often_one_evaluates_changes_no_bit_of_the_weights(micro, algorithm):
    found = []
    for every in (1, 5, 12):
        workload = micro.workload(evaluate_every=every)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global generator is the point
        parts = micro.parts(*algorithm, workload=workload)
        micro.train(parts, workload)
        found.append(micro.weights(parts))
    assert micro.equal(found[0], found[1])
    assert micro.equal(found[0], found[2])


def test_an_evaluation_restores_every_generator_and_the_mode_of_every_module(micro):
    workload = micro.workload()
    parts = micro.parts(workload=workload)
    parts.model.norm.eval()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    micro.train(parts, workload, stop_at=0)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [parts.model.training, parts.model.norm.training, parts.model.hidden.training] == [True, False, True]


def test_finish_is_evaluated_and_training_goes_on_with_the_model_itself(micro):
    def finish(self, model, run):
        finished = copy.deepcopy(model)
        with torch.no_grad():
            finished.head.weight.zero_()
            finished.head.bias.zero_()
        return finished

    workload = micro.workload()
    parts = micro.parts(Kind(finish=finish), workload=workload)
    evaluations = micro.train(parts, workload)
    assert [e.metrics["loss"] for e in evaluations] == pytest.approx([float(np.log(3))] * 5)
    plain = micro.parts(workload=workload)
    micro.train(plain, workload)
    assert micro.equal(micro.weights(parts), micro.weights(plain))


class ScheduleFree(torch.optim.SGD):
    """Keeps one point to train and another to evaluate, and says which is in place."""

    log: ClassVar[list[str]] = []

    def train(self):
        self.log.append("train")

    def eval(self):
        self.log.append("eval")

    def step(self, closure=None):
        self.log.append("step")
        return super().step(closure)


def test_optimizers_with_two_modes_are_switched_around_every_evaluation(micro):
    ScheduleFree.log.clear()
    workload = micro.workload(steps=2, evaluate_every=1)
    parts = micro.parts(
        Kind(optimizer=lambda self, pairs, run: ScheduleFree([p for _, p in pairs], lr=0.1)), workload=workload
    )
    micro.train(parts, workload)
    assert ScheduleFree.log == [*["eval", "train", "step"] * 2, "eval", "train"]


def test_the_clock_runs_in_training_and_stands_still_in_evaluations(micro):
    workload, clock, running = micro.workload(), Clock(micro.cpu), []
    parts = micro.parts(workload=workload)
    parts.model.register_forward_hook(lambda *_: running.append(clock.running))
    train(parts, workload, clock, lambda evaluation: bool(running.append(clock.running)))
    assert running == [False, False, *[True, True, True, False, False] * 4]
    assert not clock.running
    assert all(clock.seconds[name] > 0 for name in ("data", "gradient", "step", "finish"))
    assert clock.aside["evaluation"] > 0
    assert clock.seconds["setup"] == 0


def test_the_clock_stops_when_a_step_raises(micro):
    def freezer(self, model, run):
        def freeze(step):
            if step == 4:
                raise OSError("no luck")

        return freeze

    workload, clock = micro.workload(), Clock(micro.cpu)
    with pytest.raises(SlotFault, match=r"toy\.freezer raised OSError: no luck"):
        train(micro.parts(Kind(freezer=freezer), workload=workload), workload, clock, lambda _: False)
    assert not clock.running
