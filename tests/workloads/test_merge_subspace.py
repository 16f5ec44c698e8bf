"""The workload merge-subspace: its experts and their cache, what is measured, and models of one's own.

Most tests use tasks and networks so small that training takes a fraction of a second.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from statistics import fmean
from typing import ClassVar

import pytest
import torch
from torch import nn

import bench
from bench import DataRequest, Experts, Point, Run
from bench.artifacts import cache_folder
from bench.clock import Clock
from bench.errors import BadData, BadValue, SlotFault, UnknownName
from bench.post import Post
from bench.roles import Role, assign_roles
from bench.workloads._merge_experts import TrainedExperts, Training
from bench.workloads._subspace_tasks import Generator
from bench.workloads.merge_subspace import TINY, TINY_16, MergeSubspace

CPU = torch.device("cpu")
TASKS = Generator(
    tasks=3, inputs=40, shared=4, own=8, centres=1, spread=1.5, pretraining=30, training=300, test=200, validation=100
)
SMALL = replace(
    TINY,
    points=(Point(count=2), Point(count=3)),
    generator=TASKS,
    training=Training(width=32, features=16, pretraining_steps=60, steps=60),
)


class Small(MergeSubspace):
    tiers: ClassVar = {
        "tiny": SMALL,
        "longer": replace(SMALL, training=replace(SMALL.training, steps=61)),
        "many": replace(SMALL, generator=replace(TASKS, training=600)),
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def small(cache):
    return Small("tiny")


def mean_of(experts):
    """The plain average, with the head of the first."""
    states = [expert.state_dict() for expert in experts]
    merged = experts[0]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    merged.load_state_dict(mean | {name: value for name, value in states[0].items() if name.startswith("head")})
    return merged


def equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def share_right(backbone, head, examples):
    with torch.no_grad():
        return float((head(backbone(examples.inputs)).argmax(1) == examples.labels).float().mean())


# -- facts -------------------------------------------------------------------------------------------------------------
def test_the_tiers_are_the_pages_and_the_last_point_merges_all_tasks():
    assert [point.count for point in TINY.points] == [2, 4, 8]
    assert [point.count for point in TINY_16.points] == [2, 4, 8, 16]
    assert TINY.generator == Generator()
    assert TINY.training == Training()
    assert (TINY.generator.tasks, TINY_16.generator.tasks) == (8, 16)
    assert TINY.reference == {"average": {}}
    assert MergeSubspace("tiny").target == TINY.target is not None


def test_each_parameter_has_one_role_and_a_head_is_of_one_task_alone():
    model = MergeSubspace("tiny").model(0, torch.device("meta"))
    roles = assign_roles(dict(model.named_parameters()), MergeSubspace.roles)
    assert {name for name, role in roles.items() if role is Role.CLASSIFIER} == {"head.weight", "head.bias"}
    assert [tuple(p.shape) for name, p in model.named_parameters() if roles[name] is Role.MLP] == [
        (256, 256),
        (256, 256),
        (64, 256),
    ]
    assert sum(role is Role.BIAS for role in roles.values()) == 3
    assert model.head.weight.shape == (10, 64)


def test_it_offers_a_common_start_and_no_permutations():
    assert MergeSubspace("tiny").offers == {"pretrained"}


def test_other_data_and_tokenizers_are_refused():
    with pytest.raises(BadValue, match="tokenizer"):
        MergeSubspace("tiny", DataRequest(tokenizer="t5"))
    with pytest.raises(UnknownName, match="data source"):
        MergeSubspace("tiny", DataRequest(source="c4"))


# -- experts -----------------------------------------------------------------------------------------------------------
def test_an_expert_differs_from_the_common_start_in_its_backbone_alone(small):
    experts = small.experts(0, CPU, 3)
    start = experts.pretrained
    assert equal(start, small.model(0, CPU))
    assert torch.equal(experts[0].head.weight, start.head.weight)
    heads = [expert.head.weight for expert in experts]
    assert not torch.equal(heads[0], heads[1])
    for number, expert in zip(small.order(0), experts, strict=True):
        assert torch.equal(expert.head.weight, small.family(0).pretrained(number).head.weight)
        for left, right in zip(expert.backbone.parameters(), start.backbone.parameters(), strict=True):
            assert not torch.equal(left, right)


def test_fine_tuning_raises_the_accuracy_on_its_own_task(small):
    family = small.family(0)
    for number in range(3):
        start, expert, test = family.pretrained(number), family.expert(number), family.tasks[number].test
        assert share_right(expert.backbone, expert.head, test) > share_right(start.backbone, start.head, test) + 0.05


def test_experts_are_built_anew_at_each_access_and_equal_to_the_bit(small):
    experts = small.experts(0, CPU, 2)
    assert len(experts) == 2
    assert experts[1] is not experts[1]
    assert equal(experts[1], experts[1])
    with torch.no_grad():
        experts[1].head.weight.zero_()
    assert experts[1].head.weight.any()


def test_the_order_is_a_permutation_that_the_seed_decides_and_fewer_experts_are_its_first(small):
    orders = [small.order(seed) for seed in range(20)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert len(set(orders)) == 6
    assert equal(small.experts(0, CPU, 2)[1], small.experts(0, CPU, 3)[1])


def test_each_seed_is_a_problem_of_its_own(small):
    assert not equal(small.model(0, CPU), small.model(1, CPU))
    assert small.base_sha256(0) != small.base_sha256(1)
    assert small.base_sha256(0) == Small("tiny").base_sha256(0)


def test_what_is_in_the_cache_is_not_trained_again_and_another_recipe_is(small, monkeypatch):
    before = small.experts(0, CPU, 3)[2]
    small.family(0).joint()
    monkeypatch.setattr(TrainedExperts, "_train", staticmethod(lambda *_: pytest.fail("trained")))
    assert equal(Small("tiny").experts(0, CPU, 3)[2], before)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        Small("longer").experts(0, CPU, 1)


def test_a_prepared_expert_is_never_trained_on_the_clock_of_a_merging_method(small, monkeypatch):
    experts = small.experts(4, CPU, 2)
    monkeypatch.setattr(TrainedExperts, "_train", staticmethod(lambda *_: pytest.fail("trained")))
    assert len([*experts, experts.pretrained]) == 3


def test_an_experts_file_has_the_second_moments_of_its_optimizer(small):
    small.experts(0, CPU, 1)
    states = [torch.load(path, weights_only=True) for path in (cache_folder() / "merge-subspace").glob("*.pt")]
    moments = [state for state in states if "exp_avg_sq.backbone.0.weight" in state]
    assert moments
    for state in moments:
        for name in (name for name in state if name.startswith("backbone.")):
            second = state[f"exp_avg_sq.{name}"]
            assert second.shape == state[name].shape
            assert bool((second >= 0).all())
            assert second.any()


def test_the_global_generator_is_left_alone(small):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    small.experts(7, CPU, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_over_the_experts_keeps_one_of_them_alive(small):
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most, experts = 0, small.experts(0, CPU, 3)

    def build(index):
        nonlocal most
        expert = experts[index]
        alive.add(expert)
        most = max(most, len(alive))
        return expert

    for expert in Experts(3, build):
        assert isinstance(expert, nn.Module)
        del expert
    assert most == 1


# -- calibration and loss ----------------------------------------------------------------------------------------------
def test_calibration_is_the_training_examples_of_each_task_in_the_order_of_the_experts(small):
    found = small.calibration(0, CPU, 2)
    tasks = small.family(0).tasks
    assert len(found) == 2
    for number, batches in zip(small.order(0), found, strict=False):
        inputs = torch.cat([batch["inputs"] for batch in batches])
        assert torch.equal(inputs, tasks[number].training.inputs)  # 300, fewer than the 512 that are given at most
        assert torch.equal(torch.cat([batch["labels"] for batch in batches]), tasks[number].training.labels)
        assert max(len(batch["labels"]) for batch in batches) == 32
    many = Small("many").calibration(0, CPU, 1)
    assert sum(len(batch["labels"]) for batch in many[0]) == 512


def test_the_loss_is_the_cross_entropy_of_the_models_own_head_and_honours_weights(small):
    model, batch = small.experts(0, CPU, 1)[0], small.calibration(0, CPU, 1)[0][0]
    logits = model(batch["inputs"])
    each = -logits.log_softmax(1)[torch.arange(32), batch["labels"]]
    torch.testing.assert_close(small.loss(model, batch), each.mean())
    weights = torch.arange(32.0)
    torch.testing.assert_close(small.loss(model, {**batch, "weights": weights}), (weights * each).sum() / weights.sum())


# -- what is measured --------------------------------------------------------------------------------------------------
def test_an_expert_alone_is_its_own_bound(small):
    found = small.examine(small.experts(0, CPU, 1)[0], Point(count=1), [], CPU, 0)
    assert found["accuracy"] == found["finetuned_accuracy"] == found["worst_task_accuracy"]
    assert found["normalised_accuracy"] == 1
    assert found["pretrained_accuracy"] < found["joint_accuracy"] < 1


def test_the_metrics_are_those_of_the_page(small):
    merged, family, order = mean_of(small.experts(0, CPU, 3)), small.family(0), small.order(0)
    found = small.examine(merged, Point(count=3), [], CPU, 0)
    heads = {number: family.expert(number).head for number in order}
    test = {number: share_right(merged.backbone, heads[number], family.tasks[number].test) for number in order}
    own = {
        number: share_right(family.expert(number).backbone, heads[number], family.tasks[number].test)
        for number in order
    }
    assert {name: value for name, value in found.items() if name.startswith("accuracy_task_")} == pytest.approx(
        {f"accuracy_task_{number}": test[number] for number in range(3)}
    )
    assert found["accuracy"] == pytest.approx(fmean(test.values()))
    assert found["worst_task_accuracy"] == pytest.approx(min(test.values()))
    assert found["normalised_accuracy"] == pytest.approx(fmean(test[number] / own[number] for number in order))
    assert found["validation_accuracy"] == pytest.approx(
        fmean(share_right(merged.backbone, heads[number], family.tasks[number].validation) for number in order)
    )
    assert "backward_transfer" not in found


def test_the_merged_models_head_does_not_matter_and_the_model_stays_as_it_is(small):
    merged = mean_of(small.experts(0, CPU, 3))
    before = copy.deepcopy(merged)
    first = small.examine(merged, Point(count=3), [], CPU, 0)
    assert equal(merged, before)
    nn.init.zeros_(merged.head.weight)
    assert small.examine(merged, Point(count=3), [], CPU, 0) == first


def test_backward_transfer_compares_with_the_point_where_a_task_was_first_merged(small):
    merged = mean_of(small.experts(0, CPU, 3))
    first, second = small.order(0)[:2]
    history = [{f"accuracy_task_{first}": 0.9}, {f"accuracy_task_{first}": 0.1, f"accuracy_task_{second}": 0.5}]
    found = small.examine(merged, Point(count=3), history, CPU, 0)
    expected = fmean([found[f"accuracy_task_{first}"] - 0.9, found[f"accuracy_task_{second}"] - 0.5])
    assert found["backward_transfer"] == pytest.approx(expected)


def test_a_model_without_a_backbone_is_the_merging_methods_fault(small):
    with pytest.raises(SlotFault, match="Linear without a backbone"):
        small.examine(nn.Linear(2, 2), Point(count=1), [], CPU, 0)


def test_the_framework_merges_at_every_point(small, registry):
    seen = []
    run = Run(seed=0, steps=2, device=CPU)
    Post([registry.algorithm("average")], small, run, Clock(CPU)).work(lambda evaluation: bool(seen.append(evaluation)))
    assert [evaluation.metrics["models"] for evaluation in seen] == [2, 3]
    expected = small.examine(mean_of(small.experts(0, CPU, 3)), Point(count=3), [], CPU, 0)
    assert seen[-1].metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)
    assert "backward_transfer" in seen[-1].metrics


@pytest.mark.slow
def test_a_merged_model_is_the_same_in_a_fresh_process(small, tmp_path):
    merged = mean_of(small.experts(0, CPU, 2))
    inputs = small.family(0).tasks[0].test.inputs[:8]
    torch.save((merged, inputs), tmp_path / "merged.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); "
        "model, inputs = torch.load(sys.argv[1], weights_only=False); print(model(inputs).double().sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "merged.pt"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(float(merged(inputs).detach().double().sum()), abs=1e-5)


# -- models of one's own -----------------------------------------------------------------------------------------------
@pytest.fixture
def exported(small, tmp_path):
    """A folder with the state dicts of the common start and of the experts of tasks 0 and 2."""
    folder = tmp_path / "mine"
    folder.mkdir()
    experts = small.experts(0, CPU, 3)
    torch.save(experts.pretrained.state_dict(), folder / "pretrained.pt")
    for number, expert in zip(small.order(0), experts, strict=True):
        if number != 1:
            torch.save(expert.state_dict(), folder / f"task-{number}.pt")
    return folder


def given(*paths, tier="tiny"):
    return Small(tier, DataRequest(models=paths))


def test_a_folder_of_models_is_merged_at_one_point_and_judged_on_its_tasks(small, exported):
    workload = given(exported)
    assert [point.count for point in workload.points] == [2]
    assert workload.order(0) == (0, 2)
    assert workload.target is None
    merged = mean_of(workload.experts(0, CPU, 2))
    found = workload.examine(merged, Point(count=2), [], CPU, 0)
    family = small.family(0)
    for number in (0, 2):
        expected = share_right(merged.backbone, family.expert(number).head, family.tasks[number].test)
        assert found[f"accuracy_task_{number}"] == pytest.approx(expected)
    assert found["finetuned_accuracy"] > found["pretrained_accuracy"]
    assert "joint_accuracy" not in found


def test_files_are_merged_in_the_order_in_which_they_are_named_and_may_be_safetensors(exported):
    safetensors = pytest.importorskip("safetensors.torch", reason="the kind of file needs the package safetensors")
    state = torch.load(exported / "task-2.pt", weights_only=True)
    safetensors.save_file(state, exported / "task-2.safetensors")
    files = [exported / name for name in ("task-2.safetensors", "pretrained.pt", "task-0.pt")]
    workload = given(*files)
    assert workload.order(0) == (2, 0)
    assert torch.equal(workload.experts(0, CPU, 2)[0].backbone[0].weight, state["backbone.0.weight"])
    same = given(*(exported / name for name in ("task-2.pt", "pretrained.pt", "task-0.pt")))
    assert workload.base_sha256(0) == same.base_sha256(0)  # the kind of file does not matter


def test_other_weights_are_other_data(small, exported):
    before = given(exported).data()
    assert before.sha256 != small.data().sha256
    assert "own" in before.label
    state = torch.load(exported / "task-2.pt", weights_only=True)
    state["backbone.0.bias"][0] += 1
    torch.save(state, exported / "task-2.pt")
    assert given(exported).data().sha256 != before.sha256


def broken(folder, name, value):
    (folder / name).write_bytes(b"nothing of the kind") if value is None else torch.save(value, folder / name)
    return folder


CASES = {
    "missing": (lambda folder: folder / "none", "no such file or folder"),
    "empty": (lambda folder: (folder / "empty").mkdir() or folder / "empty", "has no file .safetensors"),
    "kind": (lambda folder: broken(folder, "task-1.npz", None) / "task-1.npz", "of a kind that is read"),
    "name": (lambda folder: broken(folder, "other.pt", {}), "nothing is known of a model named 'other'"),
    "number": (lambda folder: broken(folder, "task-3.pt", {}), "nothing is known of a model named 'task-3'"),
    "start": (lambda folder: (folder / "pretrained.pt").unlink() or folder, "0 common starts and 2 experts"),
    "twice": (lambda folder: shutil.copy(folder / "task-0.pt", folder / "task-00.pt") and folder, "given twice"),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_files_that_cannot_be_meant_are_refused_when_the_workload_is_opened(exported, change, words):
    with pytest.raises(BadData, match=words):
        given(change(exported))


CONTENTS = {
    "damaged": (None, "cannot be read as a state dict"),
    "no-state": ([1, 2], "holds list, not a state dict"),
    "nested": ({"model": {}}, "holds dict, not a state dict"),
    "empty": ({}, "backbone.0.weight is not there, but must be \\(32, 40\\).*and 5 more"),
}


@pytest.mark.parametrize(("value", "words"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_holds_something_else_is_one_clear_error(exported, value, words):
    broken(exported, "task-2.pt", value)
    with pytest.raises(BadData, match=words):
        given(exported).experts(0, CPU, 2)


def test_another_architecture_is_told_by_its_first_differences(exported):
    state = torch.load(exported / "task-2.pt", weights_only=True)
    state["backbone.2.weight"], state["extra"] = torch.zeros(16, 32), torch.zeros(1)
    torch.save(state, exported / "task-2.pt")
    words = r"backbone.2.weight is \(16, 32\), but must be \(32, 32\); extra is \(1,\), but must be not there"
    with pytest.raises(BadData, match=words):
        given(exported).experts(0, CPU, 2)


def test_models_that_do_not_know_the_tasks_of_the_seed_are_refused(exported):
    with pytest.raises(BadData, match="of seed 5: little more than guessing") as caught:
        given(exported).experts(5, CPU, 2)
    assert "--seed" in caught.value.hint


# -- the whole thing ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_models_of_ones_own_are_merged_by_the_public_interface(cache, tmp_path):
    quick = TrainedExperts(Generator(), Training(pretraining_steps=100, steps=60), 3)
    files = [tmp_path / name for name in ("pretrained.pt", "task-4.pt", "task-1.pt")]
    for file, model in zip(files, [quick.pretrained(), quick.expert(4), quick.expert(1)], strict=True):
        torch.save(model.state_dict(), file)
    results = bench.run(
        "average",
        "merge-subspace",
        model_dirs=files,
        seeds=[3],
        reference=False,
        results=tmp_path / "results",
    )
    [row] = results.trials.to_dict("records")
    assert (row["outcome"], row["tier"]) == ("completed", "tiny")
    merged = mean_of(Experts(2, lambda index: quick.expert([4, 1][index])))
    shares = [share_right(merged.backbone, quick.expert(n).head, quick.tasks[n].test) for n in (4, 1)]
    assert row["quality"] == pytest.approx(fmean(shares), abs=0.002)


@pytest.mark.slow
def test_the_full_recipe_gives_the_bounds_of_the_page(merge_subspace):
    experts = merge_subspace.experts(0, CPU, 8)
    found = merge_subspace.examine(mean_of(experts), Point(count=8), [], CPU, 0)
    assert found["pretrained_accuracy"] == pytest.approx(0.586, abs=0.025)
    assert found["finetuned_accuracy"] == pytest.approx(0.933, abs=0.01)
    assert found["joint_accuracy"] == pytest.approx(0.888, abs=0.01)
    assert found["accuracy"] == pytest.approx(0.665, abs=0.01)
    start = experts.pretrained.backbone
    vectors = torch.stack([flat(expert.backbone) - flat(start) for expert in experts])
    cosines = torch.corrcoef(vectors)[~torch.eye(8, dtype=torch.bool)]
    assert float(cosines.mean()) == pytest.approx(0.06, abs=0.02)


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()
