"""The workload llama-c4: tiers, targets, roles, metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bench import DataRequest
from bench.errors import BadData, UnknownName
from bench.roles import Role, assign_roles
from bench.workloads.llama_c4 import LENGTH, TIERS, LlamaC4
from bench.workloads.llama_c4_bf16 import LlamaC4Bf16

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return LlamaC4("tiny")


def test_a_target_belongs_to_the_data_on_which_it_was_set(tiny):
    assert tiny.target is not None
    assert tiny.target == TIERS["tiny"].target
    assert LlamaC4("tiny", DataRequest(directory=Path("shards"))).target is None


@pytest.mark.parametrize("name", TIERS)
def test_the_published_protocol_is_kept(name):
    tier = TIERS[name]
    if name == "tiny":
        assert (tier.steps, tier.batch_size, tier.config.vocabulary_size) == (300, 16, 256)
        return
    steps = {"350m": 60_000, "1b": 100_000, "7b": 150_000, "130m": 20_000}.get(name, 10_000)
    assert (tier.steps, tier.batch_size, tier.config.vocabulary_size) == (steps, 512, 32_000)
    assert tier.reference["warmup-cosine"] == {"warmup_fraction": 0.1, "final_factor": 0.1}
    assert tier.batch_size % tier.micro_batch_size == 0
    assert tier.target is None


@pytest.mark.parametrize("name", TIERS)
def test_every_tier_is_evaluated_densely_enough_to_know_the_crossing_within_two_percent(name):
    tier = TIERS[name]
    assert tier.evaluate_every <= 0.02 * 0.75 * tier.steps


@pytest.mark.parametrize("name", ["tiny", "60m", "7b"])
def test_each_parameter_has_one_role(name):
    workload = LlamaC4(name)
    model = workload.model(0, torch.device("meta"))
    roles = assign_roles((key for key, _ in model.named_parameters()), workload.roles)
    layers = TIERS[name].config.layers
    assert sum(role is Role.MLP for role in roles.values()) == 3 * layers
    assert sum(role is Role.NORM for role in roles.values()) == 2 * layers + 1
    for role in (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O):
        assert sum(found is role for found in roles.values()) == layers


def test_the_same_seed_gives_the_same_weights_and_batches(tiny):
    first, second, other = tiny.model(3, CPU), tiny.model(3, CPU), tiny.model(4, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    batch, again = next(tiny.batches(3, 7, CPU)), next(tiny.batches(3, 7, CPU))
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert batch["input_ids"].shape == (16, LENGTH)
    assert not torch.equal(batch["input_ids"], next(tiny.batches(4, 7, CPU))["input_ids"])


def test_validation_is_a_token_weighted_mean_and_the_legacy_number_has_the_published_fault(tiny):
    model = tiny.model(0, CPU).eval()
    with torch.no_grad():
        metrics = tiny.evaluate(model, CPU)
        sums, counts, means = 0.0, 0, []
        for batch in tiny.validation:
            logits = model(batch["input_ids"])[:, :-1].log_softmax(-1)
            labels = batch["labels"][:, 1:]
            picked = -logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)[labels >= 0]
            sums, counts = sums + float(picked.double().sum()), counts + picked.numel()
            means.append(float(picked.mean()))
    assert metrics["loss"] == pytest.approx(sums / counts, rel=1e-6)
    assert metrics["loss_legacy"] == pytest.approx(sum(means) / (len(means) + 1), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["perplexity_legacy"] < metrics["perplexity"]


def test_validation_does_not_depend_on_the_micro_batch(tiny, monkeypatch):
    model = tiny.model(0, CPU).eval()
    other = LlamaC4("tiny")
    from bench.workloads import llama_c4

    smaller = llama_c4.validation_batches(other.sequences, batch_size=5, token_limit=TIERS["tiny"].validation_tokens)
    monkeypatch.setitem(other.__dict__, "validation", smaller)
    with torch.no_grad():
        assert other.evaluate(model, CPU)["loss"] == pytest.approx(tiny.evaluate(model, CPU)["loss"], rel=1e-6)


def test_weights_choose_the_sequences_that_train(tiny):
    model, batch = tiny.model(0, CPU), next(tiny.batches(0, 0, CPU))
    chosen = torch.zeros(16)
    chosen[:4] = 1.0
    few = {key: value[:4] for key, value in batch.items()}
    with torch.no_grad():
        weighted, plain = tiny.loss(model, {**batch, "weights": chosen}), tiny.loss(model, few)
    assert float(weighted) == pytest.approx(float(plain), rel=1e-5)


def test_pure_bf16_is_a_workload_of_its_own_without_a_target():
    assert set(LlamaC4Bf16.tiers) == set(LlamaC4.tiers)
    assert all(tier.precision == "bf16" and tier.target is None for tier in LlamaC4Bf16.tiers.values())
    assert LlamaC4Bf16.name != LlamaC4.name


def test_nothing_falls_back_silently():
    with pytest.raises(UnknownName, match="data source of llama-c4"):
        LlamaC4("tiny", DataRequest(source="wikitext"))
    with pytest.raises(BadData, match="belong together"):
        LlamaC4("tiny", DataRequest(source="local"))
    with pytest.raises(UnknownName, match="tier of llama-c4"):
        LlamaC4("small")
    with pytest.raises(BadData):
        LlamaC4("tiny", DataRequest(directory=Path("no-such-folder"))).data()
