"""GradNormLoRP against its paper; its release against GaLore; its parameterization against peft's DoRA.

No package has it: the name that its README installs is not published. So the parts that others have are compared alone.
The pre-training table cannot be reproduced by the release: its script wraps a freshly drawn model in rank-8 adapters.
The paper's own form is proved by its formulas; the release's rule is written out here to show what it is: GaLore.
"""

from __future__ import annotations

import doctest
import math
import warnings

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import gradnorm_lorp as module
from bench.plugins.optimizers._projection import side_of, svd_basis
from bench.plugins.optimizers._weight_norm import SMALLEST, NormalizedLinear, normalized, norms
from bench.plugins.optimizers.galore import GaLore, GaLoreAdamW
from bench.plugins.optimizers.gradnorm_lorp import GradNormLoRP, GradNormLoRPAdamW

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
both_axes = pytest.mark.parametrize("axis", ["output", "input"])


def distance(left, right):
    return max(float((a - b).detach().abs().max()) for a, b in zip(left, right, strict=True))


def linear(rows=6, columns=10, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, bias=bias)


# -- the parameterization ------------------------------------------------------------------------------------------
@both_axes
@pytest.mark.parametrize("rank", [None, 3])
def test_layer_starts_with_the_bits_of_the_one_it_is_made_of(axis, rank):
    layer = linear()
    features = torch.randn(5, 10)
    before = layer(features).detach()
    made = NormalizedLinear(layer, axis=axis, adapter_rank=rank, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(features), before)
    assert made.weight is layer.weight
    assert made.bias is layer.bias
    assert made.magnitude.shape == ((6,) if axis == "output" else (10,))


@both_axes
def test_bfloat16_layer_starts_within_one_rounding(axis):
    layer = linear().to(torch.bfloat16)
    made = NormalizedLinear(layer, axis=axis)
    weight = normalized(made.direction(), made.magnitude, axis)
    assert weight.dtype == torch.bfloat16
    assert bool(((weight - layer.weight).abs() <= 2**-7 * layer.weight.abs()).all())


@both_axes
def test_rows_or_columns_of_the_weight_have_the_magnitudes_as_norms(axis):
    direction, magnitude = torch.randn(4, 7), torch.rand(4 if axis == "output" else 7) + 0.1
    weight = normalized(direction, magnitude, axis)
    assert torch.allclose(weight.norm(dim=1 if axis == "output" else 0), magnitude, rtol=1e-5)
    assert torch.equal(weight.sign(), direction.sign())


@both_axes
def test_gradients_are_the_formulas_of_the_paper_and_have_no_radial_part(axis):
    dim = 1 if axis == "output" else 0
    direction = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    magnitude = torch.rand(5 if axis == "output" else 8, dtype=torch.float64).add(0.5).requires_grad_()
    towards = torch.randn(5, 8, dtype=torch.float64)
    (normalized(direction, magnitude, axis) * towards).sum().backward()
    length = direction.detach().norm(dim=dim, keepdim=True)
    unit = direction.detach() / length
    radial = (towards * unit).sum(dim=dim, keepdim=True)
    assert torch.allclose(magnitude.grad, radial.flatten(), rtol=1e-10)
    expected = magnitude.detach().reshape(length.shape) / length * (towards - radial * unit)
    assert torch.allclose(direction.grad, expected, rtol=1e-9, atol=1e-12)
    assert float((direction.grad * unit).sum(dim=dim).abs().max()) < 1e-10


@both_axes
def test_gradients_agree_with_finite_differences(axis):
    layer = NormalizedLinear(linear(3, 4).double(), axis=axis, adapter_rank=2, adapter_scale=2.0)
    features = torch.randn(2, 4, dtype=torch.float64)
    left = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    right = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    magnitude = torch.rand(layer.magnitude.shape, dtype=torch.float64).add(0.5).requires_grad_()

    def forward(*values):
        names = ("left", "right", "magnitude")
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (features,))

    assert torch.autograd.gradcheck(forward, (left, right, magnitude))


