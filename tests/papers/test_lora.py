"""LoRA: parity with peft, and the properties that the card lists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.peft._adapter import merge_adapters
from bench.plugins.peft.lora import Lora, LoraLinear

pytestmark = pytest.mark.paper


def linear(rows=6, columns=10, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(columns, rows).double()


def layer(rows=6, columns=10, start=0.3, **options):
    """Return a layer whose B is away from zero, unless ``start`` is 0."""
    made = LoraLinear(linear(rows, columns), generator=torch.Generator().manual_seed(1), **options)
    with torch.no_grad():
        made.lora_B.add_(start * torch.randn(made.lora_B.shape, generator=torch.Generator().manual_seed(2)))
    return made


def weight_gradient(made, x, y):
    """Backpropagate a quadratic loss and return its gradient with respect to the weight that ``made`` stands for."""
    made.zero_grad()
    output = made(x)
    (0.5 * (output - y).square().sum()).backward()
    return (output - y).detach().flatten(0, -2).T @ x.flatten(0, -2)


def run_of(model):
    roles = {name: Role.MLP if name.endswith("weight") else Role.BIAS for name, _ in model.named_parameters()}
    return Run(seed=0, steps=10, roles=roles)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (16, 4.0)])
def test_twenty_steps_are_those_of_peft(rank, alpha, package, beside_peft):
    config = package("peft", "peft").LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=["0", "2"])
    pairs = {
        "lora_A": lambda peer: peer.lora_A["default"].weight,
        "lora_B": lambda peer: peer.lora_B["default"].weight,
    }
    ours, theirs, distance = beside_peft(
        config, lambda base: LoraLinear(base, rank=rank, scale=Lora(rank=rank, alpha=alpha).scale), pairs
    )
    assert distance < 1e-10
    for i in (0, 2):
        assert torch.allclose(ours[i].delta(), theirs[i].get_delta_weight("default"), rtol=0, atol=1e-10)


def test_output_at_the_start_has_the_bits_of_the_base():
    x = torch.randn(4, 3, 10, dtype=torch.float64)
    assert torch.equal(layer(start=0.0)(x), linear()(x))


@pytest.mark.parametrize("columns", [50, 400])
def test_a_starts_uniform_within_the_root_of_the_inputs_and_b_as_zeros(columns):
    made = LoraLinear(nn.Linear(columns, 5), rank=64, generator=torch.Generator().manual_seed(0))
    bound = columns**-0.5
    assert 0.95 * bound < float(made.lora_A.detach().abs().max()) <= bound
    assert float(made.lora_A.detach().var()) == pytest.approx(bound**2 / 3, rel=0.1)
    assert not made.lora_B.any()


def test_gradients_are_those_of_the_card():
    made, x, y = layer(rank=3, scale=1.7), torch.randn(7, 10).double(), torch.randn(7, 6).double()
    gradient = weight_gradient(made, x, y)
    torch.testing.assert_close(made.lora_B.grad, 1.7 * gradient @ made.lora_A.detach().T)
    torch.testing.assert_close(made.lora_A.grad, 1.7 * made.lora_B.detach().T @ gradient)
    assert made.base.weight.grad is None


def test_at_the_start_only_b_moves():
    made = layer(start=0.0, rank=3)
    weight_gradient(made, torch.randn(7, 10).double(), torch.randn(7, 6).double())
    assert not made.lora_A.grad.any()
    assert made.lora_B.grad.any()


@pytest.mark.parametrize("rows", [6, 14])
def test_with_orthogonal_a_a_step_of_sgd_on_b_is_the_full_gradient_step(rows):
    made = layer(rows, rank=10, scale=1.5, start=0.0)
    with torch.no_grad():
        nn.init.orthogonal_(made.lora_A)
    gradient = weight_gradient(made, torch.randn(20, 10).double(), torch.randn(20, rows).double())
    torch.optim.SGD([made.lora_B], lr=0.01).step()
    torch.testing.assert_close(made.delta(), -0.01 * 1.5**2 * gradient)


def test_first_step_of_the_plugin_moves_b_by_the_rate_against_the_gradient_and_leaves_a():
    model = nn.Sequential(linear())
    run = run_of(model)
    model = Lora(rank=3, lr=0.02).adapt(model, run)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad and "lora" in name]
    roles = dict(run.roles) | {name: Role.ADAPTER for name, _ in trainable}
    optimizer = Lora(rank=3, lr=0.02).optimizer(trainable, Run(seed=0, steps=10, roles=roles))
    before = model[0].lora_A.detach().clone()
    gradient = weight_gradient(model[0], torch.randn(7, 10).double(), torch.randn(7, 6).double())
    optimizer.step()
    expected = -0.02 * torch.sign(gradient @ before.T)
    torch.testing.assert_close(model[0].lora_B.detach(), expected, rtol=1e-5, atol=0)
    assert torch.equal(model[0].lora_A, before)
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert sum(moment.numel() for moment in moments) == 2 * 3 * (6 + 10)


def test_merged_layer_computes_the_same_and_unmerging_gives_the_weight_back():
    made, x = layer(rank=3, scale=2.0), torch.randn(5, 10).double()
    merged = merge_adapters(nn.Sequential(made))[0]
    torch.testing.assert_close(merged(x), made(x))
    assert torch.equal(made.base.weight, linear().weight)
    torch.testing.assert_close(merged.weight - made.delta(), linear().weight)


def test_merging_in_bfloat16_rounds_once():
    made = LoraLinear(linear().to(torch.bfloat16), rank=3)
    with torch.no_grad():
        made.lora_B.normal_()
    expected = (made.base.weight.float() + 2.0 * made.lora_B @ made.lora_A).to(torch.bfloat16)
    assert torch.equal(merge_adapters(nn.Sequential(made))[0].weight, expected)


def test_dropout_acts_on_the_input_of_the_update_alone_and_not_in_evaluation():
    made, x = layer(rank=10, dropout=0.5), torch.ones(4000, 10).double()
    torch.manual_seed(0)
    update = made(x) - made.base(x)
    rows = {tuple(row) for row in update.detach().round(decimals=9).tolist()}
    assert 500 < len(rows) <= 2**10  # every subset of the inputs, doubled
    wanted = made.eval()(x) - made.base(x)
    torch.testing.assert_close(update.mean(0), wanted.mean(0), rtol=0, atol=0.1)
    assert torch.equal(wanted[0], wanted[-1])


@pytest.mark.parametrize(("options", "scale"), [({}, 2.0), ({"rank": 32}, 2.0), ({"rank": 4, "alpha": 8.0}, 2.0)])
def test_scale_is_alpha_over_the_rank_and_2_by_default(options, scale):
    assert Lora(**options).scale == scale
    assert Lora(rank=16, alpha=8.0).scale == 0.5


def test_adapters_of_roberta_base_at_rank_8_on_query_and_value_have_294912_parameters():
    layers = [LoraLinear(nn.Linear(768, 768, device="meta"), rank=8) for _ in range(24)]
    assert sum(made.lora_A.numel() + made.lora_B.numel() for made in layers) == 294_912


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 1.5}, {"dropout": 1.0}, {"scale": 0.0}, {"scale": -1.0}])
def test_bad_values_are_refused_outside_the_suite_too(options):
    with pytest.raises(BadValue):
        LoraLinear(linear(), **options)
