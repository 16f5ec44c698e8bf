"""The workload gpt2-fineweb: tiers, target, roles, sizes, metrics, and runs on shards in the real format."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import DataRequest
from bench.assembly import assemble
from bench.clock import Clock
from bench.context import Run
from bench.errors import BadData, BadValue, UnknownName
from bench.loop import train
from bench.memory import estimate
from bench.plan import make_plan
from bench.registry import Registry
from bench.request import Request, open_workload, stacks
from bench.roles import Role, assign_roles
from bench.workloads._gpt import GptConfig
from bench.workloads.gpt2_fineweb import TIERS, Gpt2FineWeb

CPU, META = torch.device("cpu"), torch.device("meta")
GPT2_TOKENS, SEPARATOR = 50_257, 50_256
PARAMETERS = {"tiny": 180_224, "124m": 162_201_600}


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture(scope="module")
def tiny():
    return Gpt2FineWeb("tiny")


def write_shard(path: Path, tokens) -> Path:
    """Write a shard as llm.c's scripts do."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


def stream(documents, draw):
    """GPT-2 tokens of documents that count upwards from a token of their own, after a separator each."""
    parts = [[SEPARATOR, *(np.arange(40) + start)] for start in draw.choice([5, 300, 40_000], documents)]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two training shards and one for validation, as FineWeb has them but small."""
    draw, folder = np.random.default_rng(7), tmp_path_factory.mktemp("data") / "fineweb10B"
    for name, documents in (("train_000001", 60), ("train_000002", 60), ("val_000000", 30)):
        write_shard(folder / f"fineweb_{name}.bin", stream(documents, draw))
    return folder


def small(**changes) -> type[Gpt2FineWeb]:
    """The workload with a tier 124m that has GPT-2's vocabulary and is small in everything else."""
    config = GptConfig(vocabulary_size=50_304, hidden=16, layers=1, heads=2)
    shape = {"config": config, "length": 32, "validation_tokens": 640, "batch_size": 6, "micro_batch_size": 3}
    rules = {"steps": 12, "evaluate_every": 4, "precision": "fp32"}
    return type("Small", (Gpt2FineWeb,), {"tiers": {"124m": replace(TIERS["124m"], **(shape | rules | changes))}})


# -- what is fixed ---------------------------------------------------------------------------------------------------
@pytest.mark.paper
def test_the_rule_of_the_speed_run_is_kept():
    tier = TIERS["124m"]
    assert tier.target is not None
    assert tier.target.value == 3.28
    assert tier.batch_size * tier.length == 524_288
    assert (tier.length, tier.validation_tokens) == (1_024, 10_485_760)
    assert tier.config == GptConfig(vocabulary_size=50_304, hidden=768, layers=12, heads=6)
    assert tier.batch_size % tier.micro_batch_size == 0
    assert tier.reference["adamw"]["lr"] == 1.8e-3


def test_a_target_belongs_to_the_data_on_which_it_was_set():
    assert Gpt2FineWeb("124m").target == TIERS["124m"].target
    assert Gpt2FineWeb("124m", DataRequest(source="embedded")).target is None
    for tier in TIERS:
        assert Gpt2FineWeb(tier, DataRequest(directory=Path("shards"))).target is None


def test_a_tuned_tier_says_where_it_was_tuned_and_how_far_its_target_spreads():
    tier = TIERS["tiny"]
    assert tier.target is not None
    assert tier.predicted_cv is not None
    assert "docs/gpt2-fineweb-tiny.md" in tier.tuning
    page = (Path(__file__).parents[2] / "docs" / "gpt2-fineweb-tiny.md").read_text(encoding="utf-8")
    assert f"a coefficient of variation of {tier.predicted_cv:.0%}" in page
    assert f"{tier.target.value} nats per byte" in page


@pytest.mark.parametrize("name", TIERS)
def test_every_tier_is_evaluated_densely_enough_to_know_the_crossing_within_two_percent(name):
    tier = TIERS[name]
    assert tier.evaluate_every <= 0.02 * 0.75 * tier.steps


@pytest.mark.parametrize("name", TIERS)
def test_each_parameter_has_one_role_and_there_are_as_many_as_published(name):
    workload = Gpt2FineWeb(name)
    parameters = dict(workload.model(0, META).named_parameters())
    roles = assign_roles(parameters, workload.roles)
    layers = TIERS[name].config.layers
    counts = {role: sum(found is role for found in roles.values()) for role in set(roles.values())}
    assert counts == dict.fromkeys((Role.EMBEDDING, Role.LM_HEAD), 1) | {Role.MLP: 2 * layers} | dict.fromkeys(
        (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O), layers
    )
    assert sum(parameter.numel() for parameter in parameters.values()) == PARAMETERS[name]
    hidden, vocabulary = TIERS[name].config.hidden, TIERS[name].config.vocabulary_size
    assert PARAMETERS[name] == 2 * vocabulary * hidden + 12 * layers * hidden**2


