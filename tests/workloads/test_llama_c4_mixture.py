"""The workload llama-c4-mixture: its sources, their weights, batches that name the source of a sample, its metrics."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import DataRequest, Registry, Run
from bench.assembly import assemble
from bench.clock import Clock
from bench.errors import BadData, BadValue, UnknownName
from bench.loop import take_step
from bench.roles import Role, assign_roles
from bench.workload import Limits
from bench.workloads import _mixture_corpus
from bench.workloads._llama import LlamaConfig
from bench.workloads._mixture_batches import MixtureBatches
from bench.workloads._mixture_documents import EmbeddedSource, embedded_mixture, local_mixture
from bench.workloads._sequences import Sequences, Truncate
from bench.workloads._tokenizers import ByteTokenizer
from bench.workloads.llama_c4 import TIERS as LLAMA_TIERS
from bench.workloads.llama_c4 import LlamaC4
from bench.workloads.llama_c4_mixture import TIERS, LlamaC4Mixture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return LlamaC4Mixture("tiny")


@pytest.fixture(scope="module")
def documents():
    return {
        source: [_mixture_corpus.document(source, index, "train") for index in range(20)]
        for source in _mixture_corpus.WEIGHTS
    }


# -- the embedded mixture --------------------------------------------------------------------------------------------
def test_recomputed_hash_is_the_pinned_one_and_another_is_refused(monkeypatch):
    pinned = _mixture_corpus.pinned_documents()
    assert _mixture_corpus.mixture_digest(pinned) == _mixture_corpus.MIXTURE_SHA256
    assert {source: len(splits["train"]) for source, splits in pinned.items()} == _mixture_corpus.PINNED_TRAIN_DOCUMENTS
    moved = {**pinned, "sums": {**pinned["sums"], "train": ("".join(pinned["sums"]["train"]),)}}
    assert _mixture_corpus.mixture_digest(moved) != _mixture_corpus.MIXTURE_SHA256
    monkeypatch.setattr(_mixture_corpus, "MIXTURE_SHA256", "f" * 64)
    monkeypatch.setattr(_mixture_corpus, "pinned_documents", _mixture_corpus.pinned_documents.__wrapped__)
    with pytest.raises(BadData, match=r"version 1\) has SHA-256 \w+, expected ffff"):
        _mixture_corpus.pinned_documents()


def test_documents_do_not_depend_on_what_was_generated_before_and_splits_share_none(documents):
    for source, texts in documents.items():
        assert _mixture_corpus.document(source, 7, "train") == texts[7]
        assert len(set(texts)) == len(texts)
        assert _mixture_corpus.document(source, 7, "validation") not in texts
        assert all(text.isascii() and text.strip() == text for text in texts)
        assert source == "prose" or all(600 <= len(text) <= 1_500 for text in texts)
    with pytest.raises(BadData, match="index -1"):
        _mixture_corpus.document("code", -1, "train")


def test_sums_and_ledgers_are_right(documents):
    for line in "\n".join(documents["sums"]).split("\n"):
        a, sign, b, c = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", line).groups()
        assert int(c) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    for text in documents["ledger"]:
        total = 0
        for line in text.split("\n"):
            count, price, product, said = map(
                int, re.fullmatch(r"(\d+) [a-z]+ at (\d+) is (\d+), all (\d+)", line).groups()
            )
            total = (total + product) % 1_000
            assert (product, said) == (count * price, total)


def test_code_uses_a_name_only_after_it_was_defined(documents):
    for text in documents["code"]:
        functions, names = {"id"}, set()
        for line in text.split("\n"):
            if head := re.fullmatch(r"def (\w+)\((.*)\):", line):
                defined, names = head[1], set(head[2].split(", "))
                continue
            left, _, right = line.partition(" = ")
            assert set(re.findall(r"(\w+)\(", line)) <= functions
            assert set(re.findall(r"\((\w+)\)|\+ (\w+)", right or left)) <= {
                pair for name in names for pair in ((name, ""), ("", name))
            }
            if right:
                names.add(left.strip())
            else:
                functions.add(defined)


def test_replies_repeat_what_was_asked_and_glossaries_inflect_one_stem(documents):
    for text in documents["dialogue"]:
        lines = text.split("\n")
        assert len({line.partition(":")[0] for line in lines}) == 2
        replies = [(before, line) for before, line in itertools.pairwise(lines) if line.endswith(".")]
        assert replies
        for before, line in replies:
            assert before.endswith(re.search(r": (.+), \w+\.", line)[1] + "?")
    for line in "\n".join(documents["glossary"]).split("\n"):
        stem, forms = line.split(" - ")
        assert all(form.startswith(stem) for form in forms.split(", "))
        assert len(forms.split(", ")) in {2, 4}


# -- the workload ----------------------------------------------------------------------------------------------------
def test_the_model_is_that_of_llama_c4_and_the_larger_tiers_keep_its_protocol():
    assert list(TIERS) == list(LLAMA_TIERS)
    for name, tier in TIERS.items():
        other = LLAMA_TIERS[name]
        assert tier.config == other.config
        assert tier.reference.keys() == other.reference.keys()
        assert tier.evaluate_every <= 0.02 * 0.75 * tier.steps
        assert name == "tiny" or (tier.steps, tier.batch_size, tier.precision) == (
            other.steps,
            other.batch_size,
            other.precision,
        )
    mixture, plain = LlamaC4Mixture("tiny").model(3, CPU), LlamaC4("tiny").model(3, CPU)
    assert all(torch.equal(a, b) for a, b in zip(mixture.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tiny", "60m", "7b"])
def test_each_parameter_has_one_role_on_the_meta_device(name):
    workload = LlamaC4Mixture(name)
    model = workload.model(0, torch.device("meta"))
    roles = assign_roles((key for key, _ in model.named_parameters()), workload.roles)
    assert sum(role is Role.ATTENTION_V for role in roles.values()) == TIERS[name].config.layers
    example = workload.example(torch.device("meta"))
    assert workload.loss(model, example).device.type == "meta"


def test_a_target_belongs_to_the_data_on_which_it_was_set(tiny):
    assert tiny.target == TIERS["tiny"].target
    assert tiny.target.value < 2.0
    assert LlamaC4Mixture("tiny", DataRequest(directory=Path("shards"))).target is None
    assert all(tier.target is None for name, tier in TIERS.items() if name != "tiny")


def test_batches_say_where_every_sample_comes_from(tiny):
    batch = next(tiny.batches(0, 0, CPU))
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "input_ids": ((32, 128), torch.int64),
        "labels": ((32, 128), torch.int64),
        "source": ((32,), torch.int64),
    }
    pinned = _mixture_corpus.pinned_documents()
    for name, source in ((share.name, place) for place, share in enumerate(tiny.shares)):
        texts = "\1".join(pinned[name]["train"]) + "\1"
        for row in batch["input_ids"][batch["source"] == source]:
            assert bytes(row.tolist()).rstrip(b"\0").decode() in texts


def test_sources_come_with_their_weights():
    drawn = Counter()
    sequences = [Sequences(share.source, ByteTokenizer(), Truncate(4)) for share in embedded_mixture()]
    weights = list(_mixture_corpus.WEIGHTS.values())
    for batch in itertools.islice(MixtureBatches(sequences, weights, batch_size=500, seed=1), 8):
        drawn.update(batch["source"].tolist())
    for place, weight in enumerate(weights):
        expected, spread = 40 * weight, (40 * weight * (1 - weight / 100)) ** 0.5
        assert abs(drawn[place] - expected) < 4 * spread


def test_the_same_seed_gives_the_same_batches_wherever_they_begin(tiny):
    whole = list(itertools.islice(tiny.batches(3, 0, CPU), 8))
    for start in (1, 7):
        for expected, found in zip(whole[start:], tiny.batches(3, start, CPU), strict=False):
            assert all(torch.equal(expected[key], found[key]) for key in expected)
    other = next(tiny.batches(4, 0, CPU))
    assert not torch.equal(other["source"], whole[0]["source"])
    assert not torch.equal(other["input_ids"], whole[0]["input_ids"])


def test_every_source_takes_all_its_sequences_once_before_it_begins_anew(listed):
    letters = [listed(train=tuple(word * 3 for word in words)) for words in ("abcde", "vwxyz")]
    sequences = [Sequences(source, ByteTokenizer(), Truncate(4)) for source in letters]
    stream = MixtureBatches(sequences, [3, 1], batch_size=4, seed=0)
    found = [[], []]
    for batch in itertools.islice(stream, 20):
        for row, source in zip(batch["input_ids"], batch["source"].tolist(), strict=True):
            found[source].append(chr(row[0]))
    for taken, words in zip(found, ("abcde", "vwxyz"), strict=True):
        epochs = ["".join(taken[start : start + 5]) for start in range(0, len(taken) - 4, 5)]
        assert all(sorted(epoch) == list(words) for epoch in epochs)
        assert len(set(epochs)) > 1
    assert len(found[0]) > len(found[1])


@pytest.mark.parametrize("changes", [{"weights": [1, 0]}, {"weights": [1]}, {"batch_size": 0}, {"seed": -1}])
def test_wrong_weights_sizes_and_seeds_are_refused(listed, changes):
    sequences = [Sequences(listed(train=("abc",)), ByteTokenizer(), Truncate(4))] * 2
    arguments = {"weights": [1, 1], "batch_size": 2, "seed": 0} | changes
    with pytest.raises(BadValue):
        MixtureBatches(sequences, arguments.pop("weights"), **arguments)


def test_the_loss_is_the_plain_average_over_sources_of_their_token_weighted_means(tiny):
    model = tiny.model(0, CPU).eval()
    with torch.no_grad():
        metrics = tiny.evaluate(model, CPU)
        means = {}
        for name, batches in tiny.validation.items():
            picked = []
            for batch in batches:
                logits, labels = model(batch["input_ids"])[:, :-1].log_softmax(-1), batch["labels"][:, 1:]
                losses = -logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
                picked.append(losses[labels >= 0].double())
            means[f"loss_{name}"] = float(torch.cat(picked).mean())
    assert {key: metrics[key] for key in means} == pytest.approx(means, rel=1e-6)
    assert metrics["loss"] == pytest.approx(sum(means.values()) / 6, rel=1e-6)
    assert set(metrics) == {"loss", "perplexity", *means}
    tokens = [batches.tokens for batches in tiny.validation.values()]
    assert max(tokens) < 1.2 * min(tokens), "each source weighs alike in time, too"


def test_weights_choose_the_sequences_that_train(tiny):
    model, batch = tiny.model(0, CPU), next(tiny.batches(0, 0, CPU))
    chosen = torch.zeros(32)
    chosen[:4] = 1.0
    with torch.no_grad():
        weighted = tiny.loss(model, {**batch, "weights": chosen})
        plain = tiny.loss(model, {key: value[:4] for key, value in batch.items()})
    assert float(weighted) == pytest.approx(float(plain), rel=1e-5)


# -- identity and sources --------------------------------------------------------------------------------------------
def test_identity_follows_sources_weights_and_cut(tiny):
    assert tiny.data().source == "embedded"
    assert tiny.data() == LlamaC4Mixture("tiny").data()
    assert tiny.data().sha256 != LlamaC4Mixture("60m").data().sha256 != LlamaC4Mixture("130m").data().sha256
    assert "prose 40, dialogue 30" in tiny.data().label


def test_a_larger_source_begins_with_the_pinned_documents():
    few, many = EmbeddedSource("sums", 40), EmbeddedSource("sums", 42)
    assert list(many.documents("train"))[:40] == list(few.documents("train"))
    assert len(list(many.documents("train"))) == 42
    assert few.content != many.content != EmbeddedSource("code", 42).content
    assert [share.source.train_documents for share in embedded_mixture(1_000)] == [400, 300, 120, 80, 60, 40]


@pytest.fixture
def folder(tmp_path, shards):
    for name, letter in (("news", "n"), ("books", "b")):
        shards(tmp_path / name, [letter * 50] * 8, [letter * 40] * 2)
    (tmp_path / "mixture.json").write_text(json.dumps({"news": 3, "books": 1}))
    return tmp_path


def test_local_sources_are_folders_with_weights(folder):
    workload = LlamaC4Mixture("tiny", DataRequest(directory=folder))
    assert [(share.name, share.weight) for share in workload.shares] == [("news", 3), ("books", 1)]
    assert workload.target is None
    assert workload.data().label.startswith("local mixture: news 3, books 1")
    batch = next(workload.batches(0, 0, CPU))
    assert all(
        chr(row[0]) == "nb"[source] for row, source in zip(batch["input_ids"], batch["source"].tolist(), strict=True)
    )
    assert 16 < int((batch["source"] == 0).sum()) < 32
    assert list(workload.validation) == ["news", "books"]


def test_identity_of_local_sources_follows_weights_and_content(folder, shards):
    def sha():
        return LlamaC4Mixture("tiny", DataRequest(directory=folder)).data().sha256

    before = sha()
    assert sha() == before
    (folder / "mixture.json").write_text(json.dumps({"news": 2, "books": 1}))
    assert sha() != before
    (folder / "mixture.json").write_text(json.dumps({"news": 3, "books": 1}))
    shards(folder / "books", ["x" * 50] * 8, ["b" * 40] * 2)
    assert sha() != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read mixture.json"),
        ("{", "is not JSON"),
        ("[1, 2]", "two sources or more"),
        ('{"news": 1}', "two sources or more"),
        ('{"news": 1, "books": 0}', "weight of 'books' is 0 "),
        ('{"news": 1, "books": 0.5}', "weight of 'books' is 0.5 "),
        ('{"news": 1, "books": true}', "weight of 'books' is True "),
        ('{"news": 1, "../books": 1}', "not the name of a folder"),
        ('{"news": 1, "films": 1}', "films"),
    ],
)
def test_a_wrong_local_mixture_is_refused_with_the_reason(folder, text, message):
    if text is None:
        (folder / "mixture.json").unlink()
    else:
        (folder / "mixture.json").write_text(text)
    with pytest.raises(BadData, match=re.escape(message)):
        local_mixture(folder)


def test_nothing_falls_back_silently():
    with pytest.raises(UnknownName, match="data source of llama-c4-mixture"):
        LlamaC4Mixture("tiny", DataRequest(source="c4"))
    with pytest.raises(BadData):
        LlamaC4Mixture("tiny", DataRequest(directory=Path("no-such-folder"))).data()


# -- with a selector -------------------------------------------------------------------------------------------------
SELECTORS = [name for name, entry in Registry().algorithms.items() if entry.track == "data-selection"]


def small_workload():
    """The tier tiny with a model of one layer, so that a step takes milliseconds."""
    config = LlamaConfig(vocabulary_size=256, hidden=16, ffn=24, layers=1, heads=2)
    tiers = {"tiny": replace(TIERS["tiny"], config=config, steps=6)}
    return type("Small", (LlamaC4Mixture,), {"tiers": tiers})("tiny", DataRequest(), Limits())


def parts_of(name, workload):
    registry, tier = Registry(), workload.tier
    algorithms = [registry.algorithm(name), *(registry.algorithm(key, **tier.reference[key]) for key in tier.reference)]
    return assemble(algorithms, workload, Run(seed=0, steps=tier.steps), workload.model(0, CPU))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_trains_on_half_of_every_batch_in_the_loop_and_repeats_bit_for_bit(name):
    assert SELECTORS
    workload, ends = small_workload(), []
    for _ in range(2):
        parts, seen = parts_of(name, workload), []
        select = parts.select

        def watched(batch, model, select=select, seen=seen):
            seen.append((batch, select(batch, model)))
            return seen[-1][1]

        object.__setattr__(parts, "select", watched)
        clock, stream = Clock(CPU), workload.batches(0, 0, CPU)
        clock.resume("data")
        for step in range(3):
            take_step(parts, workload, clock, stream, step)
        clock.pause()
        assert [len(after["source"]) for _, after in seen] == [16, 16, 16]
        for before, after in seen:
            for rare in (4, 5):
                assert (after["source"] == rare).sum() == (before["source"] == rare).sum()
        ends.append([parameter.detach().clone() for parameter in parts.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selectors_state_is_part_of_every_checkpoint(name):
    workload = small_workload()
    parts = parts_of(name, workload)
    parts.select(next(workload.batches(0, 0, CPU)), parts.model)
    assert parts.stateful()["select"].state_dict()["step"] == 1
