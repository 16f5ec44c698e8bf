"""What every optimizer of this project does, whatever its rule: one battery over all of them."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import pickle
import pkgutil
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench import Registry
from bench.plugins import baselines, optimizers, schedules
from bench.plugins.optimizers import _base
from bench.plugins.optimizers._base import bucketed, cut, pieces
from bench.plugins.optimizers.galore import GaLoreAdamW, gram_basis, subspace_basis, svd_basis
from bench.plugins.optimizers.galore_8bit import GaLoreAdamW8bit
from bench.plugins.optimizers.galore_per_layer import GaLoreAdamWPerLayer
from bench.plugins.optimizers.lion import LionOptimizer
from bench.plugins.optimizers.muon import MuonOptimizer


def galore(kind, **options):
    def build(matrices, rest, **more):
        groups = [{"params": matrices, "rank": 2, "update_gap": 3}, {"params": rest}]
        return kind(groups, lr=0.02, weight_decay=0.1, **options, **more)

    return build


def lion(matrices, rest, **more):
    return LionOptimizer([{"params": matrices}, {"params": rest, "lr": 1e-3}], lr=0.01, weight_decay=0.1, **more)


def muon(matrices, rest, **more):
    groups = [{"params": matrices}, {"params": rest, "algorithm": "adamw", "weight_decay": 0.1}]
    return MuonOptimizer(groups, weight_decay=0.1, **more)


BUILDERS = {
    "galore": galore(GaLoreAdamW),
    "galore-svd": galore(GaLoreAdamW, basis=svd_basis),
    "galore-subspace": galore(GaLoreAdamW, basis=subspace_basis),
    "galore-full": galore(GaLoreAdamW, projection_type="full", eps=1e-2),
    "galore-8bit": galore(GaLoreAdamW8bit),
    "galore-per-layer": galore(GaLoreAdamWPerLayer),
    "lion": lion,
    "muon": muon,
}
SHAPES = [(6, 9), (9, 6), (6, 9), (7, 7), (80, 90)], [(40,), (3, 5), (70, 80), (40,)]


@pytest.fixture(params=BUILDERS)
def build(request):
    return BUILDERS[request.param]


def parameters(shapes=SHAPES, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [
        [nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(device)) for shape in part]
        for part in shapes
    ]


def give_gradients(parts, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for part in parts:
        for parameter in part:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def steps(optimizer, parts, count, first=0):
    for step in range(first, first + count):
        give_gradients(parts, step)
        optimizer.step()
    return [parameter.detach().clone() for part in parts for parameter in part]


def state_tensors(optimizer):
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# -- the loop ------------------------------------------------------------------------------------------------------
def test_step_calls_the_closure_with_gradients_enabled_and_returns_its_loss(build):
    parts = parameters()
    optimizer = build(*parts)
    before = parts[0][0].detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() for part in parts for parameter in part)
        loss.backward()
        return loss.detach()

    loss = optimizer.step(closure)
    assert float(loss) > 0
    assert not torch.equal(parts[0][0], before)
    assert optimizer.step() is None


def test_learning_rate_schedulers_of_torch_drive_it(build):
    scheduled, by_hand = parameters(), parameters()
    optimizer, other = build(*scheduled), build(*by_hand)
    rates = [group["lr"] for group in other.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(5):
        give_gradients(scheduled, step)
        optimizer.step()
        scheduler.step()
        for group, rate in zip(other.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5**step
        steps(other, by_hand, 1, first=step)
    assert all(same(*pair) for pair in zip(scheduled, by_hand, strict=True))


def test_group_added_later_is_stepped_too(build):
    parts = parameters()
    optimizer = build(parts[0], parts[1][:2])
    options = {key: value for key, value in optimizer.param_groups[1].items() if key != "params"}
    optimizer.add_param_group({"params": parts[1][2:], **options})
    late = parts[1][2].detach().clone()
    steps(optimizer, parts, 1)
    assert not torch.equal(parts[1][2], late)


def test_parameter_without_a_gradient_keeps_its_value_and_gets_no_state(build):
    parts = parameters()
    optimizer = build(*parts)
    for step in range(4):
        give_gradients(parts, step)
        parts[0][1].grad = parts[1][0].grad = None
        if step == 0:
            first = [parts[0][1].detach().clone(), parts[1][0].detach().clone()]
        optimizer.step()
    assert same([parts[0][1], parts[1][0]], first)
    assert not optimizer.state.get(parts[0][1])


def test_parameter_that_misses_some_steps_catches_up_with_its_own_count(build):
    parts = parameters(([(6, 9), (6, 9)], [(4,), (4,)]))
    alone = parameters(([(6, 9), (6, 9)], [(4,), (4,)]))
    optimizer, other = build(*parts), build([alone[0][1]], [alone[1][1]])
    for step in range(8):
        give_gradients(parts, step)
        if step % 2:
            parts[0][1].grad = parts[1][1].grad = None
        else:
            for k in range(2):
                alone[k][1].grad = parts[k][1].grad.clone()
            other.step()
        optimizer.step()
    assert torch.allclose(parts[0][1], alone[0][1], atol=1e-5)
    assert torch.allclose(parts[1][1], alone[1][1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_gradients_make_no_nan(build, dtype):
    parts = parameters(dtype=dtype)
    optimizer = build(*parts)
    for _ in range(4):
        for parameter in (*parts[0], *parts[1]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    steps(optimizer, parts, 3)
    assert all(parameter.isfinite().all() for part in parts for parameter in part)
    assert all(tensor.isfinite().all() for tensor in state_tensors(optimizer))


def test_empty_tensors_are_left_alone(build):
    parts = parameters(([(6, 9)], [(0,), (0, 4), (3,)]))
    steps(build(*parts), parts, 2)
    assert parts[1][2].isfinite().all()


def test_sparse_gradient_is_refused_with_the_parameters_name():
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = LionOptimizer([("table", embedding.weight)])
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of 'table' of shape \(10, 4\) is sparse"):
        optimizer.step()


# -- the fast form and the readable one ----------------------------------------------------------------------------
def test_foreach_form_gives_what_the_readable_one_gives(build):
    fast, readable = parameters(), parameters()
    expected = steps(build(*readable, foreach=False), readable, 8)
    found = steps(build(*fast, foreach=True), fast, 8)
    # The 80 x 90 matrix at index 4: bfloat16 Newton-Schulz differs by its rounding, everything else by that of fp32.
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=5e-3 if build is muon else 2e-5)


@given(
    shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=6),
    name=st.sampled_from(["galore", "galore-8bit", "galore-per-layer", "lion"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_foreach_form_agrees_for_any_mix_of_shapes(shapes, name, dtype):
    fast, readable = parameters((shapes, [(5,)]), dtype), parameters((shapes, [(5,)]), dtype)
    expected = steps(BUILDERS[name](*readable, foreach=False), readable, 4)
    found = steps(BUILDERS[name](*fast), fast, 4)
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=2e-5 if dtype == torch.float32 else 5e-2)


def test_result_does_not_depend_on_how_tensors_are_cut_into_pieces(build, monkeypatch):
    whole, divided = parameters(), parameters()
    expected = steps(build(*whole), whole, 5)
    monkeypatch.setattr(_base, "piece_elements", lambda _: 100)
    for left, right in zip(steps(build(*divided), divided, 5), expected, strict=True):
        assert torch.allclose(left, right, atol=2e-5)


def test_pieces_keep_the_order_and_the_limit(monkeypatch):
    monkeypatch.setattr(_base, "piece_elements", lambda _: 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 25, 3, 3, 3)]
    found = list(pieces(tensors))
    assert [tensor for piece in found for tensor in piece] == tensors
    assert [[tensor.numel() for tensor in piece] for piece in found] == [[4, 6], [1], [25], [3, 3, 3]]
    assert bucketed("abcab", lambda letter: letter) == [["a", "a"], ["b", "b"], ["c"]]


def test_cut_yields_every_element_once_in_pieces_of_at_most_the_limit(monkeypatch):
    monkeypatch.setattr(_base, "piece_elements", lambda _: 10)
    sizes = [(4,), (6,), (5, 5), (3,), (3, 3)]
    one, other = ([torch.zeros(size) for size in sizes] for _ in range(2))
    for number, (left, right) in enumerate(cut(one, other), start=1):
        assert sum(tensor.numel() for tensor in left) <= 10
        assert [tensor.numel() for tensor in left] == [tensor.numel() for tensor in right]
        torch._foreach_add_([*left, *right], float(number))
    numbers = [tensor.flatten().tolist() for tensor in one]
    assert numbers == [[1.0] * 4, [1.0] * 6, [2.0] * 10 + [3.0] * 10 + [4.0] * 5, [4.0] * 3, [5.0] * 9]
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_cut_leaves_tensors_whole_whose_layouts_differ(monkeypatch):
    monkeypatch.setattr(_base, "piece_elements", lambda _: 10)
    one, other = torch.zeros(5, 6), torch.zeros(6, 5).T
    ((left, right),) = cut([one], [other])
    assert left == [one]
    assert right == [other]
    assert list(cut([], [])) == []


# -- saving and loading --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_ends_in_the_same_bits(build, dtype):
    parts = parameters(dtype=dtype)
    optimizer = build(*parts)
    steps(optimizer, parts, 5)
    file = io.BytesIO()
    torch.save({"weights": parts, "optimizer": optimizer.state_dict()}, file)
    expected = steps(optimizer, parts, 5, first=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = saved["weights"]
    fresh = build(*resumed)
    fresh.load_state_dict(saved["optimizer"])
    assert same(steps(fresh, resumed, 5, first=5), expected)
    assert same(state_tensors(fresh), state_tensors(optimizer))


def test_state_keeps_its_dtypes_where_torch_would_cast_them():
    parts = parameters(dtype=torch.bfloat16)
    optimizer, fresh = (galore(GaLoreAdamW8bit)(*parts) for _ in range(2))
    steps(optimizer, parts, 1)
    fresh.load_state_dict(optimizer.state_dict())
    dtypes = [tensor.dtype for tensor in state_tensors(fresh)]
    assert dtypes == [tensor.dtype for tensor in state_tensors(optimizer)]
    assert {torch.uint8, torch.float32, torch.bfloat16} == set(dtypes)
    assert all(isinstance(state["step"], int) for state in fresh.state.values())


def test_loaded_state_is_a_copy(build):
    parts = parameters()
    optimizer, fresh = build(*parts), build(*parts)
    steps(optimizer, parts, 1)
    fresh.load_state_dict(optimizer.state_dict())
    before = [tensor.clone() for tensor in state_tensors(optimizer)]
    steps(fresh, parts, 1)
    assert same(state_tensors(optimizer), before)


def test_hooks_around_loading_see_what_they_would_see_in_torch(build):
    parts = parameters()
    optimizer, fresh = build(*parts), build(*parts)
    steps(optimizer, parts, 1)
    seen = []
    fresh.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(len(loaded["state"])))
    fresh.register_load_state_dict_post_hook(lambda loaded: seen.append(len(loaded.state)))
    fresh.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert seen == [9, 9, 9, 9]


def test_state_of_other_groups_is_refused_and_nothing_is_left_behind(build):
    parts = parameters()
    optimizer, fresh = build(*parts), build(parts[0][:2], parts[1])
    steps(optimizer, parts, 1)
    with pytest.raises(ValueError, match="doesn't match the size"):
        fresh.load_state_dict(optimizer.state_dict())
    assert not fresh.state
    steps(fresh, parts, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])  # noqa: S301
def test_copied_optimizer_goes_on_like_the_original(build, copied):
    parts = parameters()
    optimizer = build(*parts)
    steps(optimizer, parts, 4)
    other = copied(optimizer)
    others = [group["params"] for group in other.param_groups]
    assert same(steps(other, others, 4, first=4), steps(optimizer, parts, 4, first=4))


# -- memory --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_on_the_meta_device_has_the_size_of_a_real_one(build, dtype):
    real, meta = parameters(dtype=dtype), parameters(dtype=dtype, device="meta")
    first, second = build(*real), build(*meta)
    steps(first, real, 1)
    for parameter in (*meta[0], *meta[1]):
        parameter.grad = torch.empty_like(parameter)
    second.step()
    assert all(tensor.device.type == "meta" for tensor in state_tensors(second))
    sizes = [[t.numel() * t.element_size() for t in state_tensors(optimizer)] for optimizer in (first, second)]
    assert sizes[0] == sizes[1]


# -- listing -------------------------------------------------------------------------------------------------------
def test_every_entry_names_its_class_and_its_class_names_itself():
    registry = Registry()
    folders = (optimizers, baselines, schedules)
    entries = [entry for folder in folders for entry in folder.bench_algorithms()]
    found = [f"{folder.__name__}.{file.name}" for folder in folders for file in pkgutil.iter_modules(folder.__path__)]
    public = [module for module in found if not module.rpartition(".")[2].startswith("_")]
    assert sorted(entry.target.partition(":")[0] for entry in entries) == sorted(public), "a module nobody can reach"
    for entry in entries:
        cls = registry.algorithm_class(entry.name)
        assert cls.name == entry.name
        assert cls() == registry.algorithm(entry.name)


def test_listing_the_plugins_imports_no_torch():
    code = (
        "import sys; from bench.plugins import optimizers, baselines, schedules\n"
        "for module in (optimizers, baselines, schedules): assert module.bench_algorithms()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("name", ["galore", "galore_8bit", "galore_per_layer", "lion", "muon"])
def test_examples_in_the_documentation_run(name):
    results = doctest.testmod(importlib.import_module(f"bench.plugins.optimizers.{name}"))
    assert results.attempted >= 3
    assert results.failed == 0


# -- other frameworks ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_hugging_face_trainer_takes_it(build, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="needs the package transformers")
        pytest.importorskip("accelerate", reason="needs the package accelerate")

        class Regression(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden, self.out = nn.Linear(6, 9), nn.Linear(9, 1)

            def forward(self, x, labels=None):
                predicted = self.out(self.hidden(x).tanh()).squeeze(-1)
                return {"loss": (predicted - labels).square().mean(), "logits": predicted}

        torch.manual_seed(0)
        model = Regression()
        before = model.hidden.weight.detach().clone()
        data = [{"x": torch.randn(6), "labels": torch.tensor(1.0)} for _ in range(16)]
        optimizer = build([model.hidden.weight], [model.hidden.bias, *model.out.parameters()])
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=3,
            report_to=[],
            max_grad_norm=0.0,
            save_strategy="steps",
            save_steps=2,
            use_cpu=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler))
        assert trainer.train().global_step == 3
    assert not torch.equal(model.hidden.weight, before)
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()


def test_basis_is_kept_by_a_pickled_optimizer():
    parts = parameters()
    optimizer = pickle.loads(pickle.dumps(galore(GaLoreAdamW, basis=svd_basis)(*parts)))  # noqa: S301 - our own bytes
    assert optimizer.basis is svd_basis
    assert galore(GaLoreAdamW)(*parts).basis is gram_basis
