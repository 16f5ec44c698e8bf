"""``bench`` as a program: help, ``--debug``, exit codes, pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from bench.cli import VERBS

BAD = ("run", "--workload", "micro", "--plugin", "adamw", "--set", "lr=fast", "--debug")


def test_debug_adds_the_traceback(bench_here):
    for arguments in (BAD, ("show", "gallore", "--debug")):
        answer = bench_here(*arguments)
        assert answer.code == 2
        assert "Traceback (most recent call last)" in answer.err
        assert answer.err.count("\nError: ") == 1


def test_bench_alone_shows_what_there_is(bench_here):
    answer = bench_here()
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: no command\n\nUsage: bench")
    assert all(f"  {verb} " in answer.err for verb in VERBS)


def test_help_is_no_error(bench):
    alone = bench("--help")
    assert (alone.returncode, alone.stderr) == (0, "")
    assert "Usage: bench" in alone.stdout
    verbs = re.findall(r"^  ([a-z-]+)  ", alone.stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(verbs) >= set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_every_verb(bench_here, verb):
    for option in ("--help", "-h"):
        answer = bench_here(verb, option)
        assert (answer.code, answer.err) == (0, "")
        assert f"Usage: bench {verb}" in answer.out
        assert "--debug" in answer.out


def test_refusal_of_a_process(bench):
    """The codes and messages above are those of the program too, not only of the function."""
    done = bench("list", "--track", "optimiser")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: no track named 'optimiser'\n\nHint: did you mean 'optimizer'?\n"
    assert bench().returncode == 2


def test_stream_without_greek_letters_is_no_error(bench):
    done = bench("show", "adamw", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_reader_that_goes_away_is_no_error(bench, reader):
    command = f"{sys.executable} -P -m bench list --format json | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
def test_closed_pipe_is_no_error(bench):
    """The reader is gone before the first word is written, so writing must fail."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench", "list"],
        cwd=bench.folder,
        env=bench.environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
