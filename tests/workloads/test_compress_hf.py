"""compress-llama on a checkpoint in Hugging Face's layout: a tiny random one, made here, through the real code path."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import DataRequest, Registry, Run
from bench.clock import Clock
from bench.errors import BadData
from bench.post import Post
from bench.roles import HIDDEN_MATRICES, assign_roles
from bench.workloads._compress_hf import CausalLM, Checkpoint, CheckpointBase
from bench.workloads._documents import LocalShards
from bench.workloads.compress_llama import CompressLlama

CPU = torch.device("cpu")
CONTEXT = 32
SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 256,
}


def write_checkpoint(folder, **changes):
    """Save a random LLaMA and a tokenizer whose ids are bytes and an end of sequence."""
    transformers = pytest.importorskip("transformers", reason="the tier hf needs the package transformers")
    tokenizers = pytest.importorskip("tokenizers", reason="the tier hf needs the package tokenizers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a fresh model says nothing: its logits hardly differ
    model.save_pretrained(folder)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"</s>": 256}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = {"eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def text(tmp_path_factory, shards):
    train = [f"document {number} of the training split. " * 6 for number in range(60)]
    validation = [f"document {number} of the validation split. " * 6 for number in range(12)]
    return shards(tmp_path_factory.mktemp("text"), train, validation)


@pytest.fixture
def workload(made, text):
    return CompressLlama("hf", DataRequest(models=(made[0],), directory=text))


def test_the_model_gives_the_checkpoint_s_logits_in_the_tier_s_dtype(made, workload):
    tokens = torch.arange(2 * CONTEXT).view(2, -1)
    with torch.no_grad():
        expected = made[1](input_ids=tokens, use_cache=False).logits
        exact = Checkpoint(made[0]).model(CPU)(tokens)
        rounded = workload.model(0, CPU)
    assert torch.equal(exact, expected)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    assert not rounded.training


def test_each_parameter_has_one_role_and_grouped_queries_have_their_shapes(workload):
    model = workload.model(0, torch.device("meta"))
    roles = assign_roles((name for name, _ in model.named_parameters()), workload.roles)
    assert sum(role in HIDDEN_MATRICES for role in roles.values()) == 14
    assert workload.layout.linears["lm.model.layers.1.self_attn.k_proj"] == (16, 32)
    assert set(roles) == {name for name, _ in workload.model(0, CPU).named_parameters()}


def test_windows_are_the_packed_documents_in_the_checkpoint_s_tokens(made, text):
    checkpoint = Checkpoint(made[0])
    documents = ["ab c", "d" * 70]
    windows = list(checkpoint.windows(documents))
    decoded = checkpoint.tokenizer.decode(torch.cat(windows).tolist())
    assert decoded == ("ab c</s>" + "d" * 70)[: 2 * CONTEXT + 3]
    assert [tuple(window.shape) for window in windows] == [(CONTEXT,)] * 2
    base = CheckpointBase(checkpoint=checkpoint, source=LocalShards(text), calibration_windows=4)
    first, second = base.calibration(0), base.calibration(1)
    stream = list(checkpoint.windows(LocalShards(text).documents("train")))
    assert torch.equal(torch.cat([first, second]), torch.stack(stream[:8]))
    assert "validation" in checkpoint.tokenizer.decode(base.validation[1].tolist())


def test_calibration_beyond_the_end_of_the_text_is_one_clear_error(workload):
    assert sum(len(batch["tokens"]) for batch in workload.calibration(0, CPU)) == 128
    with pytest.raises(BadData, match="fewer than the 1280 windows of 32 tokens"):
        workload.calibration(9, CPU)


def test_perplexity_is_that_of_transformers_own_loss(made, text):
    base = CheckpointBase(checkpoint=Checkpoint(made[0]), source=LocalShards(text))
    workload = CompressLlama("hf", DataRequest(models=(made[0],), directory=text))
    with torch.no_grad():
        losses = [
            float(made[1](input_ids=row[None], labels=row[None], use_cache=False).loss) for row in base.validation
        ]
    found = workload.log_perplexity(base.model(0, CPU), base.validation, CPU)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("tier", "plugins"),
    [("hf", ["svd"]), ("hf-2-4", ["magnitude-pruning"]), ("hf-compensation", ["svd-compensation", "sparsegpt"])],
)
def test_a_trial_runs_end_to_end_and_its_model_is_saved_and_loaded(made, text, tmp_path, tier, plugins):
    workload = CompressLlama(tier, DataRequest(models=(made[0],), directory=text))
    registry, seen = Registry(), []
    post = Post([registry.algorithm(name) for name in plugins], workload, Run(seed=0, steps=4), Clock(CPU))
    post.work(lambda evaluation: bool(seen.append(evaluation.metrics)))
    assert len(seen) == len(workload.points)
    for point, metrics in zip(workload.points, seen, strict=True):
        asked = point.kept_ratio or 0.5
        assert metrics["kept_ratio"] > 0.8 * asked
        assert metrics["kept_ratio"] <= asked or point.rank
        assert math.isfinite(metrics["log_perplexity_increase"])
        assert "shifted_perplexity" not in metrics
    torch.save(post.model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    again = workload.examine(loaded, workload.points[-1], seen[:-1], CPU, 0)
    assert again == {name: seen[-1][name] for name in again}


def test_a_tied_head_becomes_a_matrix_of_its_own(tmp_path):
    folder, model = write_checkpoint(tmp_path, tie_word_embeddings=True)
    checkpoint = Checkpoint(folder)
    loaded, shapes = checkpoint.model(CPU), checkpoint.model(torch.device("meta"))
    assert loaded.lm.lm_head.weight is not loaded.lm.model.embed_tokens.weight
    assert torch.equal(loaded.lm.lm_head.weight, model.model.embed_tokens.weight)
    names = [name for name, _ in loaded.named_parameters()]
    assert names == [name for name, _ in shapes.named_parameters()]
    assert "lm.lm_head.weight" in names


def test_identity_follows_text_tokenizer_and_weights(made, text, tmp_path, shards):
    request = DataRequest(models=(made[0],), directory=text)
    first = CompressLlama("hf", request)
    other_text = shards(tmp_path / "other", ["other " * 20], ["other " * 20])
    second = CompressLlama("hf", DataRequest(models=(made[0],), directory=other_text))
    assert first.data().sha256 != second.data().sha256
    assert first.base_sha256(0) == second.base_sha256(1)
    folder, _ = write_checkpoint(tmp_path / "model", hidden_size=16)
    third = CompressLlama("hf", DataRequest(models=(folder,), directory=text))
    assert third.base_sha256(0) != first.base_sha256(0)
    assert third.data().sha256 == first.data().sha256
    assert str(tmp_path) not in third.data().label


# -- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("missing", ["config.json", "*.safetensors"])
def test_a_folder_without_a_needed_file_is_one_clear_error(tmp_path, missing):
    present = {"config.json": "model.safetensors", "*.safetensors": "config.json"}[missing]
    (tmp_path / present).write_text("{}")
    with pytest.raises(BadData, match="has no") as found:
        Checkpoint(tmp_path)
    assert missing in found.value.message
    assert "--model-dir" in found.value.hint


def test_a_folder_that_does_not_exist_is_one_clear_error():
    with pytest.raises(BadData, match="has no config"):
        CompressLlama("hf", DataRequest(models=(Path("nowhere"),))).data()


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
def test_a_llama_with_biases_is_refused(tmp_path, changes):
    folder, _ = write_checkpoint(tmp_path, **changes)
    with pytest.raises(BadData, match="with biases or not LLaMA"):
        Checkpoint(folder).model(CPU)


def test_another_architecture_and_damaged_weights_are_refused(tmp_path, made):
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 40)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    pytest.importorskip("transformers")
    with pytest.raises(BadData, match="type 'gpt2'"):
        _ = Checkpoint(tmp_path).config
    (tmp_path / "config.json").write_text((made[0] / "config.json").read_text())
    with pytest.raises(BadData, match="cannot load AutoModelForCausalLM") as found:
        Checkpoint(tmp_path).model(CPU)
    assert found.value.hint


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, made):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    with pytest.raises(BadData, match=r"AutoTokenizer|end-of-sequence"):
        _ = Checkpoint(tmp_path).tokenizer


def test_a_missing_package_is_one_clear_error_that_says_how_to_get_it(monkeypatch, made):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadData, match="needs the package 'transformers'") as found:
        _ = Checkpoint(made[0]).config
    assert "pip install" in found.value.hint


def test_any_language_model_of_transformers_is_called_with_tokens_alone():
    class Reply(nn.Module):
        def forward(self, *, input_ids, use_cache):
            assert use_cache is False
            return type("Output", (), {"logits": input_ids[..., None].float()})

    assert torch.equal(CausalLM(Reply())(torch.ones(1, 2)), torch.ones(1, 2, 1))
