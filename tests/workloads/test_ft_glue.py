"""The workload ft-glue on a tiny random RoBERTa and files in GLUE's formats, through the code that reads the real ones.

Texts are made of a few words, and the label says which, so that a model with two layers learns it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bench
from bench import DataRequest
from bench.assembly import assemble
from bench.context import Run
from bench.errors import BadData, BadValue, UnknownName
from bench.memory import estimate
from bench.request import Request, stacks
from bench.roles import HIDDEN_MATRICES, Role, assign_roles
from bench.workloads._glue_data import TASKS
from bench.workloads._roberta import LENGTH, Checkpoint
from bench.workloads.ft_glue import TIERS, FtGlue

CPU, META = torch.device("cpu"), torch.device("meta")
WORDS = ["cat", "dog", "sat", "mat", "ran", "red", "blue", "old", "good", "bad"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


# -- what is read ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="the package transformers (extra hf) is not installed")


@pytest.fixture(scope="session")
def made(transformers, tmp_path_factory):
    """A folder as ``save_pretrained`` makes it: two layers of width 32, and a byte-level BPE of a few words."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("roberta") / "mine"
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 10, trainer)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"], SPECIAL, strict=True))
    names |= {"cls_token": SPECIAL[0], "sep_token": SPECIAL[2]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **names).save_pretrained(folder)
    config = transformers.RobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model_dir(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "model")


def split(task, count, seed):
    """Return the columns of a split: texts of two to six words, of one half of the words or the other."""
    draws = (np.random.PCG64(seed).random_raw(16 * count).reshape(count, 2, 8) >> np.uint64(32)).astype(int)
    kinds = (draws[:, 0, 7] % 2).tolist()
    texts = {}
    for place, name in enumerate(task.texts):
        rows = zip(draws[:, place].tolist(), kinds, strict=True)
        texts[name] = [" ".join(WORDS[5 * kind + draw % 5] for draw in row[: 2 + row[6] % 5]) for row, kind in rows]
    return texts, kinds if task.classes else [1.0 + 3.0 * kind for kind in kinds]


def parquet(root, name, train=64, validation=24):
    """Write a task as the hub has it."""
    task = TASKS[name]
    (root / name).mkdir(parents=True)
    for seed, part in enumerate(task.sizes):
        texts, labels = split(task, train if part == "train" else validation, seed)
        kind = pa.int64() if task.classes else pa.float32()
        columns = {**texts, "label": pa.array(labels, kind), "idx": list(range(len(labels)))}
        pq.write_table(pa.table(columns), root / name / f"{part}-00000-of-00001.parquet")
    return root


