"""Optimizers in anybody's training loop: closures, parameter groups, torch's schedulers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.conformance.check import Subject, difference, expect
from bench.conformance.optimizer_scene import SHAPES, Scene, drawn
from bench.conformance.optimizer_state import optimizer

LOWERED = 0.005
"""By how much 30 steps must lower the loss of the decoder below: little, since every default is meant for another."""


@optimizer
def closure(subject: Subject) -> None:
    """step(closure) calls the closure with gradients enabled, returns its loss, and moves the parameters."""
    scene, enabled = Scene(subject), []
    loss = torch.tensor(2.5)

    def gradients() -> Tensor:
        enabled.append(torch.is_grad_enabled())
        scene.gradients(1)
        return loss

    before = scene.values()
    returned = scene.stepping(gradients)
    expect(enabled, "the closure was never called")
    expect(all(enabled), "the closure was called with gradients disabled")
    expect(returned is loss, f"expected the tensor that the closure returned, found {returned!r:.60}")
    expect(difference(scene.values(), before), "no parameter moved")


@optimizer
def own_rate_per_group(subject: Subject) -> None:
    """A group that is added later steps by its own learning rate: ten times the rate goes ten times as far."""
    for key in ("tall", "norm"):
        scene = Scene(subject)
        groups = scene.optimizer.param_groups
        group = next(g for g in groups if any(p is scene.parameters[key] for p in g["params"]))
        named = "param_names" in group
        twins = [nn.Parameter(scene.parameters[key].detach().clone()) for _ in range(2)]
        for number, (twin, factor) in enumerate(zip(twins, (1, 10), strict=True)):
            options = {option: value for option, value in group.items() if option not in {"params", "param_names"}}
            options |= {"lr": factor * group["lr"], "params": [(f"twin {number}", twin)] if named else [twin]}
            scene.optimizer.add_param_group(options)
            twin.grad = drawn(key, 1, SHAPES[key][1])
        before = scene.values()
        scene.step(1)
        gap = difference(scene.values(), Scene(subject).steps(1, 1))
        expect(not gap, f"groups that were added changed the others: {gap}")
        moved, far = (twin.detach() - before[key] for twin in twins)
        expect(moved.any(), f"{key} in a group that was added did not move")
        ratio = float(far.norm() / moved.norm())
        close = torch.allclose(far, 10 * moved, rtol=1e-3, atol=1e-7)
        expect(close, f"{key}: with ten times the rate the step is {ratio:.4g} times as long, or has another direction")


def _decoder_loss(parameters: dict[str, nn.Parameter]) -> Tensor:
    """Return the loss of a toy of an attention layer and an MLP, with one parameter for each place in the roles."""
    tokens = torch.arange(16)
    hidden = parameters["embedding"][tokens]
    hidden = hidden + torch.tanh(hidden @ parameters["square"].T)
    hidden = nn.functional.layer_norm(hidden, (8,)) * (1 + parameters["norm"])
    hidden = hidden + torch.relu(hidden @ parameters["tall"].T) @ parameters["wide"].T
    return nn.functional.cross_entropy(hidden @ parameters["head"].T, (tokens * 5 + 3) % 16)


@optimizer
def plain_loop_with_a_scheduler(subject: Subject) -> None:
    """In a plain loop torch's LambdaLR sets the learning rates, and 30 steps of a toy decoder lower its loss."""
    shapes = {key: SHAPES[key] for key in ("embedding", "square", "tall", "wide", "norm", "head")}
    scene = Scene(subject, shapes, scale=0.3)
    losses: list[float] = []
    rates = [group["lr"] for group in scene.optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(scene.optimizer, lambda step: 1.0 - step / 40)

    def gradients() -> Tensor:
        scene.optimizer.zero_grad()
        loss = _decoder_loss(scene.parameters)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    for number in range(30):
        wanted = [rate * (1.0 - number / 40) for rate in rates]
        found = [float(group["lr"]) for group in scene.optimizer.param_groups]
        same = all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(found, wanted, strict=True))
        expect(same, f"step {number}: the scheduler set the rates {wanted}, the groups hold {found}")
        if scene.algorithm.closure:
            losses.append(float(scene.stepping(gradients)))
        else:
            losses.append(float(gradients()))
            scene.optimizer.step()
        scheduler.step()
    expect(all(map(math.isfinite, losses)), f"the losses of 30 steps end with {losses[-3:]}")
    wanted_loss = losses[0] - LOWERED
    expect(losses[-1] < wanted_loss, f"30 steps must end below {wanted_loss:.4f}, and end at {losses[-1]:.4f}")
