"""Strange names, times, signals, streams and neighbours: the record is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.event_log import read_events
from bench.record import SCHEMA_VERSION
from bench.store import Store

RUN = ("run", "--plugin", "adamw", "--workload", "micro", "--no-reference")

CLOCK_THAT_JUMPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static int calls;
static long jump(void) {  /* now ten years back, now two days on */
    calls++;
    return calls % 3 == 0 ? -315360000L : calls % 3 == 1 ? 172800L : 0L;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (clock == CLOCK_REALTIME && answer == 0) now->tv_sec += jump();
    return answer;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> Path:
    """The results of three seeds that nobody disturbs."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    assert server(*RUN, "--seeds", 3, "--results", results).code == 0
    return results


# -- names -------------------------------------------------------------------------------------------------------------
NAMES = {
    "everything that a shell minds": '-results of "Zoë\'s" $(thesis); `x` %s {0} *?\\ [bold]',
    "not Latin, two lines, a tab": "結果\n\tре́зультаты 🧪",
    "as long as a name may be": "r" * 255,
    "key=value": "seed=7",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_results_on_a_strange_path(forks, tmp_path, undisturbed, same, sound, name):
    results = tmp_path / name
    done = forks(*RUN, "--results", results)
    assert done.code == 0, done.text
    same(results, undisturbed)
    assert len(sound(results)) == 1
    board = forks("leaderboard", "--results", results, "--format", "json")
    assert [row["algorithm"] for row in json.loads(board.text)] == ["adamw"]
    (row,) = (results / "trials").iterdir()
    row.write_bytes(b"broken")
    assert forks("doctor", "--results", results).code == 1
    assert forks("repair", "--results", results).code == 0
    same(results, undisturbed)


def test_results_on_a_path_that_is_no_text(forks, tmp_path, undisturbed, same):
    """Bytes that are no UTF-8, as an old archive leaves them."""
    results = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sultats\xff"))
    done = forks(*RUN, "--results", results)
    assert done.code == 0, done.text
    same(results, undisturbed)
    assert "\\udc" in Store(results).trials()["command_line"][0]


def test_results_that_are_a_link(forks, tmp_path, undisturbed, same):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").symlink_to("elsewhere")
    assert forks(*RUN, "--results", tmp_path / "results").code == 0
    same(tmp_path / "elsewhere", undisturbed)
    (tmp_path / "dangling").symlink_to("nowhere")
    refused = forks(*RUN, "--results", tmp_path / "dangling")
    assert refused.code == 2
    assert "Traceback" not in refused.text
    assert "dangling" in refused.text


# -- time --------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the clock that jumps")
def test_system_clock_that_jumps_changes_no_measured_time(bench, forks, undisturbed, same, tmp_path):
    (tmp_path / "clock.c").write_text(CLOCK_THAT_JUMPS)
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    shown = subprocess.run(
        [sys.executable, "-S", "-c", "import time; print(len({time.time() // 86400 for _ in range(6)}))"],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shown.stdout) > 1, "the clock jumps"
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    row = Store(results).trials().iloc[0]
    (results / "runs" / row.trial_id / "events.jsonl").unlink()
    done = bench("worker", results / "runs" / row.trial_id / "trial.json", LD_PRELOAD=str(library))
    assert done.returncode == 0, done.stderr
    same(results, undisturbed)
    measured = Store(results).trials().set_index("trial_id").loc[row.trial_id]
    for column in ("time_s", "wall_s", "setup_s", "data_s", "gradient_s", "step_s", "evaluation_s", "cpu_s"):
        assert 0 <= measured[column] < 300, (column, measured[column])


def test_worker_that_is_stopped_for_a_while_ends_in_the_same_record(forks, tmp_path, undisturbed, same, soon, events):
    results = tmp_path / "results"
    command = forks.start(*RUN, "--results", results)
    soon(lambda: events(results))
    (worker,) = command.workers()
    for _ in range(3):
        os.kill(worker, signal.SIGSTOP)
        seen = events(results)
        time.sleep(0.2)
        assert events(results)[: len(seen)] == seen
        os.kill(worker, signal.SIGCONT)
        time.sleep(0.02)
    done = forks.wait(command)
    assert done.code == 0, done.text
    same(results, undisturbed)


def test_command_that_is_stopped_for_a_while_ends_in_the_same_record(forks, tmp_path, undisturbed, same, soon, events):
    results = tmp_path / "results"
    command = forks.start(*RUN, "--results", results)
    soon(lambda: events(results))
    command.kill(signal.SIGSTOP)
    soon(lambda: b'"finished"' in events(results))
    command.kill(signal.SIGCONT)
    done = forks.wait(command)
    assert done.code == 0, done.text
    same(results, undisturbed)


# -- streams and folders -----------------------------------------------------------------------------------------------
def test_reader_that_goes_away_during_a_run_loses_no_record(forks, tmp_path, undisturbed, same, sound, soon):
    pipe, results = tmp_path / "pipe", tmp_path / "results"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = forks.start(*RUN, "--results", results, out=pipe)

    def begun() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 4096)
        return (results / "store.json").exists()

    soon(begun)
    os.close(reader)
    forks.wait(command)
    sound(results, "missing")
    done = forks(*RUN, "--results", results)
    assert done.code == 0, done.text
    same(results, undisturbed)


