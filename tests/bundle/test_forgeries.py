"""A forged bundle of each kind is told from an honest one, with the right reason; every rule has its forgery."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bench.bundle import RULES, verify
from bench.bundle.rules import REJECT
from bench.clock import SECTIONS
from bench.registry import Registry

pytestmark = pytest.mark.usefixtures("tables_read_here")
ENTRANT, REFERENCE = "sgd", "adamw"
SECONDS = ("time_s", "wall_s", "cpu_s", "evaluation_s", "checkpoint_s", "warmup_s", *(f"{s}_s" for s in SECTIONS))


# -- what forgers do -------------------------------------------------------------------------------------------------
def edit_a_time_in_the_row(bundle):
    rows = bundle.table("trials.parquet")
    rows[0]["time_s"] *= 0.5
    bundle.set_table("trials.parquet", rows)


def edit_a_quality_in_the_curve(bundle):
    rows = bundle.table("curves.parquet")
    rows[5]["quality"] -= 0.1
    bundle.set_table("curves.parquet", rows)


def claim_to_be_reproduced(bundle):
    rows = bundle.table("trials.parquet")
    for row in rows:
        row["trust_tier"] = "reproduced"
    bundle.set_table("trials.parquet", rows)


def scale(bundle, names, factor, algorithm=ENTRANT):
    for trial_id in bundle.ids(algorithm):
        bundle.edit_costs(trial_id, lambda cost: cost.update({name: cost[name] * factor for name in names}))
    bundle.derive()


def edit_times_in_row_and_log(bundle):
    scale(bundle, ["time_s"], 0.5)


def edit_times_with_their_sums(bundle):
    scale(bundle, ["time_s", *(f"{section}_s" for section in SECTIONS)], 0.5)


def edit_times_with_sums_and_cpu_seconds(bundle):
    scale(bundle, ["time_s", "cpu_s", *(f"{section}_s" for section in SECTIONS)], 0.5)


def edit_times_with_everything_but_the_calendar(bundle):
    scale(bundle, SECONDS, 0.4)


def slow_down_the_reference_on_paper(bundle):
    scale(bundle, ["time_s", *(f"{section}_s" for section in SECTIONS)], 2.0, REFERENCE)


def drop_a_seed(bundle):
    bundle.drop(bundle.ids(ENTRANT)[2])
    bundle.derive()


def drop_the_last_seed_of_both(bundle):
    for algorithm in (ENTRANT, REFERENCE):
        bundle.drop(bundle.ids(algorithm)[-1])
    bundle.derive()


def drop_a_failed_trial(bundle):
    fail(bundle)
    (failed,) = bundle.ids(ENTRANT, seed=4)
    bundle.drop(failed)
    bundle.derive()


def fail(bundle):
    """What an honest trial looks like that ran out of memory after ten evaluations."""
    (trial_id,) = bundle.ids(ENTRANT, seed=4)
    events = bundle.events(trial_id)
    end = {**events[-1], "outcome": "out_of_memory", "reason": "", "cost": events[10]["cost"]}
    bundle.set_events(trial_id, [*events[:11], end])
    bundle.derive()


def pick_a_seed(bundle):
    bundle.edit_trial(bundle.ids(ENTRANT)[4], lambda trial: trial.update(seed=17))
    bundle.derive()


def exchange_two_seeds(bundle):
    first, second = (bundle.files[f"runs/{i}/events.jsonl"] for i in bundle.ids(ENTRANT)[:2])
    for trial_id, log in zip(bundle.ids(ENTRANT)[:2], (second, first), strict=True):
        bundle.files[f"runs/{trial_id}/events.jsonl"] = log
    bundle.derive()


def repeat_a_seed(bundle):
    ids = bundle.ids(ENTRANT)
    bundle.files[f"runs/{ids[4]}/events.jsonl"] = bundle.files[f"runs/{ids[0]}/events.jsonl"]
    bundle.derive()


def change_the_source_hash(bundle):
    for trial_id in bundle.ids(ENTRANT):
        bundle.edit_trial(trial_id, lambda trial: trial["algorithm"].update(source_sha256="0" * 64))
    bundle.derive()


def change_the_source(bundle):
    name = "sources/sgd/bench/plugins/baselines/sgd.py"
    bundle.files[name] += b"# one line more\n"


def change_the_protocol_hash(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial["protocol"].update(sha256="1" * 64))
    bundle.derive()


def change_the_rules(bundle, **changes):
    import json

    from bench.protocol import Protocol

    (name,) = [name for name in bundle.files if name.startswith("protocols/")]
    rules = json.loads(bundle.files.pop(name)) | changes
    protocol = Protocol.read(rules)
    name = f"protocols/{protocol.name}-{protocol.sha256[:12]}.json"
    bundle.files[name] = (json.dumps(protocol.rules(), indent=1, sort_keys=True) + "\n").encode()
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial.update(protocol=protocol.stamp().model_dump()))
    bundle.derive()


def ask_for_fewer_seeds(bundle):
    change_the_rules(bundle, seeds=2)


def bring_rules_of_ones_own(bundle):
    change_the_rules(bundle, version="7.0")


def use_another_workload_version(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial.update(workload_version="1.0.0"))
    bundle.derive()


def use_an_unknown_workload(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial.update(workload="a-workload-of-others"))
    bundle.derive()


def use_other_data(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial["data"].update(sha256="2" * 64))
    bundle.derive()


def use_data_of_ones_own(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial["data"].update(source="local", directory="/data"))
        del trial_id
    for trial_id in bundle.ids():
        bundle.edit_events(trial_id, lambda event: event["facts"].update(target=None), "started")
        bundle.edit_events(trial_id, lambda event: event.update(outcome="completed"), "finished")
    bundle.derive()


def edit_hyperparameters_of_one_seed(bundle):
    bundle.edit_trial(bundle.ids(ENTRANT)[1], lambda trial: trial["algorithm"]["values"].update(lr=0.5))
    bundle.derive()


def edit_hyperparameters_of_all_seeds(bundle):
    for trial_id in bundle.ids(ENTRANT):
        bundle.edit_trial(trial_id, lambda trial: trial["algorithm"]["values"].update(lr=0.5))
    bundle.derive()


def add_a_second_setting(bundle):
    for trial_id in bundle.ids(ENTRANT):
        files = dict(bundle.files)
        bundle.edit_trial(trial_id, lambda trial: trial["algorithm"]["values"].update(lr=0.5))
        bundle.files = files | bundle.files
    bundle.derive()


def detune_the_reference(bundle):
    for trial_id in bundle.ids(REFERENCE):
        bundle.edit_trial(trial_id, lambda trial: trial["algorithm"]["values"].update(lr=1e-4))
    bundle.derive()


def replace_the_source_of_the_reference(bundle, version=None):
    from bench.bundle.layout import sources_of
    from bench.source import sources_sha256

    (name,) = [name for name in bundle.files if name.startswith("sources/adamw/")]
    bundle.files[name] += b"import time\n"
    sha256 = sources_sha256({module: bundle.files[file] for module, file in sources_of([name])["adamw"].items()})
    facts = bundle.manifest["algorithms"]
    facts["adamw"] |= {"sha256": sha256, "version": version or facts["adamw"]["version"]}
    bundle.set_manifest(algorithms=facts)
    for trial_id in bundle.ids(REFERENCE):
        change = {"source_sha256": sha256, "version": facts["adamw"]["version"]}
        bundle.edit_trial(trial_id, lambda trial, change=change: trial["algorithm"].update(change))
    bundle.derive()


def use_a_reference_of_another_version(bundle):
    replace_the_source_of_the_reference(bundle, version="0.0.9")


def delay(bundle, trial_id, evaluations):
    """Let a curve fall so many evaluations later."""
    events = bundle.events(trial_id)
    curve = [event for event in events if event["event"] == "evaluated"]
    old = [(event["quality"], event["metrics"]) for event in curve]
    for number, event in enumerate(curve):
        event["quality"], event["metrics"] = old[max(0, number - evaluations)] if number else old[0]
    reached = min(event["quality"] for event in curve) <= events[0]["facts"]["target"]
    events[-1]["outcome"] = "reached" if reached else "missed"
    bundle.set_events(trial_id, events)


def make_the_reference_slower(bundle):
    for trial_id in bundle.ids(REFERENCE):
        delay(bundle, trial_id, 14)
    bundle.derive()


def let_the_reference_miss(bundle):
    for trial_id in bundle.ids(REFERENCE):
        delay(bundle, trial_id, 40)
    bundle.derive()


def name_another_reference(bundle):
    for trial_id in bundle.ids(ENTRANT):
        bundle.edit_trial(trial_id, lambda trial: trial.update(reference="warmup-linear"))
    bundle.derive()


def leave_out_the_reference(bundle):
    for trial_id in bundle.ids(REFERENCE):
        bundle.drop(trial_id)
    algorithms = {name: facts for name, facts in bundle.manifest["algorithms"].items() if name != REFERENCE}
    bundle.set_manifest(algorithms=algorithms)
    for name in [name for name in bundle.files if name.startswith("sources/adamw/")]:
        del bundle.files[name]
    bundle.derive()


def leave_out_one_seed_of_the_reference(bundle):
    bundle.drop(bundle.ids(REFERENCE)[4])
    bundle.derive()


def add_a_seed_of_the_reference(bundle):
    files = dict(bundle.files)
    bundle.edit_trial(bundle.ids(REFERENCE)[4], lambda trial: trial.update(seed=5))
    bundle.files = files | bundle.files
    bundle.derive()


def mix_device_classes(bundle):
    for trial_id in bundle.ids(REFERENCE):
        bundle.edit_trial(trial_id, lambda trial: trial.update(device_class="cpu-1", threads=1))
    bundle.derive()


def lie_about_the_threads(bundle):
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial.update(threads=16))
    bundle.derive()


def keep_the_old_identity(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    raw = bundle.files[f"runs/{trial_id}/trial.json"]
    bundle.files[f"runs/{trial_id}/trial.json"] = raw.replace(b'"lr": 0.', b'"lr": 1.', 1)
    assert bundle.files[f"runs/{trial_id}/trial.json"] != raw
    bundle.derive()


def leave_out_a_row(bundle):
    bundle.set_table("trials.parquet", bundle.table("trials.parquet")[1:])


def name_another_plugin(bundle):
    bundle.set_manifest(plugin="lion")


def date_it_later(bundle):
    bundle.set_manifest(created_at="2031-01-01T00:00:00+00:00")


def mix_versions_of_torch(bundle):
    bundle.edit_events(bundle.ids(ENTRANT)[0], lambda e: e["facts"].update(torch_version="1.0"), "started")
    bundle.derive()


def use_another_bench(bundle):
    for trial_id in bundle.ids():
        bundle.edit_events(trial_id, lambda event: event["facts"].update(bench_version="9.9.9"), "started")
    bundle.set_manifest(bench_version="9.9.9")
    bundle.derive()


def be_of_a_newer_schema(bundle):
    bundle.set_manifest(schema_version=99)


def lower_the_target(bundle):
    for trial_id in bundle.ids():
        bundle.edit_events(trial_id, lambda event: event["facts"].update(target=1.9), "started")
        bundle.edit_events(trial_id, lambda event: event.update(outcome="reached"), "finished")
    bundle.derive()


def change_an_outcome(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    was = bundle.events(trial_id)[-1]["outcome"]
    other = "missed" if was == "reached" else "reached"
    bundle.edit_events(trial_id, lambda event: event.update(outcome=other), "finished")
    bundle.derive()


def stop_a_miss_early(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    events = bundle.events(trial_id)
    bundle.set_events(trial_id, [*events[:40], events[-1]])
    bundle.derive()


def go_beyond_the_budget(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    events = bundle.events(trial_id)
    last = next(event for event in reversed(events) if event["event"] == "evaluated")
    bundle.set_events(trial_id, [*events[:-1], {**last, "step": last["step"] + 4}, events[-1]])
    bundle.derive()


def skip_an_evaluation(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    events = [event for event in bundle.events(trial_id) if event.get("step") != 40]
    bundle.set_events(trial_id, events)
    bundle.derive()


def put_events_out_of_order(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    events = bundle.events(trial_id)
    events[20], events[21] = events[21], events[20]
    bundle.set_events(trial_id, events)
    bundle.derive()


def turn_the_clock_back(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    events = bundle.events(trial_id)
    where = [event for event in events if event["event"] == "evaluated"]
    where[30]["cost"], where[31]["cost"] = where[31]["cost"], where[30]["cost"]
    bundle.set_events(trial_id, events)
    bundle.derive()


def leave_it_unfinished(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    bundle.set_events(trial_id, bundle.events(trial_id)[:-1])
    bundle.derive()


def edit_the_quality_alone(bundle):
    trial_id = bundle.ids(ENTRANT)[0]
    bundle.edit_events(trial_id, lambda event: event.update(quality=event["quality"] * 0.999), "evaluated")
    bundle.derive()


def work_during_evaluation(bundle):
    for trial_id in bundle.ids(ENTRANT):

        def longer(cost):
            more = 2 * cost["evaluation_s"]
            cost.update(evaluation_s=cost["evaluation_s"] + more, wall_s=cost["wall_s"] + more)

        bundle.edit_costs(trial_id, longer)
        postpone(bundle, trial_id, 120)
    bundle.derive()


def postpone(bundle, trial_id, seconds):
    def later(event):
        event["at"] = (datetime.fromisoformat(event["at"]) + timedelta(seconds=seconds)).isoformat()

    bundle.edit_events(trial_id, later, "finished")


def be_twice_as_good(bundle):
    """Give the entrant the curve of the reference, so much faster that the steps fall to four tenths."""
    for own, other in zip(bundle.ids(ENTRANT), bundle.ids(REFERENCE), strict=True):
        curve = [event for event in bundle.events(other) if event["event"] == "evaluated"]
        qualities = [(event["quality"], event["metrics"]) for event in curve]
        number = iter(range(len(qualities)))

        def faster(event, number=number, qualities=qualities):
            position = min(round(2.5 * next(number)), len(qualities) - 1)
            event["quality"], event["metrics"] = qualities[position]

        bundle.edit_events(own, faster, "evaluated")
        bundle.edit_events(own, lambda event: event.update(outcome="reached"), "finished")
    bundle.derive()


# -- under a protocol that searches ----------------------------------------------------------------------------------
def drop_a_point(bundle):
    bundle.drop(bundle.ids(ENTRANT, phase="tune", study=1)[3])
    bundle.derive()


def move_a_point(bundle):
    trial_id = bundle.ids(ENTRANT, phase="tune", study=1)[3]
    bundle.edit_trial(trial_id, lambda trial: trial["algorithm"]["values"].update(lr=0.123))
    bundle.derive()


def repeat_another_point(bundle):
    (trial_id,) = bundle.ids(ENTRANT, phase="rerun", study=0)
    point = bundle.trial(trial_id)["point"]
    other = next(i for i in bundle.ids(ENTRANT, phase="tune", study=0) if bundle.trial(i)["point"] != point)
    wanted = bundle.trial(other)
    change = {"point": wanted["point"], "algorithm": wanted["algorithm"]}
    bundle.edit_trial(trial_id, lambda trial: trial.update(change))
    bundle.derive()


def repeat_until_it_fits(bundle):
    (trial_id,) = bundle.ids(ENTRANT, phase="rerun", study=0)
    bundle.edit_trial(trial_id, lambda trial: trial.update(seed=11))
    bundle.derive()


def search_elsewhere(bundle):
    algorithms = bundle.manifest["algorithms"]
    algorithms["sgd"]["search"][0]["values"] = [1e-3, 1e3]
    bundle.set_manifest(algorithms=algorithms)


FORGERIES = {
    "default": {
        edit_a_time_in_the_row: "rows",
        edit_a_quality_in_the_curve: "rows",
        claim_to_be_reproduced: "rows",
        leave_out_a_row: "tables",
        edit_times_in_row_and_log: "sum",
        edit_times_with_their_sums: "cpu",
        edit_times_with_sums_and_cpu_seconds: "unaccounted",
        edit_times_with_everything_but_the_calendar: "wall",
        slow_down_the_reference_on_paper: "wall",
        drop_a_seed: "seeds",
        drop_the_last_seed_of_both: "seeds",
        drop_a_failed_trial: "seeds",
        pick_a_seed: "seeds",
        edit_hyperparameters_of_one_seed: "seeds",
        exchange_two_seeds: "same-start",
        repeat_a_seed: "copies",
        change_the_source_hash: "source",
        change_the_source: "source",
        change_the_protocol_hash: "protocol-missing",
        ask_for_fewer_seeds: "protocol",
        bring_rules_of_ones_own: "protocol-unknown",
        use_another_workload_version: "workload-version",
        use_an_unknown_workload: "workload-unknown",
        use_other_data: "data",
        use_data_of_ones_own: "data-unknown",
        edit_hyperparameters_of_all_seeds: "published",
        add_a_second_setting: "settings",
        detune_the_reference: "reference-setting",
        replace_the_source_of_the_reference: "reference-source",
        use_a_reference_of_another_version: "reference-version",
        make_the_reference_slower: "reference-interval",
        let_the_reference_miss: "reference-hits",
        name_another_reference: "reference",
        leave_out_the_reference: "reference-missing",
        leave_out_one_seed_of_the_reference: "paired",
        add_a_seed_of_the_reference: "unpaired",
        mix_device_classes: "device",
        lie_about_the_threads: "device-facts",
        keep_the_old_identity: "identity",
        name_another_plugin: "manifest",
        date_it_later: "manifest",
        mix_versions_of_torch: "versions",
        use_another_bench: "bench-version",
        be_of_a_newer_schema: "readable",
        lower_the_target: "workload",
        change_an_outcome: "outcome",
        stop_a_miss_early: "outcome",
        go_beyond_the_budget: "grid",
        skip_an_evaluation: "grid",
        put_events_out_of_order: "events",
        turn_the_clock_back: "clock",
        leave_it_unfinished: "unfinished",
        edit_the_quality_alone: "quality",
        work_during_evaluation: "evaluation-work",
        be_twice_as_good: "extraordinary",
        fail: "failed",
    },
    "external": {
        drop_a_point: "complete",
        move_a_point: "points",
        search_elsewhere: "points",
        repeat_another_point: "selection",
        repeat_until_it_fits: "selection",
    },
}
CASES = [
    pytest.param(protocol, forgery, rule, id=forgery.__name__)
    for protocol, forgeries in FORGERIES.items()
    for forgery, rule in forgeries.items()
]
ELSEWHERE = {"reference-unknown", "time-not-ranked"}
"""Rules whose findings other tests of this folder bring about."""

OPEN = (
    bring_rules_of_ones_own,
    use_an_unknown_workload,
    use_data_of_ones_own,
    use_a_reference_of_another_version,
    use_another_bench,
    be_twice_as_good,
    add_a_second_setting,
)
"""What breaks no rule and cannot be decided from the file."""


@pytest.mark.parametrize("protocol", FORGERIES)
def test_an_honest_bundle_is_accepted(honest, registry, protocol):
    verdict = verify(honest[protocol], registry)
    assert (verdict.verdict, verdict.reasons) == ("accept", ())
    assert {finding.rule for finding in verdict.findings} <= {"time-not-ranked"}


@pytest.mark.parametrize(("protocol", "forgery", "rule"), CASES)
def test_a_forgery_is_told_with_its_reason(tmp_path, forge, registry, protocol, forgery, rule):
    bundle = forge(protocol)
    forgery(bundle)
    verdict = verify(bundle.write(tmp_path / "forged.zip"), registry)
    assert rule in {finding.rule for finding in verdict.findings}, verdict.reasons
    effect = RULES[rule].effect
    if effect == REJECT:
        assert verdict.verdict == "reject"
        assert any(reason.startswith(f"{rule}: ") for reason in verdict.reasons)
    elif effect == "needs reproduction":
        assert verdict.verdict == ("needs reproduction" if forgery in OPEN else "reject"), verdict.reasons
    else:
        assert any(note.startswith(f"{rule}: ") for note in verdict.notes)


def test_without_a_stored_interval_the_reference_is_to_be_reproduced(forge, tmp_path, registry, monkeypatch):
    monkeypatch.setattr("bench.bundle.rules_reference.stored_intervals", lambda *_: [])
    verdict = verify(forge().write(tmp_path / "honest.zip"), registry)
    assert verdict.verdict == "needs reproduction"
    (reason,) = verdict.reasons
    assert (
        reason
        == "reference-unknown: llama-c4 tiny, default, cpu-2: no interval of adamw is stored for this tier and protocol"
    )


def test_without_the_installed_reference_it_is_not_taken_at_its_word(forge, tmp_path, registry):
    others = Registry()
    del others.algorithms["warmup-linear"]
    verdict = verify(forge().write(tmp_path / "honest.zip"), others)
    assert verdict.verdict == "needs reproduction"
    assert any("warmup-linear is of version" in reason for reason in verdict.reasons)


def test_every_rule_has_its_forgery():
    tested = {rule for forgeries in FORGERIES.values() for rule in forgeries.values()}
    assert set(RULES) - tested == ELSEWHERE


def test_a_trial_that_failed_is_shown_and_speaks_against_nothing(tmp_path, forge, registry):
    bundle = forge()
    fail(bundle)
    verdict = verify(bundle.write(tmp_path / "failed.zip"), registry)
    assert verdict.verdict == "accept", verdict.reasons
    assert any("out_of_memory" in note for note in verdict.notes)


def test_a_slower_machine_of_no_listed_class_is_accepted_for_its_steps(tmp_path, forge, registry):
    bundle = forge()
    for trial_id in bundle.ids():
        bundle.edit_costs(trial_id, lambda cost: cost.update({name: cost[name] * 3 for name in SECONDS}))
        wall = bundle.events(trial_id)[-1]["cost"]["wall_s"]
        bundle.edit_events(trial_id, lambda event: event["facts"].update(device_listed=False), "started")
        postpone(bundle, trial_id, wall * 2 / 3)
        unlisted = {"device_class": "unlisted:an old processor", "threads": 2}
        bundle.edit_trial(trial_id, lambda trial, unlisted=unlisted: trial.update(unlisted))
    bundle.derive()
    last = max(bundle.events(trial_id)[-1]["at"] for trial_id in bundle.ids())
    bundle.set_manifest(created_at=last)
    verdict = verify(bundle.write(tmp_path / "slower.zip"), registry)
    assert verdict.verdict == "accept", verdict.reasons
    assert any("no listed device class" in note for note in verdict.notes)
