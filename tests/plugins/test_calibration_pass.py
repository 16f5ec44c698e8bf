"""The streamed calibration pass: its moments against sums taken one vector at a time, and both modes of propagation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.compression._calibration import Call, block_calls, calibrated, second_moments
from bench.plugins.compression._linears import hidden_linears, with_replaced, with_weight
from bench.roles import assign_roles
from bench.workloads._llama import Llama, LlamaConfig

ROLES = {
    r"(embedding|lm_head)\.weight": Role.EMBEDDING,
    r".*norm\.weight": Role.NORM,
    r".*\.(q|k|v|o)\.weight": Role.ATTENTION_Q,
    r".*\.(gate|up|down)\.weight": Role.MLP,
}
BLOCKS = ("layers.0", "layers.1", "layers.2")


def decoder(dtype=torch.float32):
    config = LlamaConfig(vocabulary_size=23, hidden=8, ffn=12, layers=3, heads=2, initial_std=0.3)
    return Llama(config, torch.Generator().manual_seed(0)).to(dtype)


def batches(*sizes, length=7, seed=1):
    tokens = torch.randint(0, 23, (sum(sizes), length), generator=torch.Generator().manual_seed(seed))
    return [{"tokens": part} for part in tokens.split(sizes)]


def run_of(model):
    return Run(seed=0, steps=1, roles=assign_roles((n for n, _ in model.named_parameters()), ROLES), blocks=BLOCKS)


def moments(model, data):
    return second_moments(model, hidden_linears(model, run_of(model).roles), map(Call.of, data))


def naive_moments(model, data, names):
    """Return C of each linear, vector by vector, from full passes over the model as it is."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, args, _o, name=name: seen[name].append(args[0]))
        for name in names
    ]
    with torch.no_grad():
        for batch in data:
            model(batch["tokens"])
    for hook in hooks:
        hook.remove()
    result = {}
    for name, inputs in seen.items():
        vectors = [vector.double() for x in inputs for vector in x.flatten(0, -2)]
        total = torch.zeros(len(vectors[0]), len(vectors[0]), dtype=torch.float64)
        for vector in vectors:
            total += torch.outer(vector, vector)
        result[name] = total / len(vectors)
    return result


def close(left, right, tolerance=1e-12):
    assert left.keys() == right.keys()
    return all(float((left[n] - right[n]).norm()) <= tolerance * float(right[n].norm()) for n in left)


def saw(_name, linear, moment):
    """Return ``linear`` without the inputs of less than average power: something that depends on the statistic."""
    power = moment.diagonal()
    return with_weight(linear, linear.weight.detach() * (power >= power.mean()))


# -- moments ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_moments_are_the_means_of_outer_products_of_all_tokens_in_float64(dtype):
    model, data = decoder(dtype), batches(3, 2)
    found = moments(model, data)
    assert {moment.dtype for moment in found.values()} == {torch.float64}
    assert close(found, naive_moments(model, data, found))


def test_linears_that_read_one_tensor_share_one_moment_and_others_do_not():
    found = moments(decoder(), batches(2))
    for block in BLOCKS:
        q, k, v, o = (found[f"{block}.attention.{name}"] for name in "qkvo")
        gate, up, down = (found[f"{block}.mlp.{name}"] for name in ("gate", "up", "down"))
        assert q is k is v
        assert gate is up
        assert len({id(moment) for moment in (q, o, gate, down)}) == 4


def test_order_and_size_of_the_batches_do_not_matter():
    model = decoder()
    whole = moments(model, batches(6))
    assert close(moments(model, batches(1, 3, 2)), whole, 1e-6)  # a forward pass in fp32 rounds by batch size
    assert close(moments(model, batches(2, 2, 2)[::-1]), moments(model, batches(2, 2, 2)))


def test_padding_enters_no_statistic():
    model, (batch,) = decoder(), batches(2)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    padded = {"tokens": batch["tokens"].masked_fill(~mask, 0), "mask": mask}
    cut = {"tokens": batch["tokens"][:, :5]}  # attention is causal: pads behind change nothing before them
    assert close(moments(model, [padded]), moments(model, [cut]), 1e-6)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(BadValue, match="mask of a batch has 4 positions"):
        moments(decoder(), [batches(2)[0] | {"mask": torch.ones(2, 2)}])


