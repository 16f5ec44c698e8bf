"""What every plugin of the fine-tuning track does besides the checks of bench.conformance, and what their layers do."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

import copy
import doctest
import importlib
import io
import math
import pkgutil
import re
import subprocess
import sys
from itertools import count

import pytest
import torch
from torch import nn

from bench import Registry, Role, Run
from bench.algorithm import slots
from bench.errors import BadValue, SlotMismatch
from bench.plugins import peft
from bench.plugins.peft._base import FineTuning
from bench.plugins.peft._svd import leading_triplets, randomized_triplets
from bench.plugins.peft.adapters import (
    AdaptedLinear,
    adapted_linears,
    adapter_state_dict,
    load_adapter,
    merge_adapters,
)
from bench.plugins.peft.bone import BoneLinear
from bench.plugins.peft.lora import LoraLinear
from bench.plugins.peft.miss import MissLinear
from bench.plugins.peft.pissa import PissaLinear
from bench.plugins.peft.svfit import SVFitLinear

REGISTRY = Registry()
NAMES = sorted(entry.name for entry in REGISTRY.algorithms.values() if entry.track == "peft")
ADAPTERS = [name for name in NAMES if REGISTRY.algorithm_class(name).adapter_roles]
LAYERS = {
    "lora": lambda linear: LoraLinear(linear, rank=4),
    "pissa": lambda linear: PissaLinear(linear, rank=4),
    "bone": lambda linear: BoneLinear(linear, rank=4),
    "miss": lambda linear: MissLinear(linear, rank=4),
    "svfit": SVFitLinear,
}
every_plugin = pytest.mark.parametrize("name", NAMES)
every_adapter = pytest.mark.parametrize("name", ADAPTERS)
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())

ROLES = {
    r"embedding\.weight": Role.EMBEDDING,
    r"q\.weight": Role.ATTENTION_Q,
    r"k\.weight": Role.ATTENTION_K,
    r"v\.weight": Role.ATTENTION_V,
    r"o\.weight": Role.ATTENTION_O,
    r"(up|down)\.weight": Role.MLP,
    r"norm\.weight": Role.NORM,
    r"head\.weight": Role.CLASSIFIER,
    r"(q|k|v|o|up|down|norm|head)\.bias": Role.BIAS,
}


class Reader(nn.Module):
    """An attention layer and an MLP over five symbols, and a classifier; only the matrices inside are trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.ndim == 2 and name != "embedding.weight")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.o(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        output: torch.Tensor = self.head(x.mean(1))
        return output


def reader(seed=0):
    torch.manual_seed(seed)
    return Reader()


def roles_of(model):
    names = [name for name, _ in model.named_parameters()]
    return {name: next(role for pattern, role in ROLES.items() if re.fullmatch(pattern, name)) for name in names}


def tokens(number=6, seed=0):
    return torch.randint(0, 9, (number, 5), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def reading(micro):
    """The workload of the reader."""

    class Reading(micro.Micro):
        roles = ROLES

        def model(self, seed, device):
            with torch.device(device):
                return reader(seed)

        def batches(self, seed, start, device):
            for number in count(start):
                x = tokens(self.tier.batch_size, number % 2)
                yield {"x": x, "y": x[:, 0] % 3}

    return Reading("small")


def trained(name, micro, reading):
    parts = micro.parts(REGISTRY.algorithm(name), workload=reading)
    micro.train(parts, reading)
    return parts


# -- every plugin in the suite ---------------------------------------------------------------------------------------
def test_the_track_is_not_empty():
    assert {"full-finetuning", "linear-probe", "lora"} <= set(NAMES)


@every_plugin
def test_it_fills_adapt_and_optimizer(name):
    assert {"adapt", "optimizer"} <= set(slots(REGISTRY.algorithm_class(name)))


@every_plugin
def test_the_learning_rate_is_searched_over_four_decades_around_the_default_and_nothing_else_is(name):
    cls = REGISTRY.algorithm_class(name)
    fields = {key: field for key, field in cls.__dataclass_fields__.items() if field.metadata.get("search")}
    assert set(fields) == {"lr"}
    search = fields["lr"].metadata["search"]
    assert math.log10(search.high / search.low) == pytest.approx(4)
    assert math.sqrt(search.low * search.high) == pytest.approx(fields["lr"].default)


@every_adapter
def test_new_parameters_are_adapters_and_the_pretrained_ones_are_frozen_but_for_the_head_that_the_workload_trains(
    name, micro, reading
):
    parts, before = micro.parts(REGISTRY.algorithm(name), workload=reading), reader()
    trainable = {key for key, parameter in parts.model.named_parameters() if parameter.requires_grad}
    adapters = {key for key, role in parts.run.roles.items() if role is Role.ADAPTER}
    assert trainable == adapters | {"head.weight"}
    assert sum(p.numel() for p in parts.model.parameters() if not p.requires_grad) == sum(
        p.numel() for key, p in before.named_parameters() if key != "head.weight"
    )


@every_adapter
def test_of_a_model_that_is_trainable_throughout_only_adapters_and_the_head_stay_trainable(name):
    model = reader().requires_grad_(True)
    before = {id(parameter) for parameter in model.parameters()}
    head = {id(model.head.weight), id(model.head.bias)}
    adapted = REGISTRY.algorithm(name).adapt(model, Run(seed=0, steps=1, roles=roles_of(model)))
    trainable = {id(parameter) for parameter in adapted.parameters() if parameter.requires_grad}
    assert trainable & before == head
    assert trainable - before


@every_adapter
@pytest.mark.parametrize(("targets", "number"), [("all", 6), ("attention", 4), ("query-value", 2)])
def test_targets_choose_the_layers_by_role(name, targets, number):
    model = reader()
    adapted = REGISTRY.algorithm(name, {"targets": targets}).adapt(model, Run(seed=0, steps=1, roles=roles_of(model)))
    assert sum(isinstance(module, AdaptedLinear) for module in adapted.modules()) == number


@every_adapter
def test_a_model_without_a_layer_to_adapt_is_refused(name):
    model = nn.Sequential(nn.Linear(4, 4))
    roles = dict.fromkeys(("0.weight", "0.bias"), Role.OTHER)
    with pytest.raises(SlotMismatch, match=r"targets = 'all' \(str\)"):
        REGISTRY.algorithm(name).adapt(model, Run(seed=0, steps=1, roles=roles))


@every_plugin
def test_the_classifier_has_a_learning_rate_of_its_own(name, micro, reading):
    cls = REGISTRY.algorithm_class(name)
    if "head_lr" not in cls.__dataclass_fields__:
        assert name == "linear-probe"
        return
    optimizer = micro.parts(cls(lr=0.25, head_lr=0.5), workload=reading).optimizer
    body, head = optimizer.param_groups
    assert (body["lr"], head["lr"]) == (0.25, 0.5)
    assert [parameter.shape for parameter in head["params"]] == [(3, 16)]


def test_the_bias_of_a_classifier_goes_with_it():
    model, run = reader(), Run(seed=0, steps=1, roles=roles_of(reader()))
    body, head = FineTuning(head_lr=0.5).optimizer(model.named_parameters(), run).param_groups
    assert {id(p) for p in head["params"]} == {id(model.head.weight), id(model.head.bias)}
    assert len(body["params"]) == len(list(model.parameters())) - 2


@every_plugin
def test_a_merged_model_is_the_adapted_one_and_an_ordinary_model_again(name, micro, reading):
    model = trained(name, micro, reading).model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    merged = merge_adapters(model)
    torch.testing.assert_close(merged(tokens()), model(tokens()), rtol=1e-5, atol=1e-5)
    assert {key: value.shape for key, value in merged.state_dict().items()} == {
        key: value.shape for key, value in reader().state_dict().items()
    }
    assert micro.equal(state, model.state_dict())
    assert not {p.data_ptr() for p in merged.parameters()} & {p.data_ptr() for p in model.parameters()}


@every_plugin
def test_a_saved_adapter_on_the_base_model_gives_the_same_bits(name, micro, reading):
    parts = trained(name, micro, reading)
    file = io.BytesIO()
    torch.save(adapter_state_dict(parts.model), file)
    file.seek(0)
    fresh = micro.parts(REGISTRY.algorithm(name), workload=reading, seed=0).model
    load_adapter(fresh, torch.load(file, weights_only=True))
    assert torch.equal(fresh(tokens()), parts.model(tokens()))


@every_adapter
@pytest.mark.parametrize("mode", ["bf16", "amp-bf16"])
def test_adapters_are_fp32_beside_bfloat16(name, mode):
    model, run = reader(), Run(seed=0, steps=1, roles=roles_of(reader()))
    if mode == "bf16":
        model = model.to(torch.bfloat16)
    expected = copy.deepcopy(model)
    adapted = REGISTRY.algorithm(name).adapt(model, run)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "amp-bf16"):
        output = adapted(tokens())
        wanted = expected(tokens())
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, wanted, rtol=0.05, atol=0.05)
    new = [p for module in adapted.modules() if isinstance(module, AdaptedLinear) for p in module.parameters()]
    new = [p for p in new if p.requires_grad and p.grad is not None]
    assert new
    assert {p.dtype for p in new} == {torch.float32}
    assert all(bool(p.grad.isfinite().all()) for p in new)


