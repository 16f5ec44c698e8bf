"""The slots ``compress`` and ``compensate``: every point that the algorithm's needs allow is asked of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.algorithm import COMPRESSION_SLOTS, INFORMATION
from bench.conformance.check import CheckFailed, Kind, Subject, difference, expect, expect_equal
from bench.conformance.compression_scene import Scene, first_jobs, jobs, loss_of, marks, stored
from bench.conformance.fresh_process import outputs_elsewhere
from bench.conformance.language_model import VOCABULARY
from bench.conformance.optimizer_scene import DTYPES
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import expect_seed_matters, no_global_draws, seeded
from bench.context import Run
from bench.errors import BenchError

compression = Kind("compression", lambda subject: subject.fills(*COMPRESSION_SLOTS))

LEAST_SHARE = 0.75
"""The least part of what may be kept that must be kept: a model much smaller than was asked for is no comparison."""


@compression
def some_point_is_served(subject: Subject) -> None:
    """Its information is a known kind, and its needs leave at least one of the points of a workload."""
    kind = subject.cls.information
    expect(kind in INFORMATION, f"information is {kind!r}, not one of {', '.join(INFORMATION)}")
    expect(jobs(subject), f"no point offers all that it needs: {', '.join(subject.cls.needs)}")


@compression
def keeps_what_was_asked(subject: Subject) -> None:
    """Of the hidden matrices it stores no more values than the point allows, branches included, nor many fewer."""
    for slot, point in jobs(subject):
        scene = Scene(subject, slot, point)
        dense = sum(p.numel() for p in scene.hidden())
        rest = sum(p.numel() for p in scene.model.parameters()) - dense
        share = point.kept_ratio or (point.pattern[0] / point.pattern[1] if point.pattern else 1.0)
        branch = (point.rank or 0) * sum(sum(p.shape) for p in scene.hidden()) if slot == "compensate" else 0
        result = scene.result()
        kept, allowed = stored(result, result.get_submodule("layers")) - rest, share * dense + branch
        expect(
            LEAST_SHARE * allowed <= kept <= allowed,
            f"{scene}: {kept} values of {dense} are stored; {LEAST_SHARE * allowed:.0f} to {allowed:.0f} are right",
        )


@compression
def finite_model_of_the_same_dtype(subject: Subject) -> None:
    """The result is another function with finite outputs of the same dtype and shape; bf16 may be refused instead."""
    for dtype in DTYPES:
        for slot, point in jobs(subject):
            scene = Scene(subject, slot, point, dtype=dtype)
            try:
                result = scene.result()
            except BenchError:
                if dtype == torch.bfloat16:
                    continue  # a clear refusal is right as well
                raise
            logits = result(scene.tokens)
            expect(logits.dtype == dtype, f"{scene}: a model in {dtype} became one in {logits.dtype}")
            shape = tuple(logits.shape)
            expect(shape == (12, 11, VOCABULARY), f"{scene}: the outputs have the shape {shape}")
            expect(logits.isfinite().all(), f"{scene}, {dtype}: outputs are not finite")
            same = torch.equal(logits, scene.models[-1](scene.tokens))
            expect(not same, f"{scene}, {dtype}: the result computes what the model did")
            for key, value in result.state_dict().items():
                expect(value.isfinite().all(), f"{scene}, {dtype}: {key} is not finite")
                right = not value.is_floating_point() or value.dtype == dtype
                expect(right, f"{scene}: {key} is {value.dtype} in a model of {dtype}")


@compression
def arguments_left_alone(subject: Subject) -> None:
    """Models, hooks, modes, gradients and calibration data stay as they are, and the result shares no tensor."""
    for slot, point in jobs(subject):
        scene = Scene(subject, slot, point)
        before = [(copy.deepcopy(model.state_dict()), marks(model)) for model in scene.models]
        given = copy.deepcopy(scene.calibration)
        result = scene.result()
        for model, (values, facts) in zip(scene.models, before, strict=True):
            expect_equal(model.state_dict(), values, f"{scene}: the model that was given")
            expect(marks(model) == facts, f"{scene}: hooks, modes or gradients of the given model changed")
        for number, (batch, old) in enumerate(zip(scene.calibration, given, strict=True)):
            expect_equal(batch, old, f"{scene}: batch {number} of the calibration data")
        owned = {p.data_ptr() for model in scene.models for p in model.parameters()}
        shared = [key for key, p in result.named_parameters() if p.numel() and p.data_ptr() in owned]
        expect(not shared, f"{scene}: the result shares {shared[:3]} with a model that was given")


@compression
def the_rest_stays(subject: Subject) -> None:
    """Embeddings, head and norms stay bit for bit, and the result is in evaluation mode."""
    for slot, point in jobs(subject):
        scene = Scene(subject, slot, point)
        result = scene.result()
        outer = {key: value for key, value in scene.model.named_parameters() if not key.startswith("layers.")}
        found = {key: value for key, value in result.named_parameters() if key in outer}
        expect_equal(found, outer, f"{scene}: what is no hidden matrix")
        expect(not result.training, f"{scene}: the result is in training mode")


def _results(subject: Subject) -> list[dict[str, Tensor]]:
    seeded()
    return [Scene(subject, *job).result().state_dict() for job in first_jobs(subject)]


@compression
def same_seed_same_bits(subject: Subject) -> None:
    """The same seed gives the same bits."""
    for one, other in zip(_results(subject), _results(subject), strict=True):
        expect_equal(other, one, "the second result")


@compression
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves, and a seed matters if and only if it draws."""
    for job in first_jobs(subject):
        one, other = Scene(subject, *job, seed=0), Scene(subject, *job, seed=1)
        with no_global_draws():
            found = [scene.result().state_dict() for scene in (one, other)]
        expect_seed_matters(one.run, difference(found[1], found[0]))


