"""MKOR: no package to compare with (the announced ``mkor`` is not in the index), so the authors' code is the measure.

Its step is written out naively below, from the layers' full activations and output gradients, and compared over whole
trainings; the rank-one updates are compared with inverses, and the base rules with torch.optim.
"""

from __future__ import annotations

import copy
import doctest
import importlib
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.memory import estimate
from bench.plugins.baselines.lamb import LAMBOptimizer
from bench.plugins.optimizers._inverse_factors import rank_one_update, refresh_factors
from bench.plugins.optimizers._taps import tap, tap_of
from bench.plugins.optimizers.mkor import MKOR, MKOROptimizer, published_rate, tap_layers

pytestmark = pytest.mark.paper

OPTIONS = {"stat_decay": 0.95, "form": "code", "half_precision": False}


class Net(nn.Module):
    """A convolution, a hidden layer with a bias and a head without one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.hidden = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(torch.tanh(self.conv(x)).flatten(1))))


def net(seed=0, *, tapped=True):
    torch.manual_seed(seed)
    model = Net()
    if tapped:
        tap_layers(model, without=[model.head])
    return model


def batch(number, rows=8):
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randn(rows, 2, 4, 4, generator=generator), torch.randint(3, (rows,), generator=generator)


def train(model, optimizer, numbers):
    for number in numbers:
        optimizer.zero_grad()
        x, y = batch(number)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(left, right):
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def vectors(dimension, count, scale=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(dimension, generator=generator, dtype=dtype) for _ in range(count)]


# -- the whole step --------------------------------------------------------------------------------------------------
def authors_training(steps, gap, warmup, **options):
    """Return the weights after the steps of the authors' package around torch.optim.SGD, written out naively."""
    model = net(tapped=False).double()
    sgd = torch.optim.SGD(model.parameters(), **options)
    layers = {"conv": model.conv, "hidden": model.hidden}
    seen, inverses = {}, {}
    for name, layer in layers.items():

        def note(_, inputs, output, name=name):
            output.retain_grad()
            seen[name] = (inputs[0].detach(), output)

        layer.register_forward_hook(note)
    for step in range(steps):
        sgd.zero_grad()
        x, y = batch(step)
        functional.cross_entropy(model(x.double()), y).backward()
        for name, layer in layers.items():
            if step % gap == 0 or step < warmup:
                x_in, output = seen[name]
                rows, gradients = x_in, output.grad * len(output)
                if name == "conv":
                    rows = functional.unfold(x_in, 3, padding=1, stride=2).mean(2)
                    gradients = gradients.flatten(2).mean(2)
                rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1).clamp(-100, 100)
                means = {"R": rows.mean(0), "L": gradients.clamp(-100, 100).mean(0)}
                for side, v in means.items():
                    if (name, side) not in inverses:
                        inverses[name, side] = torch.eye(len(v), dtype=torch.float64)
                    else:
                        j = 0.95 * inverses[name, side] + 0.05 * torch.eye(len(v), dtype=torch.float64)
                        inverses[name, side] = j - torch.outer(j @ v, j @ v) / (1 + v @ j @ v)
            gradient = torch.cat([layer.weight.grad.flatten(1), layer.bias.grad[:, None]], 1)
            d = inverses[name, "L"] @ gradient @ inverses[name, "R"]
            ratio = gradient[:, :-1].norm() + gradient[:, -1].norm()
            d = d * ratio / (d[:, :-1].norm() + d[:, -1].norm())
            layer.weight.grad.copy_(d[:, :-1].reshape(layer.weight.shape))
            layer.bias.grad.copy_(d[:, -1])
        sgd.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("gap", "warmup"), [(1, 0), (3, 0), (4, 3)])
def test_a_training_is_that_of_the_authors_code(gap, warmup, foreach):
    model, sgds = net(), {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.02}  # the decay is not preconditioned
    options = {"base": "sgd", "update_gap": gap, "warmup_steps": warmup, "foreach": foreach, "half_precision": False}
    optimizer = MKOROptimizer(model.parameters(), **sgds, **options)
    ours = train(model, optimizer, range(10))
    theirs = authors_training(10, gap, warmup, **sgds)
    assert distance(ours, {name: value.float() for name, value in theirs.items()}) < 2e-5
    plain = net(tapped=False)
    sgd = torch.optim.SGD(plain.parameters(), **sgds)
    assert distance(ours, train(plain, sgd, range(10))) > 1e-2  # and the preconditioner matters


