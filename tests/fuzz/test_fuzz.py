"""Every reader of what others wrote holds its properties: found inputs again, and fresh ones made from a seed.

The short run is part of the tests; ``tox -e fuzz`` makes 100,000 inputs of it (docs/fuzzing.md).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / "run.py"
CORPUS = sorted((HERE / "corpus").glob("*.json"))
INPUTS = int(os.environ.get("BENCH_FUZZ_INPUTS", "1500"))
SEED = os.environ.get("BENCH_FUZZ_SEED", "0")


@pytest.fixture
def fuzz(tmp_path):
    """Run the program; return its exit code and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-P", str(PROGRAM), "--findings", str(tmp_path / "findings"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return run


def table(said: str) -> dict[str, tuple[int, int, int, int]]:
    """Return inputs, accepted, refused and faults of each target."""
    found = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+ s", said, re.MULTILINE)
    return {name: tuple(map(int, numbers)) for name, *numbers in found}


def test_inputs_that_once_broke_something_break_nothing(fuzz):
    code, said = fuzz("--case", *CORPUS)
    assert code == 0, said
    assert table(said)["all"][0] == len(CORPUS)


def test_fresh_inputs_break_nothing(fuzz, capfd):
    code, said = fuzz("--inputs", INPUTS, "--seed", SEED)
    with capfd.disabled():
        sys.stdout.write(f"\n{said}")
    assert code == 0, said
    rows = table(said)
    total = rows.pop("all")
    assert total[0] == INPUTS, "every input that was asked for was made"
    assert sum(row[0] for row in rows.values()) == INPUTS
    assert total[1] + total[2] == INPUTS, "each is accepted or refused"
    assert all(row[2] for row in rows.values()), "every target refuses some of its inputs"


# -- the fuzzer itself -------------------------------------------------------------------------------------------------
WRONG = {
    "writes elsewhere": ("violation: open of", "Path(__file__).with_name('written').write_text('')"),
    "makes a folder elsewhere": ("violation: os.mkdir", "os.mkdir('/tmp/fuzz-made')"),
    "removes elsewhere": ("violation: os.remove", "os.remove(__file__)"),
    "imports what lies about": ("violation: import of 'fuzz_canary'", "import fuzz_canary"),
    "runs text of the input": ("violation: compile of text", "eval('fuzz_canary')"),
    "starts a process": ("violation: subprocess.Popen", "subprocess.run(['true'])"),
    "runs a shell": ("violation: os.system", "os.system('true')"),
    "opens a connection": ("violation: socket.", "socket.create_connection(('127.0.0.1', 9))"),
    "swallows what was prevented": ("violation: os.system", "swallowed(lambda: os.system('true'))"),
    "unpickles": ("violation: pickle.find_class", "pickle.loads(b'cos\\nsystem\\n.')"),
    "takes too much memory": ("MemoryError", "bytes(2**31)"),
    "hides that memory ran out": ("MemoryError, refused as BadData", "hidden()"),
    "hangs": ("Hang", "time.sleep(60)"),
    "raises what is no refusal": ("KeyError", "{}['x']"),
    "leaves the interpreter": ("SystemExit", "sys.exit(0)"),
    "refuses without a word": ("BadData without a message", "refuse('')"),
    "dies": ("the process ended with -11", "__import__('ctypes').string_at(0)"),
}

MODULE = """
import os, pickle, socket, subprocess, sys, time
from pathlib import Path

import fuzzing.home
from bench.errors import BadData
from fuzzing.case import random_of


def refuse(why):
    raise BadData(why)


def hidden():
    try:
        bytes(2**31)
    except MemoryError:
        raise BadData("too large") from None


def swallowed(what):
    try:
        what()
    except BaseException:
        pass
"""
CLASS = """

class {name}:
    chosen = min(random_of(0, "{name}", number).random() for number in range(3))

    def __init__(self, home):
        pass

    def make(self, random):
        return {{"number": random.random()}}

    def run(self, case, folder):
        if case["number"] == self.chosen:
            {code}
        refuse("a refusal")
"""
NAMES = {what: "".join(word.title() for word in what.split()) for what in WRONG}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> tuple[str, Path]:
    """A run of a fuzzer whose targets are readers that do what none may: what it said, and its findings."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "fuzzing" / "targets").mkdir(parents=True)
    for path in (PROGRAM, *(HERE / "fuzzing").glob("*.py"), HERE / "fuzzing" / "targets" / "__init__.py"):
        (folder / path.relative_to(HERE)).write_bytes(path.read_bytes())
    guard = folder / "fuzzing" / "guard.py"
    hasty = guard.read_text(encoding="utf-8").replace("LIMIT_S, AGAIN_S = 5.0, 30.0", "LIMIT_S, AGAIN_S = 1.0, 2.0")
    guard.write_text(hasty, encoding="utf-8")
    place = folder / "fuzzing" / "targets" / "__init__.py"
    targets = {name: (f"wrong:{name}", 1) for name in NAMES.values()}
    text = re.sub(r"TARGETS = \{.*?\n\}", f"TARGETS = {targets}", place.read_text(encoding="utf-8"), flags=re.DOTALL)
    place.write_text(text, encoding="utf-8")
    classes = [CLASS.format(name=NAMES[what], code=code) for what, (_, code) in WRONG.items()]
    (place.parent / "wrong.py").write_text(MODULE + "".join(classes), encoding="utf-8")
    command = [sys.executable, "-P", "run.py", "--inputs", str(3 * len(WRONG)), "--findings", "findings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, folder / "findings"


@pytest.mark.parametrize("what", WRONG)
def test_the_fuzzer_sees_a_reader_that(wrong, what):
    said, findings = wrong
    name = NAMES[what]
    assert table(said)[name] == (3, 0, 2, 1), said
    assert f"{name}: {WRONG[what][0]}" in said, said
    again = re.search(rf"again: .* --seed 0 --target {name} --number (\d)$", said, re.MULTILINE)
    assert again is not None, "how to run the input again is said"
    assert what == "dies" or (findings / f"{name}-{again[1]}.json").exists(), "and the input is kept"
