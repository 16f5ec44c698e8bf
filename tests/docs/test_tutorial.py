"""The tutorial is run: every command of it in its order, in an empty folder, and what it shows is what they print.

Conventions of the page: a block ``sh`` is run as it stands; ``<!-- not run: reason -->`` before it says that it is not.
``<!-- file: path -->`` before a block says which file it is. A block ``text`` after commands is what they print:
numbers, units, stars and widths of columns may be others, a line ``...`` stands for any number of lines. After
``<!-- shown: measured here -->`` it follows from training, which ends in other bits on other processors: there lines
are told by their first word, and those that only a miss or a busy machine brings may be missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
FENCES = re.compile(
    r"(?:<!-- (?P<mark>[\w ]+): (?P<said>[^\n]+?) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)\n```", re.DOTALL
)
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: what kind it is, and what the comment before it says."""

    kind: str
    code: str
    mark: str
    said: str


BLOCKS = [
    Block(match["kind"], match["code"], match["mark"] or "", match["said"] or "") for match in FENCES.finditer(PAGE)
]
SKIPPED = [block for block in BLOCKS if block.mark == "not run"]


def test_what_is_not_run_says_why_and_is_the_installation_alone():
    assert [block.said for block in SKIPPED] == ["it needs the network"] * len(SKIPPED)
    lines = [line for block in SKIPPED for line in block.code.splitlines()]
    assert lines
    assert [line for line in lines if not re.match(r"(git clone|cd|python -m (venv|pip)|\.|pip) ?", line)] == []


def test_the_page_uses_the_conventions():
    assert {block.kind for block in BLOCKS} <= {"sh", "text", "py", "toml"}
    assert {block.mark for block in BLOCKS} == {"", "not run", "file", "shown"}
    assert {block.said for block in BLOCKS if block.mark == "shown"} == {"measured here"}
    assert all(block.mark == "file" for block in BLOCKS if block.kind in {"py", "toml"})


@pytest.mark.parametrize(
    "verb",
    ["list", "show", "plan", "run", "leaderboard", "compare", "report", "new-plugin", "check", "pack", "verify"],
)
def test_the_tutorial_uses_the_verb(verb):
    assert any(re.search(rf"^bench {verb}\b", block.code, re.MULTILINE) for block in BLOCKS if block.kind == "sh")


def one_core():
    """Keep a process and its children on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.fixture
def shell(tmp_path):
    """Return ``commands -> what they print``, in a folder and an environment of their own.

    The environment has all that this one has, through a file of paths, so that installing the tutorial's package
    changes nothing here and loads nothing.
    """
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    here = sysconfig.get_path("purelib")
    (own / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    bench = home / "bin" / "bench"
    bench.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -P -m bench "$@"\n', encoding="utf-8")
    bench.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "BENCH_PLUGINS"}},
        "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
        "PYTHONNOUSERSITE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the value of a negated option: 0 is "no isolation"
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }

    def run(commands):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            preexec_fn=one_core,  # a trial uses every core that it may: on a toy many are slower than one
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout[-4000:]}"
        return done.stdout

    run.folder = folder
    return run


def normal(line):
    """Return a line without what differs between machines: numbers, stars, widths, rules of tables."""
    bare = re.sub(r"\d+(?:[.,]\d+)*(?:e-?\d+)?(?: (?:s|ms|min|h)\b)?", "0", line.replace("*", ""))
    return " ".join(re.sub(r"-{3,}", "-", bare).split())


PERHAPS = {"expected", "note:"}
"""The first words of lines that depend on whether a seed missed the target, or on who else used the machine."""


def first_word(line):
    """Return the first word of a line."""
    return normal(line).partition(" ")[0]


def missing(shown, printed, told=normal):
    """Return the first line of ``shown`` that ``printed`` has not, in order; ``None`` if there is none."""
    rest = [told(line) for line in printed.splitlines()]
    for line in shown.splitlines():
        wanted = told(line)
        if wanted in {"", "..."} or (told is first_word and wanted in PERHAPS):
            continue
        if wanted not in rest:
            return line
        rest = rest[rest.index(wanted) + 1 :]
    return None


def test_the_comparison_of_outputs_sees_what_differs():
    assert missing("a  12.5\n...\nb", "a 3\nx\nb") is None
    assert missing("a\nb", "b\na") == "b"
    assert missing("reached 2/3", "missed 2/3") == "reached 2/3"
    assert missing("time 3.5 s", "time  1.2 min*") is None
    assert missing("rank 1\nexpected 2", "x\nrank (2)", first_word) is None
    assert missing("rank 1\nreached 2", "rank 1", first_word) == "reached 2"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_every_command_of_the_tutorial_runs_and_prints_what_the_page_shows(shell):
    printed, told = "", 0
    for block in BLOCKS:
        if block.mark == "file":
            path = shell.folder / block.said
            assert path.parent.is_dir(), f"{block.said}: the commands before it make no such folder"
            path.write_text(f"{block.code}\n", encoding="utf-8")
        elif block.kind == "sh" and block not in SKIPPED:
            printed = shell(block.code)
            told += 1
        elif block.kind == "text":
            line = missing(block.code, printed, first_word if block.mark == "shown" else normal)
            assert line is None, f"the page shows {line!r}, the commands print\n{printed[-4000:]}"
    assert told == sum(block.kind == "sh" and block not in SKIPPED for block in BLOCKS) > 8
