"""Event logs: on disk when written, readable after any kill, and without numbers that JSON has not."""

from __future__ import annotations

import math
import os

import pytest

from bench import event_log
from bench.errors import BadStore
from bench.event_log import EventLog, jsonable, read_events


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_events_are_on_disk_in_order_when_write_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(event_log.os, "fsync", synced.append)
    log = EventLog(tmp_path)
    assert log.write("started", step=0) == {"event": "started", "step": 0}
    log.write("evaluated", step=1)
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "evaluated"]
    assert len(synced) == 2


def test_no_log_is_an_empty_log(tmp_path):
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("cut", [b"{", b'{"event": "evaluated", "ste', b'{"event": "evaluated"}', b"\xff"])
def test_a_last_line_that_was_cut_is_left_out_and_overwritten(tmp_path, cut):
    EventLog(tmp_path).write("started", step=0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + cut)
    assert [event["event"] for event in read_events(tmp_path)] == ["started"]
    EventLog(tmp_path).write("evaluated", step=1)
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "evaluated"]


def test_a_log_of_one_cut_line_is_empty(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "star')
    assert read_events(tmp_path) == []
    EventLog(tmp_path).write("started")
    assert read_events(tmp_path) == [{"event": "started"}]


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"{}", b'{"event": 3}', b""])
def test_a_corrupt_line_in_the_middle_is_named_with_its_number(tmp_path, line):
    log = EventLog(tmp_path)
    log.write("started", step=0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    log.write("evaluated", step=1)
    with pytest.raises(BadStore, match=r"events\.jsonl, line 2 is not an event"):
        read_events(tmp_path)


def test_numbers_that_json_has_not_travel_as_text(tmp_path):
    values = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, None, True, "nan")}
    assert jsonable(values) == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": [1.5, None, True, "nan"]}
    EventLog(tmp_path).write("evaluated", **values)
    (event,) = read_events(tmp_path)
    assert math.isnan(float(event["a"]))
    assert float(event["b"][0]) == math.inf


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "store.json"
    event_log.write_text(path, "first")

    def fail(self, target):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", fail)
        with pytest.raises(OSError, match="killed"):
            event_log.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first"
    event_log.write_text(path, "third")
    assert files(tmp_path) == ["store.json"]
    assert str(os.getpid()) not in path.read_text(encoding="utf-8")
