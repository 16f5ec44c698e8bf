"""The speed run's GPT: against a naive forward pass in the record's own formulas, its start, its precisions."""

from __future__ import annotations

import math

import pytest
import torch

from bench.errors import BadValue
from bench.workloads._gpt import EPSILON, Gpt, GptConfig, rms_norm, sequence_losses

CONFIG = GptConfig(vocabulary_size=50, hidden=24, layers=2, heads=3)


def drawn(config=CONFIG, seed=0):
    """A model whose weights are all drawn, so that no zero hides a part of it."""
    model = Gpt(config, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.uniform_(-0.3, 0.3, generator=generator)
    return model


def ids(rows=3, positions=7, seed=5):
    return torch.randint(0, 50, (rows, positions), generator=torch.Generator().manual_seed(seed))


def norm(vector):
    return vector / torch.sqrt(vector.square().mean() + EPSILON)


def turned(vector, position):
    """The record's rotation: y1 = x1 cos + x2 sin, y2 = x2 cos - x1 sin, angle t 10000^(-2i/H)."""
    half = len(vector) // 2
    angles = torch.tensor([position * 10_000.0 ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64)
    first, second = vector[:half], vector[half:]
    return torch.cat([first * angles.cos() + second * angles.sin(), second * angles.cos() - first * angles.sin()])


def heads_mirrored(weight, heads):
    """The weight with the second half of each head's rows negated: positions then turn the other way."""
    signs = torch.ones(heads, weight.shape[0] // heads, 1, dtype=weight.dtype)
    signs[:, signs.shape[1] // 2 :] = -1.0
    return weight * signs.reshape(-1, 1)


def naive(model, tokens):
    """Logits (T, V) of one sequence, one position and one head at a time, fp64."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    heads, size = CONFIG.heads, CONFIG.head_size
    stream = [norm(weights["embedding.weight"][token]) for token in tokens.tolist()]
    for layer in range(CONFIG.layers):
        of = {key.rsplit(".", 2)[-2]: value for key, value in weights.items() if key.startswith(f"layers.{layer}.")}
        query, key = heads_mirrored(of["q"], heads), heads_mirrored(of["k"], heads)
        inputs = [norm(x) for x in stream]
        for t, x in enumerate(stream.copy()):
            outputs = []
            for head in range(heads):
                rows = slice(head * size, (head + 1) * size)
                wanted = norm(turned(query[rows] @ inputs[t], t))
                scores = torch.stack(
                    [wanted @ norm(turned(key[rows] @ inputs[s], s)) / math.sqrt(size) for s in range(t + 1)]
                )
                values = torch.stack([of["v"][rows] @ inputs[s] for s in range(t + 1)])
                outputs.append(scores.softmax(0) @ values)
            stream[t] = x + of["o"] @ torch.cat(outputs)
        stream = [x + of["down"] @ (of["up"] @ norm(x)).clamp(min=0).square() for x in stream]
    return torch.stack([weights["lm_head.weight"] @ norm(x) for x in stream])


@pytest.mark.paper
def test_logits_are_those_of_the_records_formulas_one_position_at_a_time():
    model, tokens = drawn(), ids(rows=2, positions=4)
    with torch.no_grad():
        found = model(tokens)
    for row, sequence in zip(found, tokens, strict=True):
        torch.testing.assert_close(row.double(), naive(model, sequence), rtol=1e-4, atol=1e-4)


def test_a_position_sees_no_later_token():
    model, tokens = drawn(), ids()
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 50
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_projections_and_head_start_as_zeros_and_the_rest_as_published():
    config = GptConfig(vocabulary_size=500, hidden=64, layers=2, heads=4)
    for name, value in Gpt(config, torch.Generator().manual_seed(0)).state_dict().items():
        if name == "lm_head.weight" or name.endswith(("attention.o.weight", "mlp.down.weight")):
            assert not value.any()
        elif name == "embedding.weight":
            assert float(value.mean()) == pytest.approx(0.0, abs=0.02)
            assert float(value.std()) == pytest.approx(1.0, abs=0.02)
        else:
            assert 0.98 / 8 < float(value.abs().max()) <= 1 / 8
            assert float(value.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


def test_the_first_loss_is_that_of_a_uniform_guess_and_only_the_head_learns_from_it():
    model, tokens = Gpt(CONFIG, torch.Generator().manual_seed(0)), ids()
    loss = sequence_losses(model(tokens), tokens.roll(-1, 1)).mean()
    assert float(loss.detach()) == pytest.approx(math.log(50), rel=1e-6)
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad.any()] == ["lm_head.weight"]


def test_after_three_steps_every_weight_has_learned():
    model, tokens = Gpt(CONFIG, torch.Generator().manual_seed(0)), ids()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        sequence_losses(model(tokens), tokens.roll(-1, 1)).mean().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_generator_alone_sets_the_weights():
    torch.manual_seed(1)
    first = Gpt(CONFIG, torch.Generator().manual_seed(3)).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = Gpt(CONFIG, torch.Generator().manual_seed(3)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Gpt(CONFIG, torch.Generator().manual_seed(4)).state_dict()
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_bf16_and_autocast_give_the_same_logits_up_to_their_rounding():
    model, tokens = drawn(), ids()
    with torch.no_grad():
        exact = model(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(tokens)
        pure = model.to(torch.bfloat16)(tokens)
    assert pure.dtype == torch.bfloat16
    for found in (mixed, pure):
        assert float((found.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_norms_have_unit_mean_square_and_no_parameters():
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 5)[:, None]
    torch.testing.assert_close(rms_norm(x).square().mean(-1), torch.ones(5), rtol=2e-3, atol=0.0)
    assert not rms_norm(torch.zeros(2, 8)).any()
    assert {parameter.ndim for parameter in Gpt(CONFIG).parameters()} == {2}


def test_sequence_losses_are_means_of_fp32_cross_entropies_over_positions():
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    targets = torch.tensor([[0, 8, 3, 3], [1, 2, 3, 4]])
    found = sequence_losses(logits, targets)
    assert found.dtype == torch.float32
    expected = -logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].mean(1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["vocabulary_size", "hidden", "layers", "heads"])
def test_a_size_below_one_is_refused_by_name_and_type(name):
    sizes = {"vocabulary_size": 61, "hidden": 32, "layers": 2, "heads": 4, name: 0}
    with pytest.raises(BadValue, match=rf"{name} is 0 \(int\)"):
        GptConfig(**sizes)


@pytest.mark.parametrize(("hidden", "heads"), [(30, 4), (12, 4)])
def test_heads_of_uneven_or_odd_size_are_refused_with_the_multiple_to_choose(hidden, heads):
    with pytest.raises(BadValue, match=f"hidden is {hidden} with {heads} heads") as caught:
        GptConfig(vocabulary_size=61, hidden=hidden, layers=2, heads=heads)
    assert f"multiple of {2 * heads}" in caught.value.hint