def test_a_batch_is_called_with_its_tokens_or_its_inputs_and_nothing_else_will_do():
    model, (batch,) = decoder(), batches(2)
    other = {"inputs": batch["tokens"]}
    assert close(moments(model, [other]), moments(model, [batch]), 0.0)
    with pytest.raises(BadValue, match=r"has the keys \['ids'\]"):
        moments(model, [{"ids": batch["tokens"]}])


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = decoder()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    moments(model, batches(2))
    with pytest.raises(IndexError):
        moments(model, [{"tokens": torch.full((1, 3), 99)}])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_statistics_are_taken_in_evaluation_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = second_moments(model, {"1": model[1]}, [Call((x,))])
    assert torch.allclose(found["1"], (x.T @ x).double() / 50, rtol=1e-5)
    assert model[0].training


class Moody(nn.Module):
    """Reads the first linear's input again, or its output, in turns."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        y = self.one(x)
        return self.two(x if self.calls % 2 else y)


def test_a_linear_that_changes_its_source_is_refused():
    model, x = Moody(), torch.ones(2, 4)
    with pytest.raises(BadValue, match="reads now what"):
        second_moments(model, {"one": model.one, "two": model.two}, [Call((x,)), Call((x,))])


def test_a_linear_that_is_used_twice_sums_both():
    linear = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(linear, nn.ReLU(), linear)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = torch.relu(linear(x))
    expected = (x.T @ x + y.T @ y).double() / 40
    assert torch.allclose(second_moments(model, {"0": linear}, [Call((x,))])["0"], expected, rtol=1e-5)


def test_a_linear_that_no_token_reaches_is_named():
    class Half(nn.ModuleDict):
        def forward(self, x):
            return self["used"](x)

    model = Half({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
    with pytest.raises(BadValue, match="no calibration token reached idle"):
        second_moments(model, dict(model.items()), [Call((torch.ones(1, 3),))])
    with pytest.raises(BadValue, match="no calibration token reached used, idle"):
        second_moments(model, dict(model.items()), [])


def test_inputs_that_are_not_finite_are_refused():
    linear = nn.Linear(3, 3)
    with pytest.raises(BadValue, match="inputs of 'it' are not all finite"):
        second_moments(linear, {"it": linear}, [Call((torch.tensor([[1.0, float("inf"), 0.0]]),))])


# -- propagation -----------------------------------------------------------------------------------------------------
def test_parallel_takes_all_statistics_from_the_dense_model():
    model, data = decoder(), batches(3, 2)
    seen = {}
    calibrated(
        model, data, run_of(model), "parallel", lambda c: c, lambda n, m, c: (seen.update({n: c}), saw(n, m, c))[1]
    )
    assert close(seen, naive_moments(model, data, seen))


def test_sequential_takes_those_of_a_block_from_the_replaced_blocks_before_it():
    model, data = decoder(), batches(3, 2)
    run, seen = run_of(model), {}
    result = calibrated(
        model, data, run, "sequential", lambda c: c, lambda n, m, c: (seen.update({n: c}), saw(n, m, c))[1]
    )
    half = copy.deepcopy(model)  # naively: a whole pass for each block, over a model replaced so far
    for block in BLOCKS:
        names = [name for name in seen if name.startswith(f"{block}.")]
        expected = naive_moments(half, data, names)
        assert close({name: seen[name] for name in names}, expected, 1e-6)
        for name in names:
            half.set_submodule(name, saw(name, half.get_submodule(name), expected[name]))
    tokens = data[0]["tokens"]
    torch.testing.assert_close(result(tokens), half(tokens))
    assert not torch.allclose(result(tokens), model(tokens), atol=1e-2)


def test_the_modes_agree_on_the_first_block_and_differ_after_it():
    model, data = decoder(), batches(4)
    results = {}
    for mode in ("parallel", "sequential"):
        results[mode] = results[mode, "seen"] = seen = {}
        calibrated(
            model, data, run_of(model), mode, lambda c: c, lambda n, m, c, s=seen: (s.update({n: c}), saw(n, m, c))[1]
        )
    first = {name for name in results["parallel"] if name.startswith("layers.0.")}
    for name, moment in results["parallel"].items():
        assert torch.allclose(moment, results["sequential"][name], rtol=1e-5, atol=1e-9) == (name in first)


def test_a_statistic_is_derived_once_for_all_linears_that_share_it():
    model, calls = decoder(), []
    for mode in ("parallel", "sequential"):
        calls.clear()
        calibrated(model, batches(2), run_of(model), mode, lambda c: calls.append(c) or c, saw)
        assert len(calls) == 4 * len(BLOCKS)


def test_a_target_is_replaced_with_statistics_of_the_dense_model_s_weights():
    model, data = decoder(), batches(3)
    run = run_of(model)
    linears = hidden_linears(model, run.roles)
    target = with_replaced(model, {m: with_weight(m, 0.5 * m.weight.detach()) for m in linears.values()})
    seen = {}

    def keep(name, linear, moment):
        assert linear is linears[name]
        seen[name] = moment
        return copy.deepcopy(target.get_submodule(name))

    result = calibrated(model, data, run, "sequential", lambda c: c, keep, target)
    tokens = data[0]["tokens"]
    assert torch.equal(result(tokens), target(tokens))
    half = copy.deepcopy(model)
    for block in BLOCKS[:2]:
        half.set_submodule(block, copy.deepcopy(target.get_submodule(block)))
    # of the third block: its own dense weights on what two blocks of the target give
    names = [name for name in seen if name.startswith("layers.2.")]
    assert close({name: seen[name] for name in names}, naive_moments(half, data, names), 1e-6)


def test_linears_outside_the_blocks_are_refused_in_sequential_mode():
    model = decoder()
    run = Run(seed=0, steps=1, roles=run_of(model).roles, blocks=BLOCKS[:2])
    with pytest.raises(BadValue, match=r"layers\.2\.attention\.q.* in none of the blocks"):
        calibrated(model, batches(2), run, "sequential", lambda c: c, saw)


class Wrapped(nn.Module):
    """A block that wants a keyword, returns a tuple, and refuses a cache that it has filled before."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *, shift, past_key_values=None):
        if past_key_values is not None:
            assert not past_key_values
            past_key_values.append(x)
        return self.linear(x) + shift, "attention"


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Wrapped(), Wrapped()])

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x, shift=x.new_ones(4), past_key_values=[])
        return x


