"""The slot ``selector``: part of a batch, or weights for it."""

from __future__ import annotations

import copy
import io
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bench.algorithm import Batch, Selector
from bench.conformance.check import CheckSkipped, Kind, Subject, difference, expect, expect_equal
from bench.conformance.language_model import Text
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import expect_seed_matters, no_global_draws, seeded
from bench.context import Run
from bench.roles import assign_roles

selector = Kind("selector", lambda subject: subject.fills("selector"))

CPU = torch.device("cpu")


class Scene:
    """A small language model, its batches, and what the selector makes of them."""

    def __init__(self, subject: Subject, seed: int = 0) -> None:
        self.workload = Text("micro")
        self.model: nn.Module = self.workload.model(0, CPU)
        roles = assign_roles((name for name, _ in self.model.named_parameters()), self.workload.roles)
        self.algorithm = subject.algorithm()
        self.run = Run(
            seed=seed,
            steps=self.workload.tier.steps,
            roles=roles,
            algorithm=subject.name,
            loss=self.workload.loss,
        )
        self.select: Selector = self.algorithm.selector(self.run)
        self.batches = list(islice(self.workload.batches(0, 0, CPU), 6))

    def selected(self, first: int = 0, last: int = 6) -> list[Batch]:
        """Return what is selected of the batches ``first`` up to ``last``."""
        return [self.select(batch, self.model) for batch in self.batches[first:last]]


def _flat(batches: list[Batch]) -> dict[str, Tensor]:
    return {f"batch {number}, {key}": value for number, batch in enumerate(batches) for key, value in batch.items()}


@selector
def returns_rows(subject: Subject) -> None:
    """What it returns is a batch: the keys of the batch, as many rows in each, rows of the batch in each of them."""
    scene = Scene(subject)
    for number, batch in enumerate(scene.selected()):
        given = scene.batches[number]
        lacking = given.keys() - batch.keys()
        expect(not lacking, f"batch {number} comes back without {sorted(lacking)}")
        counts = {key: len(value) for key, value in batch.items()}
        expect(len(set(counts.values())) == 1, f"batch {number} comes back with different numbers of rows: {counts}")
        expect(min(counts.values()) > 0, f"batch {number} comes back empty")
        known = [row.tolist() for row in given["input_ids"]]
        strange = [row for row in batch["input_ids"].tolist() if row not in known]
        expect(not strange, f"batch {number} comes back with {len(strange)} rows that were not in it")


@selector
def weights_are_weights(subject: Subject) -> None:
    """If it returns weights, they are one finite number, not below 0, for each row, and not all of them are 0."""
    scene = Scene(subject)
    for number, batch in enumerate(scene.selected()):
        weights = batch.get("weights")
        if weights is None:
            raise CheckSkipped("it returns no weights")
        rows = len(batch["input_ids"])
        expect(tuple(weights.shape) == (rows,), f"weights of shape {tuple(weights.shape)} for {rows} rows")
        fine = bool(weights.isfinite().all()) and float(weights.min()) >= 0 and float(weights.max()) > 0
        expect(fine, f"batch {number} has the weights {weights.tolist()}")


@selector
def arguments_left_alone(subject: Subject) -> None:
    """The batch, the model's weights, gradients and modes stay as they are."""
    scene = Scene(subject)
    before, given = copy.deepcopy(scene.model.state_dict()), copy.deepcopy(scene.batches)
    modes = [module.training for module in scene.model.modules()]
    scene.selected()
    expect_equal(_flat(scene.batches), _flat(given), "the batches after selection")
    expect_equal(scene.model.state_dict(), before, "the model after selection")
    expect([m.training for m in scene.model.modules()] == modes, "modules were left in another mode")
    held = [key for key, parameter in scene.model.named_parameters() if parameter.grad is not None]
    expect(not held, f"gradients were left on {held[:3]}")


@selector
def same_seed_same_bits(subject: Subject) -> None:
    """Two selectors of the same seed select the same."""
    found = []
    for _ in range(2):
        seeded()
        found.append(_flat(Scene(subject).selected()))
    expect_equal(found[1], found[0], "the second selection")


@selector
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves, and without draws the seed changes nothing."""
    with no_global_draws():
        one, other = Scene(subject, 0), Scene(subject, 1)
        found = [_flat(scene.selected()) for scene in (one, other)]
    expect_seed_matters(one.run, difference(found[1], found[0]), always=False)


@selector
def resumes_bit_for_bit(subject: Subject) -> None:
    """A fresh selector with the saved state, if it has one, goes on selecting the same."""
    seeded()
    whole = Scene(subject)
    expected = _flat(whole.selected()[3:])
    seeded()
    half, resumed = Scene(subject), Scene(subject)
    half.selected(0, 3)
    for purpose, generator in half.run.generators.items():
        resumed.run.rng(purpose).set_state(generator.get_state())
    if hasattr(half.select, "state_dict"):
        file = io.BytesIO()
        torch.save(half.select.state_dict(), file)
        file.seek(0)
        state: dict[str, Any] = torch.load(file, weights_only=True)
        resumed.select.load_state_dict(state)  # type: ignore[attr-defined]
    expect_equal(_flat(resumed.selected(3)), expected, "what is selected after three batches")


@selector
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, before and after selections."""
    scene = Scene(subject)
    scene.selected(0, 2)
    expect_only_hyperparameters(scene.algorithm)