@compression
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, and a second call does the same as the first."""
    for job in first_jobs(subject):
        seeded()
        scene = Scene(subject, *job)
        one = scene.result().state_dict()
        expect_only_hyperparameters(scene.algorithm)
        seeded()
        scene.run = scene.fresh_run()
        expect_equal(scene.result().state_dict(), one, "the result of a second call of the same algorithm")


@compression
def result_can_be_trained(subject: Subject) -> None:
    """It works with gradients on and off, and every parameter of the result is a leaf that gets a gradient."""
    for job in first_jobs(subject):
        seeded()
        with torch.no_grad():
            quiet = Scene(subject, *job).result()
        seeded()
        scene = Scene(subject, *job)
        result = scene.result()
        expect_equal(quiet.state_dict(), result.state_dict(), "the result with gradients off")
        leaves = all(p.is_leaf and p.requires_grad and p.grad is None for p in result.parameters())
        expect(leaves, "a parameter of the result is no leaf, requires no gradient, or holds one")
        loss_of(result, {"tokens": scene.tokens}).backward()  # type: ignore[no-untyped-call]
        without = [key for key, parameter in result.named_parameters() if parameter.grad is None]
        expect(not without, f"{without[:3]} of the result get no gradient")


@compression
def bare_points_are_refused(subject: Subject) -> None:
    """A run without a point is refused by a BenchError that says so."""
    for job in first_jobs(subject):
        scene = Scene(subject, *job)
        scene.run = Run(seed=0, steps=1, roles=scene.roles, blocks=scene.run.blocks, loss=scene.run.loss)
        try:
            scene.result()
        except BenchError as error:
            expect("point" in str(error), f"the message does not speak of the point: {error.message}")
        else:
            raise CheckFailed(f"{scene.slot} worked without a point")


@compression
def works_in_another_process(subject: Subject) -> None:
    """The result, saved by torch.save and loaded in a fresh process, computes the same bits."""
    for job in first_jobs(subject):
        scene = Scene(subject, *job)
        result = scene.result()
        with torch.no_grad():
            here = result(scene.tokens)
        there = outputs_elsewhere(result, scene.tokens)
        expect_equal({"outputs": there}, {"outputs": here}, "the outputs in another process")