def test_keywords_and_tuples_of_blocks_are_kept_and_caches_are_not():
    model = Stack()
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    (call,) = block_calls(model, "blocks.0", [{"inputs": x}])
    assert torch.equal(call.args[0], x)
    assert torch.equal(call.kwargs["shift"], torch.ones(4))
    run = Run(
        seed=0,
        steps=1,
        blocks=("blocks.0", "blocks.1"),
        roles={
            f"blocks.{i}.linear.{part}": Role.MLP if part == "weight" else Role.BIAS
            for i in (0, 1)
            for part in ("weight", "bias")
        },
    )
    seen = {}
    calibrated(
        model,
        [{"inputs": x}],
        run,
        "sequential",
        lambda c: c,
        lambda n, m, c: (seen.update({n: c}), copy.deepcopy(m))[1],
    )
    with torch.no_grad():
        y = model.blocks[0](x, shift=torch.ones(4))[0].double()
    assert torch.allclose(seen["blocks.1.linear"], y.T @ y / 10, rtol=1e-5)


def test_a_model_that_calls_its_block_without_hidden_states_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(BadValue, match="did not call its block"):
        block_calls(model, "0", [])


def test_transformers_llama_with_its_cache_gives_in_sequence_what_it_gives_as_a_whole(package):
    theirs = package("transformers", "transformers")
    config = theirs.LlamaConfig(
        vocab_size=23, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, use_cache=True
    )
    torch.manual_seed(0)
    lm = theirs.LlamaForCausalLM(config)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = lm

        def forward(self, tokens):
            return self.lm(input_ids=tokens).logits

    model = Logits()
    roles = {name: Role.MLP if "_proj" in name else Role.OTHER for name, _ in model.named_parameters()}
    run = Run(seed=0, steps=1, roles=roles, blocks=("lm.model.layers.0", "lm.model.layers.1"))
    seen = {"parallel": {}, "sequential": {}}
    for mode, found in seen.items():

        def same(name, linear, moment, found=found):
            found[name] = moment
            return copy.deepcopy(linear)

        result = calibrated(model, batches(2), run, mode, lambda c: c, same)
        tokens = batches(2)[0]["tokens"]
        torch.testing.assert_close(result(tokens), model(tokens))
    assert close(seen["sequential"], seen["parallel"], 1e-6)
