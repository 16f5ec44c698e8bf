"""Plans: from what a user asked for to the trials that answer it; nothing is trained here."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from bench.errors import BadData, BadValue, SlotMismatch, UnknownName
from bench.plan import make_plan
from bench.request import Request, default_tier, open_workload, stacks
from bench.source import source_sha256
from bench.workload import DataRequest

GALORE = Request(plugins=["galore"], workload="llama-c4", tier="tiny", command_line="bench run --plugin galore")


def planned(registry, **changes):
    return make_plan(registry, replace(GALORE, **changes))


@pytest.fixture(scope="module")
def plan(registry):
    return make_plan(registry, GALORE)


def by_name(plan):
    return {trial.algorithm.name: trial for trial in plan.trials}


# -- the trials ------------------------------------------------------------------------------------------------------
def test_a_quick_plan_is_one_seed_beside_the_same_seed_of_the_reference(plan):
    assert sorted((trial.algorithm.name, trial.seed) for trial in plan.trials) == [("adamw", 0), ("galore", 0)]
    assert plan.references == {"galore": "adamw", "adamw": "adamw"}
    assert plan.protocol.name == "quick"


def test_the_reference_fills_what_the_algorithm_leaves_empty(plan):
    trials = by_name(plan)
    assert trials["galore"].algorithm.slots == ("optimizer",)
    assert [(part.name, part.slots) for part in trials["galore"].fillers] == [("warmup-linear", ("schedule",))]
    assert trials["galore"].fillers == trials["adamw"].fillers


def test_reference_and_fillers_have_their_tuned_values_and_the_algorithm_its_own(registry, plan):
    tuned = plan.workload.tier.reference
    trials = by_name(plan)
    assert tuned["adamw"].items() <= trials["adamw"].algorithm.values.items()
    assert tuned["warmup-linear"].items() <= trials["adamw"].fillers[0].values.items()
    assert trials["galore"].algorithm.values == registry.algorithm("galore").hyperparameters()


def test_a_trial_says_everything_that_a_worker_needs(registry, plan):
    trial = by_name(plan)["galore"]
    assert (trial.workload, trial.workload_version, trial.tier) == ("llama-c4", plan.workload.version, "tiny")
    assert (trial.precision, trial.device, trial.device_class) == ("fp32", "cpu", plan.device_class.name)
    assert trial.threads == plan.device_class.cores
    assert (trial.data.source, trial.data.sha256) == ("embedded", plan.workload.data().sha256)
    assert trial.protocol == plan.protocol.stamp()
    assert trial.algorithm.version == registry.version("galore")
    assert trial.algorithm.source_sha256 == source_sha256(registry.algorithm_class("galore"))
    assert trial.timeout_s == plan.workload.tier.timeout_s
    assert trial.command_line == "bench run --plugin galore"


def test_the_same_request_plans_the_same_trials(registry, plan):
    again = planned(registry, command_line="another")
    assert [trial.trial_id for trial in again.trials] == [trial.trial_id for trial in plan.trials]


def test_a_ranked_protocol_brings_its_seeds_and_interleaves_them(registry):
    plan = planned(registry, protocol="default")
    seeds = [trial.seed for trial in plan.trials]
    assert seeds == sorted(seeds) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    firsts = [plan.trials[i].algorithm.name for i in range(0, 10, 2)]
    assert set(firsts) == {"adamw", "galore"}
    assert {trial.protocol.name for trial in plan.trials} == {"default"}


def test_seeds_can_be_named(registry):
    assert {trial.seed for trial in planned(registry, seeds=[7]).trials} == {7}
    assert {trial.seed for trial in planned(registry, seeds=range(3)).trials} == {0, 1, 2}


def test_the_order_within_a_seed_does_not_depend_on_the_order_of_asking(registry):
    one = planned(registry, plugins=["galore", "lion"], seeds=range(4))
    other = planned(registry, plugins=["lion", "galore"], seeds=range(4))
    assert [trial.trial_id for trial in one.trials] == [trial.trial_id for trial in other.trials]


def test_the_reference_can_be_left_out_and_is_not_run_twice(registry):
    assert list(by_name(planned(registry, reference=False))) == ["galore"]
    both = planned(registry, plugins=["adamw", "galore"])
    assert sorted(trial.algorithm.name for trial in both.trials) == ["adamw", "galore"]


# -- settings --------------------------------------------------------------------------------------------------------
def test_a_setting_is_for_the_one_plugin_and_never_for_the_reference(registry, plan):
    trials = by_name(planned(registry, settings=["lr=0.02", "rank=8", "update_gap=none"]))
    assert trials["galore"].algorithm.values["lr"] == 0.02
    assert trials["galore"].algorithm.values["rank"] == 8
    assert trials["adamw"].trial_id == by_name(plan)["adamw"].trial_id
    assert trials["galore"].trial_id != by_name(plan)["galore"].trial_id


def test_settings_of_several_plugins_are_named(registry):
    trials = by_name(planned(registry, plugins=["galore", "lion"], settings=["galore.lr=0.02", "lion.lr=0.001"]))
    assert (trials["galore"].algorithm.values["lr"], trials["lion"].algorithm.values["lr"]) == (0.02, 0.001)


def test_a_setting_of_the_reference_is_for_the_reference_under_test(registry):
    plan = planned(registry, plugins=["adamw"], settings=["lr=0.5"])
    (trial,) = plan.trials
    assert trial.algorithm.values["lr"] == 0.5
    assert trial.algorithm.values["beta2"] == plan.workload.tier.reference["adamw"]["beta2"]


def test_a_setting_of_one_algorithm_under_test_does_not_reach_the_fillers_of_another(registry, plan):
    trials = by_name(planned(registry, plugins=["adamw", "warmup-cosine"], settings=["adamw.lr=0.5"]))
    assert trials["adamw"].algorithm.values["lr"] == 0.5
    (filler,) = trials["warmup-cosine"].fillers
    assert (filler.name, filler.values["lr"]) == ("adamw", plan.workload.tier.reference["adamw"]["lr"])


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"settings": ["lr"]}, BadValue, "--set 'lr' is not of the form name=value"),
        ({"settings": ["=1"]}, BadValue, "--set '=1' is not of the form name=value"),
        ({"settings": ["lr="]}, BadValue, "galore: lr = '' (str) is not allowed"),
        ({"settings": ["lr=fast"]}, BadValue, "galore: lr = 'fast' (str) is not allowed"),
        ({"settings": ["lr=-1"]}, BadValue, "galore: lr = '-1' (str) is not allowed"),
        ({"settings": ["rl=1"]}, UnknownName, "no hyperparameter of galore named 'rl'"),
        ({"settings": ["lion.lr=1"]}, UnknownName, "no plugin of this run named 'lion'"),
        (
            {"plugins": ["galore", "lion"], "settings": ["lr=1"]},
            BadValue,
            "does not say which of galore, lion it is for",
        ),
        ({"plugins": ["galor"]}, UnknownName, "no plugin named 'galor'"),
        ({"with_plugins": ["warmup-cosin"]}, UnknownName, "no plugin named 'warmup-cosin'"),
        ({"with_plugins": ["muon"]}, BadValue, "--with muon would do nothing: 'galore' fills optimizer itself"),
        ({"workload": "llama"}, UnknownName, "no workload named 'llama'"),
        ({"tier": "tinny"}, UnknownName, "no tier of llama-c4 named 'tinny'"),
        ({"protocol": "quik"}, UnknownName, "no protocol named 'quik'"),
        ({"device": "gpu"}, BadValue, "device is 'gpu'"),
        ({"source": "pile"}, UnknownName, "no data source of llama-c4 named 'pile'"),
        ({"source": "local"}, BadData, "local data and a data directory belong together"),
    ],
)
def test_whatever_is_wrong_is_said_before_anything_runs(registry, changes, error, why):
    with pytest.raises(error) as caught:
        planned(registry, **changes)
    assert why in caught.value.message


def test_a_missing_data_folder_is_said_before_anything_runs(registry, tmp_path):
    with pytest.raises(BadData):
        planned(registry, directory=tmp_path / "nowhere")


def test_what_an_algorithm_needs_is_checked_before_anything_runs(registry, monkeypatch):
    monkeypatch.setattr(registry.algorithm_class("galore-per-layer"), "needs", ("a-miracle",))
    with pytest.raises(SlotMismatch, match="'galore-per-layer' needs a-miracle"):
        planned(registry, plugins=["galore-per-layer"])


# -- with ------------------------------------------------------------------------------------------------------------
def test_with_fills_a_slot_of_every_trial_in_the_place_of_the_reference(registry):
    trials = planned(registry, with_plugins=["warmup-cosine"], settings=["warmup-cosine.warmup_fraction=0.2"]).trials
    assert len(trials) == 2
    for trial in trials:
        (filler,) = trial.fillers
        assert (filler.name, filler.slots) == ("warmup-cosine", ("schedule",))
        assert filler.values["warmup_fraction"] == 0.2


def test_a_schedule_under_test_is_compared_with_the_schedule_of_the_reference(registry):
    plan = planned(registry, plugins=["warmup-cosine"])
    trials = by_name(plan)
    assert plan.references["warmup-cosine"] == "warmup-linear"
    assert [part.name for part in trials["warmup-cosine"].fillers] == ["adamw"]
    assert trials["warmup-linear"].fillers == trials["warmup-cosine"].fillers


def test_with_goes_to_both_sides_of_the_comparison_so_that_one_thing_differs(registry):
    trials = by_name(planned(registry, plugins=["warmup-cosine"], with_plugins=["muon"]))
    assert sorted(trials) == ["warmup-cosine", "warmup-linear"]
    assert [part.name for part in trials["warmup-cosine"].fillers] == ["muon"]
    assert trials["warmup-linear"].fillers == trials["warmup-cosine"].fillers
    trials = by_name(planned(registry, plugins=["galore"], with_plugins=["warmup-cosine"]))
    assert sorted(trials) == ["adamw", "galore"]
    assert [part.name for part in trials["galore"].fillers] == ["warmup-cosine"]
    assert trials["adamw"].fillers == trials["galore"].fillers


# -- workloads, tiers, data ------------------------------------------------------------------------------------------
def test_the_default_tier_is_the_device_s(registry):
    assert default_tier(registry, "llama-c4", "cpu") == "tiny"
    assert default_tier(registry, "llama-c4", "cuda:1") == "60m"
    assert planned(registry, tier=None).workload.tier_name == "tiny"


def test_other_precision_and_other_data_are_other_trials(registry, plan, tmp_path):
    for split in ("train", "validation"):
        with gzip.open(tmp_path / f"c4-{split}.00000-of-00001.json.gz", "wb") as file:
            file.write(json.dumps({"text": "a real sentence. " * 40}).encode() + b"\n")
    local = planned(registry, directory=tmp_path)
    data = local.trials[0].data
    assert (data.source, data.directory) == ("local", str(tmp_path))
    assert data.sha256 != plan.trials[0].data.sha256
    pure = planned(registry, workload="llama-c4-bf16")
    assert {trial.precision for trial in pure.trials} == {"bf16"}
    ids = [{trial.trial_id for trial in one.trials} for one in (plan, local, pure)]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]


def test_stacks_list_the_algorithm_first_then_with_then_the_reference(registry):
    request = replace(GALORE, with_plugins=["warmup-cosine"])
    found = stacks(registry, request, open_workload(registry, "llama-c4", "tiny", DataRequest()))
    assert {name: [one.name for one in stack] for name, stack in found.items()} == {
        "galore": ["galore", "warmup-cosine", "adamw", "warmup-linear"],
        "adamw": ["adamw", "warmup-cosine", "warmup-linear"],
    }
