from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BadValue
from bench.workloads._llama import IGNORED, Llama, LlamaConfig, token_losses

SMALL = LlamaConfig(vocabulary_size=61, hidden=32, ffn=44, layers=2, heads=4, max_positions=24)

# (hidden, ffn, layers, heads); millions of parameters in all, in the blocks' linear layers, in embedding and head
PUBLISHED = {
    "60m": ((512, 1376, 8, 8), "58.07", "25.30", "32.77"),
    "130m": ((768, 2048, 12, 12), "134.1", "84.9", "49.2"),
    "350m": ((1024, 2736, 24, 16), "368.0", "302.4", "65.5"),
    "1b": ((2048, 5461, 24, 32), "1339.1", "1207.9", "131.1"),
    "7b": ((4096, 11008, 32, 32), "6738.4", "6476", "262"),
}


def build(config: LlamaConfig = SMALL, seed: int = 0, *, spread: float = 1.0) -> Llama:
    """A model; ``spread`` multiplies its matrices and shakes its norms, so that every part matters to the logits."""
    model = Llama(config, torch.Generator().manual_seed(seed))
    if spread != 1.0:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5, generator=generator)
                else:
                    parameter.mul_(spread)
    return model


def tokens(batch: int = 3, positions: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL.vocabulary_size, (batch, positions), generator=torch.Generator().manual_seed(seed))


def published(name: str) -> Llama:
    hidden, ffn, layers, heads = PUBLISHED[name][0]
    with torch.device("meta"):
        return Llama(LlamaConfig(vocabulary_size=32_000, hidden=hidden, ffn=ffn, layers=layers, heads=heads))


@pytest.mark.paper
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_their_published_parameter_counts(name):
    sizes = {key: parameter.numel() / 1e6 for key, parameter in published(name).named_parameters()}
    linear = sum(size for key, size in sizes.items() if key.startswith("layers.") and "norm" not in key)
    ends = sizes["embedding.weight"] + sizes["lm_head.weight"]
    for found, printed in zip((sum(sizes.values()), linear, ends), PUBLISHED[name][1:], strict=True):
        decimals = len(printed.partition(".")[2])
        assert f"{found:.{decimals}f}" == printed


def test_the_tiny_model_has_the_pilots_0_86_million_parameters():
    with torch.device("meta"):
        model = Llama(LlamaConfig(vocabulary_size=256, hidden=128, ffn=344, layers=4, heads=4))
    assert sum(parameter.numel() for parameter in model.parameters()) == 857_216


def test_7b_on_the_meta_device_has_shapes_everywhere_and_storage_nowhere():
    model = published("7b")
    state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict(keep_vars=True)}
    assert all(tensor.is_meta for tensor in state.values())
    logits = model(torch.zeros(2, 256, dtype=torch.long, device="meta"))
    assert logits.is_meta
    assert logits.shape == (2, 256, 32_000)


def test_a_meta_model_made_real_has_the_weights_of_one_built_real():
    with torch.device("meta"):
        model = Llama(SMALL)
    model.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    assert_same_weights(model, build(seed=5))


def test_parameter_names_are_the_documented_ones():
    block = (
        "attention_norm.weight",
        *(f"attention.{name}.weight" for name in "qkvo"),
        "mlp_norm.weight",
        *(f"mlp.{name}.weight" for name in ("gate", "up", "down")),
    )
    blocks = {f"layers.{i}.{name}" for i in range(SMALL.layers) for name in block}
    assert set(build().state_dict()) == {"embedding.weight", "norm.weight", "lm_head.weight"} | blocks


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, first), (_, second) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(first, second), name


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = build(seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build(seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(first, second)
    assert not torch.equal(first.lm_head.weight, build(seed=8).lm_head.weight)


def test_without_a_generator_the_global_one_is_drawn_from():
    torch.manual_seed(3)
    first = Llama(SMALL)
    torch.manual_seed(3)
    assert_same_weights(first, Llama(SMALL))
    assert not torch.equal(first.lm_head.weight, Llama(SMALL).lm_head.weight)


def test_matrices_start_normal_with_standard_deviation_0_02_and_norms_at_one():
    model = build(LlamaConfig(vocabulary_size=500, hidden=128, ffn=256, layers=1, heads=2))
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.ndim == 1:
            assert torch.equal(values, torch.ones_like(values)), name
            continue
        values = values[:-1] if name == "embedding.weight" else values
        deviations = 6 / math.sqrt(values.numel())
        assert abs(float(values.mean())) < 0.02 * deviations, name
        assert float(values.std()) == pytest.approx(0.02, rel=deviations), name
        assert float((values / 0.02).pow(4).mean()) == pytest.approx(3.0, abs=0.4), name  # a normal's kurtosis


@pytest.mark.paper
def test_the_last_embedding_row_is_zero_and_stays_so_while_every_other_weight_can_learn():
    model = build()
    last = SMALL.vocabulary_size - 1
    rising = torch.arange(3 * 24).view(3, 24) % SMALL.vocabulary_size
    batch = torch.cat((rising, rising.flip(1)))  # both ways: the last position of a sequence has no target
    token_losses(model(batch), batch).mean().backward()
    assert not model.embedding.weight[last].any()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        rows = parameter.grad.reshape(parameter.shape[0], -1).abs().amax(1)
        silent = (rows == 0).nonzero().flatten().tolist()
        assert silent == ([last] if name == "embedding.weight" else []), name
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert not model.embedding.weight[last].any()


@pytest.mark.parametrize("changed", [1, 8, 15])
def test_a_later_token_leaves_earlier_logits_bit_equal(changed):
    model, first = build(spread=10.0), tokens()
    second = first.clone()
    second[:, changed] = (second[:, changed] + 1) % (SMALL.vocabulary_size - 1)
    before, after = model(first), model(second)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed:], after[:, changed:])


