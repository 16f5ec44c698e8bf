"""The workload merge-permuted-digits: its networks and permutations, what is measured, and networks of one's own."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import ClassVar

import pytest
import torch

from bench import DataRequest, Point, Run
from bench.clock import Clock
from bench.errors import BadData, BadValue
from bench.post import Post
from bench.roles import Role, assign_roles
from bench.workloads.merge_permuted_digits import TINY, TINY_6, DigitsNet, MergePermutedDigits, Training

CPU = torch.device("cpu")
SMALL = replace(TINY, points=(Point(count=2), Point(count=3)), training=Training(width=16, steps=60, lr=1e-2))


class Small(MergePermutedDigits):
    tiers: ClassVar = {"tiny": SMALL}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Small("tiny")


def mean_of(networks):
    states = [network.state_dict() for network in networks]
    merged = networks[0]
    merged.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return merged


def equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def renumbered(state, axes, orders):
    found = {}
    for name, value in state.items():
        for axis, permutation in enumerate(axes[name]):
            value = value if permutation is None else value.index_select(axis, orders[permutation])  # noqa: PLW2901
        found[name] = value
    return found


# -- facts -------------------------------------------------------------------------------------------------------------
def test_the_tiers_are_the_pages_pairs_and_six_networks():
    assert [point.count for point in TINY.points] == [2]
    assert [point.count for point in TINY_6.points] == [2, 3, 6]
    assert TINY.training == TINY_6.training == Training()
    assert (TINY.target.value, TINY_6.target.value) == (0.955, 0.94)


def test_it_offers_permutations_and_no_common_start(small):
    assert small.offers == {"axes"}
    assert small.experts(0, CPU, 2).pretrained is None


def test_each_parameter_has_one_role_and_none_is_a_head_that_would_not_be_merged():
    model = MergePermutedDigits("tiny").model(0, torch.device("meta"))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    roles = assign_roles(shapes, MergePermutedDigits.roles)
    assert Role.CLASSIFIER not in roles.values()
    assert [shapes[name] for name, role in roles.items() if role is Role.MLP] == [(128, 64), (128, 128), (128, 128)]
    assert shapes["layers.6.weight"] == (10, 128)


def test_tokenizers_are_refused():
    with pytest.raises(BadValue, match="tokenizer"):
        MergePermutedDigits("tiny", DataRequest(tokenizer="t5"))


def test_the_digits_are_divided_once_and_for_all(small):
    training, test = small._splits
    assert (len(training), len(test)) == (1200, 597)
    rows = {tuple(row) for part in (training, test) for row in part.inputs.tolist()}
    assert len(rows) == 1797  # no digit is in both
    assert 0 == min(map(min, rows)) < max(map(max, rows)) == 1
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(Small("tiny")._splits, (training, test), strict=True))
    assert torch.bincount(test.labels).min() > 40


# -- permutations ------------------------------------------------------------------------------------------------------
def test_the_axes_name_every_parameter_and_renumbering_along_them_changes_nothing(small):
    model = small.experts(0, CPU, 1)[0]
    state, inputs = model.state_dict(), small._splits[1].inputs
    assert {name: len(axes) for name, axes in small.axes.items()} == {name: v.ndim for name, v in state.items()}
    orders = {name: torch.randperm(16) for axes in small.axes.values() for name in axes if name is not None}
    assert sorted(orders) == ["hidden1", "hidden2", "hidden3"]
    other = DigitsNet(16)
    other.load_state_dict(renumbered(state, small.axes, orders))
    assert not equal(other, model)
    torch.testing.assert_close(other(inputs), model(inputs), atol=1e-5, rtol=0)


def test_an_axis_that_were_forgotten_would_change_what_a_network_computes(small):
    model = small.experts(0, CPU, 1)[0]
    inputs = small._splits[1].inputs
    orders = {f"hidden{layer}": torch.arange(16).roll(1) for layer in (1, 2, 3)}
    for name, axes in small.axes.items():
        for axis in (axis for axis, permutation in enumerate(axes) if permutation is not None):
            forgetful = dict(small.axes) | {name: tuple(None if k == axis else p for k, p in enumerate(axes))}
            other = DigitsNet(16)
            other.load_state_dict(renumbered(model.state_dict(), forgetful, orders))
            assert (other(inputs) - model(inputs)).abs().max() > 1e-3, name


# -- networks ----------------------------------------------------------------------------------------------------------
def test_networks_come_from_starts_of_their_own_and_neighbouring_seeds_share_one(small):
    first, second = small.experts(0, CPU, 2)
    assert not equal(first, second)
    assert equal(second, small.experts(1, CPU, 1)[0])
    assert equal(first, small.experts(0, CPU, 2)[0])
    assert not equal(small.model(0, CPU), small.model(1, CPU))


def test_networks_are_trained_once_and_known_by_their_hash(small, monkeypatch):
    before, base = small.experts(0, CPU, 3)[2], small.base_sha256(0)
    monkeypatch.setattr(Small, "_train", lambda *_: pytest.fail("trained"))
    again = Small("tiny")
    assert equal(again.experts(0, CPU, 3)[2], before)
    assert again.base_sha256(0) == base != small.data().sha256


def test_calibration_is_training_digits_and_the_same_for_all(small):
    found = small.calibration(0, CPU, 3)
    assert len(found) == 3
    inputs = torch.cat([batch["inputs"] for batch in found[2]])
    assert torch.equal(inputs, small._splits[0].inputs[:512])
    assert torch.equal(torch.cat([batch["labels"] for batch in found[0]]), small._splits[0].labels[:512])


def test_the_loss_is_the_cross_entropy_and_honours_weights(small):
    model, batch = small.experts(0, CPU, 1)[0], small.calibration(0, CPU, 1)[0][0]
    each = -model(batch["inputs"]).log_softmax(1)[torch.arange(32), batch["labels"]]
    torch.testing.assert_close(small.loss(model, batch), each.mean())
    weights = torch.arange(32.0)
    torch.testing.assert_close(small.loss(model, {**batch, "weights": weights}), (weights * each).sum() / weights.sum())


# -- what is measured --------------------------------------------------------------------------------------------------
def test_a_network_alone_has_no_barrier_and_its_own_accuracy(small):
    found = small.examine(small.experts(0, CPU, 1)[0], Point(count=1), [], CPU, 0)
    assert found["barrier"] == found["training_barrier"] == 0
    assert found["accuracy"] == found["endpoint_accuracy"] > 0.5


def test_the_barrier_is_what_merging_costs_over_the_networks_own_losses(small):
    networks = small.experts(0, CPU, 2)
    merged = mean_of(networks)
    found = small.examine(merged, Point(count=2), [], CPU, 0)
    for examples, name in zip(small._splits, ("training_barrier", "barrier"), strict=True):
        batch = {"inputs": examples.inputs, "labels": examples.labels}
        losses = [float(small.loss(network, batch).detach()) for network in (merged, *networks)]
        assert found[name] == pytest.approx(losses[0] - fmean(losses[1:]), rel=1e-5)
    right = merged(small._splits[1].inputs).argmax(1) == small._splits[1].labels
    assert found["accuracy"] == pytest.approx(float(right.double().mean()))


def test_the_framework_merges_at_every_point(small, registry):
    seen = []
    run = Run(seed=0, steps=2, device=CPU)
    Post([registry.algorithm("average")], small, run, Clock(CPU)).work(lambda evaluation: bool(seen.append(evaluation)))
    assert [evaluation.metrics["models"] for evaluation in seen] == [2, 3]
    expected = small.examine(mean_of(small.experts(0, CPU, 3)), Point(count=3), [], CPU, 0)
    assert seen[-1].metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)


# -- networks of one's own ---------------------------------------------------------------------------------------------
@pytest.fixture
def exported(tmp_path):
    """A folder with three untrained networks of another width; number 10 comes last."""
    torch.manual_seed(0)
    for number in (2, 1, 10):
        torch.save(DigitsNet(24).state_dict(), tmp_path / f"net-{number}.pt")
    return tmp_path


def given(*paths):
    return Small("tiny", DataRequest(models=paths))


def test_networks_of_another_width_are_merged_in_numerical_order(exported):
    workload = given(exported)
    assert [file.name for file in workload.files] == ["net-1.pt", "net-2.pt", "net-10.pt"]
    assert [point.count for point in workload.points] == [3]
    assert workload.target is None
    networks = workload.experts(0, CPU, 3)
    last = torch.load(exported / "net-10.pt", weights_only=True)
    assert torch.equal(networks[2].layers[2].weight, last["layers.2.weight"])
    assert workload.model(0, CPU).layers[0].weight.shape == (24, 64)
    found = workload.examine(mean_of(networks), Point(count=3), [], CPU, 0)
    assert 0 <= found["accuracy"] <= 1
    assert workload.data().sha256 != given(exported / "net-1.pt", exported / "net-2.pt").data().sha256
    assert workload.base_sha256(0) == workload.base_sha256(1)


def test_a_single_network_is_refused_when_the_workload_is_opened(exported):
    with pytest.raises(BadData, match="names one model") as caught:
        given(exported / "net-1.pt")
    assert "two or more" in caught.value.hint


def test_networks_of_different_shapes_are_one_clear_error(exported):
    torch.save(DigitsNet(25).state_dict(), exported / "net-2.pt")
    with pytest.raises(BadData, match=r"net-2.pt does not fit.*layers.0.weight is \(25, 64\), but must be \(24, 64\)"):
        given(exported).experts(0, CPU, 3)
    torch.save({"weight": torch.zeros(3)}, exported / "net-1.pt")
    with pytest.raises(BadData, match=r"net-1.pt has no matrix 'layers.0.weight'"):
        given(exported).experts(0, CPU, 3)


# -- the whole thing ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_full_recipe_gives_networks_that_are_good_alone_and_bad_on_average(artifact_cache):
    workload = MergePermutedDigits("tiny")
    found = workload.examine(mean_of(workload.experts(0, CPU, 2)), Point(count=2), [], CPU, 0)
    assert found["endpoint_accuracy"] == pytest.approx(0.974, abs=0.01)
    assert 0.4 < found["barrier"] < 2.5
    assert found["accuracy"] < 0.85