@both_axes
@pytest.mark.parametrize("c", [0.25, 8.0])
def test_scaling_the_direction_leaves_the_weight_and_divides_its_gradient(axis, c):
    magnitude = torch.rand(5 if axis == "output" else 8, dtype=torch.float64) + 0.5
    towards, start = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    weights, grads = [], []
    for factor in (1.0, c):
        direction = (factor * start).requires_grad_()
        weight = normalized(direction, magnitude, axis)
        (weight * towards).sum().backward()
        weights.append(weight.detach())
        grads.append(direction.grad)
    assert distance(weights[:1], weights[1:]) < 1e-9
    assert distance([grads[0]], [c * grads[1]]) < 1e-9


def test_a_row_of_zeros_has_finite_gradients_and_moves():
    layer = linear(3, 4, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0.0
    made = NormalizedLinear(layer)
    assert float(norms(layer.weight.detach(), "output")[1]) == pytest.approx(SMALLEST)
    optimizer = GradNormLoRPAdamW([{"params": [made.weight], "rank": 3}, {"params": [made.magnitude]}], lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        (made(torch.eye(4)) - 1.0).square().mean().backward()
        assert made.weight.grad.isfinite().all()
        optimizer.step()
        assert float(made(torch.eye(4))[:, 1].detach().abs().max()) > 1e-3 * (step > 0)


def test_autocast_does_not_round_the_weight():
    made = NormalizedLinear(linear(bias=False), adapter_rank=2, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(made.left, std=1e-4)
    seen = []
    original = nn.functional.linear
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda x, w, b: seen.append(w.detach()) or original(x, w, b))
        made(torch.randn(5, 10))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], normalized(made.direction(), made.magnitude, "output"))


@pytest.mark.parametrize("rank", [None, 2])
def test_layer_is_made_and_runs_without_storage(rank):
    with torch.device("meta"):
        made = NormalizedLinear(nn.Linear(10, 6), adapter_rank=rank)
        made(torch.zeros(3, 10)).sum().backward()
    assert made.magnitude.grad.shape == (6,)


