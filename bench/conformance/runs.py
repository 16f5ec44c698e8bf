"""Runs of a few steps on a small language model, through the real assembly, loop and checkpoint."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from bench.algorithm import TRAINING_SLOTS, Algorithm
from bench.assembly import assemble
from bench.checkpoint import random_state, read, restore, save
from bench.clock import Clock
from bench.conformance.check import CheckSkipped, Kind, Subject, expect, expect_equal, tensor_difference
from bench.conformance.language_model import Filler, Sentences, Text
from bench.conformance.randomness import moved_generators, seeded
from bench.context import Run
from bench.loop import Evaluation, train
from bench.memory import estimate
from bench.probes import optimizer_state_bytes
from bench.workload import Precision

run = Kind("run", lambda subject: subject.fills(*TRAINING_SLOTS))

LOW_PRECISIONS: tuple[Precision, ...] = ("amp-bf16", "bf16")

FIRST = 3
"""The first evaluation after step 0; what is renewed now and then in a run this short has been by then."""

MIDDLE = 6
"""The evaluation after which a run is cut."""


class Training:
    """A run of the algorithm under check, torch's AdamW in the slots that it leaves empty."""

    def __init__(self, subject: Subject, *, precision: Precision = "fp32", tier: str = "micro") -> None:
        kind = Sentences if subject.entry.track == "peft" else Text
        self.workload = kind(tier)
        self.algorithm = subject.algorithm()
        cpu = torch.device("cpu")
        run = Run(seed=0, steps=self.workload.tier.steps, device=cpu, precision=precision)
        model = self.workload.model(0, cpu)
        if precision == "bf16":
            model = model.to(torch.bfloat16)
        self.parts = assemble([self.algorithm, Filler()], self.workload, run, model)

    def go(self, start: int = 0, stop_at: int | None = None) -> list[Evaluation]:
        """Train to the end, or to the evaluation at step ``stop_at``; return the evaluations."""
        seen: list[Evaluation] = []

        def observe(evaluation: Evaluation) -> bool:
            seen.append(evaluation)
            return stop_at is not None and evaluation.step >= stop_at

        train(self.parts, self.workload, Clock(self.parts.run.device), observe, start=start)
        return seen

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state."""
        return {key: value.detach().clone() for key, value in self.parts.model.state_dict().items()}


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """Work in a folder that is removed afterwards: algorithms may write files."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


@dataclass(frozen=True)
class Whole:
    """What a whole run in fp32 left: weights, losses of its evaluations, and which parameters were frozen or moved.

    ``drawn`` names the global generators that have moved; ``algorithm`` is the one that has been used.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    frozen: frozenset[str]
    moved: frozenset[str]
    parameters: frozenset[str]
    drawn: str
    algorithm: Algorithm


@lru_cache(maxsize=2)
def whole(subject: Subject) -> Whole:
    """Return a run of seed 0, done once for all checks that look at it."""
    with elsewhere():
        seeded()
        generators = random_state()
        training = Training(subject)
        before = {key: p.detach().clone() for key, p in training.parts.model.named_parameters()}
        frozen = frozenset(key for key, p in training.parts.model.named_parameters() if not p.requires_grad)
        losses = [evaluation.metrics["loss"] for evaluation in training.go()]
        after = dict(training.parts.model.named_parameters())
        moved = frozenset(key for key, value in before.items() if tensor_difference(after[key].detach(), value))
        return Whole(
            weights=training.weights(),
            losses=losses,
            frozen=frozen,
            moved=moved,
            parameters=frozenset(before),
            drawn=moved_generators(generators, random_state()),
            algorithm=training.algorithm,
        )


def gone_through(subject: Subject) -> Whole:
    """Return the whole run; where it raises, one check says so, and the others have nothing to look at."""
    try:
        return whole(subject)
    except (Exception, SystemExit) as error:
        raise CheckSkipped("a run does not get to its end; run/ends-finite says why") from error


def _infinite(weights: dict[str, Tensor], losses: list[float]) -> str:
    if not all(map(math.isfinite, losses)):
        return f"the losses of its evaluations are {losses}"
    broken = [key for key, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    return f"{broken[:3]} of the weights are not finite" if broken else ""


@run
def ends_finite(subject: Subject) -> None:
    """A run in fp32 ends with finite weights and losses, and so do the first steps of one in amp-bf16 and in bf16."""
    found = whole(subject)
    expect(not _infinite(found.weights, found.losses), f"fp32: {_infinite(found.weights, found.losses)}")
    for precision in LOW_PRECISIONS:
        with elsewhere():
            seeded()
            training = Training(subject, precision=precision)
            losses = [evaluation.metrics["loss"] for evaluation in training.go(stop_at=FIRST)]
            problem = _infinite(training.weights(), losses)
            expect(not problem, f"{precision}: {problem}")


@run
def learns(subject: Subject) -> None:
    """Some evaluation of the run is better than the one before training."""
    before, *later = gone_through(subject).losses
    expect(min(later) < before, f"the loss is {before:.4f} before training, and {min(later):.4f} at best in the run")


@run
def same_seed_same_bits(subject: Subject) -> None:
    """Two runs of the same seed end in the same bits."""
    expected = gone_through(subject).weights
    with elsewhere():
        seeded()
        training = Training(subject)
        training.go()
    expect_equal(training.weights(), expected, "the weights after the second run")


@run
def resumes_bit_for_bit(subject: Subject) -> None:
    """A run that is cut in the middle and goes on from its checkpoint in fresh parts ends in the same bits."""
    expected = gone_through(subject).weights
    with elsewhere() as folder:
        seeded()
        half = Training(subject)
        half.go(stop_at=MIDDLE)
        save(folder / "checkpoint.pt", half.parts, {})
        resumed = Training(subject)
        restore(read(folder / "checkpoint.pt"), resumed.parts)
        resumed.go(start=MIDDLE)
    expect_equal(resumed.weights(), expected, f"the weights of a run that was resumed at step {MIDDLE}")


@run
def moves_what_is_trainable(subject: Subject) -> None:
    """Frozen parameters stay bit for bit, and of an adapted model everything else moves.

    Freezers may thaw parameters, and learners may move only some of them.
    """
    if subject.fills("freezer", "learner"):
        raise CheckSkipped("a freezer or a learner decides itself what is trained")
    found = gone_through(subject)
    expect(not found.frozen & found.moved, f"{sorted(found.frozen & found.moved)[:3]} require no gradient and moved")
    still = sorted(found.parameters - found.frozen - found.moved) if subject.fills("adapt") else []
    expect(not still, f"{still[:3]} are trainable and did not move")


@run
def estimated_bytes_are_real(subject: Subject) -> None:
    """The estimate without storage counts the weights and states of a real step.

    Where a freezer leaves some parameters without a state, the estimate may count them.
    """
    gone_through(subject)
    with elsewhere():
        training = Training(subject, tier="every-step")
        counted = estimate([training.algorithm, Filler()], training.workload, "fp32")
        training.go(stop_at=1)
    parts = training.parts
    parameters, real = sum(p.numel() for p in parts.model.parameters()), optimizer_state_bytes(parts.optimizer)
    same = counted.parameters == parameters
    expect(same, f"{counted.parameters} parameters are estimated, the model has {parameters}")
    right = counted.states_bytes == real or (subject.fills("freezer") and counted.states_bytes > real)
    expect(right, f"{counted.states_bytes} bytes of state are estimated, a step leaves {real}")