def test_output_without_space_is_an_error_of_one_line(forks, tmp_path, undisturbed, same):
    results = tmp_path / "results"
    full = forks(*RUN, "--results", results, out=Path("/dev/full"))
    assert full.code == 2
    listed = forks("list", out=Path("/dev/full"))
    assert listed.code == 2
    done = forks(*RUN, "--results", results)
    assert done.code == 0, done.text
    same(results, undisturbed)


def test_temporary_folder_and_home_that_are_missing_are_no_matter(forks, tmp_path, undisturbed, same):
    nowhere = {"TMPDIR": "/there/is/no/such/folder", "HOME": "/nor/this/one", "XDG_CACHE_HOME": "/nor/that"}
    done = forks(*RUN, "--results", tmp_path / "results", environment=nowhere)
    assert done.code == 0, done.text
    same(tmp_path / "results", undisturbed)


def test_locale_without_any_letter_but_ascii(bench, undisturbed, same):
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = bench(*RUN, "--results", "ré sultats", **plain)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    same(bench.folder / "ré sultats", undisturbed)
    shown = bench("show", "adamw", **plain)
    assert (shown.returncode, shown.stderr) == (0, "")


# -- neighbours --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_write_one_store_share_the_work(forks, tmp_path, undisturbed, same, sound, processes):
    results = tmp_path / "results"
    commands = [forks.start(*RUN, "--seeds", 3, "--results", results) for _ in range(processes)]
    for command in commands:
        done = forks.wait(command)
        assert done.code == 0, done.text
    same(results, undisturbed)
    rows = sound(results)
    assert rows["attempts"].tolist() == [1, 1, 1], "no trial was run twice"
    assert not list(results.rglob("*.tmp"))


def test_repair_during_a_run_leaves_the_trial_that_runs_alone(forks, tmp_path, undisturbed, same, soon, events):
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    rows = Store(results).trials().set_index("seed")["trial_id"]
    (results / "runs" / rows[0] / "events.jsonl").unlink()
    (results / "trials" / f"{rows[1]}.parquet").write_bytes(b"broken")
    command = forks.start("resume", "--results", results)
    log = results / "runs" / rows[0] / "events.jsonl"
    soon(log.exists)
    repaired = forks("repair", "--results", results)
    assert repaired.code == 0, repaired.text
    assert rows[0] not in repaired.text
    done = forks.wait(command)
    assert done.code == 0, done.text
    assert [event["event"] for event in read_events(log.parent)].count("started") == 1
    same(results, undisturbed)


# -- a newer schema ----------------------------------------------------------------------------------------------------
COMMANDS = {
    "run": RUN,
    "plan": ("plan", *RUN[1:]),
    "resume": ("resume",),
    "leaderboard": ("leaderboard",),
    "compare": ("compare", "adamw", "sgd", "--workload", "micro"),
    "report": ("report", "--out", "report.html"),
    "repair": ("repair",),
    "repair, dry run": ("repair", "--dry-run"),
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_every_command_refuses_a_folder_of_a_newer_schema(bench_here, tmp_path, arguments):
    Store(tmp_path / "results", create=True)
    newer = json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION + 1})
    (tmp_path / "results" / "store.json").write_text(newer)
    answer = bench_here(*arguments)
    said = answer.out + answer.err
    assert f"schema version {SCHEMA_VERSION + 1}" in said
    assert "newer bench" in said
    assert "Traceback" not in said
    assert answer.code == (0 if "--dry-run" in arguments else 2)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["store.json"]


def test_doctor_says_that_a_folder_is_of_a_newer_schema(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    newer = json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION + 1})
    (tmp_path / "results" / "store.json").write_text(newer)
    answer = bench_here("doctor", "--format", "json")
    assert answer.code == 1
    found = [row for row in json.loads(answer.out) if (row["state"], row["what"]) == ("bad", "results")]
    assert len(found) == 2, "what is wrong, and what would be done"
    assert f"schema version {SCHEMA_VERSION + 1}" in found[0]["found"]


def test_doctor_lists_every_finding_with_the_way_to_repair_them(bench_here, tmp_path, undisturbed):
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    rows = sorted((results / "trials").iterdir())
    rows[0].write_bytes(b"broken")
    rows[1].unlink()
    (results / "runs" / rows[2].stem / "trial.json").write_text("{}")
    answer = bench_here("doctor", "--results", results)
    assert answer.code == 1
    bad = [line for line in answer.out.splitlines() if line.startswith("bad")]
    assert len(bad) == 4
    assert all(any(f"{row.stem}" in line for line in bad) for row in rows)
    assert bad[-1].endswith(f"3 things are damaged: bench repair --results {results}")
    said = json.loads(bench_here("repair", "--results", results, "--dry-run", "--format", "json").out)
    assert len(said) == 3
    done = bench_here("repair", "--results", results)
    assert (done.code, done.err) == (0, "")
    answer = bench_here("doctor", "--results", results)
    assert answer.code == 0, answer.out
