"""What the merging plugins share: which tensors are merged, means, and memory that does not grow with the models."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import Experts, Registry, Role, Run
from bench.algorithm import slots
from bench.errors import BadValue, SlotMismatch
from bench.plugins.merging._vectors import (
    Mean,
    buffers_of,
    heads_of,
    moved,
    norm,
    start_of,
    task_vector,
    visit,
    weights_of,
    with_values,
)

REGISTRY = Registry()
MERGERS = [name for name in sorted(REGISTRY.algorithms) if "merge" in slots(REGISTRY.algorithm_class(name))]
WIDTH = 48


class Net(nn.Module):
    """Two layers, of which the first is used twice, a batch norm, and a head."""

    def __init__(self, seed=0, width=WIDTH):
        torch.manual_seed(seed)
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.again = self.first
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)
        self.norm.running_mean.normal_()
        self.norm.num_batches_tracked.fill_(seed)

    def forward(self, inputs):
        hidden = self.norm(torch.tanh(self.first(inputs)))
        return self.head(torch.tanh(self.second(torch.tanh(self.again(hidden)))))


HEADS = {"head.weight", "head.bias"}
ROLES = {name: Role.CLASSIFIER if name in HEADS else Role.OTHER for name, _ in Net().named_parameters()}
AXES = {"second.weight": ("units", None), "second.bias": ("units",)}  # a group that no other layer reads: only counted


def a_run(name, count):
    return Run(seed=0, steps=1, roles=ROLES, axes=AXES, algorithm=name)


# -- which tensors ---------------------------------------------------------------------------------------------------
def test_heads_are_the_parameters_of_the_role_classifier():
    assert heads_of(a_run("average", 1)) == HEADS


def test_weights_are_parameters_once_each_though_tied_and_without_heads():
    model = Net()
    names = {"first.weight", "first.bias", "second.weight", "second.bias", "norm.weight", "norm.bias"}
    assert weights_of(model, HEADS).keys() == names
    assert weights_of(model).keys() == names | HEADS
    assert not any(value.requires_grad for value in weights_of(model).values())


def test_buffers_are_the_floating_point_ones():
    assert buffers_of(Net()).keys() == {"norm.running_mean", "norm.running_var"}


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_in_fp32_or_wider(dtype, wide):
    assert {value.dtype for value in weights_of(Net().to(dtype)).values()} == {wide}


def test_values_are_put_into_a_copy_which_keeps_ties_dtypes_and_integers():
    model = Net(seed=7).bfloat16()
    before = copy.deepcopy(model.state_dict())
    values = {name: torch.full_like(value, 0.5) for name, value in weights_of(model, HEADS).items()}
    result = with_values(model, values, {"norm.running_mean": torch.full((WIDTH,), 0.25)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.again is result.first
    assert result.again.weight is result.first.weight
    assert {value.dtype for value in result.parameters()} == {torch.bfloat16}
    assert result.first.weight.eq(0.5).all()
    assert result.norm.running_mean.eq(0.25).all()
    assert torch.equal(result.norm.running_var, model.norm.running_var)
    assert int(result.norm.num_batches_tracked) == 7
    assert torch.equal(result.head.weight, model.head.weight)
    assert all(value.requires_grad for value in result.parameters())


# -- sums ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_running_mean_is_the_mean_and_of_equal_values_that_value_to_the_bit(count):
    values = [torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    mean, same = Mean(), Mean()
    for value in values:
        mean.add({"x": value})
        same.add({"x": values[0]})
    torch.testing.assert_close(mean.values["x"], torch.stack(values).mean(dim=0), rtol=0, atol=3e-7)
    assert torch.equal(same.values["x"], values[0])


def test_a_running_mean_leaves_what_it_is_given():
    value = torch.ones(3)
    mean = Mean()
    mean.add({"x": value})
    mean.add({"x": torch.zeros(3)})
    assert value.eq(1).all()


def test_a_task_vector_leads_from_the_start_to_the_model():
    start, model = weights_of(Net(0), HEADS), Net(1)
    vector = task_vector(model, start, HEADS)
    for name, value in weights_of(model, HEADS).items():
        torch.testing.assert_close(moved(start, vector)[name], value, rtol=0, atol=1e-7)
        torch.testing.assert_close(moved(start, vector, 0.5)[name], (start[name] + value) / 2, rtol=0, atol=1e-7)


def test_the_norm_is_over_all_values_together():
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0
    assert norm({}) == 0.0


# -- one pass --------------------------------------------------------------------------------------------------------
def test_a_pass_takes_each_model_in_order_and_returns_the_mean_of_the_buffers():
    models, seen = [Net(seed) for seed in range(3)], []
    buffers = visit(models, lambda index, model: seen.append((index, model)))
    assert seen == list(enumerate(models))
    torch.testing.assert_close(buffers["norm.running_mean"], torch.stack([m.norm.running_mean for m in models]).mean(0))


def test_no_model_and_other_architectures_are_refused():
    with pytest.raises(BadValue, match="there is no model to merge"):
        visit([], lambda *_: None)
    with pytest.raises(BadValue, match=r"model 1 has other parameters: 'first\.bias' is \(5,\), elsewhere \(48,\)"):
        visit([Net(), Net(width=5)], lambda *_: None)
    with pytest.raises(BadValue, match="model 0 has other parameters"):
        visit([Net()], lambda *_: None, like=Net(width=5))


def test_methods_that_need_a_start_refuse_models_without_one():
    with pytest.raises(SlotMismatch, match="ties adds up what training changed, and these models share no start"):
        start_of(Experts(2, Net), "ties")
    assert isinstance(start_of(Experts(2, Net, Net), "ties"), Net)


# -- memory ----------------------------------------------------------------------------------------------------------
class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


class Counted:
    """Builds experts and counts how many of them are alive at once."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def build(self, index):
        self.most = max(self.most, len(self.alive) + 1)
        model = Net(seed=index + 1).eval()
        self.alive.add(model)
        return model


def measure(name, count):
    """Return the bytes at the peak of a merge of ``count`` experts, and how many of them were alive at once."""
    counted = Counted()
    calibration = [[{"inputs": torch.randn(4, WIDTH)}]] * count
    experts = Experts(count, counted.build, lambda: Net().eval())
    with LiveBytes() as bytes_:
        result = REGISTRY.algorithm(name).merge(experts, calibration, a_run(name, count))
    assert isinstance(result, Net)
    return bytes_.peak, counted.most


@pytest.mark.parametrize("name", MERGERS)
def test_memory_and_models_alive_do_not_grow_with_the_number_of_models(name):
    peaks = {count: measure(name, count) for count in (2, 4, 8, 16)}
    assert {most for _, most in peaks.values()} == {1}
    orders = 16 * WIDTH * 8  # weight matching keeps the order of the units of each model, int64
    allowed = orders if name == "weight-matching" else 0
    assert max(peak for peak, _ in peaks.values()) <= peaks[2][0] + allowed