def test_half_precision_factors_stay_near():
    paths = []
    for half_precision in (True, False):
        model = net()
        options = {"base": "sgd", "update_gap": 2, "half_precision": half_precision}
        paths.append(train(model, MKOROptimizer(model.parameters(), lr=0.1, **options), range(10)))
    assert 0.0 < distance(*paths) < 5e-3


# -- the factors -----------------------------------------------------------------------------------------------------
def test_the_first_refresh_sets_the_identity_and_the_second_subtracts():
    (a,), (g,) = vectors(5, 1, dtype=torch.float32), vectors(3, 1, seed=1, dtype=torch.float32)
    state = {}
    refresh_factors(state, a, g, OPTIONS)
    assert torch.equal(state["left"], torch.eye(3))
    assert torch.equal(state["right"], torch.eye(5))
    refresh_factors(state, a, g, OPTIONS)
    assert torch.allclose(state["left"], torch.eye(3) - torch.outer(g, g) / (1 + g @ g), atol=1e-6)
    assert torch.allclose(state["right"], torch.eye(5) - torch.outer(a, a) / (1 + a @ a), atol=1e-6)


def test_the_exact_form_is_the_inverse_of_the_decayed_sum():
    factor, inverse = torch.eye(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    for v in vectors(6, 50):
        factor = 0.95 * factor + 0.05 * torch.outer(v, v)
        inverse = rank_one_update(inverse, v, 0.95, "exact")
        assert float((inverse - torch.linalg.inv(factor)).abs().max()) < 1e-10


def test_the_code_form_is_the_inverse_of_its_own_blend():
    inverse = torch.eye(6, dtype=torch.float64)
    for v in vectors(6, 50):
        blend = 0.9 * inverse + 0.1 * torch.eye(6, dtype=torch.float64)
        inverse = rank_one_update(inverse, v, 0.9, "code")
        assert float((inverse - torch.linalg.inv(torch.linalg.inv(blend) + torch.outer(v, v))).abs().max()) < 1e-10


@pytest.mark.parametrize(
    ("form", "along", "across"), [("paper", 1.38, 0.95), ("exact", 0.64, 1 / 0.95), ("code", 0.075, 1.0)]
)
def test_the_three_forms_differ_along_the_vector_as_the_card_says(form, along, across):
    (v,) = vectors(5, 1)
    v *= (12.3**0.5) / v.norm()
    values = torch.linalg.eigvalsh(rank_one_update(torch.eye(5, dtype=torch.float64), v, 0.95, form))
    ordered = sorted([along, *[across] * 4])
    assert values.tolist() == pytest.approx(ordered, rel=0.01)


@pytest.mark.parametrize("form", ["code", "exact"])
def test_factors_stay_symmetric_and_positive_definite_in_fp32(form):
    inverse = torch.eye(12)
    for v in vectors(12, 60, scale=3.0, dtype=torch.float32):
        inverse = rank_one_update(inverse, v, 0.95, form)
        assert torch.equal(inverse, inverse.T)
        assert float(torch.linalg.eigvalsh(inverse.double()).min()) > 0


@pytest.mark.parametrize("form", ["code", "exact", "paper"])
def test_fp16_factors_of_the_largest_vectors_do_not_overflow(form):
    inverse = torch.eye(256, dtype=torch.float16)
    for sign in (1.0, -1.0, 1.0):
        v = torch.full((256,), 100.0)
        v[::2] *= sign
        inverse = rank_one_update(inverse, v, 0.95, form)
        assert inverse.dtype == torch.float16
        assert inverse.isfinite().all()


def test_a_large_entry_resets_both_factors_as_the_authors_flags_do():
    options = OPTIONS | {"form": "exact", "stat_decay": 0.5}  # across v the exact form doubles at each refresh
    a, g = torch.tensor([9.0, 0, 0]), torch.tensor([9.0, 0])
    state, seen = {}, []
    for _ in range(8):
        refresh_factors(state, a, g, options)
        seen.append((float(state["right"].abs().max()), float(state["left"].abs().max())))
    # I; 2; R of 4 resets L in the same refresh and itself in the next one, where L has been renewed to 2; and so on.
    assert seen == [(1, 1), (2, 2), (4, 1), (1, 2), (2, 4), (1, 1), (2, 2), (4, 1)]


def test_nothing_noted_of_zero_activations_and_gradients_gives_the_raw_direction():
    state = {}
    for _ in range(5):
        refresh_factors(state, torch.zeros(5), torch.zeros(3), OPTIONS)
    assert torch.allclose(state["left"], torch.eye(3))
    assert torch.allclose(state["right"], torch.eye(5))


@pytest.mark.parametrize("gradient", ["drawn", "zero", "huge"])
def test_the_step_is_as_long_as_the_raw_gradient_without_a_bias(gradient):
    model = nn.Linear(5, 4, bias=False)
    tap_layers(model)
    optimizer = MKOROptimizer(model.parameters(), lr=1.0, base="sgd", momentum=0.0, weight_decay=0.0, update_gap=1)
    scale = {"drawn": 1.0, "zero": 0.0, "huge": 1e30}[gradient]
    for number in range(4):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(number))
        model(x).square().sum().mul(scale).backward() if scale < 2 else (model(x) * scale).sum().backward()
        raw = model.weight.grad.clone()
        optimizer.step()
        moved = before - model.weight.detach()
        assert torch.allclose(moved.norm(), raw.norm(), rtol=1e-3)
        assert torch.equal(model.weight.grad, raw)
        with torch.no_grad():
            model.weight.copy_(before)


