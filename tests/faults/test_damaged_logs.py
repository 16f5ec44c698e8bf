"""Event logs, and the other JSON of a store, cut and spoiled in every way: read up to there, or named with the line."""

from __future__ import annotations

import json

import pytest

from bench import strict_json
from bench.errors import BadStore
from bench.event_log import EventLog, read, read_events
from bench.inspection import inspect
from bench.record import curve_rows, trial_row
from bench.repair import repair
from bench.store import Store
from bench.trial import Trial


def test_a_log_cut_at_every_byte_reads_as_its_whole_lines_and_goes_on(made):
    made.log()
    whole = made.events().read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    trial = made.trial()
    for length in range(len(whole) + 1):
        made.events().write_bytes(whole[:length])
        events = read_events(made.folder())
        assert len(events) == sum(end <= length for end in ends[1:])
        row = trial_row(trial, events)
        assert row["outcome"] == ("reached" if length == len(whole) else "interrupted")
        assert len(curve_rows(trial, events)) == sum(event["event"] == "evaluated" for event in events)
        if length % 9 == 0:
            EventLog(made.folder()).write("saved", step=7)
            assert read_events(made.folder()) == [*events, {"event": "saved", "step": 7}]


def test_a_store_whose_log_is_cut_anywhere_is_in_order_or_repaired(made):
    made.run()
    whole = made.events().read_bytes()
    for length in range(0, len(whole), 117):
        made.events().write_bytes(whole[:length])
        repair(made.root)
        assert not any(finding.damaged for finding in inspect(made.root))
        assert made.store.trials()["outcome"].tolist() == ["interrupted"]
        made.events().write_bytes(whole)
        repair(made.root)
        assert made.store.trials()["outcome"].tolist() == ["reached"]


STARTED = {"event": "started", "resumed": False, "step": 0, "facts": {}}
EVALUATED = {
    "event": "evaluated",
    "step": 3,
    "quality": 0.25,
    "metrics": {"loss": 0.25},
    "train_loss": None,
    "learning_rate": 0.1,
    "cost": {"time_s": 3.0, "wall_s": 3.0},
}
FINISHED = {"event": "finished", "outcome": "reached", "reason": "", "at": "2026", "cost": {}}


def without(event, name):
    return {key: value for key, value in event.items() if key != name}


