"""Optimizers: determinism, and the state that makes a run resumable."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.checkpoint import random_state, set_random_state
from bench.conformance.check import CheckFailed, Kind, Subject, difference, expect, expect_equal
from bench.conformance.optimizer_scene import DTYPES, Scene
from bench.conformance.randomness import expect_seed_matters, no_global_draws, seeded

optimizer = Kind("optimizer", lambda subject: subject.fills("optimizer"))


@optimizer
def every_parameter_in_one_group(subject: Subject) -> None:
    """Every parameter is in exactly one parameter group, and every group has a learning rate above 0."""
    scene = Scene(subject)
    owned = [id(p) for group in scene.optimizer.param_groups for p in group["params"]]
    for key, parameter in scene.parameters.items():
        count = owned.count(id(parameter))
        expect(count == 1, f"{key!r} is in {count} groups instead of 1")
    expect(len(owned) == len(scene.parameters), f"the groups hold {len(owned)} of {len(scene.parameters)} parameters")
    rates = [group.get("lr") for group in scene.optimizer.param_groups]
    expect(all(rate is not None and rate > 0 for rate in rates), f"the groups' learning rates are {rates}")


@optimizer
def same_seed_same_bits(subject: Subject) -> None:
    """Two optimizers of the same seed that get the same gradients end in the same bits."""
    ends = []
    for _ in range(2):
        seeded()
        ends.append(Scene(subject).steps(1, 5))
    expect_equal(ends[1], ends[0], "after 5 steps")


@optimizer
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves, and a seed matters if and only if it draws."""
    with no_global_draws():
        one, other = Scene(subject, seed=0), Scene(subject, seed=1)
        ends = [scene.steps(1, 5) for scene in (one, other)]
    expect_seed_matters(one.run, difference(ends[1], ends[0]))


@optimizer
def resumes_bit_for_bit(subject: Subject) -> None:
    """A fresh optimizer with a copied, or saved and loaded, state goes on bit for bit, in fp32 and in bf16."""
    for dtype in DTYPES:
        for way in ("copied", "saved"):
            seeded()
            whole = Scene(subject, dtype=dtype).steps(1, 6)
            seeded()
            half = Scene(subject, dtype=dtype)
            half.steps(1, 3)
            state, draws = _carried(half.optimizer.state_dict(), way), random_state()
            resumed = Scene(subject, dtype=dtype)
            resumed.take_over(half, state)
            set_random_state(draws)
            expect_equal(resumed.steps(4, 6), whole, f"{dtype}, state {way} after step 3, at step 6")


def _carried(state: dict[str, Any], way: str) -> dict[str, Any]:
    if way == "copied":
        return copy.deepcopy(state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckFailed(f"its state_dict cannot be loaded with weights_only=True: {reason}") from error
    return loaded


@optimizer
def state_keeps_its_dtype(subject: Subject) -> None:
    """Every tensor of its state keeps dtype, shape and bits through load_state_dict, beside bf16 weights too."""
    for dtype in DTYPES:
        scene, fresh = Scene(subject, dtype=dtype), Scene(subject, dtype=dtype)
        scene.steps(1, 3)
        fresh.take_over(scene, copy.deepcopy(scene.optimizer.state_dict()))
        held = dict(_tensors(scene.optimizer.state_dict()["state"]))
        taken = dict(_tensors(fresh.optimizer.state_dict()["state"]))
        expect_equal(taken, held, f"the state beside {dtype} weights")


def _tensors(value: Any, path: str = "state") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{path}[{number}]")


@optimizer
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, before and after steps."""
    scene = Scene(subject)
    scene.steps(1, 2)
    expect_only_hyperparameters(scene.algorithm)


def expect_only_hyperparameters(algorithm: Any) -> None:
    """Raise if ``algorithm`` holds anything but the hyperparameters that a fresh one has."""
    held, fields = vars(algorithm), algorithm.hyperparameters()
    extra = sorted(held.keys() - fields.keys())
    expect(not extra, f"state belongs into what a slot returns, but {extra} was put on the algorithm")
    fresh = type(algorithm)().hyperparameters()
    changed = [name for name in fields if fields[name] != fresh[name]]
    expect(not changed, f"{changed} changed while it worked")
