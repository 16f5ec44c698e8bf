"""Event logs: on disk when written, readable after any kill, and without numbers that JSON has not."""

from __future__ import annotations

import math
import os

import pytest

from bench import files as durable
from bench.errors import BadStore, CannotWrite
from bench.event_log import EventLog, jsonable, read_events


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_events_are_on_disk_in_order_when_write_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable.os, "fsync", synced.append)
    log = EventLog(tmp_path)
    assert log.write("saved", step=0) == {"event": "saved", "step": 0}
    log.write("saved", step=1)
    assert [event["step"] for event in read_events(tmp_path)] == [0, 1]
    assert len(synced) == 3, "each event, and once the name of the file"


def test_no_log_is_an_empty_log(tmp_path):
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("cut", [b"{", b'{"event": "evaluated", "ste', b'{"event": "saved"}', b"\xff"])
def test_a_last_line_that_was_cut_is_left_out_and_overwritten(tmp_path, cut):
    EventLog(tmp_path).write("saved", step=0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + cut)
    assert [event["step"] for event in read_events(tmp_path)] == [0]
    EventLog(tmp_path).write("saved", step=1)
    assert [event["step"] for event in read_events(tmp_path)] == [0, 1]


def test_a_log_of_one_cut_line_is_empty(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "star')
    assert read_events(tmp_path) == []
    EventLog(tmp_path).write("saved", step=3)
    assert read_events(tmp_path) == [{"event": "saved", "step": 3}]


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"{}", b'{"event": 3}', b""])
def test_a_corrupt_line_in_the_middle_is_named_with_its_number(tmp_path, line):
    log = EventLog(tmp_path)
    log.write("saved", step=0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    log.write("saved", step=1)
    with pytest.raises(BadStore, match=r"events\.jsonl, line 2 is not an event"):
        read_events(tmp_path)


def test_numbers_that_json_has_not_travel_as_text(tmp_path):
    values = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, None, True, "nan")}
    assert jsonable(values) == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": [1.5, None, True, "nan"]}
    EventLog(tmp_path).write("of a plugin", **values)
    (event,) = read_events(tmp_path)
    assert math.isnan(float(event["a"]))
    assert float(event["b"][0]) == math.inf


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "store.json"
    durable.write_text(path, "first")

    def fail(self, target):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", fail)
        with pytest.raises(CannotWrite, match="killed"):
            durable.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first"
    assert files(tmp_path) == ["store.json"]
    durable.write_text(path, "third")
    assert files(tmp_path) == ["store.json"]
    assert str(os.getpid()) not in path.read_text(encoding="utf-8")
