"""Optimizers: what one step does to parameters of every shape and dtype, and what it must leave alone."""

from __future__ import annotations

import torch

from bench.conformance.check import CheckSkipped, Subject, expect, expect_equal, tensor_difference
from bench.conformance.optimizer_scene import DTYPES, SHAPES, Scene, Shapes, drawn
from bench.conformance.optimizer_state import optimizer
from bench.probes import optimizer_state_bytes
from bench.roles import Role

AGREEMENT = 0.1
"""How far two paths of one algorithm may end apart, as a part of the way: iterations in bf16 may round apart, a wrong
path ends somewhere else."""


@optimizer
def every_shape_and_dtype(subject: Subject) -> None:
    """Square, tall, wide and large matrices, convolutions, vectors and scalars all move, finitely, in fp32 and bf16."""
    for dtype in DTYPES:
        for key, kind in SHAPES.items():
            scene = Scene(subject, {"companion": (Role.MLP, (6, 12)), key: kind}, dtype=dtype)
            before = scene.values()
            scene.steps(1, 3)
            where = f"{key} {kind[1]} in {dtype}"
            expect(not scene.infinite(), f"{where}: after 3 steps {scene.infinite()}")
            for other, parameter in scene.parameters.items():
                expect(parameter.dtype == dtype, f"{where}: {other} became {parameter.dtype}")
                expect(parameter.requires_grad, f"{where}: {other} requires no gradient any more")
                expect(parameter.grad_fn is None, f"{where}: {other} is no leaf any more")
                moved = tensor_difference(parameter.detach(), before[other])
                expect(moved, f"{where}: {other} did not move in 3 steps")


@optimizer
def empty_parameters(subject: Subject) -> None:
    """A parameter without elements does no harm and changes nothing for the others."""
    full = Scene(subject).steps(1, 3)
    for shape in ((0,), (0, 4)):
        shapes: Shapes = {**SHAPES, "empty": (Role.OTHER, shape)}
        scene = Scene(subject, shapes)
        values = scene.steps(1, 3)
        expect(values.pop("empty").shape == shape, f"the empty parameter has no longer the shape {shape}")
        expect(not scene.infinite(), f"beside an empty parameter {scene.infinite()}")
        expect_equal(values, full, f"beside an empty parameter of shape {shape}")


@optimizer
def zero_gradients(subject: Subject) -> None:
    """Gradients of zero leave weights and states finite, at the first steps and later, in fp32 and bf16."""
    for dtype in DTYPES:
        scene = Scene(subject, dtype=dtype)
        for number, scale in enumerate([0.0, 0.0, 1.0, 0.0, 0.0], start=1):
            scene.step(number, scale=scale)
            expect(not scene.infinite(), f"{dtype}, step {number} with gradients x {scale:g}: {scene.infinite()}")


@optimizer
def missing_gradients(subject: Subject) -> None:
    """A parameter without a gradient stays bit for bit, at the first step and later, and joins when it has one."""
    for key in ("square", "norm"):
        scene = Scene(subject)
        before = scene.values()
        scene.step(1, without=[key])
        first = scene.values()
        _expect_same(first[key], before[key], f"{key} had no gradient in step 1")
        expect(tensor_difference(first["tall"], before["tall"]), f"tall did not move because {key} had no gradient")
        scene.step(2)
        middle = scene.values()
        expect(tensor_difference(middle[key], before[key]), f"{key} did not move at its first gradient, in step 2")
        scene.step(3, without=[key])
        _expect_same(scene.values()[key], middle[key], f"{key} had no gradient in step 3")
        expect(not scene.infinite(), f"{key} without a gradient now and then: {scene.infinite()}")


def _expect_same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    gap = tensor_difference(found, expected)
    expect(not gap, f"{what}: expected the same bits, found that it {gap}")


@optimizer
def gradients_left_alone(subject: Subject) -> None:
    """A step leaves every gradient as it is, or frees it."""
    scene = Scene(subject)
    scene.step(1)
    for key, parameter in scene.parameters.items():
        if parameter.grad is not None:
            _expect_same(parameter.grad, drawn(key, 1, SHAPES[key][1]), f"the gradient of {key} after the step")


@optimizer
def batched_is_single(subject: Subject) -> None:
    """Where param groups have a foreach switch, both ways end in the same place after five steps."""
    batched, single = Scene(subject), Scene(subject)
    if not any("foreach" in group for group in batched.optimizer.param_groups):
        expect(not hasattr(batched.optimizer, "foreach"), "the optimizer has a foreach switch, its param groups do not")
        raise CheckSkipped("there is one path only: no param group has a foreach switch")
    for scene, foreach in ((batched, True), (single, False)):
        for group in scene.optimizer.param_groups:
            group["foreach"] = foreach
            if "fused" in group:
                group["fused"] = None
    before, left, right = batched.values(), batched.steps(1, 5), single.steps(1, 5)
    for key in SHAPES:
        apart, way = float((left[key] - right[key]).norm()), float((left[key] - before[key]).norm())
        expect(apart <= AGREEMENT * way, f"{key}: the ways end {apart:.3g} apart, after a way of {way:.3g}")


@optimizer
def steps_without_storage(subject: Subject) -> None:
    """A step runs on the meta device, where memory is estimated, and leaves its states there."""
    scene = Scene(subject, device="meta")
    scene.steps(1, 3)
    elsewhere = [value for value in scene.state_tensors() if value.ndim and value.device.type != "meta"]
    expect(not elsewhere, f"{len(elsewhere)} states of parameters without storage were made on another device")


@optimizer
def estimated_bytes_are_real(subject: Subject) -> None:
    """The states of a step on the meta device have as many bytes as those of a real one, in fp32 and bf16."""
    for dtype in DTYPES:
        found = []
        for device in ("meta", "cpu"):
            scene = Scene(subject, dtype=dtype, device=device)
            scene.step(1)
            found.append(optimizer_state_bytes(scene.optimizer))
        expect(found[0] == found[1], f"{dtype}: {found[0]} bytes are estimated, a step leaves {found[1]} bytes")
