"""The slot ``schedule``: a factor for each step."""

from __future__ import annotations

import math

from bench.conformance.check import Kind, Subject, expect
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import no_global_draws
from bench.context import Run

schedule = Kind("schedule", lambda subject: subject.fills("schedule"))

LENGTHS = (1, 2, 10, 300, 10_000)
"""Budgets in steps, from the shortest run that there can be."""


@schedule
def between_zero_and_one(subject: Subject) -> None:
    """Its factor is finite and in [0, 1] at every step of runs of 1 to 10,000 steps and past their end."""
    for steps in LENGTHS:
        factor = subject.algorithm().schedule(Run(seed=0, steps=steps))
        for step in [*range(steps + 1), steps + 1, 2 * steps, 10 * steps + 7]:
            value = factor(step)
            fine = math.isfinite(value) and 0.0 <= value <= 1.0
            expect(fine, f"the factor at step {step} of {steps} is {value!r}")


@schedule
def reaches_its_peak(subject: Subject) -> None:
    """It reaches 1, so that lr is the peak learning rate, and is not 0 throughout however short the run."""
    for steps in LENGTHS:
        factor = subject.algorithm().schedule(Run(seed=0, steps=steps))
        most = max(factor(step) for step in range(steps + 1))
        expect(most > 0.0, f"in a run of {steps} steps every factor is {most}")
    factor = subject.algorithm().schedule(Run(seed=0, steps=1000))
    most = max(factor(step) for step in range(1001))
    expect(math.isclose(most, 1.0, rel_tol=1e-6), f"the largest factor of 1000 steps is {most:.6g}, not 1")


@schedule
def depends_on_the_step_alone(subject: Subject) -> None:
    """Asked in any order it gives the same factors, unless it has a state_dict to be resumed by."""
    run = Run(seed=0, steps=50)
    factor = subject.algorithm().schedule(run)
    forwards = [factor(step) for step in range(50)]
    if hasattr(factor, "state_dict"):
        return
    again = subject.algorithm().schedule(run)
    backwards = [again(step) for step in reversed(range(50))][::-1]
    unlike = [step for step in range(50) if forwards[step] != backwards[step]]
    expect(not unlike, f"asked backwards, the factors of {len(unlike)} of 50 steps differ, and it has no state_dict")
    expect(not run.generators, f"it draws from run.rng({sorted(run.generators)}), and has no state_dict")


@schedule
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves."""
    with no_global_draws():
        factor = subject.algorithm().schedule(Run(seed=0, steps=50))
        for step in range(50):
            factor(step)


@schedule
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, before and after it was asked for factors."""
    algorithm = subject.algorithm()
    algorithm.schedule(Run(seed=0, steps=50))(0)
    expect_only_hyperparameters(algorithm)
