"""Diagnostics of optimizers whose behaviour is known from their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from bench.diagnostics import ADAMW, DIAGNOSTICS, SGD, Contestant, diagnose, examine, overhead
from bench.diagnostics.costs import median_interval, race

NAMED = {diagnostic.name: diagnostic for diagnostic in DIAGNOSTICS}


class Ruled(torch.optim.Optimizer):
    """An optimizer whose step is ``rule(gradient, state)`` times its rate."""

    def __init__(self, params, rule, lr):
        super().__init__(params, {"lr": lr})
        self.rule = rule

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.rule(p.grad, self.state[p]), alpha=group["lr"])


def ruled(rule, lr=0.01):
    return Contestant(rule.__name__, lambda named, _: Ruled([p for _, p in named], rule, lr))


def signs(gradient, _):
    return gradient.sign()


def normalized(gradient, _):
    return gradient / gradient.norm().clamp_min(1e-30)


def polar(gradient, _):
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    return u @ v


def nothing(gradient, _):
    return torch.zeros_like(gradient)


def uphill(gradient, _):
    return -gradient


def remembering(gradient, state):
    total = state.setdefault("total", torch.zeros_like(gradient)).add_(gradient)
    return total / total.abs().max()


DRAWS = torch.Generator().manual_seed(0)


def drawing(gradient, _):
    return gradient + torch.randn(gradient.shape, generator=DRAWS)


def raising(gradient, _):
    raise torch.linalg.LinAlgError(f"no convergence for {tuple(gradient.shape)}")


def value(name, contestant):
    found = examine(NAMED[name], contestant)
    assert found.reading
    return found.value


# -- geometry --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("contestant", [ADAMW, ruled(signs), ruled(normalized), ruled(polar)], ids=lambda c: c.name)
def test_what_normalizes_is_scale_invariant(contestant):
    assert value("scale", contestant) < 1e-3


def test_gradient_descent_is_not_and_diverges_where_the_loss_is_a_thousand_times_as_large():
    assert value("scale", SGD) == math.inf
    assert "size of the loss" in examine(NAMED["scale"], SGD).reading


@pytest.mark.parametrize("contestant", [SGD, ruled(normalized), ruled(polar)], ids=lambda c: c.name)
def test_what_is_equivariant_is_as_fast_on_a_rotated_quadratic(contestant):
    assert value("rotation", contestant) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("contestant", [ADAMW, ruled(signs)], ids=lambda c: c.name)
def test_what_works_along_the_axes_is_not(contestant):
    assert value("rotation", contestant) < 0.5


# -- landscape -------------------------------------------------------------------------------------------------------
def test_gradient_descent_leaves_a_saddle_geometrically():
    assert value("saddle", SGD) == math.ceil(math.log(1000) / math.log(1.1))


def test_steps_of_constant_length_leave_it_in_fifty():
    assert value("saddle", ruled(signs)) == 50


@pytest.mark.parametrize("rule", [nothing, uphill])
def test_what_never_leaves_it_is_said_to_stay(rule):
    assert value("saddle", ruled(rule)) == math.inf
    assert "stays" in examine(NAMED["saddle"], ruled(rule)).reading


def test_a_plateau_stops_gradient_descent_halves_adam_and_is_nothing_to_signs():
    assert value("plateau", SGD) == pytest.approx(1e-8, rel=1e-3)
    assert value("plateau", ADAMW) == pytest.approx(0.5, rel=0.01)  # 1e-8 / (1e-8 + epsilon)
    assert value("plateau", ruled(signs)) == pytest.approx(1.0)


@pytest.mark.parametrize("lr", [0.02, 0.1])
def test_gradient_descent_rests_at_the_variance_of_its_closed_form(lr):
    sgd = Contestant("sgd", lambda named, _: torch.optim.SGD([p for _, p in named], lr=lr))
    found = examine(NAMED["noise"], sgd)
    assert found.value == pytest.approx(lr / (2 - lr), rel=0.15)
    assert float(found.reading.split()[-1]) == pytest.approx(lr, rel=0.15)


def test_what_climbs_does_not_come_to_rest():
    steep = ruled(uphill, lr=10.0)
    assert value("noise", steep) == math.inf
    assert "not come to rest" in examine(NAMED["noise"], steep).reading


# -- robustness ------------------------------------------------------------------------------------------------------
def test_rows_without_a_gradient_stay_under_gradient_descent_and_coast_under_momentum():
    assert value("sparse", SGD) == 0.0
    assert 0.0 < value("sparse", ADAMW) < 1.0
    assert value("sparse", ruled(remembering)) > 0.3


def test_a_bad_gradient_is_forgotten_by_what_has_no_memory_poisons_a_moment_or_a_whole_matrix():
    assert value("recovery", SGD) == 0.0
    assert value("recovery", ADAMW) == 1 / 256
    assert value("recovery", ruled(remembering)) == 1.0  # the largest element of the sum divides all


def test_determinism_counts_weights_that_differ():
    assert value("determinism", ADAMW) == 0.0
    assert value("determinism", ruled(drawing)) == 1.0


# -- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith("memory/")])
def test_bytes_per_parameter_are_those_of_the_formula(name):
    momentum = Contestant("momentum", lambda named, _: torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9))
    assert value(name, SGD) == 0.0
    assert value(name, momentum) == 4.0
    assert value(name, ADAMW) == pytest.approx(8.0, rel=0.01)


# -- findings --------------------------------------------------------------------------------------------------------
def test_what_an_optimizer_raises_is_its_reading_and_stops_nothing():
    findings = diagnose(ruled(raising))
    assert [found.name for found in findings] == list(NAMED)
    assert {found.value for found in findings} == {None}
    assert all("LinAlgError" in found.reading for found in findings)
    assert all(found.yardsticks.keys() == {"AdamW", "SGD"} for found in findings)


# -- overhead --------------------------------------------------------------------------------------------------------
def test_a_race_is_fair_and_gives_the_median_of_the_ratios():
    order, times = [], iter(range(1, 1000))

    def one():
        order.append("one")
        next(times)
        return 3.0

    def other():
        order.append("other")
        return 1.5

    found = race("x", "y", one, other)
    assert (found.ratio, found.low, found.high, found.seconds, found.pairs) == (2.0, 2.0, 2.0, 3.0, 30)
    assert order[2:10] == ["one", "other", "other", "one"] * 2


@pytest.mark.parametrize(("n", "rank"), [(5, 1), (6, 1), (7, 1), (9, 2), (20, 6), (30, 10)])
def test_the_interval_of_the_median_is_that_of_the_tables(n, rank):
    assert median_interval([float(i) for i in range(1, n + 1)]) == (rank, n + 1 - rank)


@pytest.mark.parametrize(
    ("name", "costs"),
    [
        ("good-optimizer", {"optimizer step", "optimizer state", "training step"}),
        ("good-adapter", {"training step", "setup"}),
        ("good-schedule", {"training step", "schedule call"}),
        ("good-learner", {"training step"}),
        ("good-pruning", {"compress at kept ratio 0.5"}),
        ("good-average", {"merge of 3"}),
    ],
)
def test_every_kind_of_algorithm_has_costs(name, costs, wrong, monkeypatch):
    from bench.conformance.check import Subject

    monkeypatch.setattr("bench.diagnostics.costs.PAIRS", 2)
    found = {cost.name: cost for cost in overhead(Subject(name, wrong))}
    assert found.keys() == costs
    assert all(cost.low <= cost.ratio <= cost.high for cost in found.values())
    if name == "good-optimizer":
        assert found["optimizer state"].ratio == pytest.approx(0.5, rel=1e-3)