FRESH = """
import sys
import torch
from torch import nn
from bench import Registry, Role, Run
from bench.plugins.peft.adapters import load_adapter

torch.set_num_threads(1)
registry = Registry()
for name in sys.argv[2:]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 3))
    roles = {f"{i}.{what}": role for i in (0, 2) for what, role in (("weight", Role.MLP), ("bias", Role.BIAS))}
    roles |= {"4.weight": Role.CLASSIFIER, "4.bias": Role.CLASSIFIER}
    model = registry.algorithm(name).adapt(model, Run(seed=int(sys.argv[1] == "load"), steps=9, roles=roles))
    inputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    if sys.argv[1] == "load":
        saved = torch.load(name, weights_only=True)
        load_adapter(model, saved["adapter"])
        assert torch.equal(model(inputs), saved["outputs"]), name
        continue
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1, 2, 1, 0])).backward()
        optimizer.step()
    from bench.plugins.peft.adapters import adapter_state_dict
    torch.save({"adapter": adapter_state_dict(model), "outputs": model(inputs)}, name)
"""


def test_an_adapter_saved_by_one_process_gives_the_same_bits_in_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "save", *NAMES])
    exec(compile(FRESH, "fresh", "exec"), {})  # noqa: S102 - the script above
    command = [sys.executable, "-P", "-c", FRESH, "load", *NAMES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(peft.__path__)])