def test_layers_without_a_tap_take_the_base_step_bit_for_bit():
    models = net(), net(tapped=False)
    options = {"lr": 0.1, "base": "sgd", "momentum": 0.9, "weight_decay": 0.01, "update_gap": 1}
    optimizers = [MKOROptimizer(model.parameters(), **options) for model in models]
    for number in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            x, y = batch(number)
            functional.cross_entropy(model(x), y).backward()
            for parameter, other in zip(model.parameters(), models[0].parameters(), strict=True):
                parameter.grad = other.grad.clone()
            optimizer.step()
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert not torch.equal(models[0].hidden.weight, models[1].hidden.weight)


# -- the base rules --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("foreach", [True, False])
def test_with_identity_factors_two_steps_are_torch_sgds(foreach):
    # The first refresh only sets the identity, and the next one comes ten steps later.
    ours, theirs = net(), net(tapped=False)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    optimizer = MKOROptimizer(ours.parameters(), base="sgd", update_gap=10, foreach=foreach, **options)
    expected = train(theirs, torch.optim.SGD(theirs.parameters(), **options), range(2))
    assert distance(train(ours, optimizer, range(2)), expected) < 1e-7


@pytest.mark.parametrize("foreach", [True, False])
def test_the_base_adamw_is_torch_adamw(foreach, stream, start, drive):
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    gradients = stream(12, 20, 12)
    theirs = drive(lambda p: torch.optim.AdamW([p], **options), start(12, 20), gradients)
    build = lambda p: MKOROptimizer([p], base="adamw", foreach=foreach, **options)  # noqa: E731
    ours = drive(build, start(12, 20), gradients)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-6


@pytest.mark.parametrize("foreach", [True, False])
def test_the_base_lamb_is_adam_scaled_by_the_trust_ratio(foreach, stream, start, drive):
    betas, eps, decay, lr = (0.8, 0.95), 1e-3, 0.1, 0.01
    gradients, w = stream(12, 20, 12), start(12, 20).double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for k, gradient in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient.square()
        u = m / (1 - betas[0] ** k) / ((v / (1 - betas[1] ** k)).sqrt() + eps) + decay * w
        w = w - lr * w.norm() / u.norm() * u
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay, "foreach": foreach}
    ours = drive(lambda p: MKOROptimizer([p], base="lamb", **options), start(12, 20), gradients)
    assert float((ours[-1] - w).abs().max()) < 1e-6
    from_zero = drive(lambda p: MKOROptimizer([p], base="lamb", **options), torch.zeros(12, 20), gradients[:1])
    assert float(from_zero[0].abs().max()) == pytest.approx(lr, rel=1e-2)  # the ratio of a zero weight is 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreach", [True, False])
def test_the_base_lamb_is_the_baseline_lamb(dtype, foreach, stream, start, drive):
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "foreach": foreach}
    weights, gradients = start(12, 20, dtype=dtype), stream(12, 20, 12, dtype=dtype)
    ours = drive(lambda p: MKOROptimizer([p], base="lamb", **options), weights, gradients)
    theirs = drive(lambda p: LAMBOptimizer([p], **options), weights, gradients)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


# -- taps and state --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("half_precision", [True, False])
def test_state_is_the_formula_of_the_card(bias, half_precision):
    model = nn.Linear(7, 5, bias=bias)
    tap_layers(model)
    optimizer = MKOROptimizer(model.parameters(), base="sgd", half_precision=half_precision)
    model(torch.randn(3, 7)).sum().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    factors = [state.pop("left"), state.pop("right")]
    assert sum(factor.numel() for factor in factors) == 25 + (7 + bias) ** 2
    assert {factor.dtype for factor in factors} == {torch.float16 if half_precision else torch.float32}
    assert {name: value.shape for name, value in state.items() if name != "step"} == {"momentum_buffer": (5, 7)}