def test_the_last_position_depends_on_the_first():
    model, first = build(spread=10.0), tokens()
    second = first.clone()
    second[:, 0] = (second[:, 0] + 1) % (SMALL.vocabulary_size - 1)
    assert not torch.allclose(model(first)[:, -1], model(second)[:, -1])


def test_sequences_of_a_batch_do_not_see_each_other():
    model, batch = build(spread=10.0), tokens()
    alone = torch.cat([model(sequence[None]) for sequence in batch])
    torch.testing.assert_close(model(batch), alone, rtol=1e-5, atol=1e-5)


HUGGING_FACE_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    **{
        f"layers.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight"
        for i in range(SMALL.layers)
        for ours, theirs in {
            "attention_norm": "input_layernorm",
            "attention.q": "self_attn.q_proj",
            "attention.k": "self_attn.k_proj",
            "attention.v": "self_attn.v_proj",
            "attention.o": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm",
            "mlp.gate": "mlp.gate_proj",
            "mlp.up": "mlp.up_proj",
            "mlp.down": "mlp.down_proj",
        }.items()
    },
}


def hugging_face(model: Llama) -> nn.Module:
    """The same weights in Hugging Face's implementation; skips the test where that is not installed."""
    transformers = pytest.importorskip("transformers", reason="parity is against transformers.LlamaForCausalLM")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=SMALL.vocabulary_size,
            hidden_size=SMALL.hidden,
            intermediate_size=SMALL.ffn,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            max_position_embeddings=SMALL.max_positions,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )
    state = {HUGGING_FACE_NAMES[name]: value for name, value in model.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    for parameter in theirs.parameters():  # not theirs.to(dtype): that rounds the rotary frequencies as well
        parameter.data = parameter.data.to(model.norm.weight.dtype)
    return theirs


@pytest.mark.paper
def test_logits_loss_and_gradients_are_hugging_faces_in_fp32():
    model, batch = build(spread=10.0), tokens(positions=24)
    theirs = hugging_face(model)
    labels = batch.clone()
    labels[1, 9:] = IGNORED
    expected = theirs(input_ids=batch, labels=labels)
    logits = model(batch)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    loss = token_losses(logits, labels).mean()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients["model.embed_tokens.weight"][-1] = 0.0  # our padding row has none
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[HUGGING_FACE_NAMES[name]], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.paper
def test_logits_in_pure_bf16_are_hugging_faces_to_the_bit():
    model, batch = build(spread=10.0).to(torch.bfloat16), tokens(positions=24)
    assert torch.equal(model(batch), hugging_face(model)(input_ids=batch).logits)


def test_converting_to_bf16_and_back_does_not_touch_the_rotary_tables():
    model, batch = build(), tokens()
    rounded = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    there_and_back = build().to(torch.bfloat16).to(torch.float32)
    model.load_state_dict(rounded)
    assert torch.equal(there_and_back(batch), model(batch))


def test_pure_bf16_is_bf16_in_every_activation_weight_and_gradient_but_the_loss_is_fp32():
    model, batch, found = build(spread=10.0).to(torch.bfloat16), tokens(), []
    for module in model.modules():
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output.dtype))
    logits = model(batch)
    loss = token_losses(logits, batch)
    loss.mean().backward()
    assert set(found) == {logits.dtype} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert loss.sum.dtype == loss.count.dtype == loss.mean().dtype == torch.float32


def test_bf16_autocast_keeps_weights_gradients_residual_stream_and_loss_in_fp32():
    model, batch = build(spread=10.0), tokens()
    stream = []
    for block in model.layers:
        block.register_forward_hook(lambda _module, _inputs, output: stream.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
        loss = token_losses(logits, batch, torch.tensor([1.0, 0.3, 1.0 + 2.0**-12])).mean()
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert set(stream) == {torch.float32}
    assert loss.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    expected = model(batch).detach()
    torch.testing.assert_close(logits.detach().float(), expected, rtol=0.1, atol=0.1 * float(expected.std()))


def test_a_few_steps_learn_to_continue_one_sequence():
    model, batch = build(), tokens(batch=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = token_losses(model(batch), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(SMALL.vocabulary_size), abs=0.1)
    assert losses[-1] < 0.2


def test_a_sequence_longer_than_the_model_is_refused():
    model = build()
    assert model(tokens(positions=24)).shape == (3, 24, 61)
    with pytest.raises(BadValue, match="25 positions, but the model is made for at most 24"):
        model(tokens(positions=25))