def test_examples_in_docstrings_run(module):
    found = importlib.import_module(f"bench.plugins.peft.{module}")
    results = doctest.testmod(found, extraglobs={"nn": nn, "torch": torch})
    assert results.failed == 0


# -- layers on any module, outside the suite ---------------------------------------------------------------------------
def moved(layer, seed=0):
    """Give the adapter of ``layer``, or of every layer of a model, values that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad and parameter.ndim:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return layer


@every_layer
@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_its_weight_and_starts_with_the_bits_or_the_numbers_of_its_base(make, shape, bias):
    torch.manual_seed(0)
    base = nn.Linear(*shape, bias=bias)
    x = torch.randn(2, 3, shape[0])
    before, weight = base(x).detach(), base.weight.detach().clone()
    layer = make(base)
    if isinstance(layer, PissaLinear):
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(layer(x), before)
        assert torch.equal(layer.base.weight, weight)
    moved(layer)
    assert not torch.allclose(layer(x), before, atol=1e-3)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, base.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight, layer.base.weight + layer.delta())
    assert (layer.in_features, layer.out_features, layer.bias) == (*shape, base.bias)


@every_layer
def test_gradients_agree_with_finite_differences(make):
    torch.manual_seed(0)
    layer = moved(make(nn.Linear(8, 4).double()))
    x = torch.randn(3, 8, dtype=torch.float64)
    names, values = zip(*[(n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()], strict=True)

    def forward(*given):
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, values)


@every_layer
def test_layers_work_inside_torch_s_own_transformer_in_training_and_on_its_fast_path(make):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(3, 5, 8)
    names = ["self_attn.out_proj", "linear1", "linear2"]  # the attention reads the weight and never calls the layer
    adapted = moved(adapted_linears(copy.deepcopy(model), names, make))
    adapted(x).square().sum().backward()
    layers = [module for module in adapted.modules() if isinstance(module, AdaptedLinear)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.base.weight.grad is None
        own = [p for name, p in layer.named_parameters() if not name.startswith("base.")]
        assert own
        assert all(bool(p.grad.any()) for p in own)
    merged = merge_adapters(adapted)
    torch.testing.assert_close(merged(x), adapted(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(x), merged.eval()(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(adapted(x), model.eval()(x), atol=1e-3)


@every_layer
def test_an_adapter_of_a_stranger_s_model_with_a_head_and_running_statistics_loads_to_the_bit(make):
    def fresh():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
        model[:3].requires_grad_(False)
        return adapted_linears(model, ["3"], make)

    model, images = fresh(), torch.randn(5, 1, 4, 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1, 1])).backward()
        optimizer.step()
    state = adapter_state_dict(model)
    assert {"3.base.bias", "4.weight", "4.bias", "1.running_mean", "1.running_var"} < set(state)
    assert not {"3.base.weight", "0.weight", "1.weight"} & set(state)
    other = fresh()
    load_adapter(other, state)
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_an_adapter_is_complete_after_all_has_been_frozen():
    model = adapted_linears(nn.Sequential(nn.Linear(8, 8)), ["0"], LAYERS["lora"])
    before = set(adapter_state_dict(model))
    assert set(adapter_state_dict(model.requires_grad_(False))) == before - {"0.base.bias"}


@every_layer
def test_a_layer_that_stands_in_two_places_stays_one(make):
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared})
    adapted = moved(adapted_linears(model, ["b"], make))
    assert adapted["a"][0] is adapted["b"]
    merged = merge_adapters(adapted)
    assert merged["a"][0] is merged["b"]
    x = torch.randn(2, 8)
    torch.testing.assert_close(merged["b"](x), adapted["b"](x), rtol=1e-5, atol=1e-5)


@every_layer
def test_the_model_itself_may_be_the_layer(make):
    linear = nn.Linear(8, 8)
    adapted = moved(adapted_linears(linear, [""], make))
    assert adapted.base is linear
    assert type(merge_adapters(adapted)) is nn.Linear
    assert "base.weight" not in adapter_state_dict(adapted)
    assert len(adapter_state_dict(adapted)) == len(adapted.state_dict()) - 1


@every_layer
def test_adapted_models_are_copied_and_pickled_whole(make):
    model = moved(adapted_linears(nn.Sequential(nn.Linear(8, 8)), ["0"], make))
    file, x = io.BytesIO(), torch.randn(2, 8)
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), model(x))


@every_layer
def test_a_layer_is_in_the_mode_of_its_base(make):
    assert not make(nn.Linear(8, 8).eval()).training
    assert make(nn.Linear(8, 8)).training


def test_layers_are_made_in_the_order_of_the_model_whatever_the_order_of_the_names():
    models = []
    for names in (["0", "1"], ["1", "0"]):
        torch.manual_seed(0)
        model, generator = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.Generator().manual_seed(0)
        models.append(adapted_linears(model, names, lambda li, g=generator: LoraLinear(li, rank=2, generator=g)))
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4)), "1", "'1' is nothing, not a torch.nn.Linear"),
        (nn.Sequential(nn.GELU()), "0", "'0' is a GELU, not a torch.nn.Linear"),
        (tied(), "0", "the weight of '0' is also the weight of another module"),
    ],
)
def test_names_that_cannot_be_adapted_are_refused_and_change_nothing(model, name, said):
    before = list(model.modules())
    with pytest.raises(BadValue, match=said):
        adapted_linears(model, [name], SVFitLinear)
    assert list(model.modules()) == before


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    model = adapted_linears(nn.Sequential(nn.Linear(4, 4)), ["0"], lambda linear: LoraLinear(linear, rank=2))
    state = {key: value.clone() + 1 for key, value in adapter_state_dict(model).items()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for bad, said in (
        ({key: value for key, value in state.items() if key != "0.lora_A"}, "lacks 0.lora_A"),
        (state | {"1.lora_A": torch.zeros(1)}, "has the unknown 1.lora_A"),
        (state | {"0.lora_B": torch.zeros(4, 3)}, r"0.lora_B has shape \(4, 3\) in the state and \(4, 2\)"),
    ):
        with pytest.raises(BadValue, match=said):
            load_adapter(model, bad)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# -- singular triplets ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_leading_triplets_are_the_best_approximation_of_their_rank(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    left, values, right = leading_triplets(weight, 5)
    assert {part.dtype for part in (left, values, right)} == {torch.promote_types(dtype, torch.float32)}
    eye = torch.eye(5, dtype=left.dtype)
    torch.testing.assert_close(left.T @ left, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(right.T @ right, eye, rtol=0, atol=1e-5)
    spectrum = torch.linalg.svdvals(weight.to(left.dtype))
    torch.testing.assert_close(values, spectrum[:5])
    error = (weight.to(left.dtype) - (left * values) @ right.T).norm()
    torch.testing.assert_close(error, spectrum[5:].norm(), rtol=1e-5, atol=1e-6)


def test_randomized_triplets_converge_to_the_exact_ones_and_depend_on_their_generator_alone():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 20, generator=generator, dtype=torch.float64) * 0.5 ** torch.arange(20)
    left, values, right = leading_triplets(weight, 4)
    exact, errors = (left * values) @ right.T, []
    for iterations in (0, 1, 20):
        draws = [randomized_triplets(weight, 4, iterations, torch.Generator().manual_seed(1)) for _ in range(2)]
        assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))
        one = draws[0]
        errors.append(float(((one.left * one.values) @ one.right.T - exact).norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