def test_gradients_may_be_zeroed_between_forward_and_backward():
    early, late = net(), net()
    for model, between in ((early, False), (late, True)):
        optimizer = MKOROptimizer(model.parameters(), update_gap=1)
        for number in range(3):
            x, y = batch(number)
            if not between:
                optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            if between:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert equal(dict(early.named_parameters()), dict(late.named_parameters()))
    assert "left" in optimizer.state[late.hidden.weight]


def test_what_is_not_trained_on_leaves_no_trace():
    plain, disturbed = net(), net()
    for model in (plain, disturbed):
        optimizer = MKOROptimizer(model.parameters(), update_gap=1)
        for number in range(3):
            if model is disturbed:
                with torch.no_grad():
                    model(batch(50)[0])  # an evaluation
                model(batch(51)[0])  # a forward pass that nobody differentiates
                model(batch(52)[0]).sum().backward()  # a selector's scores; the gradients are zeroed before the step
            train(model, optimizer, [number])
    assert equal(dict(plain.named_parameters()), dict(disturbed.named_parameters()))


def test_micro_batches_note_what_the_whole_batch_notes():
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(0))
    means = []
    for size in (8, 2):
        layer = nn.Linear(7, 5)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        noted = tap(layer, 100.0)
        for part in x.split(size):
            (layer(part).square().sum(1).mean() * size / 8).backward()
        means.append(noted.means())
    assert torch.allclose(means[0][0], means[1][0], atol=1e-6)
    assert torch.allclose(means[0][1], means[1][1], rtol=1e-5)
    assert torch.allclose(means[0][1], layer.bias.grad, rtol=1e-5)  # unclipped, g is the gradient of a bias


def test_rows_are_clipped_before_they_are_averaged():
    layer = nn.Linear(2, 1, bias=False)
    noted = tap(layer, 10.0)
    output = layer(torch.tensor([[1.0, 50.0], [3.0, -20.0], [5.0, 30.0]]))
    output.backward(torch.tensor([[1.0], [40.0], [-2.0]]))
    a, g = noted.means()
    assert a.tolist() == pytest.approx([3.0, 10.0 / 3])
    assert g.tolist() == pytest.approx([(3.0 + 10.0 - 6.0) / 3])


def test_taps_listen_only_before_a_refresh():
    model = net()
    optimizer = MKOROptimizer(model.parameters(), update_gap=4, warmup_steps=2)
    listening = []
    for number in range(9):
        listening.append(tap_of(model.hidden.weight).active)
        train(model, optimizer, [number])
    assert [step for step, active in enumerate(listening) if active] == [0, 1, 4, 8]


def test_layers_that_share_a_weight_share_a_tap_and_what_it_notes():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight, second.bias = first.weight, first.bias
    model = nn.Sequential(first, second)
    tap_layers(model)
    x = torch.randn(6, 4)
    hidden = first(x).detach()
    first.zero_grad()
    model(x).sum().backward()
    a, _ = tap_of(first.weight).means()
    assert torch.allclose(a[:-1], (x.mean(0) + hidden.mean(0)) / 2, atol=1e-6)
    assert tap_of(second.weight) is tap_of(first.weight)


def test_a_bias_of_another_group_is_preconditioned_with_its_weight_and_moves_at_its_own_rate():
    together, apart = net(), net()
    options = {"base": "sgd", "weight_decay": 0.0, "momentum": 0.0, "update_gap": 1}
    one = MKOROptimizer(together.parameters(), lr=0.1, **options)
    biases = [together.conv.bias, together.hidden.bias], [apart.conv.bias, apart.hidden.bias]
    rest = [p for p in apart.parameters() if all(p is not bias for bias in biases[1])]
    two = MKOROptimizer([{"params": biases[1], "lr": 0.2}, {"params": rest}], lr=0.1, **options)
    before = [bias.detach().clone() for bias in biases[0]]
    train(together, one, [0])
    train(apart, two, [0])
    assert torch.equal(together.hidden.weight, apart.hidden.weight)
    for start_, left, right in zip(before, *biases, strict=True):
        assert torch.allclose(right - start_, 2 * (left - start_), atol=1e-7)


