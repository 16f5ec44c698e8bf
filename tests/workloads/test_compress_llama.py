"""The workload compress-llama: base models, text, the score, and what it refuses."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import Algorithm, DataRequest, Point, Registry, Role, Run
from bench.clock import Clock
from bench.errors import BadData, BadValue, SlotFault
from bench.post import Post
from bench.roles import HIDDEN_MATRICES, assign_roles
from bench.workloads import _compress_base
from bench.workloads._compress_base import Recipe, TrainedBase
from bench.workloads._documents import Embedded
from bench.workloads.compress_llama import BRANCHES, TIERS, TINY, CompressLlama

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("artifact_cache")


class Short(CompressLlama):
    """The same workload after four training steps, calibrated on 8 windows and examined on 16."""

    @cached_property
    def base(self):
        recipe = replace(self.compress_tier.recipe, steps=4)
        return TrainedBase(recipe=recipe, source=Embedded(), calibration_windows=8, evaluation_windows=16)


class Halved(Algorithm):
    """Zeros for every other weight."""

    name = "halved"

    def compress(self, model, calibration, run):
        result = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                if run.role(name) in HIDDEN_MATRICES:
                    parameter[:, ::2] = 0.0
        return result


@pytest.fixture(scope="module")
def short():
    return Short("tiny")


def spoiled(model, value):
    result = copy.deepcopy(model)
    with torch.no_grad():
        result.layers[0].mlp.up.weight.fill_(value)
    return result


def test_the_points_are_those_of_the_page():
    assert [point.kept_ratio for point in TIERS["tiny"].points] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert TIERS["tiny-2-4"].points == (Point(pattern=(2, 4)),)
    assert TIERS["tiny-1-4"].points == (Point(pattern=(1, 4)),)
    assert [(point.pattern, point.rank) for point in BRANCHES] == [((1, 4), 4), ((1, 4), 8), ((1, 4), 16)]
    assert [point.kept_ratio for point in TIERS["hf"].points] == [0.9, 0.8, 0.7, 0.6]
    assert TIERS["hf-compensation"].points == (Point(pattern=(2, 4), rank=128),)
    assert all(tier.target is None for tier in TIERS.values())


def test_the_recipe_is_that_of_the_page():
    assert (TINY.steps, TINY.batch_size, TINY.lr, TINY.beta1, TINY.beta2) == (600, 16, 3e-3, 0.9, 0.95)
    assert TINY.weight_decay == 0.1
    factors = [TINY.factor(step) for step in range(TINY.steps)]
    assert factors[:60] == [(step + 1) / 60 for step in range(60)]
    assert max(factors) == factors[59] == factors[60] == 1.0
    assert factors[60:] == sorted(factors[60:], reverse=True)
    assert factors[330] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("name", TIERS)
def test_the_reference_fills_the_slots_and_finds_what_it_needs(name):
    registry = Registry()
    tier, needs = TIERS[name], set()
    for plugin, values in tier.reference.items():
        needs |= set(registry.algorithm(plugin, **values).needs)
    assert needs <= CompressLlama(name).offers


@pytest.mark.parametrize("name", ["tiny", "845k"])
def test_each_parameter_has_one_role(name):
    workload = CompressLlama(name)
    model = workload.model(0, torch.device("meta"))
    roles = assign_roles((key for key, _ in model.named_parameters()), workload.roles)
    layers = TIERS[name].recipe.config.layers
    assert len(workload.layout.linears) == 7 * layers
    assert sum(role is Role.MLP for role in roles.values()) == 3 * layers
    assert sum(role is Role.NORM for role in roles.values()) == 2 * layers + 1


# -- base models -----------------------------------------------------------------------------------------------------
def test_a_base_model_depends_on_its_seed_alone_and_every_call_gives_a_new_copy(short):
    first, again, other = short.model(0, CPU), short.model(0, CPU), short.model(1, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    with torch.no_grad():
        again.lm_head.weight.zero_()
    assert torch.equal(short.model(0, CPU).lm_head.weight, first.lm_head.weight)
    assert short.base_sha256(0) != short.base_sha256(1)
    assert short.base_sha256(0) == Short("tiny-2-4").base_sha256(0), "tiers of one size start from one model"


def test_a_base_model_is_trained_once_and_then_read_from_the_cache(monkeypatch, short):
    trained = short.base_sha256(0)
    monkeypatch.setattr(Recipe, "train", lambda *_: pytest.fail("trained again"))
    assert Short("tiny").base_sha256(0) == trained


def test_training_lowers_the_loss_and_leaves_generators_threads_and_gradient_mode_alone(short):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        before = short.log_perplexity(_model(replace(TINY, steps=0).train(short.base.sequences, 0)), WINDOWS, CPU)
        trained = replace(TINY, steps=20).train(short.base.sequences, 0)
        after = short.log_perplexity(_model(trained), WINDOWS, CPU)
        assert not torch.is_grad_enabled()
    assert after < before - 1.5
    one, other = (replace(TINY, steps=2).train(short.base.sequences, 0) for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def _model(state):
    model = Short("tiny").model(0, torch.device("meta"))
    model.load_state_dict(state, assign=True)
    return model


WINDOWS = TrainedBase(recipe=TINY, source=Embedded(), evaluation_windows=16).validation


# -- text ------------------------------------------------------------------------------------------------------------
def test_calibration_sets_are_fixed_disjoint_full_windows_of_the_training_split():
    workload = CompressLlama("tiny")
    sets = [workload.calibration(seed, CPU) for seed in range(3)]
    assert [tuple(batch["tokens"].shape) for batch in sets[0]] == [(16, 128)] * 4
    rows = [{bytes(row.tolist()) for batch in batches for row in batch["tokens"]} for batches in sets]
    assert [len(part) for part in rows] == [64, 64, 64]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    sequences = workload.base.sequences
    train = {bytes(window.tolist()) for window in sequences.items("train")}
    assert all(part <= train for part in rows)
    assert not any(bytes(row.tolist()) in train for row in workload.base.validation)
    assert all((batch["tokens"] != 0).all() for batch in sets[0])
    again = CompressLlama("845k").calibration(1, CPU)
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(again, sets[1], strict=True))


def test_an_algorithm_that_spoils_its_calibration_spoils_no_other_s(short):
    first = short.calibration(0, CPU)
    kept = first[0]["tokens"].clone()
    first[0]["tokens"].zero_()
    assert torch.equal(short.calibration(0, CPU)[0]["tokens"], kept)


def test_validation_is_one_fixed_list_whatever_the_seed():
    base = CompressLlama("tiny").base
    assert tuple(base.validation.shape) == (512, 128)
    assert torch.equal(base.validation[:16], WINDOWS)
    assert (base.validation > 1).float().mean() > 0.99


def test_the_shifted_domain_is_pinned(monkeypatch, short):
    assert tuple(short.base.shifted.shape) == (128, 128)
    monkeypatch.setattr(_compress_base, "document", lambda *_: "Other text. " * 200)
    with pytest.raises(BadData, match="the shifted domain has SHA-256"):
        _ = Short("tiny").base.shifted


def test_local_text_is_other_data_and_another_base_model(shards, tmp_path):
    texts = [f"{number} local text, the same words again and again. " * 8 for number in range(60)]
    workload = CompressLlama("tiny", DataRequest(directory=shards(tmp_path, texts, texts[:9])))
    assert workload.data().source == "local"
    assert workload.data().sha256 != CompressLlama("tiny").data().sha256
    assert tuple(workload.base.validation.shape) == (18, 128)
    assert len(workload.calibration(10_000, CPU)) == 4, "seeds beyond the last calibration set begin anew"


def test_too_little_text_for_a_calibration_set_is_one_clear_error(shards, tmp_path):
    workload = CompressLlama("tiny", DataRequest(directory=shards(tmp_path, ["short " * 40], ["short " * 40])))
    with pytest.raises(BadData, match="has 1 full windows of 128 bytes"):
        workload.calibration(0, CPU)


# -- the score -------------------------------------------------------------------------------------------------------
def test_the_dense_model_loses_nothing(short):
    metrics = short.examine(short.model(0, CPU), Point(kept_ratio=1.0), [], CPU, 0)
    assert metrics["log_perplexity_increase"] == metrics["point_increase"] == 0.0
    assert metrics["kept_ratio"] == metrics["whole_model_ratio"] == 1.0
    assert metrics["stored_bytes"] == 2 * 130_368
    assert metrics["perplexity"] == metrics["dense_perplexity"]
    assert set(metrics) >= {"shifted_perplexity", "linear_bytes"}


def test_perplexity_is_that_of_a_naive_computation(short):
    model = short.model(0, CPU)
    with torch.no_grad():
        chances = model(short.base.validation).double().log_softmax(-1)[:, :-1]
        naive = -chances.gather(-1, short.base.validation[:, 1:, None]).mean()
        metrics = short.examine(model, Point(), [], CPU, 0)
    assert metrics["perplexity"] == pytest.approx(math.exp(float(naive)), rel=1e-6)


def test_the_score_is_the_mean_increase_over_the_points_so_far(short):
    model = short.model(0, CPU)
    history, increases = [], []
    for value in (0.0, 0.05, 0.1):
        metrics = short.examine(spoiled(model, value), Point(), history, CPU, 0)
        increases.append(math.log(metrics["perplexity"]) - math.log(metrics["dense_perplexity"]))
        assert metrics["log_perplexity_increase"] == pytest.approx(sum(increases) / len(increases), abs=1e-9)
        history.append(metrics)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_fails_at_its_point_and_is_never_left_out(short, value):
    model = short.model(0, CPU)
    bad = short.examine(spoiled(model, value), Point(), [], CPU, 0)
    assert bad["perplexity"] == bad["log_perplexity_increase"] == bad["shifted_perplexity"] == math.inf
    later = short.examine(model, Point(), [bad], CPU, 0)
    assert later["point_increase"] == 0.0
    assert later["log_perplexity_increase"] == math.inf


def test_the_loss_is_the_mean_over_the_tokens_that_have_one_before(short):
    model, tokens = short.model(0, CPU), WINDOWS[:2]
    with torch.no_grad():
        found = short.loss(model, {"tokens": tokens})
        expected = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        first = short.loss(model, {"tokens": tokens, "weights": torch.tensor([1.0, 0.0])})
        alone = short.loss(model, {"tokens": tokens[:1]})
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(first) == pytest.approx(float(alone), rel=1e-6)


def test_a_trial_serves_every_point_and_a_plugin_that_keeps_too_much_is_a_fault(short):
    seen = []

    def observe(evaluation):
        seen.append(evaluation.metrics)
        return False

    post = Post([Halved()], short, Run(seed=0, steps=6), Clock(CPU))
    with pytest.raises(SlotFault, match=r"at the point \(kept ratio 0\.4\) at most"):
        post.work(observe)
    assert [metrics["kept_ratio"] for metrics in seen] == [0.5] * 5
    assert [metrics["linear_bytes"] for metrics in seen] == [97_280 * 9 / 8] * 5
    assert len({metrics["perplexity"] for metrics in seen}) == 1


# -- what is refused -------------------------------------------------------------------------------------------------
def test_requests_that_do_not_fit_the_tier_are_refused():
    with pytest.raises(BadData, match="trains its own model, but --model-dir was given"):
        CompressLlama("tiny", DataRequest(models=(Path("folder"),)))
    with pytest.raises(BadData, match="does not read the source 'c4'"):
        CompressLlama("tiny", DataRequest(source="c4"))
    with pytest.raises(BadData, match="does not read the source 'embedded'"):
        CompressLlama("hf", DataRequest(source="embedded", models=(Path("folder"),)))
    with pytest.raises(BadData, match="needs a LLaMA checkpoint") as found:
        CompressLlama("hf").data()
    assert "--model-dir" in found.value.hint
    assert "--data-dir" in found.value.hint
    with pytest.raises(BadValue, match="tokenizer"):
        CompressLlama("tiny", DataRequest(tokenizer="bytes"))


# -- the real base models --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_base_model_of_tier_tiny_has_learnt_what_the_page_of_results_says():
    workload = CompressLlama("tiny")
    with torch.no_grad():
        found = math.exp(workload.dense_log_perplexity(0, CPU))
    assert found == pytest.approx(4.96, rel=0.03)
