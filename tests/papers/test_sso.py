"""SSO against its formulas; no package implements it (pytorch-optimizer's ``sso`` is SpectralSphere, unrelated).

The reference code's own scaling is proved to be the same surrogate up to constants and a factor.
"""

from __future__ import annotations

import doctest
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench import checkpoint
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import sso as module
from bench.plugins.optimizers._outputs import at_outputs, loss_at, micro_batches
from bench.plugins.optimizers.sso import SSO, TargetSurrogate, surrogate_gradient

pytestmark = pytest.mark.paper

ROWS, OUTPUTS = 6, 3


def squared(model, batch):
    """Half the squared error, summed over outputs, the mean over rows: L = 1 per row."""
    return 0.5 * (model(batch["x"]) - batch["y"]).square().sum(dim=1).mean()


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["label"])


@pytest.fixture
def batch():
    """Features whose matrix is orthogonal, so that a linear model can reach any targets quickly."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator, dtype=torch.float64)).Q,
        "y": torch.randn(ROWS, OUTPUTS, generator=generator, dtype=torch.float64),
        "label": torch.arange(ROWS) % OUTPUTS,
    }


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(ROWS, OUTPUTS, bias=False).double()


def network(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(ROWS, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, OUTPUTS)).double()


def learner(model, loss, lr=0.1, **options):
    return TargetSurrogate(model, torch.optim.SGD(model.parameters(), lr=lr), loss, **options)


# -- a loss as a function of the outputs ---------------------------------------------------------------------------
def test_loss_and_gradient_at_the_outputs_are_those_of_the_loss(batch):
    model = network()
    found = at_outputs(entropy, model, batch)
    outputs = model(batch["x"]).detach().requires_grad_()
    value = nn.functional.cross_entropy(outputs, batch["label"])
    value.backward()
    assert torch.equal(found.loss, value.detach())
    assert torch.equal(found.gradient, outputs.grad)
    assert found.outputs.grad_fn is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(loss_at(entropy, outputs.detach(), batch), value.detach())


def test_what_is_no_function_of_one_tensor_of_outputs_is_refused(batch):
    with pytest.raises(SlotMismatch, match="calls the model 2 times"):
        at_outputs(lambda m, b: entropy(m, b) + entropy(m, b), network(), batch)
    with pytest.raises(SlotMismatch, match="calls the model 0 times"):
        at_outputs(lambda _, b: b["y"].sum(), network(), batch)
    with pytest.raises(SlotMismatch, match="returns tuple"):
        at_outputs(entropy, lambda x: (x, x), batch)


@pytest.mark.parametrize(("number", "sizes"), [(1, [6]), (2, [3, 3]), (4, [2, 2, 2]), (6, [1] * 6), (9, [1] * 6)])
def test_micro_batches_cover_a_batch_once(batch, number, sizes):
    pieces = list(micro_batches(batch, number))
    assert [len(piece["x"]) for piece, _ in pieces] == sizes
    assert torch.equal(torch.cat([piece["label"] for piece, _ in pieces]), batch["label"])
    assert [share for _, share in pieces] == pytest.approx([size / 6 for size in sizes])


# -- the surrogate -------------------------------------------------------------------------------------------------
def test_one_inner_step_is_the_optimizer_itself_bit_for_bit(micro):
    workload = micro.workload()
    ours = micro.parts(SSO(inner_steps=1), workload=workload)
    seen = micro.train(ours, workload)
    plain = micro.parts(workload=workload)
    expected = micro.train(plain, workload)
    assert micro.equal(micro.weights(ours), micro.weights(plain))
    assert [(e.metrics, e.train_loss) for e in seen] == [(e.metrics, e.train_loss) for e in expected]


@pytest.mark.parametrize("loss", [squared, entropy])
def test_inner_gradients_are_those_of_the_surrogate(batch, loss):
    ours, naive = network(), network()
    learner(ours, loss, inner_steps=4, stepsize=0.3)(batch)
    with torch.no_grad():
        touched = naive(batch["x"])
    outputs = touched.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(lambda _: outputs, batch), outputs)
    sgd = torch.optim.SGD(naive.parameters(), lr=0.1)
    for _ in range(4):
        sgd.zero_grad()
        moved = naive(batch["x"]) - touched
        surrogate = (gradient * moved).sum() + moved.square().sum() / (2 * 0.15 * ROWS)
        surrogate.backward()
        sgd.step()
    for left, right in zip(ours.parameters(), naive.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-13)


def test_scaling_of_the_reference_code_is_the_same_surrogate_up_to_a_factor(batch):
    """It minimises mean(G f s + (f - z)²) with G of the loss summed over rows, the mean over rows and outputs."""
    s, eta = 0.7, 0.35
    touched, outputs = torch.randn(ROWS, OUTPUTS, dtype=torch.float64), torch.randn(ROWS, OUTPUTS, dtype=torch.float64)
    summed = touched - batch["y"]
    moved = outputs.clone().requires_grad_()
    (summed * moved * s + (moved - touched).square()).mean().backward()
    ours = surrogate_gradient(outputs, touched, summed / ROWS, 1.0 / (eta * ROWS))
    ratio = ours / moved.grad
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-10)
    assert ratio[0, 0] > 0


@pytest.mark.parametrize("loss", [squared, entropy])
def test_a_linear_model_of_full_rank_reaches_the_targets(batch, loss):
    model = linear()
    start = model(batch["x"]).detach()
    gradient = at_outputs(loss, model, batch).gradient
    learner(model, loss, lr=ROWS * 0.2, inner_steps=200, stepsize=0.8)(batch)
    expected = start - 0.4 * ROWS * gradient
    assert torch.allclose(model(batch["x"]), expected, atol=1e-5)
    assert float((start - expected).abs().max()) > 1e-2


def test_least_squares_take_one_outer_step_at_eta_one_over_l(batch):
    model = linear()
    learner(model, squared, lr=ROWS * 0.5, inner_steps=200, stepsize=2.0)(batch)
    assert float(squared(model, batch).detach()) < 1e-10
    slower = linear()
    learner(slower, squared, lr=ROWS * 0.5, inner_steps=200, stepsize=1.0)(batch)
    assert float(squared(slower, batch).detach()) > 1e-2


@pytest.mark.parametrize("inner_steps", [1, 3, 20])
@pytest.mark.parametrize(("loss", "stepsize"), [(squared, 2.0), (squared, 0.3), (entropy, 2.0)])
def test_the_loss_never_rises_while_eta_is_at_most_one_over_l(batch, inner_steps, loss, stepsize):
    model = network()
    step = learner(model, loss, lr=0.02, inner_steps=inner_steps, stepsize=stepsize)
    losses = [float(step(batch)) for _ in range(30)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < losses[0] - 1e-2


def test_more_inner_steps_go_further_per_gradient_of_the_loss(batch):
    def after_twenty(inner_steps):
        model, calls = network(), []
        counted = lambda m, b: calls.append(1) or squared(m, b)  # noqa: E731
        step = learner(model, counted, lr=0.02, inner_steps=inner_steps, stepsize=2.0)
        for _ in range(20):
            step(batch)
        assert len(calls) == 20
        return float(squared(model, batch).detach())

    assert after_twenty(20) < after_twenty(5) < after_twenty(1)


def test_inner_steps_end_where_the_surrogate_is_fitted(batch):
    model, passes = linear(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    learner(model, squared, lr=ROWS * 0.5, inner_steps=500, stepsize=1.0)(batch)
    assert len(passes) < 100


def test_micro_batches_make_the_same_step(batch):
    whole, cut = network(), network()
    learner(whole, entropy, inner_steps=4)(batch)
    learner(cut, entropy, inner_steps=4, pieces=3)(batch)
    for left, right in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-13)


def test_dropout_draws_the_same_masks_within_a_step_and_new_ones_after_it(batch):
    model, seen = network(dropout=0.5), []
    model[2].register_forward_hook(lambda _, __, output: seen.append((output != 0).detach()))
    step = learner(model, entropy, lr=1e-3, inner_steps=3)
    torch.manual_seed(7)
    step(batch)
    step(batch)
    assert len(seen) == 6
    assert all(torch.equal(seen[0], mask) for mask in seen[1:3])
    assert all(torch.equal(seen[3], mask) for mask in seen[4:])
    assert not torch.equal(seen[0], seen[3])


# -- the step size in target space -----------------------------------------------------------------------------------
def etas(schedule, steps, batch, **options):
    found = []
    step = learner(linear(), entropy, inner_steps=2, eta_schedule=schedule, steps=steps, **options)
    original = step._next_eta
    step._next_eta = lambda *arguments: found.append(original(*arguments)) or found[-1]
    for _ in range(steps):
        step(batch)
    return found


def test_schedules_of_eta_are_the_formulas(batch):
    softmax = 0.5 / (1 - 1 / OUTPUTS)
    assert etas("constant", 3, batch) == pytest.approx([softmax] * 3)
    assert etas("constant", 3, batch, stepsize=0.25) == pytest.approx([0.125] * 3)
    assert etas("stochastic", 4, batch, stepsize=2.0) == pytest.approx([1 / math.sqrt(t) for t in (1, 2, 3, 4)])
    assert etas("exponential", 4, batch, stepsize=2.0) == pytest.approx([4 ** (-t / 4) for t in (1, 2, 3, 4)])


def test_line_search_takes_the_first_eta_with_the_decrease_that_was_asked_for(batch):
    model, values = linear(), []
    step = learner(model, entropy, inner_steps=2, eta_schedule="line-search", stepsize=200.0)
    found = at_outputs(entropy, model, batch)
    step(batch)

    def enough(eta):
        moved = float(loss_at(entropy, found.outputs.detach() - eta * ROWS * found.gradient, batch))
        return moved <= float(found.loss) - 0.5 * eta * ROWS * float(found.gradient.square().sum())

    assert enough(step.eta)
    assert not enough(step.eta / 0.9)
    assert math.log(step.eta / 100.0) / math.log(0.9) == pytest.approx(
        round(math.log(step.eta / 100.0) / math.log(0.9))
    )
    first = step.eta
    step._searched = lambda eta, *_: values.append(eta) or eta
    step(batch)
    assert values == [1.8 * first]


def test_line_search_stays_within_its_bounds(batch):
    flat = learner(
        linear(), lambda m, b: 0.0 * m(b["x"]).sum(), inner_steps=2, eta_schedule="line-search", stepsize=1e9
    )
    flat(batch)
    assert flat.eta == 1e4
    rising = learner(linear(), entropy, inner_steps=2, eta_schedule="line-search")
    assert rising._searched(1.0, -1e9, rising._touch(batch)[1]) == 1e-4


# -- in the suite --------------------------------------------------------------------------------------------------
def test_a_run_goes_on_bit_for_bit_from_its_checkpoint(micro, tmp_path):
    workload = micro.workload()
    algorithm = SSO(inner_steps=3, eta_schedule="line-search")
    whole = micro.parts(algorithm, workload=workload)
    micro.train(whole, workload)
    half = micro.parts(algorithm, workload=workload)
    micro.train(half, workload, stop_at=6)
    checkpoint.save(tmp_path / "checkpoint.pt", half, {})
    resumed = micro.parts(algorithm, workload=workload)
    checkpoint.restore(checkpoint.read(tmp_path / "checkpoint.pt"), resumed)
    assert (resumed.learn.step, resumed.learn.eta) == (6, half.learn.eta)
    micro.train(resumed, workload, start=6)
    assert micro.equal(micro.weights(whole), micro.weights(resumed))


def test_it_runs_on_micro_batches_of_the_workload(micro):
    workload = micro.workload(micro_batch_size=2)
    parts = micro.parts(SSO(), workload=workload, micro_batches=3)
    assert parts.learn.pieces == 3
    losses = [evaluation.metrics["loss"] for evaluation in micro.train(parts, workload)]
    assert losses[-1] < losses[0]


def test_bad_values_are_refused_with_name_value_and_domain():
    for wrong in ({"inner_steps": 0}, {"stepsize": 0.0}, {"eta_schedule": "cosine"}, {"armijo": 1.0}):
        with pytest.raises(BadValue, match=rf"sso: {next(iter(wrong))} = "):
            SSO(**wrong)
        with pytest.raises(BadValue, match=rf"sso: {next(iter(wrong))} = "):
            learner(linear(), squared, **wrong)


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
