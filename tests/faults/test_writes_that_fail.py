"""The kernel says no to a write: one clear error, what was there stays whole, and the same call works afterwards.

The devices ``/dev/full`` (no space left) and ``/proc/self/mem`` (input/output error) fail every write that a link leads
to them; limits of the process do the rest. No function is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path

import pytest

from bench.errors import CannotWrite
from bench.event_log import EventLog, read_events
from bench.inspection import inspect
from bench.protocol import protocol
from bench.repair import repair
from bench.store import Store

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has the devices that fail")

DEVICES = {
    "no space": ("/dev/full", "No space left on device"),
    "broken disk": ("/proc/self/mem", "Input/output error"),
}


def temporary(path: Path) -> Path:
    """Where this process prepares ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_event(made):
    made.evaluation(EventLog(made.folder()), 3)


def write_rows(made):
    made.store.finalise(made.trial())


def write_trial(made):
    made.store.folder(made.trial())


def write_protocol(made):
    made.store.keep(protocol("quick"))


def write_marker(made):
    (made.root / "store.json").write_text('{"bench": "results", "schema_version": 1}')
    Store(made.root, create=True)


WRITES = {
    "event": (write_event, lambda made: made.events()),
    "row": (write_rows, lambda made: temporary(made.row())),
    "curve": (write_rows, lambda made: temporary(made.row(table="curves"))),
    "trial.json": (write_trial, lambda made: temporary(made.folder() / "trial.json")),
    "protocol": (write_protocol, lambda made: temporary(made.root / "protocols" / "quick-4cce40fcd4dd.json")),
    "marker": (write_marker, lambda made: temporary(made.root / "store.json")),
}


def refused(call, *words):
    """Fail unless ``call`` raises one clear error; return it."""
    with pytest.raises(CannotWrite) as caught:
        call()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message
    return caught.value


@pytest.mark.parametrize(("device", "reason"), DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize(("write", "place"), WRITES.values(), ids=WRITES)
def test_write_that_fails_is_one_error_and_hurts_nothing(made, write, place, device, reason):
    made.run(1)
    made.log(outcome=None)
    made.store.finalise(made.trial())
    made.evaluation(EventLog(made.folder()), 5)
    path = place(made)
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name("aside")
    if path.exists():
        path.rename(aside)
    path.symlink_to(device)
    before = made.store.trials().set_index("seed").astype(str)
    refused(lambda: write(made), f"cannot write {made.root}", reason)
    assert made.store.trials().set_index("seed").astype(str).equals(before)
    path.unlink(missing_ok=True)
    if aside.exists():
        aside.rename(path)
    assert [finding for finding in inspect(made.root) if finding.damaged] == []
    write(made)
    rows = made.store.trials().set_index("seed")
    assert rows.loc[1, "outcome"] == "reached"
    assert not list(made.root.rglob("*.tmp"))


@contextlib.contextmanager
def limited(what: int, value: int):
    """Lower a limit of this process for a while."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 40])
def test_line_for_which_the_room_ends_in_the_middle_leaves_the_log_as_it_was(made, room):
    log = made.log(outcome=None)
    before = made.events().read_bytes()
    with limited(resource.RLIMIT_FSIZE, len(before) + room):
        refused(lambda: made.evaluation(log, 3), "events.jsonl: File too large")
    assert made.events().read_bytes() == before
    made.evaluation(log, 3)
    assert [event["step"] for event in read_events(made.folder()) if event["event"] == "evaluated"] == [0, 1, 2, 3]


def test_row_for_which_the_room_ends_in_the_middle_leaves_the_row_before(made):
    made.run(outcome=None)
    before = made.tables()
    EventLog(made.folder()).write("finished", outcome="reached", reason="", at="now", cost={})
    with limited(resource.RLIMIT_FSIZE, 5000):
        refused(lambda: write_rows(made), "File too large")
    assert made.tables() == before
    assert not list(made.root.rglob("*.tmp"))
    assert made.store.finalise(made.trial())["outcome"] == "reached"


def test_process_without_a_file_left_to_open_says_so(made):
    log = made.log(outcome=None)
    with contextlib.ExitStack() as opened:
        opened.enter_context(
            limited(resource.RLIMIT_NOFILE, max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 4)
        )
        with contextlib.suppress(OSError):
            while True:
                opened.enter_context(Path("/dev/null").open())
        error = refused(lambda: made.evaluation(log, 3), "Too many open files")
    assert "give the same command again" in error.hint
    made.evaluation(log, 3)


def test_lock_that_cannot_be_made_is_said(made):
    made.log()
    (made.folder() / "claim").mkdir()

    def claim():
        with made.store.claim(made.trial()):
            pytest.fail("it was not locked")

    refused(claim, "claim")
    (made.folder() / "claim").rmdir()
    with made.store.claim(made.trial()):
        assert not made.store.is_running(made.trial())


@pytest.mark.parametrize("name", ["runs", "trials", "curves", "protocols"])
def test_file_in_the_place_of_a_folder_is_said_and_moved_away(made, name):
    made.log()
    path = made.root / name
    if path.exists():
        path.rename(made.root.parent / "kept")
    path.write_text("mine")
    if name == "protocols":
        refused(lambda: write_protocol(made), "protocols")
    elif name == "runs":
        refused(lambda: write_trial(made), "Not a directory")
    else:
        refused(lambda: write_rows(made))
    (finding,) = [finding for finding in inspect(made.root) if finding.path == name]
    assert finding.what == "a file where a folder must be"
    repair(made.root)
    assert (made.root / "damaged" / f"{name}.1").read_text() == "mine"
    write_trial(made)


def test_repair_without_room_says_so_and_goes_on_when_there_is(made):
    for seed in range(3):
        made.run(seed)
    before = made.tables()
    for seed in range(3):
        made.row(seed).unlink()
    with limited(resource.RLIMIT_FSIZE, 3000):
        refused(lambda: repair(made.root), "File too large")
    assert len(repair(made.root)) == 3
    assert made.tables() == before
    assert not (made.root / "damaged").exists(), "nothing had to be moved"


def test_folder_that_is_gone_is_not_made_again_by_halves(made):
    log = made.log(outcome=None)
    elsewhere = made.root.rename(made.root.parent / "elsewhere")
    refused(lambda: made.evaluation(log, 3), "No such file or directory")
    assert not made.root.exists()
    elsewhere.rename(made.root)
    made.evaluation(log, 3)
    assert json.loads(made.events().read_bytes().splitlines()[-1])["step"] == 3
