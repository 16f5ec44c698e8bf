"""SLTrain against a layer that forms its weight by index_put, and its limits; no package implements it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.assembly import assemble
from bench.checkpoint import read, restore, save
from bench.errors import BadValue, SlotMismatch
from bench.memory import estimate
from bench.plugins.parameterizations.sltrain import SLTrain, SLTrainLinear, replace_linears

pytestmark = pytest.mark.paper

OUT, IN, RANK, DENSITY = 12, 8, 3, 0.25
"""Sizes of a layer whose product, support and inputs all differ in size."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(out=OUT, features=IN, *, seed=0, moved=True, dtype=torch.float64, **options):
    """Return a layer; ``moved``: away from its start, where B is zero."""
    options = {"rank": RANK, "density": DENSITY, "alpha": 6.0} | options
    layer = SLTrainLinear(features, out, generator=seeded(seed), dtype=dtype, **options)
    if moved:
        with torch.no_grad():
            layer.B.normal_(generator=seeded(seed + 1))
    return layer


def drawn(*shape, seed=7, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def dense(layer, left, right, values):
    """Return W as the card writes it: s B A plus the values put at their rows and columns."""
    rows, columns = layer.support.long() // layer.in_features, layer.support.long() % layer.in_features
    product = layer.scale * left @ right
    return product.index_put((rows, columns), values, accumulate=True)


# -- the layer -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(5, IN), (2, 3, IN), (IN,)])
def test_output_and_all_gradients_are_those_of_the_weight_formed_by_index_put(shape):
    layer, x = made(bias=True), drawn(*shape).requires_grad_()
    twins = [tensor.detach().clone().requires_grad_() for tensor in (x, layer.B, layer.A, layer.values, layer.bias)]
    expected = nn.functional.linear(twins[0], dense(layer, *twins[1:4]), twins[4])
    output = layer(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    seed = drawn(*expected.shape, seed=8)
    (output * seed).sum().backward()
    (expected * seed).sum().backward()
    for tensor, twin in zip((x, layer.B, layer.A, layer.values, layer.bias), twins, strict=True):
        torch.testing.assert_close(tensor.grad, twin.grad, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    layer = made(bias=True)
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    tensors = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(output, (drawn(4, IN).requires_grad_(), *tensors), atol=1e-6)


@pytest.mark.parametrize("frozen", ["x", "B", "A", "values"])
def test_what_needs_no_gradient_gets_none_and_changes_no_other(frozen):
    layer, x = made(), drawn(5, IN).requires_grad_()
    tensors = {"x": x, "B": layer.B, "A": layer.A, "values": layer.values}
    whole = torch.autograd.grad(layer(x).square().sum(), list(tensors.values()))
    tensors.pop(frozen).requires_grad_(False)
    expected = [gradient for name, gradient in zip(["x", "B", "A", "values"], whole, strict=True) if name != frozen]
    layer(x).square().sum().backward()
    for tensor, gradient in zip(tensors.values(), expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


def test_no_tensor_of_the_size_of_the_weight_is_saved_for_the_backward_pass():
    layer, x, saved = made(96, 64, rank=4, dtype=torch.float32), drawn(5, 64, dtype=torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        output = layer(x.requires_grad_())
    size, count = 96 * 64, layer.values.numel()
    assert max(tensor.numel() for tensor in saved) < size
    kept = sum(tensor.numel() * tensor.element_size() for tensor in saved)
    assert kept == 4 * (5 * 64 + 4 * (96 + 64) + count) + 4 * count  # x, B, A, v and int32 positions
    output.sum().backward()
    assert layer.values.grad is not None


def test_at_first_the_layer_is_the_sparse_matrix_and_only_a_gets_no_gradient():
    layer, x = made(moved=False), drawn(5, IN)
    sparse = torch.zeros(OUT * IN, dtype=torch.float64)
    sparse[layer.support.long()] = layer.values.detach()
    assert torch.equal(layer(x), x @ sparse.view(OUT, IN).T)
    layer(x).square().sum().backward()
    assert not layer.A.grad.any()
    assert layer.B.grad.all()
    assert layer.values.grad.count_nonzero() > 0


def test_it_starts_in_the_published_intervals():
    layer = SLTrainLinear(64, 256, bias=True, density=0.5, generator=seeded())
    assert not layer.B.any()
    for tensor, width in ((layer.A, 64), (layer.values, 64), (layer.bias, 256)):
        assert tensor.abs().max() <= width**-0.5
        assert float(tensor.detach().std()) == pytest.approx((3 * width) ** -0.5, rel=0.1)  # of a uniform distribution


# -- its limits ------------------------------------------------------------------------------------------------------
def trained(model, optimizer, steps=12):
    """Return the outputs after each step of a regression."""
    path, x, y = [], drawn(16, IN, seed=3), drawn(16, OUT, seed=4)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        path.append(model(x).detach())
    return torch.stack(path)


def test_all_entries_and_no_product_is_an_ordinary_linear_layer_step_for_step():
    layer = made(density=1.0, moved=False)
    layer.B.requires_grad_(False)
    linear = nn.Linear(IN, OUT, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(layer.values.view(OUT, IN))
    ours = trained(layer, torch.optim.AdamW([layer.A, layer.values], lr=0.01, weight_decay=0.0))
    theirs = trained(linear, torch.optim.AdamW(linear.parameters(), lr=0.01, weight_decay=0.0))
    assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("way", ["values frozen at zero", "no values"])
def test_without_the_sparse_matrix_it_is_low_rank_training(way):
    layer = made(density=0.0 if way == "no values" else DENSITY)
    with torch.no_grad():
        layer.values.zero_()
    layer.values.requires_grad_(way == "no values")
    down, up = (nn.Linear(*sizes, bias=False, dtype=torch.float64) for sizes in ((IN, RANK), (RANK, OUT)))
    with torch.no_grad():
        down.weight.copy_(layer.A)
        up.weight.copy_(layer.B)
    factors = nn.Sequential(down, up)
    ours = trained(layer, torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.01))
    theirs = trained(lambda x: layer.scale * factors(x), torch.optim.AdamW(factors.parameters(), lr=0.01))
    assert (ours - theirs).abs().max() < 1e-12


# -- the support -----------------------------------------------------------------------------------------------------
def test_the_support_is_distinct_sorted_uniform_over_the_whole_matrix_and_int32():
    layer = SLTrainLinear(64, 96, generator=seeded())
    support = layer.support.long()
    assert layer.support.dtype == torch.int32
    assert support.numel() == layer.values.numel() == int(0.03 * 64 * 96)
    assert (support.diff() > 0).all()
    assert 0 <= int(support.min()) < int(support.max()) < 64 * 96
    assert len((support // 64).bincount().unique()) > 1  # not so many per row
    halves = (support < 64 * 48).sum()
    assert abs(int(halves) - support.numel() / 2) < 3 * support.numel() ** 0.5


def test_positions_are_int64_only_where_int32_does_not_suffice():
    assert SLTrainLinear(2**16, 2**15 - 1, rank=1, density=0.0, device="meta").support.dtype == torch.int32
    assert SLTrainLinear(2**16, 2**15, rank=1, density=0.0, device="meta").support.dtype == torch.int64


def test_the_support_comes_from_the_seed_and_differs_between_layers_of_one_shape(network):
    def supports(seed):
        model = SLTrain().adapt(*network(seed))
        return [module.support for module in model.modules() if isinstance(module, SLTrainLinear)]

    first, again, other = supports(0), supports(0), supports(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert first[0].shape == first[1].shape
    assert not torch.equal(first[0], first[1])


def test_a_state_carries_the_support_to_a_model_that_was_drawn_otherwise():
    layer, other, file = made(seed=0), made(seed=5), io.BytesIO()
    assert not torch.equal(layer.support, other.support)
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(layer.support, other.support)
    x = drawn(3, IN)
    assert torch.equal(layer(x), other(x))


# -- settings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hidden", "ffn", "published"), [(512, 1376, 128), (1024, 2736, 256), (2048, 5461, 512), (4096, 11008, 1024)]
)
def test_the_default_rank_is_the_published_one_of_four_sizes(hidden, ffn, published):
    for shape in ((hidden, hidden), (hidden, ffn), (ffn, hidden)):
        assert SLTrainLinear(*shape, device="meta").rank == published


def test_the_default_rank_of_small_layers_is_a_quarter_and_at_least_one():
    assert SLTrainLinear(128, 344).rank == 32
    assert SLTrainLinear(3, 2).rank == 1


def test_a_rank_above_the_short_side_is_refused_with_what_is_allowed():
    with pytest.raises(BadValue, match=r"rank = 9 \(int\).*\(12, 8\)") as raised:
        SLTrainLinear(IN, OUT, rank=9)
    assert "1 <= rank <= 8" in raised.value.hint


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"density": 1.1}, {"density": -0.1}, {"alpha": 0.0}])
def test_values_outside_their_domains_are_refused_by_layer_and_plugin(wrong):
    with pytest.raises(BadValue):
        SLTrainLinear(IN, OUT, **wrong)
    with pytest.raises(BadValue):
        SLTrain(**wrong)


def test_the_product_is_multiplied_by_alpha_over_rank():
    assert SLTrainLinear(512, 512, alpha=32.0, device="meta").scale == 32 / 128
    assert SLTrainLinear(4096, 4096, alpha=8.0, device="meta").scale == 8 / 1024


# -- precisions ------------------------------------------------------------------------------------------------------
def test_under_autocast_output_is_bf16_and_gradients_are_fp32_and_right():
    layer, x = made(96, 64, rank=8, bias=True, dtype=torch.float32), drawn(5, 64, dtype=torch.float32)
    whole = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), whole, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - gradient).norm() < 0.02 * gradient.norm()  # bf16 has 8 bits


def test_in_bf16_parameters_and_gradients_are_bf16_and_the_support_is_not_converted():
    layer = made(96, 64, rank=8, dtype=torch.float32).to(torch.bfloat16)
    output = layer(drawn(5, 64, dtype=torch.bfloat16))
    output.sum().backward()
    assert layer.support.dtype == torch.int32
    assert {tensor.dtype for tensor in (output, layer.B.grad, layer.A.grad, layer.values.grad)} == {torch.bfloat16}


# -- models ----------------------------------------------------------------------------------------------------------
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.head = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return self.head(torch.relu(self.k(self.norm(torch.tanh(self.q(x))))))


ROLES = {
    "q.weight": Role.ATTENTION_Q,
    "q.bias": Role.BIAS,
    "k.weight": Role.ATTENTION_K,
    "head.weight": Role.CLASSIFIER,
    "head.bias": Role.BIAS,
    "norm.weight": Role.NORM,
    "norm.bias": Role.BIAS,
}


@pytest.fixture
def network():
    """Return ``seed -> (model, run)``."""
    return lambda seed: (Network(), Run(seed=seed, steps=10, roles=ROLES, algorithm="sltrain"))


def test_matrices_of_attention_and_mlp_are_replaced_and_nothing_else(network):
    model, run = network(0)
    head, norm, bias = model.head, model.norm, model.q.bias
    assert SLTrain(rank=2).adapt(model, run) is model
    assert [type(layer) for layer in (model.q, model.k)] == [SLTrainLinear] * 2
    assert model.q.bias is bias
    assert (model.head, model.norm) == (head, norm)
    assert model.q.rank == 2


def test_a_model_without_such_matrices_is_a_slot_mismatch(network):
    model, _ = network(0)
    with pytest.raises(SlotMismatch, match="attention or MLP role"):
        SLTrain().adapt(model, Run(seed=0, steps=1, roles=dict.fromkeys(ROLES, Role.OTHER)))


def test_the_60m_configuration_has_43_5_million_parameters(registry):
    workload, meta = registry.workload_class("llama-c4")("60m"), torch.device("meta")
    model = workload.model(0, meta)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 58.1
    run = Run(seed=0, steps=1, device=meta)
    parts = assemble([SLTrain(), registry.algorithm("adamw")], workload, run, model)
    low_rank = 8 * 128 * (4 * (512 + 512) + 3 * (512 + 1376))
    sparse = 8 * (4 * int(0.03 * 512 * 512) + 3 * int(0.03 * 512 * 1376))
    assert (low_rank, sparse) == (9_994_240, 758_888)
    found = sum(parameter.numel() for parameter in parts.model.parameters() if parameter.requires_grad)
    assert found == low_rank + sparse + 2 * 32_000 * 512 + 17 * 512
    assert round(found / 1e6, 1) == 43.5


def test_weights_and_states_can_be_counted_without_storage(registry):
    workload = registry.workload_class("llama-c4")("tiny")
    found = estimate([SLTrain(), registry.algorithm("adamw")], workload, "bf16")
    hidden = 4 * (
        4 * (32 * 256 + 491) + 3 * (32 * 472 + 1320)
    )  # r (m + n) + k for each of seven matrices in four blocks
    assert found.parameters == found.trainable_parameters == hidden + 2 * 256 * 128 + 9 * 128
    counters = found.states_bytes - 2 * 2 * found.parameters
    assert 0 <= counters <= 4 * 100  # a step number for each tensor


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "schedule-free", "sam"])
def test_any_optimizer_trains_the_three_tensors_as_adapters(registry, micro, optimizer):
    workload = micro.workload()
    parts = micro.parts(SLTrain(rank=2, density=0.2), registry.algorithm(optimizer), workload=workload)
    names = ["hidden.B", "hidden.A", "hidden.values"]
    assert {parts.run.roles[name] for name in names} == {Role.ADAPTER}
    before = micro.weights(parts)
    micro.train(parts, workload)
    after = micro.weights(parts)
    assert torch.equal(before["hidden.support"], after["hidden.support"])
    assert not any(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize("optimizer", ["muon", "galore"])
def test_an_optimizer_that_needs_hidden_matrices_says_that_there_are_none(registry, micro, optimizer):
    with pytest.raises(SlotMismatch, match=rf"{optimizer} .*role"):
        micro.parts(SLTrain(), registry.algorithm(optimizer))


def test_a_resumed_run_ends_in_the_bits_of_an_undisturbed_one(micro, tmp_path):
    workload, algorithm, path = micro.workload(), SLTrain(rank=2, density=0.2), Path(tmp_path / "checkpoint.pt")
    whole = micro.parts(algorithm, workload=workload)
    micro.train(whole, workload)
    half = micro.parts(algorithm, workload=workload)
    micro.train(half, workload, stop_at=6)
    save(path, half, {})
    resumed = micro.parts(algorithm, workload=workload)
    restore(read(path), resumed)
    micro.train(resumed, workload, start=6)
    assert micro.equal(micro.weights(resumed), micro.weights(whole))


def test_the_llama_of_the_workload_learns_under_the_reference(registry):
    workload = registry.workload_class("llama-c4")("tiny")
    model = workload.model(0, torch.device("cpu"))
    run = Run(seed=0, steps=8)
    parts = assemble([SLTrain(), registry.algorithm("adamw", lr=3e-3)], workload, run, model)
    assert sum(isinstance(module, SLTrainLinear) for module in model.modules()) == 4 * 7
    tokens = torch.arange(256).remainder(16).view(1, 256)
    losses = []
    for _ in range(8):
        parts.optimizer.zero_grad()
        loss = workload.loss(parts.model, {"input_ids": tokens, "labels": tokens})
        loss.backward()
        parts.optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_outside_the_suite_any_model_is_converted_by_a_rule_on_names():
    model = nn.Sequential(nn.Linear(IN, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 32), nn.Linear(32, OUT)))
    shared = model[2][0]
    model.append(nn.Sequential(nn.Linear(OUT, 32), shared, nn.Linear(32, OUT)))
    model.eval()
    count = replace_linears(model, lambda path, _: path.startswith("2") or path == "3.1", rank=2, generator=seeded())
    assert count == 2
    assert model[2][0] is model[3][1]
    assert isinstance(model[2][1], SLTrainLinear)
    assert not model[2][1].training
    assert type(model[0]) is nn.Linear
    assert model(drawn(3, IN, dtype=torch.float32)).shape == (3, OUT)


def test_the_weight_can_be_looked_at_and_used_by_a_dense_layer():
    layer, x = made(), drawn(3, IN)
    torch.testing.assert_close(x @ layer.weight.T, layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight, dense(layer, layer.B, layer.A, layer.values), rtol=0, atol=1e-12)