@pytest.mark.parametrize("base", ["lamb", "sgd", "adamw"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_training_resumed_from_its_state_goes_on_bit_for_bit(base, stop):
    options = {"base": base, "update_gap": 4, "lr": 0.02}
    whole = net()
    expected = train(whole, MKOROptimizer(whole.parameters(), **options), range(10))
    half = net()
    optimizer = MKOROptimizer(half.parameters(), **options)
    train(half, optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    resumed = net(seed=5)
    resumed.load_state_dict(content["model"])
    optimizer = MKOROptimizer(resumed.parameters(), **options)
    optimizer.load_state_dict(content["optimizer"])
    assert equal(train(resumed, optimizer, range(stop, 10)), expected)


def test_a_copy_of_the_model_does_not_speak_to_the_taps_of_the_original():
    model = net()
    twin = copy.deepcopy(model)
    twin(batch(0)[0]).sum().backward()
    assert tap_of(model.hidden.weight).means() is None


# -- the plugin ------------------------------------------------------------------------------------------------------
def test_plugin_taps_every_layer_but_those_over_the_vocabulary_and_decays_no_bias():
    model = net(tapped=False)
    roles = {"conv.weight": Role.CONV, "hidden.weight": Role.MLP, "head.weight": Role.LM_HEAD}
    roles |= {"conv.bias": Role.BIAS, "hidden.bias": Role.BIAS}
    run = Run(seed=0, steps=300, roles=roles)
    assert MKOR().adapt(model, run) is model
    tapped = {name for name, parameter in model.named_parameters() if tap_of(parameter) is not None}
    assert tapped == {"conv.weight", "hidden.weight"}
    assert tap_of(model.conv.weight).limit == 100.0
    decayed, rest = MKOR().optimizer(model.named_parameters(), run).param_groups
    assert rest["param_names"] == ["conv.bias", "hidden.bias"]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    assert (decayed["base"], decayed["update_gap"], decayed["half_precision"]) == ("lamb", 10, True)


@pytest.mark.parametrize(
    ("base", "steps", "rate"),
    [
        *[("lamb", 7038, 6e-3), ("lamb", 10**6, 6e-3), ("lamb", 300, 0.0290614), ("lamb", 12, 0.03)],
        *[("sgd", 300, 0.1), ("adamw", 300, 1e-3)],
    ],
)
def test_the_default_rate_is_the_published_one_and_higher_for_lamb_in_short_runs(base, steps, rate):
    assert published_rate(base, steps) == pytest.approx(rate, rel=1e-4)
    named = [("w", nn.Parameter(torch.zeros(3, 3)))]
    run = Run(seed=0, steps=steps, roles={"w": Role.MLP})
    assert MKOR(base=base).optimizer(named, run).param_groups[0]["lr"] == pytest.approx(rate, rel=1e-4)
    assert MKOR(base=base, lr=0.5).optimizer(named, run).param_groups[0]["lr"] == 0.5


def test_a_run_of_the_suite_preconditions_and_learns(micro):
    workload = micro.workload(steps=60, evaluate_every=20)
    parts = micro.parts(MKOR(base="sgd", lr=0.03, update_gap=2), workload=workload)
    seen = micro.train(parts, workload)
    assert seen[-1].metrics["loss"] < seen[0].metrics["loss"]
    states = {name: set(parts.optimizer.state[p]) for name, p in parts.model.named_parameters()}
    assert {name for name, state in states.items() if "left" in state} == {"hidden.weight", "head.weight"}


def test_memory_is_estimated_with_the_factors(micro):
    # Net: 5 -> 8 and 8 -> 3 with biases, a norm of 8; fp16 factors and one fp32 buffer for each of 75 + 16 parameters.
    factors = (8 * 8 + 6 * 6) + (3 * 3 + 9 * 9)
    found = estimate([MKOR(base="sgd"), micro.Plain()], micro.workload(), "fp32")
    assert found.states_bytes == 2 * factors + 4 * found.parameters


def test_a_model_without_a_layer_to_precondition_is_refused():
    model = nn.LayerNorm(4)
    with pytest.raises(SlotMismatch, match="mkor found no linear layer or convolution"):
        MKOR().adapt(model, Run(seed=0, steps=1, roles={"weight": Role.NORM, "bias": Role.NORM}))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("lr", 0.0), ("update_gap", 0), ("stat_decay", 1.0), ("form", "printed"), ("base", "adam")],
        *[("momentum", 1.0), ("warmup_steps", -1), ("weight_decay", -0.1), ("betas", (1.0, 0.9))],
    ],
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    with pytest.raises(BadValue, match=r"mkor: \w+ = .* \((float|int|str)\) is not allowed"):
        MKOROptimizer([nn.Parameter(torch.zeros(3))], **{option: value})
    with pytest.raises(TypeError, match="inv_freq"):
        MKOROptimizer([nn.Parameter(torch.zeros(3))], inv_freq=10)


def test_examples_in_the_documentation_run():
    results = doctest.testmod(importlib.import_module("bench.plugins.optimizers.mkor"))
    assert results.attempted >= 3
    assert results.failed == 0