def test_parity_with_peft_dora(package):
    peft = package("peft", "peft")
    base = nn.Sequential(linear(6, 10))
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, use_dora=True, target_modules=["0"])
    made = NormalizedLinear(linear(6, 10), adapter_rank=3, adapter_scale=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(base, config)
        named = dict(theirs.named_parameters())
        right, left = (next(p for n, p in named.items() if key in n) for key in ("lora_A", "lora_B"))
        with torch.no_grad():
            nn.init.normal_(left)
            made.left.copy_(left)
            made.right.copy_(right)
        features, towards = torch.randn(5, 10), torch.randn(5, 6)
        output = theirs(features)
    (output * towards).sum().backward()
    ours = made(features)
    assert distance([ours], [output]) < 2e-5
    # peft takes the norm as a constant in the backward pass, the paper does not: ours less the radial part is theirs.
    direction = made.direction().detach().requires_grad_()
    lengths = norms(direction, "output").detach()
    weight = direction * (made.magnitude.detach().reshape(lengths.shape) / lengths)
    ((features @ weight.T + made.bias.detach()) * towards).sum().backward()
    constant = direction.grad
    assert distance([2.0 * constant @ made.right.T], [left.grad]) < 1e-4
    assert distance([2.0 * made.left.T @ constant], [right.grad]) < 1e-4
    (ours * towards).sum().backward()
    unit = direction.detach() / lengths
    radial = (constant * unit).sum(dim=1, keepdim=True) * unit
    assert distance([2.0 * (constant - radial) @ made.right.T], [made.left.grad]) < 1e-4
    assert distance([made.left.grad], [left.grad]) > 1e-2


# -- the optimizer -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", ["left", "right"])
def test_sgd_in_a_projection_of_the_adapter_rank_is_unprojected_training(factor):
    plain, projected = (
        NormalizedLinear(linear(), adapter_rank=3, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    features, towards = torch.randn(16, 10), torch.randn(16, 6)
    for _ in range(10):
        for layer in (plain, projected):
            layer.zero_grad()
            (layer(features) - towards).square().mean().backward()
            for name in ("left", "right", "magnitude"):
                parameter = getattr(layer, name)
                gradient = parameter.grad
                if layer is projected and name == factor:
                    basis = svd_basis(gradient, 3, side_of(gradient.shape, "std"), None)
                    gradient = basis.up(basis.down(gradient))
                with torch.no_grad():
                    parameter -= 0.1 * gradient
    assert distance(plain.parameters(), projected.parameters()) < 2e-6


def elements(optimizer, parameter):
    return sum(t.numel() for t in optimizer.state[parameter].values() if isinstance(t, torch.Tensor))


@both_axes
@pytest.mark.parametrize("shape", SHAPES)
def test_state_of_a_whole_direction_is_the_formula(shape, axis):
    layer = NormalizedLinear(linear(*shape), axis=axis)
    optimizer = GradNormLoRPAdamW([{"params": [layer.weight], "rank": 4}, {"params": [layer.magnitude]}])
    layer(torch.randn(3, shape[1])).square().mean().backward()
    optimizer.step()
    s, l = min(shape), max(shape)  # noqa: E741 - the card's symbols
    assert elements(optimizer, layer.weight) == s * 4 + 2 * 4 * l
    assert elements(optimizer, layer.magnitude) == 2 * (shape[0] if axis == "output" else shape[1])


def test_state_of_an_adapter_is_the_formula_and_the_frozen_weight_has_none():
    layer = NormalizedLinear(linear(12, 20), adapter_rank=4, generator=torch.Generator().manual_seed(0))
    factors = {"params": [layer.left, layer.right], "rank": 2}
    optimizer = GradNormLoRPAdamW([factors, {"params": [layer.magnitude, layer.bias]}])
    layer(torch.randn(3, 20)).square().mean().backward()
    optimizer.step()
    assert layer.weight.grad is None
    assert elements(optimizer, layer.left) == 4 * 2 + 2 * 2 * 12
    assert elements(optimizer, layer.right) == 4 * 2 + 2 * 2 * 20
    assert elements(optimizer, layer.magnitude) == 2 * 12


# -- the release ---------------------------------------------------------------------------------------------------
class Release(torch.optim.Optimizer):
    """The released optimizer on one matrix, written out: direction v, magnitude g, both re-made at every step."""

    def __init__(self, parameter, rank, gap, scale, lr, eps=1e-6):
        super().__init__([parameter], {"lr": lr})
        self.parameter, self.rank, self.gap, self.scale, self.eps = parameter, rank, gap, scale, eps
        self.v, self.g, self.k = parameter.detach().clone(), None, 0
        self.moments = {}

    def _adam(self, key, gradient):
        m, v = self.moments.get(key, (torch.zeros_like(gradient), torch.zeros_like(gradient)))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        self.moments[key] = m, v
        return math.sqrt(1 - 0.999**self.k) / (1 - 0.9**self.k) * m / (v.sqrt() + self.eps)

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 - torch's signature
        gradient, lr = self.parameter.grad, self.param_groups[0]["lr"]
        lengths = self.v.norm(dim=1, keepdim=True)
        self.g = lengths.clone()  # what was learnt is thrown away
        if self.k % self.gap == 0:
            self.basis = svd_basis(gradient, self.rank, side_of(gradient.shape, "std"), None)
        self.k += 1
        grad_v, grad_g = gradient * self.g / lengths, (gradient * self.v / lengths).sum(dim=1, keepdim=True)
        self.v -= lr * self.scale * self.basis.up(self._adam("v", self.basis.down(grad_v)))
        self.g -= lr * self._adam("g", grad_g)
        self.parameter.copy_(self.g * self.v / self.v.norm(dim=1, keepdim=True))


def release_and(build, shape, stream, start, steps=23):
    """Return the release's v, what it exposes, and the path of the optimizer that ``build`` makes."""
    parameter, other = nn.Parameter(start(*shape)), nn.Parameter(start(*shape))
    release, optimizer = Release(parameter, rank=4, gap=5, scale=0.25, lr=0.01), build(other)
    paths = ([], [], [])
    for gradient in stream(*shape, steps):
        for p, o in ((parameter, release), (other, optimizer)):
            p.grad = gradient.clone()
            o.step()
        for path, value in zip(paths, (release.v, parameter, other), strict=True):
            path.append(value.detach().clone())
    return *paths, release


@pytest.mark.parametrize("shape", SHAPES)
def test_release_is_galore_but_for_what_it_shows_between_steps(shape, stream, start):
    build = lambda p: GaLoreAdamW([{"params": [p], "rank": 4}], lr=0.01, update_gap=5, scale=0.25, basis=svd_basis)  # noqa: E731
    kept, shown, galore, release = release_and(build, shape, stream, start)
    assert distance(kept, galore) < 2e-6
    assert 1e-3 < distance(shown, galore) < 2e-2
    m, s, l = shape[0], min(shape), max(shape)  # noqa: E741 - the card's symbols
    tensors = [release.v, release.g, *release.basis, *(t for pair in release.moments.values() for t in pair)]
    held = sum(t.numel() for t in tensors if t is not None)
    assert held == shape[0] * shape[1] + 3 * m + s * 4 + 2 * 4 * l, "more than GaLore, not less"


@pytest.mark.parametrize("shape", SHAPES)
def test_release_is_galore_torch(shape, stream, start, package):
    galore = package("galore_torch.adamw", "galore-torch")
    group = {"rank": 4, "update_proj_gap": 5, "scale": 0.25, "proj_type": "std"}
    build = lambda p: galore.AdamW([{"params": [p], **group}], lr=0.01, no_deprecation_warning=True)  # noqa: E731
    kept, _, theirs, _ = release_and(build, shape, stream, start)
    assert distance(kept, theirs) < 2e-6


def test_paper_form_is_no_galore():
    """The same gradients of W, another trajectory of W: magnitudes are kept and the radial part is gone."""
    layer, plain = NormalizedLinear(linear(bias=False)), linear(bias=False)
    optimizers = (
        GradNormLoRPAdamW([{"params": [layer.weight], "rank": 3}, {"params": [layer.magnitude]}], lr=0.01),
        GaLoreAdamW([{"params": [plain.weight], "rank": 3}], lr=0.01),
    )
    features, towards = torch.randn(16, 10), torch.randn(16, 6)
    for _ in range(20):
        for one, optimizer in zip((layer, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (one(features) - towards).square().mean().backward()
            optimizer.step()
    weight = normalized(layer.direction(), layer.magnitude, "output")
    assert distance([weight], [plain.weight]) > 1e-2
    assert distance([layer.magnitude], [norms(layer.weight, "output").flatten()]) > 1e-2, "a state of its own"


# -- the plugin ----------------------------------------------------------------------------------------------------
def test_pre_training_re_parameterises_hidden_layers_and_projects_their_directions(micro):
    algorithm = GradNormLoRP(rank=2)
    workload = micro.workload(steps=120, evaluate_every=120)
    parts = micro.parts(algorithm, workload=workload)
    assert parts.run.role("hidden.weight") is Role.MLP
    assert parts.run.role("hidden.magnitude") is Role.ADAPTER
    ranks = {name: g.get("rank") for g in parts.optimizer.param_groups for name in g["param_names"]}
    assert ranks["hidden.weight"] == 2
    assert {name for name, rank in ranks.items() if rank is None} == set(ranks) - {"hidden.weight"}
    before = {name: value.clone() for name, value in micro.weights(parts).items()}
    losses = [evaluation.metrics["loss"] for evaluation in micro.train(parts, workload)]
    assert losses[-1] < losses[0]
    assert not any(torch.equal(before[name], value) for name, value in micro.weights(parts).items())


def test_fine_tuning_trains_adapters_magnitudes_and_the_classifier_alone(micro):
    workload = micro.workload()
    parts = micro.parts(GradNormLoRP(adapter_rank=4), workload=workload)
    trained = {name for name, p in parts.model.named_parameters() if p.requires_grad}
    assert trained == {"hidden.left", "hidden.right", "hidden.magnitude", "head.weight"}
    ranks = {name: g.get("rank") for g in parts.optimizer.param_groups for name in g["param_names"]}
    assert ranks == {"hidden.left": 2, "hidden.right": 2, "hidden.magnitude": None, "head.weight": None}
    before = {name: value.clone() for name, value in micro.weights(parts).items()}
    micro.train(parts, workload)
    moved = {name for name, value in micro.weights(parts).items() if not torch.equal(before[name], value)}
    assert moved == trained


def test_same_seed_draws_the_same_adapters(micro):
    one, same, other = (micro.parts(GradNormLoRP(adapter_rank=2), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.model.hidden.right, same.model.hidden.right)
    assert not torch.equal(one.model.hidden.right, other.model.hidden.right)


def test_defaults_are_those_of_the_published_pre_training():
    named = [("q", nn.Parameter(torch.zeros(512, 512, device="meta")))]
    (group,) = GradNormLoRP().optimizer(named, Run(seed=0, steps=10_000, roles={"q": Role.ATTENTION_Q})).param_groups
    assert {key: group[key] for key in ("lr", "rank", "scale", "update_gap", "eps", "projection_type")} == {
        "lr": 0.01,
        "rank": 128,
        "scale": 0.25,
        "update_gap": 200,
        "eps": 1e-6,
        "projection_type": "std",
    }
    assert isinstance(GradNormLoRP().optimizer(named, Run(seed=0, steps=1, roles={"q": Role.MLP})), GradNormLoRPAdamW)
    assert issubclass(GradNormLoRP, GaLore)


def test_a_layer_that_stands_twice_is_made_once():
    shared = linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    run = Run(seed=0, steps=1, roles={"0.weight": Role.MLP, "0.bias": Role.BIAS})
    GradNormLoRP().adapt(model, run)
    assert isinstance(model[0], NormalizedLinear)
    assert model[0] is model[1][0]


def test_what_does_not_fit_is_refused_with_name_value_and_domain():
    model = nn.Sequential(linear(4, 6, bias=False))
    run = Run(seed=0, steps=1, roles={"0.weight": Role.MLP})
    with pytest.raises(BadValue, match=r"gradnorm-lorp: adapter_rank = 5 \(int\).*\(4, 6\)") as caught:
        GradNormLoRP(adapter_rank=5).adapt(model, run)
    assert "1 <= adapter_rank <= 4" in str(caught.value)
    with pytest.raises(SlotMismatch, match=r"found no torch\.nn\.Linear"):
        GradNormLoRP().adapt(model, Run(seed=0, steps=1, roles={"0.weight": Role.EMBEDDING}))
    for wrong in ({"adapter_rank": 0}, {"axis": "rows"}, {"adapter_scale": 0.0}, {"rank": 0}, {"scale": -1.0}):
        with pytest.raises(BadValue, match=rf"gradnorm-lorp: {next(iter(wrong))} = "):
            GradNormLoRP(**wrong)
    factors = [nn.Parameter(torch.zeros(6, 2))]
    with pytest.raises(BadValue, match=r"rank = 3 \(int\)"):
        GradNormLoRPAdamW([{"params": factors, "rank": 3}])


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
