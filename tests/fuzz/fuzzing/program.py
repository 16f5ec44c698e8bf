"""The program: all targets, each input under guard; a process that dies is replaced and goes on with the next input."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fuzzing.report import Fault, Progress, Tally, load, merged, told
from fuzzing.targets import split

CHUNK = 500
"""Inputs after which a process writes down what became of them."""

STALLED_S = 60.0
"""A process without progress for so long is stuck where no signal is served, in compiled code."""

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # a thread's arena would count as 64 MB of address space
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve a gigabyte ahead
    "MPLBACKEND": "agg",
    "COLUMNS": "100",
    "NO_COLOR": "1",
    "PYTHONHASHSEED": "0",
}
"""What makes an input's memory, and the order of sets, the same each time."""

BROKEN = "ended with 1"
"""How a process ends that raises outside any input."""

Chunk = tuple[str, range]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0: every property held for every input."""
    options = _parser().parse_args(argv)
    if options.child is not None:
        return _child(options)
    findings = Path(options.findings or tempfile.mkdtemp(prefix="fuzz-findings-")).resolve()
    findings.mkdir(parents=True, exist_ok=True)
    tallies = run(options, findings)
    sys.stdout.write("\n".join([f"seed {options.seed}", *told(tallies, options.seed, options.lines), ""]))
    if not any(findings.iterdir()):
        findings.rmdir()
    return 1 if any(tally.faults for tally in tallies) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2_000, help="inputs of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="this target alone")
    parser.add_argument("--number", type=int, help="with --target: this input alone")
    parser.add_argument("--case", nargs="+", default=[], type=os.path.abspath, help="these kept inputs alone")
    parser.add_argument("--findings", help="folder for inputs that break a property")
    parser.add_argument("--lines", type=int, default=12, help="lines of each traceback to print")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)  # the first chunk of this process
    parser.add_argument("--home", help=argparse.SUPPRESS)
    parser.add_argument("--skip", nargs="*", default=[], help=argparse.SUPPRESS)
    return parser


def chunks(options: argparse.Namespace) -> list[Chunk]:
    """Return all inputs of a command, in the parts that a process reports."""
    if options.case:
        return [(path, range(1)) for path in options.case]
    shares = {options.target: options.inputs} if options.target else split(options.inputs)
    if options.number is not None:
        return [(options.target, range(options.number, options.number + 1))]
    return [
        (name, range(start, min(start + CHUNK, count)))
        for name, count in shares.items()
        for start in range(0, count, CHUNK)
    ]


def run(options: argparse.Namespace, findings: Path) -> list[Tally]:
    """Run processes until every input has had its turn; return what became of them, target by target."""
    every = chunks(options)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        place = Path(temporary)
        tallies = place / "tallies.jsonl"
        progress = Progress(place / "progress")
        died: list[Fault] = []
        while len(load(tallies)) < len(every):
            chunk = len(load(tallies))
            progress.at(-1)
            home = place / f"home-{len(died)}"
            home.mkdir()
            ended = _process(
                options, chunk, home, progress, findings, [fault.number for fault in died if fault.chunk == chunk]
            )
            if ended is None:
                continue
            chunk, number = len(load(tallies)), progress.read()
            if number < 0 or ended == BROKEN:
                raise RuntimeError(f"the process {ended}, which no input is to blame for")
            died.append(Fault(every[chunk][0], number, f"the process {ended}", "", chunk=chunk))
        return merged(load(tallies), died)


def _process(
    options: argparse.Namespace, chunk: int, home: Path, progress: Progress, findings: Path, skip: Sequence[int | None]
) -> str | None:
    """Run one process from ``chunk`` on; return how it ended if it did not end well."""
    again = ["--inputs", str(options.inputs), "--seed", str(options.seed), "--findings", str(findings)]
    again += [] if options.target is None else ["--target", options.target]
    again += [] if options.number is None else ["--number", str(options.number)]
    again += ["--case", *options.case] if options.case else []
    again += ["--child", str(chunk), "--home", str(home), "--skip", *map(str, skip)]
    program = Path(__file__).parents[1] / "run.py"
    process = subprocess.Popen(
        [sys.executable, "-P", str(program), *again], env=os.environ | QUIET | {"MPLCONFIGDIR": str(home.parent)}
    )
    last, since = progress.read(), time.monotonic()
    while True:
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            now = progress.read()
            if now != last:
                last, since = now, time.monotonic()
            if last >= 0 and time.monotonic() - since > STALLED_S:
                process.kill()
                process.wait()
                return f"made no progress for {STALLED_S:g} s"
        else:
            return None if code == 0 else f"ended with {code}"


def _child(options: argparse.Namespace) -> int:
    """Run the inputs from one chunk on."""
    from fuzzing import runner  # imported late: the parent needs nothing of the program under test

    home = Path(options.home)
    found = runner.Runner(home, Path(options.findings))
    progress = Progress(home.parent / "progress")
    skip = set(map(int, options.skip))
    for number, (name, numbers) in enumerate(chunks(options)):
        if number < options.child:
            continue
        left_out = skip if number == options.child else set()
        if options.case:
            tally = found.kept(Path(name), progress)
        else:
            tally = found.inputs(name, options.seed, [one for one in numbers if one not in left_out], progress)
        progress.at(-1)
        tally.dump(home.parent / "tallies.jsonl")
    return 0
