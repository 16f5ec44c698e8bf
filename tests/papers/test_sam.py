"""SAM over AdamW against the rule of the card and pytorch-optimizer's class."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.sam import SAM, SAMAdamW

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


class Problem:
    """A loss of two tensors whose gradient depends on where it is taken, and what was seen at each pass."""

    def __init__(self, start, stream, dtype=torch.float32):
        self.matrix, self.vector = (torch.nn.Parameter(start(*shape, dtype=dtype)) for shape in ((6, 5), (5, 1)))
        self.targets = iter(stream(6, 1, 1000, dtype=dtype))
        self.target, self.seen, self.gradients = next(self.targets), [], []

    @property
    def parameters(self):
        return [self.matrix, self.vector]

    def loss(self):
        self.seen.append([p.detach().clone() for p in self.parameters])
        for parameter in self.parameters:
            parameter.grad = None
        loss = (torch.tanh(self.matrix @ self.vector) - self.target).square().sum()
        loss.backward()
        self.gradients.append([p.grad.clone() for p in self.parameters])
        return loss.detach()

    def run(self, step, steps):
        path = []
        for _ in range(steps):
            step(self.loss)
            self.target = next(self.targets)
            path += [p.detach().clone() for p in self.parameters]
        return path


def ours(problem, **options):
    return SAMAdamW(problem.parameters, **OPTIONS | options)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_every_step_is_adamw_with_the_gradient_at_the_climbed_point(foreach, rho, start, stream):
    problem, plain = Problem(start, stream, torch.float64), Problem(start, stream, torch.float64)
    adamw = torch.optim.AdamW(plain.parameters, **OPTIONS)

    def naive(closure):
        closure()
        origins, gradients = plain.seen[-1], plain.gradients[-1]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=rho / norm)
        closure()
        with torch.no_grad():
            for parameter, origin in zip(plain.parameters, origins, strict=True):
                parameter.copy_(origin)
        adamw.step()

    expected = plain.run(naive, 20)
    assert distance(problem.run(ours(problem, rho=rho, foreach=foreach).step, 20), expected) < 1e-9


def test_without_a_climb_it_is_adamw(start, stream):
    problem, plain = Problem(start, stream), Problem(start, stream)
    adamw = torch.optim.AdamW(plain.parameters, **OPTIONS)
    expected = plain.run(adamw.step, 20)
    assert distance(problem.run(ours(problem, rho=0.0).step, 20), expected) < 1e-6


def test_parity_with_pytorch_optimizer(start, stream, package):
    theirs = package("pytorch_optimizer", "pytorch-optimizer")
    problem, plain = Problem(start, stream), Problem(start, stream)
    other = theirs.SAM(plain.parameters, torch.optim.AdamW, rho=0.05, **OPTIONS)

    def both(closure):
        closure()
        other.step(closure)

    expected = plain.run(both, 20)
    assert distance(problem.run(ours(problem, rho=0.05).step, 20), expected) < 1e-6


def test_it_climbs_by_rho_over_all_parameters_together_and_comes_back_to_the_bit(start, stream):
    problem = Problem(start, stream)
    groups = [{"params": [problem.matrix]}, {"params": [problem.vector]}]
    SAMAdamW(groups, lr=1e-30, weight_decay=0.0, rho=0.05).step(problem.loss)
    origins, climbed = problem.seen
    moved = torch.cat([(b - a).flatten() for a, b in zip(origins, climbed, strict=True)])
    gradient = torch.cat([g.flatten() for g in problem.gradients[0]])
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-4)
    assert float(torch.nn.functional.cosine_similarity(moved, gradient, dim=0)) == pytest.approx(1.0, abs=1e-5)
    assert all(torch.equal(p, origin) for p, origin in zip(problem.parameters, origins, strict=True))


def test_weights_come_back_when_the_second_pass_fails(start, stream):
    problem = Problem(start, stream)

    def closure():
        if problem.seen:
            raise ArithmeticError
        return problem.loss()

    with pytest.raises(ArithmeticError):
        ours(problem).step(closure)
    assert all(torch.equal(p, origin) for p, origin in zip(problem.parameters, problem.seen[0], strict=True))


def test_it_returns_the_loss_before_the_climb(start, stream):
    problem = Problem(start, stream)
    expected = Problem(start, stream).loss()
    assert torch.equal(ours(problem, rho=0.5).step(problem.loss), expected)


def test_a_step_without_a_closure_is_refused(start, stream):
    with pytest.raises(RuntimeError, match="closure"):
        ours(Problem(start, stream)).step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_between_steps_is_two_moments(dtype):
    parameter = torch.nn.Parameter(torch.ones(6, 5, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    optimizer = SAMAdamW([parameter])
    optimizer.step(lambda: 1.0)
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    assert [(buffer.numel(), buffer.dtype) for buffer in state.values()] == [(30, dtype)] * 2


def test_plugin_passes_its_fields_on_and_says_that_it_takes_two_passes():
    algorithm = SAM(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7, rho=0.6)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.1, 0.2), 0.3)
    assert (group["weight_decay"], group["rho"]) == (0.7, 0.6)
    assert (SAM.closure, SAM.passes) == (True, 2)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0)), ("rho", -1.0)]
)
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="sam") as raised:
        SAMAdamW([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert "<" in (raised.value.hint or "") or ">" in (raised.value.hint or "")
