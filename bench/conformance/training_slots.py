"""The slots ``freezer``, ``learner`` and ``finish``, inside a run: each needs a model that is being trained."""

from __future__ import annotations

import copy
import math

import torch

from bench.conformance.check import Kind, Subject, expect, expect_equal
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import expect_no_draws, no_global_draws
from bench.conformance.runs import MIDDLE, Training, elsewhere, gone_through
from bench.conformance.selectors import CPU

freezer = Kind("freezer", lambda subject: subject.fills("freezer"))
learner = Kind("learner", lambda subject: subject.fills("learner"))
finish = Kind("finish", lambda subject: subject.fills("finish"))


@freezer
def keeps_parameters(subject: Subject) -> None:
    """It toggles requires_grad or masks values: parameters keep their names and shapes, and some stay trainable."""
    with elsewhere():
        training = Training(subject)
        model = training.parts.model
        before = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        training.go()
        after = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        expect(before == after, f"parameters came, went or changed shape: {sorted(before.items() ^ after.items())[:3]}")
        expect(any(p.requires_grad for p in model.parameters()), "no parameter is trainable after the run")


@freezer
def returns_nothing(subject: Subject) -> None:
    """What it returns is called with each step's number and returns None."""
    with elsewhere():
        parts = Training(subject).parts
        freeze = parts.freeze
        assert freeze is not None, "the slot is filled"
        for step in range(3):
            result: object = freeze(step)
            expect(result is None, f"at step {step} it returned {result!r:.60}")


@freezer
@learner
def randomness_from_the_run(subject: Subject) -> None:
    """In a whole run it draws from run.rng alone: no global generator moves."""
    expect_no_draws(gone_through(subject).drawn)


@freezer
@learner
@finish
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, before and after a run."""
    expect_only_hyperparameters(gone_through(subject).algorithm)


@learner
def returns_the_loss(subject: Subject) -> None:
    """It returns a finite loss, a number or a tensor of one element, and leaves the batch as it is."""
    with elsewhere():
        training = Training(subject)
        learn = training.parts.learn
        assert learn is not None, "the slot is filled"
        batch = next(training.workload.batches(0, 0, CPU))
        given = copy.deepcopy(dict(batch))
        loss: object = learn(batch)
        scalar = isinstance(loss, (int, float)) or (isinstance(loss, torch.Tensor) and loss.numel() == 1)
        expect(scalar and math.isfinite(float(loss)), f"expected a finite loss, found {loss!r:.80}")  # type: ignore[arg-type]
        expect_equal(dict(batch), given, "the batch after the step")


@finish
def leaves_the_model(subject: Subject) -> None:
    """It leaves the model in training as it is, and what it returns gives a finite loss."""
    with elsewhere():
        training = Training(subject)
        training.go(stop_at=MIDDLE)
        parts, batch = training.parts, training.workload.example(CPU)
        assert parts.finish is not None, "the slot is filled"
        before, modes = training.weights(), [module.training for module in parts.model.modules()]
        finished = parts.finish(parts.model)
        expect_equal(training.weights(), before, "the model in training after finish")
        expect([m.training for m in parts.model.modules()] == modes, "modules in training were left in another mode")
        with torch.no_grad():
            loss = float(training.workload.loss(finished.eval(), batch))
        expect(math.isfinite(loss), f"the finished model has the loss {loss}")


@finish
def randomness_of_finishing(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves."""
    with elsewhere():
        parts = Training(subject).parts
        assert parts.finish is not None, "the slot is filled"
        with no_global_draws():
            parts.finish(parts.model)
