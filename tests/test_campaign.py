"""Campaigns: studies in order, selection, repetition, and what several processes do with one plan.

The trials themselves are replaced by a formula that writes the events of a real one; end to end they run elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from filelock import FileLock

from bench import campaign
from bench.campaign import Silence, known_trials, run_plan
from bench.errors import BadValue
from bench.event_log import EventLog
from bench.plan import make_plan
from bench.request import Request
from bench.store import Store

EXTERNAL = Request(plugins=["lion"], workload="llama-c4", tier="tiny", protocol="external")


class Diary(Silence):
    """A listener that keeps what it hears."""

    def __init__(self):
        self.ran, self.skipped, self.waited = [], [], []

    def skip(self, trial, _row):
        self.skipped.append(trial.trial_id)

    def end(self, trial, _row):
        self.ran.append((trial.algorithm.name, trial.phase, trial.study, trial.point, trial.seed))

    def wait(self, trial):
        self.waited.append(trial.trial_id)


def never(_trial):
    return False


def pretend(trial, store, _on_event=None, *, miss=never, fail=never):
    """Log what a trial leaves whose steps to target depend on its learning rate: best at point 3 of every study."""
    folder = store.folder(trial)
    log = EventLog(folder)
    facts = {"metric": "loss", "metric_direction": "min", "target": 1.0, "budget_steps": 300, "budget_s": None}
    log.write("started", resumed=False, step=0, facts=facts)
    if fail(trial):
        log.write("finished", outcome="error", reason="on purpose", at="now", cost={})
        return store.finalise(trial)
    hit_step = 400 if miss(trial) else 100 + 20 * abs(trial.point - 3)
    for step in range(0, 301, 20):
        quality = 2.0 - step / hit_step
        cost = {"time_s": step / 10, "wall_s": step / 10}
        log.write(
            "evaluated",
            step=step,
            quality=quality,
            metrics={"loss": quality},
            train_loss=quality,
            learning_rate=0.1,
            cost=cost,
        )
    log.write("finished", outcome="missed" if miss(trial) else "reached", reason="", at="now", cost={})
    return store.finalise(trial)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results", create=True)


@pytest.fixture(scope="module")
def plan(registry):
    return make_plan(registry, EXTERNAL)


def run(plan, store, monkeypatch, **faults):
    diary = Diary()
    monkeypatch.setattr(campaign, "run_trial", lambda trial, store, on_event: pretend(trial, store, on_event, **faults))
    return run_plan(plan, store, diary), diary


def test_every_study_repeats_its_selected_point_with_a_seed_of_its_own(plan, store, monkeypatch):
    rows, diary = run(plan, store, monkeypatch)
    repeated = [entry for entry in diary.ran if entry[1] == "rerun"]
    assert sorted(repeated) == sorted(
        (name, "rerun", study, 3, 3 + study) for study in range(3) for name in ("adamw", "lion")
    )
    assert len(rows) == len(diary.ran) == plan.size == 36
    tried = {(entry[2], entry[4]) for entry in diary.ran if entry[1] == "tune"}
    assert tried == {(0, 0), (1, 1), (2, 2)}, "the points of a study share its seed, and reruns have others"


def test_a_study_is_repeated_before_the_next_one_begins(plan, store, monkeypatch):
    _, diary = run(plan, store, monkeypatch)
    studies = [entry[2] for entry in diary.ran]
    assert studies == sorted(studies)
    assert [entry[1] for entry in diary.ran[:12]] == ["tune"] * 10 + ["rerun"] * 2


def test_algorithm_and_reference_alternate_in_changing_order(plan):
    first = [plan.studies[0][number].algorithm.name for number in range(0, 10, 2)]
    assert set(first) == {"adamw", "lion"}
    for number in range(0, 10, 2):
        pair = plan.studies[0][number : number + 2]
        assert {trial.algorithm.name for trial in pair} == {"adamw", "lion"}
        assert pair[0].point == pair[1].point


def test_rerun_has_the_values_of_the_selected_point(plan, store, monkeypatch):
    rows, _ = run(plan, store, monkeypatch)
    for row in rows:
        if row["phase"] == "rerun":
            same = [other for other in rows if other["phase"] == "tune" and other["algorithm"] == row["algorithm"]]
            chosen = next(other for other in same if (other["study"], other["point"]) == (row["study"], row["point"]))
            assert row["hyperparameters"] == chosen["hyperparameters"]
            assert row["seed"] != chosen["seed"]


def test_the_same_call_again_runs_nothing_and_returns_the_same_rows(plan, store, monkeypatch):
    rows, _ = run(plan, store, monkeypatch)
    again, diary = run(plan, store, monkeypatch)
    assert (again, diary.ran) == (rows, [])
    assert len(diary.skipped) == plan.size


def test_a_campaign_that_was_cut_goes_on_where_it_stopped(plan, store, monkeypatch):
    done = []

    def cut(trial, store, on_event):
        if len(done) == 17:
            raise KeyboardInterrupt
        done.append(trial.trial_id)
        return pretend(trial, store)

    monkeypatch.setattr(campaign, "run_trial", cut)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, store, Silence())
    _, diary = run(plan, store, monkeypatch)
    assert diary.skipped[:17] == done
    assert len(diary.ran) == plan.size - 17


def test_of_a_study_of_misses_the_best_quality_is_repeated(plan, store, monkeypatch):
    rows, _ = run(plan, store, monkeypatch, miss=lambda trial: trial.algorithm.name == "lion")
    lion = [row for row in rows if row["algorithm"] == "lion" and row["phase"] == "rerun"]
    assert len(lion) == 3
    assert all(row["outcome"] == "missed" for row in lion)


def test_an_algorithm_that_always_fails_has_nothing_to_repeat(plan, store, monkeypatch):
    rows, _ = run(plan, store, monkeypatch, fail=lambda trial: trial.algorithm.name == "lion")
    assert {row["algorithm"] for row in rows if row["phase"] == "rerun"} == {"adamw"}
    assert sum(row["outcome"] == "error" for row in rows) == 15


def test_a_failed_point_is_not_selected(plan, store, monkeypatch):
    rows, _ = run(plan, store, monkeypatch, fail=lambda trial: trial.point == 3)
    assert {row["point"] for row in rows if row["phase"] == "rerun"} <= {2, 4}


def test_a_trial_of_another_process_is_waited_for(plan, store, monkeypatch):
    monkeypatch.setattr(campaign, "WAIT_S", 0.01)
    first = plan.studies[0][0]
    lock = FileLock(store.folder(first) / "lock", timeout=0)
    lock.acquire()
    diary = Diary()

    def until_asked(trial):
        diary.waited.append(trial.trial_id)
        assert len(diary.ran) == 9, "everything else of the study comes first"
        lock.release()

    diary.wait = until_asked
    monkeypatch.setattr(campaign, "run_trial", pretend)
    rows = run_plan(plan, store, diary)
    assert diary.waited == [first.trial_id]
    assert len(rows) == plan.size


def test_a_trial_that_another_process_is_about_to_start_is_left_to_it(plan, store, monkeypatch):
    first = plan.studies[0][0]
    claim = store.claim(first)
    claim.__enter__()
    diary = Diary()
    diary.wait = lambda _trial: claim.__exit__(None, None, None)
    monkeypatch.setattr(campaign, "WAIT_S", 0.01)
    monkeypatch.setattr(campaign, "run_trial", pretend)
    assert len(run_plan(plan, store, diary)) == plan.size
    assert diary.ran[9] == (first.algorithm.name, "tune", 0, 0, 0), "last of its study"


def test_repetitions_are_known_once_their_study_is_through(plan, store, monkeypatch):
    assert len(known_trials(plan, None)) == len(known_trials(plan, store)) == 30
    monkeypatch.setattr(campaign, "run_trial", pretend)
    for trial in plan.studies[0]:
        pretend(trial, store)
    assert [trial.phase for trial in known_trials(plan, store)].count("rerun") == 2


def test_the_protocol_is_kept_with_the_results(plan, store, monkeypatch):
    run(plan, store, monkeypatch)
    (path,) = (store.root / "protocols").iterdir()
    assert json.loads(path.read_text())["points"] == [
        [list(point) for point in study] for study in plan.protocol.points
    ]
    assert store.protocols()[plan.trials[0].protocol.sha256] == plan.protocol


def test_searched_trials_are_told_apart_and_named_after_their_reference(plan):
    assert len({trial.trial_id for trial in plan.trials}) == 30
    assert {trial.reference for trial in plan.trials} == {"adamw"}
    assert all(trial.is_reference == (trial.algorithm.name == "adamw") for trial in plan.trials)
    assert {trial.phase for trial in plan.trials} == {"tune"}


@pytest.mark.parametrize("changes", [{"seeds": [1]}, {"settings": ["lr=0.1"]}])
def test_what_a_search_decides_cannot_be_set(registry, changes):
    with pytest.raises(BadValue, match="protocol external"):
        make_plan(registry, replace(EXTERNAL, **changes))


def test_a_grid_of_learning_rates_spans_four_decades_around_the_published_one(registry):
    plan = make_plan(registry, replace(EXTERNAL, protocol="grid-lr"))
    rates = [trial.algorithm.values["lr"] for trial in plan.trials if trial.algorithm.name == "lion"]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(1e-2)
    assert all(later / earlier == pytest.approx(10 ** (4 / 7), rel=1e-3) for earlier, later in pairwise(rates))
    assert plan.size == 2 * (8 + 3)
    values = [trial.algorithm.values for trial in plan.trials if trial.algorithm.name == "lion"]
    assert len({json.dumps({**each, "lr": 0}) for each in values}) == 1, "nothing but the learning rate changes"


def test_self_tuning_has_half_as_much_budget_again_and_ends_at_the_target(registry):
    plan = make_plan(registry, replace(EXTERNAL, protocol="self-tuning"))
    published = registry.workload_class("llama-c4").tiers["tiny"]
    assert plan.workload.tier.steps == 1.5 * published.steps
    assert plan.workload.tier.patience_steps == 0
    assert all((trial.budget_factor, trial.stop_at_target) == (1.5, True) for trial in plan.trials)


def test_an_algorithm_without_search_ranges_cannot_be_searched(registry, monkeypatch):
    from bench import plan as module

    monkeypatch.setattr(module, "search_space", lambda _: {})
    with pytest.raises(BadValue, match="declares 0 search ranges"):
        make_plan(registry, EXTERNAL)
