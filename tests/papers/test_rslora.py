"""rsLoRA: parity with peft, LoRA with another scale, and outputs whose size does not fall with the rank."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.plugins.peft.lora import Lora, LoraLinear
from bench.plugins.peft.rslora import RsLora

pytestmark = pytest.mark.paper

ROLES = {"0.weight": Role.MLP, "0.bias": Role.BIAS}


def adapted(algorithm):
    torch.manual_seed(0)
    return algorithm.adapt(nn.Sequential(nn.Linear(64, 64)), Run(seed=0, steps=1, roles=ROLES, algorithm="same"))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (16, 4.0)])
def test_twenty_steps_are_those_of_peft(rank, alpha, package, beside_peft):
    config = package("peft", "peft").LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, use_rslora=True, target_modules=["0", "2"]
    )
    pairs = {
        "lora_A": lambda peer: peer.lora_A["default"].weight,
        "lora_B": lambda peer: peer.lora_B["default"].weight,
    }
    scale = RsLora(rank=rank, alpha=alpha).scale
    *_, distance = beside_peft(config, lambda base: LoraLinear(base, rank=rank, scale=scale), pairs)
    assert distance < 1e-10


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_it_is_lora_with_alpha_times_the_root_of_the_rank(rank):
    assert RsLora(rank=rank, alpha=8.0).scale == pytest.approx(Lora(rank=rank, alpha=8.0 * math.sqrt(rank)).scale)


def test_at_rank_16_alpha_8_has_the_bits_of_lora_with_alpha_32():
    one, other = adapted(RsLora(rank=16, alpha=8.0)), adapted(Lora(rank=16, alpha=32.0))
    x, y = torch.randn(2, 9, 64)
    for model in (one, other):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    assert torch.equal(one(x), other(x))


def test_what_a_step_changes_of_its_own_output_does_not_depend_on_the_rank_where_lora_s_falls_with_it():
    def change(algorithm):
        """Return the mean change over single examples: η s² |A x|² times the gradient at the output, which is 1."""
        changes = []
        for x in torch.randn(40, 1, 64, generator=torch.Generator().manual_seed(0)):
            (layer,) = adapted(algorithm)
            before = layer(x)
            before[0, 0].backward()
            torch.optim.SGD([layer.lora_B], lr=0.01).step()
            changes.append(float((before - layer(x)).detach()[0, 0]))
        return sum(changes) / len(changes)

    stabilised = [change(RsLora(rank=rank, alpha=8.0)) for rank in (4, 16, 64)]
    plain = [change(Lora(rank=rank, alpha=8.0)) for rank in (4, 16, 64)]
    assert max(stabilised) < 1.3 * min(stabilised)
    assert [plain[0] / plain[1], plain[1] / plain[2]] == pytest.approx([4.0, 4.0], rel=0.25)
