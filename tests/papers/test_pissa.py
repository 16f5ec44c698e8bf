"""PiSSA: parity with peft, its start, and what the card warns of."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.peft._adapter import adapted_linears, adapter_state_dict, load_adapter
from bench.plugins.peft.lora import LoraLinear
from bench.plugins.peft.pissa import Pissa, PissaLinear

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
every_shape = pytest.mark.parametrize("shape", SHAPES)
PAIRS = {
    "lora_A": lambda peer: peer.lora_A["default"].weight,
    "lora_B": lambda peer: peer.lora_B["default"].weight,
    "base.weight": lambda peer: peer.get_base_layer().weight,
}


def linear(shape=(12, 20), decay=1.0):
    torch.manual_seed(0)
    made = nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        made.weight.mul_(decay ** torch.arange(shape[1]))
    return made


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (6, 6.0)])
def test_twenty_steps_are_those_of_peft(rank, alpha, package, beside_peft):
    config = package("peft", "peft").LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, init_lora_weights="pissa", target_modules=["0", "2"]
    )
    scale = Pissa(rank=rank, alpha=alpha).scale
    *_, distance = beside_peft(config, lambda base: PissaLinear(base, rank=rank, scale=scale), PAIRS)
    assert distance < 1e-10


@every_shape
@pytest.mark.parametrize("iterations", [None, 20])
def test_start_is_that_of_peft_up_to_the_signs_of_singular_vectors(shape, iterations, package):
    peft = package("peft", "peft")
    words = "pissa" if iterations is None else f"pissa_niter_{iterations}"
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=words, target_modules=["0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(nn.Sequential(linear(shape, 0.7)), config).base_model.model[0]
    ours = PissaLinear(linear(shape, 0.7), rank=4, scale=2.0, iterations=iterations)
    torch.testing.assert_close(ours.delta(), theirs.get_delta_weight("default"), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.base.weight, theirs.get_base_layer().weight, rtol=0, atol=1e-5)
    pairs = [(getattr(ours, key), PAIRS[key](theirs)) for key in ("lora_A", "lora_B")]
    assert all(torch.allclose(mine.abs(), other.abs(), rtol=0, atol=1e-4) for mine, other in pairs)


@every_shape
def test_factors_are_the_principal_part_with_the_values_split_evenly(shape):
    base = linear(shape)
    values = torch.linalg.svdvals(base.weight.detach())
    layer = PissaLinear(base, rank=4, scale=2.0)
    split = torch.diag(values[:4] / 2.0)
    torch.testing.assert_close((layer.lora_A @ layer.lora_A.T).detach(), split, rtol=0, atol=1e-5)
    torch.testing.assert_close((layer.lora_B.T @ layer.lora_B).detach(), split, rtol=0, atol=1e-5)
    rest = torch.linalg.svdvals(layer.base.weight.detach())
    torch.testing.assert_close(rest, torch.cat((values[4:], torch.zeros(4))), rtol=0, atol=1e-5)


@every_shape
def test_output_at_the_start_is_that_of_the_base_to_rounding(shape):
    base, x = linear(shape), torch.randn(9, shape[1])
    before = base(x).detach()
    torch.testing.assert_close(PissaLinear(base, rank=4)(x), before, rtol=1e-5, atol=1e-6)


def test_both_factors_move_from_the_start():
    layer = PissaLinear(linear(), rank=4)
    layer(torch.randn(9, 20)).square().sum().backward()
    assert layer.lora_A.grad.any()
    assert layer.lora_B.grad.any()


def test_the_scale_multiplies_the_learning_rate_by_its_root_and_does_nothing_else():
    x, y = torch.randn(9, 20), torch.randn(9, 12)

    def path(scale, lr):
        layer = PissaLinear(linear(), rank=4, scale=scale)
        optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=lr, weight_decay=0.0, eps=1e-30)
        for _ in range(10):
            optimizer.zero_grad()
            (layer(x) - y).square().mean().backward()
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(path(4.0, 0.01), path(1.0, 0.02), rtol=0, atol=1e-4)
    assert not torch.allclose(path(4.0, 0.01), path(1.0, 0.01), atol=1e-2)


def test_weight_decay_pulls_away_from_the_pretrained_weight_where_lora_stays():
    def drift(make):
        base = linear()
        before = base.weight.detach().clone()
        layer = make(base)
        optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.1, weight_decay=0.1)
        for _ in range(10):
            for parameter in (layer.lora_A, layer.lora_B):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        return float((layer.weight.detach() - before).norm() / before.norm())

    assert drift(lambda base: PissaLinear(base, rank=4)) > 0.1
    assert drift(lambda base: LoraLinear(base, rank=4)) == 0.0


def test_an_adapter_loads_where_the_decomposition_comes_out_differently():
    model = adapted_linears(nn.Sequential(linear()), ["0"], lambda base: PissaLinear(base, rank=4, scale=2.0))
    with torch.no_grad():
        model[0].lora_B.add_(0.1)
    state, x = adapter_state_dict(model), torch.randn(9, 20)
    assert set(state) == {"0.lora_A", "0.lora_B", "0.start_a", "0.start_b", "0.base.bias"}
    # One power iteration is another decomposition, and so another residual than that of the saved adapter.
    other = adapted_linears(
        nn.Sequential(linear()), ["0"], lambda base: PissaLinear(base, rank=4, scale=2.0, iterations=1)
    )
    assert not torch.allclose(other[0].base.weight, model[0].base.weight, atol=1e-3)
    load_adapter(other, state)
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)
    whole = copy.deepcopy(other)
    whole.load_state_dict(model.state_dict())  # a checkpoint brings the residual itself
    assert torch.equal(whole(x), model(x))


def test_the_plugin_starts_at_scale_one_and_passes_its_fields_on():
    assert Pissa(rank=6).scale == 1.0
    run = Run(seed=0, steps=1, roles={"0.weight": Role.MLP, "0.bias": Role.BIAS})
    (layer,) = Pissa(rank=3, alpha=6.0, dropout=0.25, iterations=2).adapt(nn.Sequential(linear()), run)
    assert (layer.scale, layer.dropout, layer.iterations, len(layer.lora_A)) == (2.0, 0.25, 2, 3)
    assert set(run.generators) == {"decomposition"}
    assert math.isfinite(float(layer.delta().detach().norm()))


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(BadValue, match=r"rank = 13 \(int\) is not allowed for a weight of shape \(12, 20\)"):
        PissaLinear(linear(), rank=13)
