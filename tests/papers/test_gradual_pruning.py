"""Gradual pruning: its curve in closed form, its masks, and torch's one-shot pruning as the package for one refresh.

Parity with the package that implements it, tensorflow-model-optimization, needs TensorFlow, which the environment
for parity does not have; the formula of its PolynomialDecay, with its clipping, stands here instead.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import l1_unstructured

from bench import Role, Run
from bench.checkpoint import read, restore, save
from bench.errors import BadValue, SlotMismatch
from bench.plugins.parameterizations.gradual_pruning import (
    GradualPruner,
    GradualPruning,
    attach_masks,
    largest,
    masked_weights,
    polynomial_sparsity,
    strip_masks,
)

pytestmark = pytest.mark.paper


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    model = nn.Sequential(nn.Linear(9, 14), nn.Tanh(), nn.Linear(14, 5, bias=False), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=seeded(seed))
    attach_masks(model, ["0.weight", "2.weight"])
    return model


def trained(model, optimizer, pruner, steps, watch=lambda _: None):
    x, y = torch.randn(16, 9, generator=seeded(3)), torch.randn(16, 2, generator=seeded(4))
    for step in range(steps):
        pruner(step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        watch(step)


# -- the curve -------------------------------------------------------------------------------------------------------
def test_the_curve_of_the_card_at_0_500_and_1000():
    values = [polynomial_sparsity(step, begin=0, end=1000, initial=0.0, final=0.8) for step in (0, 500, 1000)]
    assert values == pytest.approx([0.0, 0.7, 0.8], abs=1e-12)


@pytest.mark.parametrize("initial", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("power", [1.0, 3.0, 4.0])
def test_the_curve_is_polynomial_decay_on_a_grid_and_clipped_before_and_after_the_window(initial, power):
    begin, end, final = 200, 1200, 0.9
    for step in range(0, 2001, 25):
        inside = min(max(step, begin), end)
        remaining = (end - inside) / (end - begin)
        expected = (initial - final) * remaining**power + final
        found = polynomial_sparsity(step, begin=begin, end=end, initial=initial, final=final, power=power)
        assert found == pytest.approx(expected, abs=1e-12)
    for step in (0, begin):
        assert polynomial_sparsity(step, begin=begin, end=end, initial=initial, final=final) == pytest.approx(initial)
    for step in (end, end + 1, 10 * end):
        assert polynomial_sparsity(step, begin=begin, end=end, initial=initial, final=final) == final


def test_the_curve_is_torch_s_polynomial_decay_of_the_sparsity_that_remains():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=40, power=3.0)
    for step in range(50):
        remaining = scheduler.get_last_lr()[0]
        found = polynomial_sparsity(step, begin=0, end=40, initial=0.0, final=0.8)
        assert found == pytest.approx(0.8 * (1.0 - remaining), abs=1e-12)
        optimizer.step()
        scheduler.step()


# -- one refresh -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 17, 126, 127])
def test_exactly_k_elements_stay_and_they_are_the_largest(count, dtype):
    weight = torch.randn(9, 14, generator=seeded()).to(dtype)
    count = min(count, weight.numel())
    kept = largest(weight, count)
    assert kept.shape == weight.shape
    assert int(kept.sum()) == count
    if count < weight.numel():
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_of_equal_elements_the_first_stay():
    weight = torch.tensor([[1.0, -2.0, 2.0], [2.0, -3.0, 0.5]])
    assert largest(weight, 3).tolist() == [[False, True, True], [False, True, False]]
    assert largest(torch.zeros(2, 3), 2).flatten().tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.8])
def test_a_refresh_takes_what_torch_s_one_shot_pruning_takes(amount):
    linear = nn.Linear(30, 40)
    attached = nn.Sequential(copy.deepcopy(linear))
    attach_masks(attached, ["0.weight"])
    pruner = GradualPruner(attached, begin=0, refreshes=1, interval=1, final_sparsity=amount)
    pruner(0)
    pruner(1)
    l1_unstructured(linear, "weight", amount=amount)
    assert torch.equal(attached[0].weight, linear.weight)


@pytest.mark.parametrize("initial", [0.0, 0.25])
def test_the_number_of_nonzeros_after_each_refresh_is_that_of_the_formula(initial):
    model, begin, refreshes, interval = network(), 3, 4, 5
    pruner = GradualPruner(
        model, begin=begin, refreshes=refreshes, interval=interval, final_sparsity=0.9, initial_sparsity=initial
    )
    counts = {}

    def watch(step):
        counts[step] = [int(model[index].weight.count_nonzero()) for index in (0, 2)]

    trained(model, torch.optim.AdamW(model.parameters(), lr=0.02), pruner, 40, watch)
    end = begin + refreshes * interval
    for step, found in counts.items():
        if step < begin:
            assert found == [126, 70]
            continue
        last = begin + (min(step, end) - begin) // interval * interval
        sparsity = 0.9 + (initial - 0.9) * (1 - (last - begin) / (end - begin)) ** 3
        assert found == [max(round(size * (1 - sparsity)), 1) for size in (126, 70)], step


def test_at_least_one_weight_stays():
    model = nn.Sequential(nn.Linear(2, 3))
    attach_masks(model, ["0.weight"])
    pruner = GradualPruner(model, begin=0, refreshes=1, interval=1, final_sparsity=0.99)
    pruner(0)
    pruner(1)
    assert int(model[0].weight.count_nonzero()) == 1


# -- between refreshes -----------------------------------------------------------------------------------------------
OPTIMIZERS = {
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_zero_to_the_bit_after_every_step_and_never_come_back(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = GradualPruner(model, begin=4, refreshes=3, interval=6, final_sparsity=0.75)
    moved, before = [], [torch.zeros(14, 9, dtype=torch.bool), torch.zeros(5, 14, dtype=torch.bool)]

    def watch(step):
        for index, (parameter, mask) in enumerate(masked_weights(model)):
            assert not model[2 * index].weight[~mask.kept].any()
            assert model[2 * index].weight[mask.kept].all()
            assert not parameter.grad[~mask.kept].any()
            assert not (before[index] & mask.kept).any()
            before[index] = ~mask.kept
            moved.append(bool(parameter[~mask.kept].any()))

    trained(model, optimizer, pruner, 40, watch)
    assert any(moved), "momentum moves the stored values: without the mask the test would be empty"
    assert [int(taken.sum()) for taken in before] == [126 - round(126 * 0.25), 70 - round(70 * 0.25)]


def test_stored_values_are_put_back_to_zero_before_the_next_step():
    model = network()
    pruner = GradualPruner(model, begin=0, refreshes=1, interval=1, final_sparsity=0.5)
    trained(model, OPTIMIZERS["SGD with momentum"](model.parameters()), pruner, 5)
    pruner(5)
    for parameter, mask in masked_weights(model):
        assert not parameter[~mask.kept].any()


def test_a_pruned_network_still_learns():
    model, losses = network(), []
    pruner = GradualPruner(model, begin=5, refreshes=3, interval=5, final_sparsity=0.7)
    x, y = torch.randn(16, 9, generator=seeded(3)), torch.randn(16, 2, generator=seeded(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    trained(model, optimizer, pruner, 120, lambda _: losses.append(float((model(x) - y).square().mean().detach())))
    assert losses[-1] < 0.5 * losses[20]


# -- the plugin ------------------------------------------------------------------------------------------------------
def test_no_sparsity_is_ordinary_training_bit_for_bit(micro):
    workload = micro.workload()
    plain = micro.parts(workload=workload)
    left = micro.train(plain, workload)
    pruned = micro.parts(GradualPruning(final_sparsity=0.0), workload=workload)
    right = micro.train(pruned, workload)
    assert [evaluation.metrics for evaluation in left] == [evaluation.metrics for evaluation in right]
    assert [evaluation.train_loss for evaluation in left] == [evaluation.train_loss for evaluation in right]
    strip_masks(pruned.model)
    assert micro.equal(micro.weights(plain), micro.weights(pruned))


def test_masks_survive_a_checkpoint_and_the_run_ends_in_the_bits_of_an_undisturbed_one(micro, tmp_path):
    workload, path = micro.workload(), Path(tmp_path / "checkpoint.pt")
    algorithm = GradualPruning(final_sparsity=0.75, end=0.9, interval=2)
    whole = micro.parts(algorithm, workload=workload)
    micro.train(whole, workload)
    half = micro.parts(algorithm, workload=workload)
    micro.train(half, workload, stop_at=6)
    save(path, half, {})
    resumed = micro.parts(algorithm, workload=workload)
    restore(read(path), resumed)
    (_, kept), (_, again) = masked_weights(half.model)[0], masked_weights(resumed.model)[0]
    assert torch.equal(kept.kept, again.kept)
    assert 0 < int(kept.kept.sum()) < kept.kept.numel()
    micro.train(resumed, workload, start=6)
    assert micro.equal(micro.weights(resumed), micro.weights(whole))
    assert int(resumed.model.hidden.weight.count_nonzero()) == 10


@pytest.mark.parametrize("optimizer", ["muon", "galore", "lamb", "schedule-free", "sam"])
def test_whatever_the_optimizer_pruned_weights_are_zero_where_the_model_is_evaluated(registry, micro, optimizer):
    workload = micro.workload()
    parts = micro.parts(GradualPruning(final_sparsity=0.75), registry.algorithm(optimizer), workload=workload)
    assert parts.run.roles["hidden.parametrizations.weight.original"] is Role.MLP
    micro.train(parts, workload)
    assert int(parts.model.hidden.weight.count_nonzero()) <= 10


def test_embedding_head_norms_biases_first_and_depthwise_convolutions_stay_dense():
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "pointwise": nn.Conv2d(8, 16, 1),
            "embedding": nn.Embedding(4, 8),
            "norm": nn.LayerNorm(8),
            "up": nn.Linear(8, 16),
            "head": nn.Linear(16, 4),
        }
    )
    roles = dict.fromkeys((name for name, _ in model.named_parameters()), Role.BIAS) | {
        "stem.weight": Role.OTHER,
        "depthwise.weight": Role.CONV,
        "pointwise.weight": Role.CONV,
        "embedding.weight": Role.EMBEDDING,
        "norm.weight": Role.NORM,
        "up.weight": Role.MLP,
        "head.weight": Role.CLASSIFIER,
    }
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    GradualPruning().adapt(model, Run(seed=0, steps=10, roles=roles))
    assert {parameters[id(weight)] for weight, _ in masked_weights(model)} == {"pointwise.weight", "up.weight"}
    assert set(map(id, model.parameters())) == set(parameters), "the parameters are the same objects"


def test_a_model_without_hidden_matrices_is_a_slot_mismatch():
    model = nn.Linear(3, 2)
    run = Run(seed=0, steps=1, roles={"weight": Role.CLASSIFIER, "bias": Role.BIAS})
    with pytest.raises(SlotMismatch, match="to prune"):
        GradualPruning().adapt(model, run)


@pytest.mark.parametrize(
    ("settings", "steps", "window"),
    [
        ({}, 300, (30, 180, 10)),
        ({}, 10_000, (1000, 6000, 100)),
        ({"interval": 40}, 300, (30, 150, 40)),
        ({"start": 0.0, "end": 1.0, "interval": 1}, 5, (0, 5, 1)),
        ({}, 1, (0, 1, 1)),
    ],
)
def test_the_window_is_a_part_of_the_run_and_ends_with_a_refresh(settings, steps, window):
    pruner = GradualPruning(**settings).freezer(network(), Run(seed=0, steps=steps))
    assert (pruner.begin, pruner.end, pruner.interval) == window
    assert (pruner.end - pruner.begin) % pruner.interval == 0
    assert pruner.sparsity(pruner.end) == 0.8


@pytest.mark.parametrize(
    "wrong",
    [
        {"final_sparsity": 1.0},
        {"final_sparsity": 0.3, "initial_sparsity": 0.4},
        {"start": 0.5, "end": 0.5},
        {"interval": 0},
        {"power": 0.0},
    ],
)
def test_values_outside_their_domains_and_windows_that_end_before_they_begin_are_refused(wrong):
    with pytest.raises(BadValue):
        GradualPruning(**wrong)


def test_an_interval_longer_than_the_window_is_refused_with_what_is_allowed():
    with pytest.raises(BadValue, match="window of 150 steps") as raised:
        GradualPruning(interval=151).freezer(network(), Run(seed=0, steps=300))
    assert "<= 150" in raised.value.hint


@pytest.mark.parametrize("wrong", [{"begin": -1}, {"refreshes": 0}, {"interval": 0}, {"final_sparsity": -0.1}])
def test_outside_the_suite_bad_settings_are_refused_as_well(wrong):
    with pytest.raises(BadValue):
        GradualPruner(network(), **({"begin": 0, "refreshes": 1, "interval": 1, "final_sparsity": 0.5} | wrong))


# -- export ----------------------------------------------------------------------------------------------------------
def test_stripping_gives_a_plain_network_of_the_same_outputs_with_zeros_stored(tmp_path):
    model = network()
    pruner = GradualPruner(model, begin=0, refreshes=2, interval=2, final_sparsity=0.8)
    optimizer = OPTIMIZERS["SGD with momentum"](model.parameters())
    trained(model, optimizer, pruner, 9)
    x = torch.randn(4, 9, generator=seeded(8))
    expected = model(x)
    plain = strip_masks(copy.deepcopy(model))
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert parametrize.is_parametrized(model[0]), "the copy was stripped, not the model"
    assert torch.equal(plain(x), expected)
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "2.weight", "4.weight", "4.bias"}
    assert [int(plain[index].weight.count_nonzero()) for index in (0, 2)] == [25, 14]
    torch.save(plain, tmp_path / "plain.pt")
    assert torch.equal(torch.load(tmp_path / "plain.pt", weights_only=False)(x), expected)


def test_other_tensors_of_any_module_can_be_masked_too():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
    attach_masks(model, ["0.in_proj_weight"])
    pruner = GradualPruner(model, begin=0, refreshes=1, interval=1, final_sparsity=0.5)
    pruner(0)
    pruner(1)
    assert int(model[0].in_proj_weight.count_nonzero()) == 96
    x = torch.randn(1, 3, 8, generator=seeded())
    assert model[0](x, x, x)[0].shape == (1, 3, 8)