@pytest.mark.paper
def test_the_model_has_124_million_parameters_where_embedding_and_head_count_once():
    one = TIERS["124m"].config.vocabulary_size * TIERS["124m"].config.hidden
    assert round((PARAMETERS["124m"] - one) / 1e6, 1) == 123.6


@pytest.mark.parametrize("name", TIERS)
def test_memory_is_two_states_for_every_parameter_of_every_tier(registry, name):
    workload = open_workload(registry, "gpt2-fineweb", name)
    request = Request(plugins=["adamw"], workload="gpt2-fineweb", reference=False)
    found = estimate(stacks(registry, request, workload)["adamw"], workload, "fp32")
    assert found.parameters == found.trainable_parameters == PARAMETERS[name]
    assert found.weights_bytes == found.gradients_bytes == 4 * PARAMETERS[name]
    assert 0 <= found.states_bytes - 8 * PARAMETERS[name] <= 8 * len(list(workload.model(0, META).parameters()))


# -- seeds, batches, metrics -----------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_weights_and_batches(tiny):
    first, second, other = (tiny.model(seed, CPU) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    batch, again = next(tiny.batches(3, 7, CPU)), next(tiny.batches(3, 7, CPU))
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert torch.equal(batch["targets"], again["targets"])
    assert batch["input_ids"].shape == batch["targets"].shape == (TIERS["tiny"].batch_size, TIERS["tiny"].length)
    assert not torch.equal(batch["input_ids"], next(tiny.batches(4, 7, CPU))["input_ids"])


def test_tiny_has_enough_generated_text_that_no_run_repeats_any(tiny):
    tier = TIERS["tiny"]
    (text,) = tiny.tokens.shards("train")
    assert (len(text) - 1) // tier.length > 1.5 * tier.steps * tier.batch_size
    assert int(text.max()) < tier.config.vocabulary_size
    assert tiny.validation.shape == (tier.validation_tokens // tier.length, tier.length + 1)


def test_validation_is_the_mean_over_all_targets_whatever_the_micro_batch(tiny):
    model = tiny.model(0, CPU).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        found = tiny.evaluate(model, CPU)
        rows = torch.from_numpy(tiny.validation.astype(np.int64))
        logs = model(rows[:, :-1]).double().log_softmax(-1)
        expected = -float(logs.gather(-1, rows[:, 1:, None]).mean())
        other = type("Five", (Gpt2FineWeb,), {"tiers": {"tiny": replace(TIERS["tiny"], micro_batch_size=5)}})("tiny")
        again = other.evaluate(model, CPU)
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_an_untrained_model_guesses_uniformly(tiny):
    with torch.no_grad():
        loss = tiny.evaluate(tiny.model(0, CPU).eval(), CPU)["loss"]
    assert loss == pytest.approx(math.log(256), rel=1e-6)


def test_a_loss_without_bounds_has_an_infinite_perplexity(tiny):
    model = tiny.model(0, CPU).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 1e4, generator=torch.Generator().manual_seed(0))
        assert tiny.evaluate(model, CPU)["perplexity"] == math.inf


def test_weights_choose_the_sequences_that_train(tiny):
    model, batch = tiny.model(0, CPU), next(tiny.batches(0, 0, CPU))
    chosen = torch.zeros(len(batch["targets"]))
    chosen[:4] = 1.0
    few = {key: value[:4] for key, value in batch.items()}
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        weighted, plain = tiny.loss(model, {**batch, "weights": chosen}), tiny.loss(model, few)
    assert float(weighted) == pytest.approx(float(plain), rel=1e-5)


# -- shards in the real format ---------------------------------------------------------------------------------------
def curve(workload, registry, name="adamw"):
    """Train on a workload's data with its reference, and return all evaluations."""
    run = Run(seed=0, steps=workload.tier.steps)
    request = Request(plugins=[name], workload=workload.name, settings=["lr=0.02"], reference=False)
    torch.manual_seed(0)
    parts = assemble(stacks(registry, request, workload)[name], workload, run, workload.model(0, run.device))
    seen = []
    train(parts, workload, Clock(run.device), lambda evaluation: seen.append(evaluation) or False)
    return seen


def test_tokens_of_gpt_2_are_learned_from_shards(shards, registry):
    workload = small()("124m", DataRequest(directory=shards))
    seen = curve(workload, registry)
    losses = [evaluation.metrics["loss"] for evaluation in seen]
    assert [evaluation.step for evaluation in seen] == [0, 4, 8, 12]
    assert losses[0] == pytest.approx(math.log(50_304), rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    again = curve(small()("124m", DataRequest(directory=shards)), registry)
    assert [evaluation.metrics for evaluation in again] == [evaluation.metrics for evaluation in seen]


def test_batches_are_windows_of_the_shards(shards):
    workload = small()("124m", DataRequest(directory=shards))
    files = sorted(shards.glob("fineweb_train_*.bin"))
    text = [np.fromfile(path, dtype="<u2", offset=1024).tolist() for path in files]
    batch = next(workload.batches(0, 0, CPU))
    for inputs, targets in zip(batch["input_ids"].tolist(), batch["targets"].tolist(), strict=True):
        window = [*inputs, targets[-1]]
        assert targets == window[1:]
        assert any(window == tokens[i : i + 33] for tokens in text for i in range(0, len(tokens) - 32, 32))


def test_a_plan_names_local_data_by_its_content_and_not_by_its_place(shards, tmp_path):
    request = Request(plugins=["adamw"], workload="gpt2-fineweb", tier="124m", directory=shards, device="cpu")
    (trial,) = make_plan(Registry(), request).studies[0]
    assert trial.data.source == "local"
    assert "fineweb10B" in trial.data.label
    assert str(shards) not in trial.data.label
    copy = tmp_path / "fineweb10B"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    elsewhere = Gpt2FineWeb("124m", DataRequest(directory=copy))
    assert elsewhere.data().sha256 == trial.data.sha256
    write_shard(copy / "fineweb_train_000003.bin", range(2_000))
    assert Gpt2FineWeb("124m", DataRequest(directory=copy)).data().sha256 != trial.data.sha256
    assert trial.data.sha256 not in {Gpt2FineWeb("124m").data().sha256, Gpt2FineWeb("tiny").data().sha256}


def test_damaged_and_missing_shards_are_found_while_planning(shards, tmp_path):
    copy = tmp_path / "fineweb10B"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[:-2])
    request = Request(plugins=["adamw"], workload="gpt2-fineweb", tier="124m", directory=copy, device="cpu")
    with pytest.raises(BadData, match=r"'fineweb_train_000001\.bin' is truncated: its header says 2460 tokens"):
        make_plan(Registry(), request)
    for path in shards.glob("fineweb_train_*"):
        (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadData, match=r"'fineweb_val_000000\.bin' is truncated"):
        make_plan(Registry(), request)
    (copy / "fineweb_val_000000.bin").unlink()
    with pytest.raises(BadData, match=r"no validation shard fineweb_val_\*\.bin"):
        make_plan(Registry(), request)


def test_tokens_outside_the_tiers_vocabulary_are_refused_while_planning(shards):
    with pytest.raises(BadData, match="has the token id 50256, but the vocabulary ends at 255"):
        Gpt2FineWeb("tiny", DataRequest(directory=shards)).data()


def test_bytes_in_shards_fit_the_tier_tiny(tmp_path):
    draw = np.random.default_rng(1)
    for name in ("train_000001", "val_000000"):
        write_shard(tmp_path / f"fineweb_{name}.bin", draw.integers(1, 256, 2_000))
    workload = Gpt2FineWeb("tiny", DataRequest(directory=tmp_path))
    assert workload.data().source == "local"
    assert next(workload.batches(0, 0, CPU))["input_ids"].shape == (TIERS["tiny"].batch_size, TIERS["tiny"].length)
    assert workload.validation.shape == (31, 65)


def test_nothing_falls_back_silently():
    with pytest.raises(UnknownName, match="data source of gpt2-fineweb"):
        Gpt2FineWeb("tiny", DataRequest(source="openwebtext"))
    with pytest.raises(BadData, match="belong together"):
        Gpt2FineWeb("tiny", DataRequest(source="local"))
    with pytest.raises(UnknownName, match="tier of gpt2-fineweb"):
        Gpt2FineWeb("124M")
    with pytest.raises(BadData, match="no-such-folder"):
        Gpt2FineWeb("124m", DataRequest(directory=Path("no-such-folder"))).data()
    with pytest.raises(BadValue, match=r"tokenizer 'bytes' \(str\) has nothing to do") as caught:
        Gpt2FineWeb("tiny", DataRequest(tokenizer="bytes"))
    assert "--tokenizer" in caught.value.hint


def test_planning_on_the_hub_needs_no_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")

    def unreachable(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    workload = Gpt2FineWeb("124m")
    assert workload.data().source == "fineweb"
    with pytest.raises(BadData, match=r"cannot get fineweb_train_000001\.bin"):
        workload.batches(0, 0, CPU)
    with pytest.raises(BadData, match=r"cannot get fineweb_val_000000\.bin"):
        workload.evaluate(torch.nn.Identity(), CPU)
