"""The global random generators, as checks look at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from bench.checkpoint import random_state, seed_random_state
from bench.conformance.check import expect
from bench.context import Run


def seeded() -> None:
    """Seed every global generator, so that what draws from them is still the same each time."""
    seed_random_state(0)


@contextmanager
def no_global_draws() -> Iterator[None]:
    """Raise if a global random generator has moved in the body."""
    seeded()
    before = random_state()
    yield
    expect_no_draws(moved_generators(before, random_state()))


def expect_no_draws(moved: str) -> None:
    """Raise if ``moved`` names a global generator."""
    expect(not moved, f"expected draws from run.rng(purpose) alone, found that the generator of {moved} has moved")


def moved_generators(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in words whose global generators differ between two states; empty if none does."""
    same = {
        "torch": torch.equal(before["torch"], after["torch"]),
        "CUDA": all(torch.equal(*pair) for pair in zip(before["cuda"], after["cuda"], strict=True)),
        "numpy": before["numpy"] == after["numpy"],
        "Python": before["python"] == after["python"],
    }
    return " and ".join(key for key, kept in same.items() if not kept)


def expect_seed_matters(run: Run, gap: str, *, always: bool = True) -> None:
    """Raise unless another seed changed something, told by ``gap``, if and only if ``run`` was drawn from.

    Not ``always``: what is drawn may happen to change nothing.
    """
    draws = sorted(run.generators)
    expect(draws or not gap, f"nothing is drawn from run.rng, but with another seed {gap}")
    expect(gap or not draws or not always, f"it draws from run.rng({draws}), but the seed changes nothing")