def mrpc_tsv(root, train=64, validation=24):
    """Write MRPC as GLUE has it: the same rows."""
    (root / "MRPC").mkdir(parents=True)
    for seed, (part, count) in enumerate({"train": train, "dev": validation}.items()):
        texts, labels = split(TASKS["mrpc"], count, seed)
        rows = zip(labels, *texts.values(), strict=True)
        lines = [f"{label}\t1\t2\t{first}\t{second}" for label, first, second in rows]
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (root / "MRPC" / f"{part}.tsv").write_text("\n".join([header, *lines, ""]))
    return root


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with four tasks, one for each kind of metric and of validation."""
    root = tmp_path_factory.mktemp("glue") / "rows"
    for name in ("mrpc", "cola", "stsb", "mnli"):
        parquet(root, name)
    return root


@pytest.fixture
def opened(made, data_dir):
    def open_tier(name="mrpc", directory=data_dir, models=(made,)):
        return FtGlue(name, DataRequest(directory=directory, models=tuple(models)))

    return open_tier


@pytest.fixture
def short(monkeypatch):
    """Every tier with a budget of 24 steps of 16 examples, a larger learning rate and few evaluations."""
    reference = {"full-finetuning": {"lr": 1e-2, "head_lr": 1e-2}, "warmup-linear": {"warmup_fraction": 0.06}}
    changes = {"steps": 24, "evaluate_every": 12, "batch_size": 16, "micro_batch_size": 16, "reference": reference}
    monkeypatch.setattr(FtGlue, "tiers", {name: replace(tier, **changes) for name, tier in TIERS.items()})


# -- facts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_the_budget_is_epochs_of_the_published_rows_evaluated_densely(tier):
    small = {"mrpc", "cola", "rte", "stsb"}
    assert tier.epochs == (30 if tier.task.name in small else 10)
    seen = tier.steps * tier.batch_size - tier.epochs * tier.task.sizes["train"]
    assert 0 <= seen < tier.batch_size == 32
    assert tier.evaluate_every <= 0.02 * 0.75 * tier.steps
    assert tier.target is None, "targets come from runs of our own"


def test_the_reference_is_built_from_listed_plugins(registry):
    for name, tier in FtGlue.tiers.items():
        built = [registry.algorithm(plugin, **values) for plugin, values in tier.reference.items()]
        assert [algorithm.name for algorithm in built] == ["full-finetuning", "warmup-linear"]
        workload = registry.workload_class("ft-glue")(name)
        assert workload.offers == {"single-micro-batch", "pretrained"}
    assert next(iter(FtGlue.tiers)) == "mrpc"


def test_roberta_base_has_its_published_sizes_without_any_file(transformers):
    workload = FtGlue("mrpc")
    parameters = dict(workload.model(0, META).named_parameters())
    roles = assign_roles(parameters, workload.roles)
    hidden = [name for name, role in roles.items() if role in HIDDEN_MATRICES]
    head = [name for name, role in roles.items() if role is Role.CLASSIFIER]
    assert sum(p.numel() for p in parameters.values()) == 124_647_170
    assert (len(hidden), sum(parameters[name].numel() for name in hidden)) == (72, 84_934_656)
    assert sum(parameters[name].numel() for name in head) == 768 * 768 + 768 + 2 * 768 + 2
    for kind in (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O):
        assert sum(role is kind for role in roles.values()) == 12
    assert all(parameters[name].ndim == 2 for name in hidden)
    assert FtGlue("mnli").model(0, META).classifier.out_proj.out_features == 3
    assert FtGlue("stsb").model(0, META).classifier.out_proj.out_features == 1


def test_memory_is_counted_without_storage(transformers, registry):
    workload = FtGlue("stsb")
    (stack,) = stacks(registry, Request(plugins=["full-finetuning"], workload="ft-glue"), workload).values()
    found = estimate(stack, workload, "fp32")
    assert found.weights_bytes == found.gradients_bytes == 4 * (124_647_170 - 769)
    assert found.trainable_parameters == found.parameters
    assert found.states_bytes == pytest.approx(2 * found.weights_bytes, rel=1e-4)


# -- model and tokens --------------------------------------------------------------------------------------------------
def test_the_body_is_the_checkpoint_and_the_seed_draws_the_head(opened, made):
    from safetensors.torch import load_file

    stored = load_file(made / "model.safetensors")
    model, again, other = (opened().model(seed, CPU).state_dict() for seed in (3, 3, 4))
    body = [name for name in model if name.startswith("roberta.")]
    assert len(body) == 37
    assert all(torch.equal(model[name], stored[name]) for name in body)
    assert all(torch.equal(model[name], again[name]) for name in model)
    assert not torch.equal(model["classifier.dense.weight"], other["classifier.dense.weight"])
    assert float(model["classifier.dense.weight"].std()) == pytest.approx(0.2, rel=0.1)
    assert not model["classifier.dense.bias"].any()
    assert not model["classifier.out_proj.bias"].any()


def test_outputs_are_those_of_the_library_on_the_same_batch(opened, transformers, made):
    workload = opened("mnli")
    model = workload.model(0, CPU).eval()
    theirs = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig.from_pretrained(made, num_labels=3)
    ).eval()
    theirs.load_state_dict(model.state_dict())
    rows = workload.glue.splits["validation_matched"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    encoded = tokenizer(*(list(column[:6]) for column in rows.texts), padding=True, return_tensors="pt")
    batch = workload.encoded["validation_matched"].batch(range(6))
    assert torch.equal(batch["inputs"], encoded["input_ids"])
    assert (batch["inputs"] == 1).any(), "some are padded"
    with torch.no_grad():
        torch.testing.assert_close(model(batch["inputs"]), theirs(**encoded).logits, rtol=1e-5, atol=1e-7)


def test_padding_changes_nothing(opened):
    workload = opened()
    model, encoded = workload.model(0, CPU).eval(), workload.encoded["validation"]
    together = encoded.batch(range(8))["inputs"]
    with torch.no_grad():
        alone = torch.cat([model(encoded.batch([row])["inputs"]) for row in range(8)])
        torch.testing.assert_close(model(together), alone, rtol=1e-5, atol=1e-7)


def test_long_texts_are_cut_to_128_tokens_and_pairs_are_joined_as_roberta_does(made):
    checkpoint = Checkpoint(made)
    single, long = checkpoint.encode([["cat dog", "mat " * 300]])
    assert (single[0], single[-1], len(long), long[-1]) == (0, 2, 128, 2)
    (pair,) = checkpoint.encode([["cat"], ["dog " * 300]])
    assert len(pair) == 128
    ends = np.flatnonzero(pair == 2)
    assert (ends[1], ends[2]) == (ends[0] + 1, 127), "<s> one </s></s> two </s>, and the longer one lost its end"


def test_dropout_is_on_while_training_and_off_in_an_evaluation(opened, micro, short, registry):
    workload = opened()
    model = workload.model(0, CPU)
    inputs = workload.encoded["train"].batch(range(4))["inputs"]
    with torch.no_grad():
        assert model.training
        assert not torch.equal(model(inputs), model(inputs))
        model.eval()
        assert torch.equal(model(inputs), model(inputs))
    (stack,) = stacks(registry, Request(plugins=["full-finetuning"], workload="ft-glue"), workload).values()
    parts = assemble(stack, workload, Run(seed=0, steps=24), workload.model(0, CPU))
    first = micro.train(parts, workload, stop_at=0)
    assert parts.model.training, "an evaluation gives the dropout back"
    assert [e.metrics for e in micro.train(parts, workload, stop_at=0)] == [e.metrics for e in first]


# -- loss and metrics --------------------------------------------------------------------------------------------------
def test_the_loss_of_classes_is_cross_entropy_and_of_scores_the_squared_error(opened):
    for name in ("mrpc", "stsb"):
        workload = opened(name)
        model, batch = workload.model(0, CPU).eval(), next(workload.batches(0, 0, CPU))
        with torch.no_grad():
            outputs, loss = model(batch["inputs"]), float(workload.loss(model, batch))
        if name == "mrpc":
            expected = -outputs.log_softmax(-1)[torch.arange(32), batch["labels"]].mean()
        else:
            assert batch["labels"].dtype == torch.float32
            expected = ((outputs[:, 0] - batch["labels"]) ** 2).mean()
        assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["mrpc", "stsb"])
def test_weights_choose_the_examples_that_train(opened, name):
    workload = opened(name)
    model, batch = workload.model(0, CPU).eval(), next(workload.batches(0, 0, CPU))
    chosen = torch.zeros(32)
    chosen[:5] = 1.0
    few = {key: value[:5] for key, value in batch.items()}
    weighted, plain = workload.loss(model, {**batch, "weights": chosen}), workload.loss(model, few)
    assert float(weighted.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert workload.loss(model, workload.example(CPU)).ndim == 0


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("mrpc", {"score", "accuracy", "f1", "loss"}),
        ("cola", {"score", "matthews", "accuracy", "loss"}),
        ("stsb", {"score", "pearson", "spearman", "loss"}),
        ("mnli", {"score", "accuracy", "loss", "accuracy_mismatched", "loss_mismatched"}),
    ],
)
def test_an_evaluation_is_what_one_gets_example_by_example(opened, name, metrics):
    import scipy.stats
    import sklearn.metrics

    workload = opened(name)
    model = workload.model(0, CPU).eval()
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(100)  # so that not all answers are the same
        found = workload.evaluate(model, CPU)
        said = {}
        for part in workload.task.validation:
            encoded = workload.encoded[part]
            outputs = [model(encoded.batch([row])["inputs"])[0] for row in range(len(encoded.labels))]
            said[part] = torch.stack(outputs).double().numpy(), encoded.labels
    assert set(found) == metrics
    outputs, labels = said[workload.task.validation[0]]
    if name == "stsb":
        assert (
            found["pearson"]
            == found["score"]
            == pytest.approx(scipy.stats.pearsonr(outputs[:, 0], labels)[0], rel=1e-4)
        )
        assert found["loss"] == pytest.approx(np.mean((outputs[:, 0] - labels) ** 2), rel=1e-4)
        return
    answers = outputs.argmax(1)
    assert found["accuracy"] == pytest.approx(np.mean(answers == labels))
    assert found["score"] == found[TASKS[name].metrics[0]]
    if name == "cola":
        assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, answers))
    if name == "mnli":
        outputs, labels = said["validation_mismatched"]
        assert found["accuracy_mismatched"] == pytest.approx(np.mean(outputs.argmax(1) == labels))


# -- identity ----------------------------------------------------------------------------------------------------------
def test_both_layouts_of_the_same_rows_are_the_same_data(opened, tmp_path):
    tsv, hub = opened(directory=mrpc_tsv(tmp_path / "tsv")), opened()
    assert tsv.data().sha256 == hub.data().sha256
    assert tsv.data().source == "local"
    first, second = next(tsv.batches(3, 7, CPU)), next(hub.batches(3, 7, CPU))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_identity_follows_rows_task_tokenizer_and_weights_and_not_the_place(
    opened, made, model_dir, data_dir, tmp_path
):
    first = opened().data()
    moved = opened(directory=shutil.copytree(data_dir, tmp_path / "rows"), models=[model_dir])
    assert moved.data().sha256 == first.sha256
    assert str(tmp_path) not in moved.data().label
    assert all(
        word in first.label for word in ("GLUE mrpc", "'rows'", "64 train, 24 validation", "'mine'", "128 tokens")
    )
    seen = {first.sha256, opened("cola").data().sha256}
    (model_dir / "tokenizer_config.json").write_text((model_dir / "tokenizer_config.json").read_text() + "\n")
    seen.add(opened(models=[model_dir]).data().sha256)
    seen.add(opened(directory=parquet(tmp_path / "more", "mrpc", train=65)).data().sha256)
    assert len(seen) == 4
    weights = (made / "model.safetensors").read_bytes()
    assert opened().base_sha256(0) == sha256(weights).hexdigest()
    (model_dir / "model.safetensors").write_bytes(weights + b"\0")
    assert opened(models=[model_dir]).data().sha256 not in seen


# -- what is refused ---------------------------------------------------------------------------------------------------
def test_nothing_falls_back_silently(opened, made, tmp_path):
    with pytest.raises(UnknownName, match="tier of ft-glue"):
        FtGlue("wnli")
    with pytest.raises(UnknownName, match="data source of ft-glue"):
        FtGlue("mrpc", DataRequest(source="superglue"))
    with pytest.raises(BadData, match="belong together"):
        FtGlue("mrpc", DataRequest(source="local"))
    with pytest.raises(BadValue, match="tokenizer is 'bytes'") as caught:
        FtGlue("mrpc", DataRequest(tokenizer="bytes"))
    assert "--model-dir" in caught.value.hint
    with pytest.raises(BadData, match="given 2 times; ft-glue takes at most 1"):
        opened(models=[made, made])
    with pytest.raises(BadData, match="has no files of GLUE's task 'mrpc'") as caught:
        opened(directory=tmp_path).data()
    assert all(name in caught.value.hint for name in ("MRPC/train.tsv", "mrpc/validation-*.parquet"))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", r"'.*model' has no config\.json"),
        ("model.safetensors", r"has no model\.safetensors"),
        ("tokenizer.json", r"has no tokenizer: neither tokenizer\.json nor vocab\.json"),
    ],
)
def test_a_missing_file_of_the_model_is_named(opened, model_dir, missing, words):
    (model_dir / missing).unlink()
    with pytest.raises(BadData, match=words) as caught:
        opened(models=[model_dir]).data()
    assert "--model-dir DIR" in caught.value.hint
    with pytest.raises(BadData, match="does not exist or is not a folder"):
        opened(models=[model_dir / "none"]).data()


def test_a_tokenizer_of_vocabulary_and_merges_is_read_as_well(opened, model_dir):
    facts = json.loads((model_dir / "tokenizer.json").read_text())["model"]
    (model_dir / "vocab.json").write_text(json.dumps(facts["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in facts["merges"]]
    (model_dir / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model_dir / name).unlink()
    texts = [["cat sat", "old dog"], ["red mat", "good"]]
    expected = opened().checkpoint.encode(texts)
    found = Checkpoint(model_dir).encode(texts)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, "holds a model of type 'bert', and this workload is about RoBERTa"),
        ({"max_position_embeddings": 64}, "has positions for 62 tokens, and examples have 128"),
        ({"vocab_size": 200}, "does not fit its model: 288 tokens and pad 1, the model has 200 and 1"),
        ({"pad_token_id": 0}, "does not fit its model"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_anything_runs(opened, model_dir, changes, words):
    rewrite(model_dir, **changes)
    with pytest.raises(BadData, match=words):
        opened(models=[model_dir]).data()


def test_damaged_files_of_the_model_are_refused(opened, model_dir, made):
    (model_dir / "config.json").write_text("{")
    with pytest.raises(BadData, match=r"config\.json of model folder 'model' cannot be read"):
        opened(models=[model_dir]).data()
    shutil.copy(made / "config.json", model_dir)
    (model_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(BadData, match="the tokenizer of model folder 'model' cannot be read"):
        opened(models=[model_dir]).data()
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadData, match=r"model\.safetensors of model folder 'model' cannot be loaded"):
        opened(models=[model_dir]).model(0, CPU)


def test_weights_of_another_shape_or_with_gaps_are_refused(opened, model_dir):
    from safetensors.torch import load_file, save_file

    rewrite(model_dir, num_hidden_layers=3)
    with pytest.raises(BadData, match=r"lacks 16 tensors of .*roberta\.encoder\.layer\.2"):
        opened(models=[model_dir]).model(0, CPU)
    rewrite(model_dir, num_hidden_layers=2, intermediate_size=48)
    with pytest.raises(BadData, match=r"lacks 6 tensors of .*layer\.0\.intermediate\.dense\.bias"):
        opened(models=[model_dir]).model(0, CPU)
    rewrite(model_dir, intermediate_size=64)
    state = load_file(model_dir / "model.safetensors")
    del state["roberta.embeddings.word_embeddings.weight"]
    save_file(state, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadData, match="lacks 1 tensors of the shapes"):
        opened(models=[model_dir]).model(0, CPU)


def test_a_model_that_was_fine_tuned_before_is_refused(opened, transformers, model_dir):
    config = transformers.RobertaConfig.from_pretrained(model_dir, num_labels=3)
    transformers.RobertaForSequenceClassification(config).save_pretrained(model_dir)
    for name in ("mnli", "mrpc"):
        with pytest.raises(BadData, match="holds a trained head, so it was fine-tuned before"):
            opened(name, models=[model_dir]).model(0, CPU)


def test_a_missing_package_is_one_error_that_names_the_extra(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadData, match="RoBERTa needs the package 'transformers'") as caught:
        opened().data()
    assert "bench-training[hf]" in caught.value.hint
    with pytest.raises(BadData, match="needs the package 'transformers'"):
        FtGlue("mrpc").data()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's clients as they are with HF_HUB_OFFLINE=1 and an empty cache."""
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra hf) is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("given", ["nothing", "model"])
def test_without_the_hub_one_message_names_both_options_and_nothing_runs(offline, made, tmp_path, capsys, given):
    from bench.cli import main

    words = ["run", "--plugin", "full-finetuning", "--workload", "ft-glue", "--results", str(tmp_path / "out")]
    code = main([*words, *(["--model-dir", str(made)] if given == "model" else [])])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert said.startswith("Error: cannot get " + ("'nyu-mll/glue'" if given == "model" else "FacebookAI/roberta-base"))
    assert said.count("Error: ") == 2, "ours, and the client's within it"
    assert "--model-dir DIR" in said
    assert "--data-dir DIR" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_what_the_hub_gives_is_read_as_a_folder_and_must_be_roberta_base(made, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, name, *, revision):
        asked.append((repository, revision))
        return str(made / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    checkpoint = Checkpoint()
    assert (checkpoint.folder, checkpoint.content) == (made, Checkpoint(made).content)
    assert set(asked) == {("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b")}
    assert checkpoint.encode([["cat"]])[0].tolist() == Checkpoint(made).encode([["cat"]])[0].tolist()
    with pytest.raises(BadData, match=r"of FacebookAI/roberta-base at e2da8e2f811d lacks 197 tensors"):
        checkpoint.classifier(2, 0, CPU)


# -- runs --------------------------------------------------------------------------------------------------------------
def trained(micro, registry, workload, plugin="full-finetuning", **values):
    """Train in this process; what ``plugin`` leaves empty is filled by the tier's reference."""
    request = Request(plugins=[plugin], workload="ft-glue", reference=False)
    (stack,) = stacks(registry, request, workload).values()
    stack = [registry.algorithm(plugin, **values) if values else stack[0], *stack[1:]]
    torch.manual_seed(0)
    parts = assemble(stack, workload, Run(seed=0, steps=workload.tier.steps), workload.model(0, CPU))
    return micro.train(parts, workload), parts


@pytest.mark.parametrize("name", ["mrpc", "stsb"])
def test_a_task_is_learned_twice_the_same(opened, short, micro, registry, name):
    seen, parts = trained(micro, registry, opened(name))
    again, others = trained(micro, registry, opened(name))
    assert [e.step for e in seen] == [0, 12, 24]
    assert seen[-1].train_loss < 0.8 * seen[1].train_loss
    assert seen[-1].metrics["loss"] < 0.5 * seen[0].metrics["loss"]
    assert seen[-1].metrics["score"] > 0.8 > seen[0].metrics["score"]
    assert [e.metrics for e in again] == [e.metrics for e in seen]
    assert micro.equal(micro.weights(parts), micro.weights(others))


@pytest.mark.parametrize("plugin", ["linear-probe", "lora"])
def test_a_plugin_that_freezes_trains_the_whole_head_and_nothing_of_the_body(opened, short, micro, registry, plugin):
    workload = opened()
    seen, parts = trained(micro, registry, workload, plugin)
    trainable = {name for name, parameter in parts.model.named_parameters() if parameter.requires_grad}
    head = {f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")}
    adapters = {name for name in parts.model.state_dict() if parts.run.roles.get(name) is Role.ADAPTER}
    assert trainable == head | adapters
    assert bool(adapters) == (plugin == "lora")
    assert seen[-1].train_loss < seen[1].train_loss


def test_full_fine_tuning_moves_everything_that_a_text_reaches(opened, short, micro, registry):
    workload = opened()
    _, parts = trained(micro, registry, workload)
    before = workload.model(0, CPU).state_dict()
    assert all(parameter.requires_grad for parameter in parts.model.parameters())
    still = [name for name, value in parts.model.state_dict().items() if torch.equal(value, before[name])]
    # a constant of all keys of a head cancels in the softmax: its gradient is rounding
    assert [name for name in still if not name.endswith("key.bias")] == []


CODE = """
from dataclasses import replace
from bench.workloads.ft_glue import TIERS, FtGlue

class Short(FtGlue):
    name = "glue-short"
    tiers = {"mrpc": replace(TIERS["mrpc"], steps=6, evaluate_every=3, batch_size=8, micro_batch_size=8)}
"""
LIGHT = """
from bench import WorkloadEntry, hookimpl

@hookimpl
def bench_workloads():
    return [WorkloadEntry(name="glue-short", target="bench_glue_short.code:Short", tiers=("mrpc",), summary="short")]
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An installed package that offers the workload with a budget of six steps."""
    folder = tmp_path / "site"
    facts = folder / "bench_glue_short-1.0.dist-info"
    (folder / "bench_glue_short").mkdir(parents=True)
    facts.mkdir()
    (folder / "bench_glue_short" / "__init__.py").write_text(LIGHT)
    (folder / "bench_glue_short" / "code.py").write_text(CODE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-glue-short\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[bench]\nglue_short = bench_glue_short\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))  # of the trial's process
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_files_of_one_s_own_end_in_a_record_that_names_no_place(site, made, tmp_path, capfd):
    """The command line, a trial in a process of its own, GLUE's own files, a folder of ``save_pretrained``."""
    from bench.cli import main

    data, out = mrpc_tsv(tmp_path / "tsv"), tmp_path / "out"
    words = ["run", "--plugin", "full-finetuning", "--workload", "glue-short", "--tier", "mrpc", "--no-reference"]
    folders = ["--data-dir", data, "--model-dir", made, "--results", out]
    assert main([*words, *map(str, folders)]) == 0, capfd.readouterr()
    results = bench.load(out)
    (row,) = results.trials.to_dict("records")
    assert (row["outcome"], row["steps"], row["metric"], row["metric_direction"]) == ("completed", 6, "score", "max")
    assert row["data_source"] == "local"
    assert all(part in row["data_label"] for part in ("GLUE mrpc", "'tsv'", "64 train, 24 validation", "'mine'"))
    assert str(tmp_path) not in row["data_label"]
    assert row["base_sha256"] == sha256((made / "model.safetensors").read_bytes()).hexdigest()
    assert math.isnan(row["target"])
    model = FtGlue("mrpc", DataRequest(directory=data, models=(made,))).model(0, CPU)
    assert row["trainable_parameters"] == row["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"accuracy", "f1", "loss"} <= set(dict(row["metrics"]))
    assert results.curves.sort_values("step")["step"].tolist() == [0, 3, 6]
