"""A small disk that fills up, is read-only or gone: one clear message, nothing lost, and the same command continues."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.event_log import read_events
from bench.store import Store

RUN = ("run", "--workload", "micro", "--no-reference", "--plugin")


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> Path:
    """Two seeds of a trial on a disk that has room."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    assert server(*RUN, "adamw", "--seeds", 2, "--results", results, eager=True).code == 0
    return results


@pytest.fixture
def begun(forks, disk, undisturbed) -> Path:
    """A store on the small disk that holds the first of the two trials."""
    rows = Store(undisturbed).trials().set_index("seed")
    second = f"{rows.loc[1, 'trial_id']}*"
    shutil.copytree(undisturbed, forks.seen(disk) / "results", ignore=shutil.ignore_patterns(second))
    return disk / "results"


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill a disk up to ``leave_bytes`` (whole pages); return the file that does."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() // 4096 * 4096 - leave_bytes))
    return path


def one_message(text: str) -> str:
    """Return the only error that a command told; fail where it told a traceback or more than one."""
    assert "Traceback" not in text, text
    (message,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    return message


@pytest.mark.parametrize("pages", [0, 2, 9])
def test_full_disk_ends_in_one_message_and_the_same_command_goes_on(forks, begun, disk, undisturbed, same, pages):
    before = {path.name: path.read_bytes() for path in forks.seen(begun).glob("*/*.parquet")}
    filler = fill(forks.seen(disk), 4096 * pages)
    command = (*RUN, "adamw", "--seed", 1, "--results", begun)
    stopped = forks(*command, eager=True)
    assert stopped.code == 2, stopped.text
    message = one_message(stopped.text)
    assert "cannot write" in message
    assert "No space left on device" in message
    assert "give the same command again" in stopped.text
    assert {path.name: path.read_bytes() for path in forks.seen(begun).glob("*/*.parquet")}.items() >= before.items()
    rows = Store(forks.seen(begun)).trials().set_index("seed")
    assert rows.loc[0, "outcome"] == "reached"
    assert set(rows["outcome"]) <= {"reached", "interrupted"}
    filler.unlink()
    done = forks(*command, eager=True)
    assert done.code == 0, done.text
    same(forks.seen(begun), undisturbed)
    assert not list(forks.seen(begun).rglob("*.tmp"))


def test_full_temporary_folder_is_no_matter(forks, disk, tmp_path):
    fill(forks.seen(disk), 0)
    done = forks(*RUN, "adamw", "--results", tmp_path / "results", environment={"TMPDIR": str(disk)})
    assert done.code == 0, done.text


def test_read_only_results_can_be_read_and_not_be_written(forks, begun, disk, undisturbed, same):
    forks.mount(mode="ro")
    command = (*RUN, "adamw", "--seed", 1, "--results", begun)
    refused = forks(*command, eager=True)
    assert refused.code == 2
    assert one_message(refused.text).endswith("Read-only file system")
    for reading in (("leaderboard",), ("compare", "adamw", "adamw", "--workload", "micro"), ("doctor",)):
        read = forks(*reading, "--results", begun)
        assert "Traceback" not in read.text
        assert "Read-only" not in read.text
    assert "adamw" in forks("leaderboard", "--results", begun).text
    (row,) = forks.seen(begun).glob("trials/*.parquet")
    assert forks("repair", "--results", begun).text == f"nothing to repair in '{begun}'\n"
    forks.mount(mode="rw")
    row.write_bytes(b"broken")
    forks.mount(mode="ro")
    assert one_message(forks("repair", "--results", begun).text).endswith("Read-only file system")
    forks.mount(mode="rw")
    assert forks("repair", "--results", begun).code == 0
    assert forks(*command, eager=True).code == 0
    same(forks.seen(begun), undisturbed)


def test_disk_that_fills_up_during_a_run_interrupts_it_and_it_goes_on_from_its_checkpoint(
    forks, begun, disk, soon, events
):
    command = (*RUN, "dawdles", "--results", begun)
    running = forks.start(*command, eager=True)
    soon(lambda: events(forks.seen(begun)).count(b'"event": "saved", "step": 8}') == 2)
    filler = fill(forks.seen(disk), 0)
    stopped = forks.wait(running)
    assert stopped.code == 2, stopped.text
    assert "No space left on device" in one_message(stopped.text)
    filler.unlink()
    done = forks(*command, eager=True)
    assert done.code == 0, done.text
    assert "goes on from step" in done.text
    assert sorted(Store(forks.seen(begun)).trials()["outcome"]) == ["reached", "reached"]


def test_results_that_disappear_during_a_run_are_not_made_again_by_halves(forks, tmp_path, soon, events):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    command = (*RUN, "dawdles", "--results", results)
    running = forks.start(*command, eager=True)
    soon(lambda: b'"step": 8' in events(results))
    results.rename(elsewhere)
    stopped = forks.wait(running)
    assert stopped.code == 2, stopped.text
    assert "No such file or directory" in one_message(stopped.text)
    assert not results.exists()
    elsewhere.rename(results)
    done = forks(*command, eager=True)
    assert done.code == 0, done.text
    assert "goes on from step" in done.text


def test_checkpoint_that_cannot_be_written_does_not_end_the_trial(forks, tmp_path, undisturbed):
    """A folder stands where a checkpoint is prepared: the trial goes on without, and its log says so."""
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    (one, *_) = sorted((results / "runs").iterdir())
    (one / "events.jsonl").unlink()
    (one / "checkpoint.tmp").mkdir()
    done = forks(*RUN, "adamw", "--seeds", 2, "--results", results, eager=True)
    assert done.code == 0, done.text
    told = [event for event in read_events(one) if event["event"] in {"saved", "unsaved"}]
    assert told
    assert all(event["event"] == "unsaved" and "checkpoint.pt: Is a directory" in event["reason"] for event in told)
    assert f"cannot write {one / 'checkpoint.pt'}" in done.text


@pytest.mark.parametrize("limit_bytes", [700, 20_000])
def test_files_that_may_not_grow_stop_the_command_with_the_reason(forks, tmp_path, undisturbed, same, limit_bytes):
    results = tmp_path / "results"
    command = (*RUN, "adamw", "--seed", 1, "--results", results)
    stopped = forks(*command, eager=True, limits={"RLIMIT_FSIZE": limit_bytes})
    assert stopped.code == 2, stopped.text
    assert "File too large" in one_message(stopped.text)
    done = forks(*command, eager=True)
    assert done.code == 0, done.text
    same(results, undisturbed)


def test_memory_that_the_system_refuses_is_an_outcome_and_hurts_no_other_trial(forks, tmp_path):
    status = Path(f"/proc/{forks.process.pid}/status").read_text()
    now_bytes = 1024 * int(status.partition("VmSize:")[2].split()[0])
    plugins = "grows,adamw"
    limits = {"RLIMIT_AS": now_bytes + 600 * 2**20}
    done = forks(*RUN, plugins, "--results", tmp_path / "results", limits=limits)
    assert done.code == 1, done.text
    rows = Store(tmp_path / "results").trials().set_index("algorithm")
    assert rows["outcome"].to_dict() == {"grows": "out_of_memory", "adamw": "reached"}
    assert rows.loc["grows", "steps"] >= 4, "what was evaluated before is recorded"