HOSTILE = {
    "nothing": b"",
    "spaces": b"   ",
    "no JSON": b"nonsense",
    "zero bytes": b"\0\0\0\0",
    "a zero byte in the middle": b'{"event": "saved",\0 "step": 1}',
    "not UTF-8": b'{"event": "saved", "step": 1, "note": "\xff\xfe"}',
    "half a surrogate pair": b'{"event": "saved", "step": 1, "note": "\\ud800"}',
    "a key twice": b'{"event": "saved", "step": 1, "step": 2}',
    "a key twice, deeper": b'{"event": "x", "cost": {"a": 1, "a": 2}}',
    "NaN": b'{"event": "saved", "step": NaN}',
    "infinity": b'{"event": "x", "value": -Infinity}',
    "a number that no float holds": b'{"event": "x", "value": 1e999}',
    "a number of many digits": b'{"event": "x", "value": ' + b"9" * 5000 + b"}",
    "nesting": b'{"event": "x", "value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nesting of objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "two events in one line": b'{"event": "a"}{"event": "b"}',
    "a list": b"[]",
    "a number": b"3",
    "no event": b"{}",
    "an event that is no text": b'{"event": 3}',
    "a huge line": b'{"event": "x", "value": "' + b"a" * strict_json.LONGEST_BYTES + b'"}',
    "Parquet": b"PAR1\x15\x04",
    **{
        f"{event['event']}: {name} = {json.dumps(value):.20}": json.dumps(event | {name: value}).encode()
        for event, name, value in (
            (STARTED, "resumed", "yes"),
            (STARTED, "resumed", None),
            (STARTED, "step", "x"),
            (STARTED, "facts", 3),
            (STARTED, "facts", [["metric", "loss"]]),
            (STARTED, "facts", {"metric": 7}),
            (STARTED, "facts", {"target": "low"}),
            (STARTED, "facts", {"budget_steps": 1.5}),
            (STARTED, "facts", {"budget_steps": 2**63}),
            (STARTED, "facts", {"git_dirty": "no"}),
            (STARTED, "facts", {"judged_from_step": "first"}),
            (EVALUATED, "step", "x"),
            (EVALUATED, "step", True),
            (EVALUATED, "step", -1),
            (EVALUATED, "step", 1.0),
            (EVALUATED, "step", 2**64),
            (EVALUATED, "quality", None),
            (EVALUATED, "quality", "good"),
            (EVALUATED, "quality", [0.1]),
            (EVALUATED, "metrics", None),
            (EVALUATED, "metrics", {"loss": "low"}),
            (EVALUATED, "metrics", {"loss": {"value": 1}}),
            (EVALUATED, "train_loss", "x"),
            (EVALUATED, "learning_rate", {}),
            (EVALUATED, "cost", 3),
            (EVALUATED, "cost", {}),
            (EVALUATED, "cost", {"time_s": "1", "wall_s": 1.0}),
            (EVALUATED, "cost", {"time_s": -1.0, "wall_s": 1.0}),
            (EVALUATED, "cost", {"time_s": 1.0, "wall_s": 1.0, "rss_peak_bytes": "much"}),
            (EVALUATED, "cost", {"time_s": 1.0, "wall_s": 1.0, "rss_peak_bytes": 2**70}),
            (EVALUATED, "cost", {"time_s": 1.0, "wall_s": 1.0, "contended": 1}),
            (FINISHED, "outcome", "won"),
            (FINISHED, "outcome", ["reached"]),
            (FINISHED, "reason", None),
            (FINISHED, "at", 2026),
            (FINISHED, "cost", "none"),
        )
    },
    **{
        f"{event['event']} without {name}": json.dumps(without(event, name)).encode()
        for event in (STARTED, EVALUATED, FINISHED)
        for name in event
        if name != "event"
    },
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_line_that_is_no_event_is_named_and_cut_off_by_repair(made, line):
    made.run()
    lines = made.events().read_bytes().splitlines(keepends=True)
    made.events().write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    with pytest.raises(BadStore, match=r"events\.jsonl, line 3 is not an event: ") as caught:
        read_events(made.folder())
    assert len(caught.value.message) < 1000
    assert "bench repair --results" in caught.value.hint
    if len(line) < 1000:
        repair(made.root)
        assert read_events(made.folder()) == read(made.folder() / "events.jsonl").events
        assert len(read_events(made.folder())) == 2
        assert made.store.trials()["outcome"].tolist() == ["interrupted"]


WELL_TYPED = {
    "time that runs back": [EVALUATED, EVALUATED | {"step": 4, "cost": {"time_s": 0.0, "wall_s": 0.0}}],
    "no start": [EVALUATED, FINISHED],
    "only an end": [FINISHED],
    "an end before the start": [FINISHED, STARTED],
    "the same quality twice at a target": [
        STARTED | {"facts": {"metric_direction": "min", "target": 0.25, "budget_s": 2.0}},
        EVALUATED,
        EVALUATED | {"step": 4, "cost": {"time_s": 1.0, "wall_s": 1.0}},
    ],
    "numbers that are not finite": [
        STARTED,
        EVALUATED | {"quality": "nan", "metrics": {"loss": "inf", "other": None}, "train_loss": "-inf"},
        FINISHED | {"cost": {"energy_j": "nan", "time_s": "inf"}},
    ],
    "another identity in the facts": [
        STARTED | {"facts": {"trial_id": "f" * 20, "seed": 9, "outcome": "reached", "trust_tier": "verified"}},
        EVALUATED | {"cost": EVALUATED["cost"] | {"algorithm": "best", "quality": 0.0, "steps": "many"}},
    ],
    "events and fields of a plugin": [STARTED | {"mine": [1]}, {"event": "mine", "step": "x"}, FINISHED],
}


@pytest.mark.parametrize("events", WELL_TYPED.values(), ids=WELL_TYPED)
def test_whatever_is_well_typed_gives_a_row_of_this_trial(made, events):
    made.store.folder(made.trial())
    made.events().write_text("".join(json.dumps(event) + "\n" for event in events))
    row = made.store.finalise(made.trial())
    (stored,) = made.store.table("trials").to_pylist()
    assert stored["trial_id"] == made.trial().trial_id
    assert (stored["seed"], stored["algorithm"], stored["trust_tier"]) == (0, "plain", "self-reported")
    assert repr(stored) == repr(row)
    assert inspect(made.root) == []


def test_no_event_is_written_that_could_not_be_read(tmp_path):
    log = EventLog(tmp_path)
    for values in ({"step": "x"}, {"step": True}, {}):
        with pytest.raises(ValueError, match="no event 'saved': step"):
            log.write("saved", **values)
    assert read_events(tmp_path) == []
    log.write("finished", outcome="error", reason="\ud800 and \udcff", at="now", cost={})
    assert read_events(tmp_path)[0]["reason"] == "\\ud800 and \\udcff", "a text that Parquet can hold"


# -- the other files ---------------------------------------------------------------------------------------------------
JSON = {
    name: line
    for name, line in HOSTILE.items()
    if name not in {"nothing", "a huge line"} and not name.startswith(("started", "evaluated", "finished"))
}


@pytest.mark.parametrize("content", [b"", *JSON.values()], ids=["empty", *JSON])
def test_hostile_json_in_the_place_of_any_file_is_refused_and_named(made, content):
    made.run()
    path = made.folder() / "trial.json"
    path.write_bytes(content)
    with pytest.raises(BadStore, match=r"trial\.json is not a trial"):
        Trial.read(path)
    (made.root / "protocols").mkdir()
    (made.root / "protocols" / "quick-1.json").write_bytes(content)
    with pytest.raises(BadStore, match=r"quick-1\.json is not a protocol"):
        made.store.protocols()
    (made.root / "store.json").write_bytes(content)
    with pytest.raises(BadStore, match=r"store\.json is not the marker"):
        Store(made.root)
    assert {finding.path for finding in inspect(made.root)} == {
        "store.json",
        "protocols/quick-1.json",
        f"runs/{made.trial().trial_id}",
    }
    repair(made.root)
    assert not any(finding.damaged for finding in inspect(made.root))
    assert made.store.trials()["outcome"].tolist() == ["reached"], "the row stays, and its log is in damaged/"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"timeout_s": None},
        {"algorithm": []},
        {"data": {"source": "x"}},
        {"phase": "won"},
        {"unknown": 1},
        {"threads": 1.5},
    ],
    ids=str,
)
def test_a_trial_of_wrong_types_is_refused_with_the_field(made, change):
    made.log()
    path = made.folder() / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadStore, match=rf"trial\.json is not a trial of this version of bench: {next(iter(change))}"):
        Trial.read(path)
