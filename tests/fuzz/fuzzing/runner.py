"""Runs inputs: makes each from its seed, runs it under guard, and keeps those that break a property."""

from __future__ import annotations

import os
import resource
import shutil
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BenchError
from fuzzing import case as cases
from fuzzing import targets
from fuzzing.case import Case
from fuzzing.guard import AGAIN_S, LIMIT_S, Guard, Hang, Violation
from fuzzing.report import Fault, Progress, Tally

ACCEPTED, REFUSED, FAULT = "accepted", "refused", "fault"
KEPT_PER_KIND = 2
"""How many inputs of one kind of fault are kept in full, of each part of a run."""


class Target(Protocol):
    """Something that reads what others wrote."""

    def __init__(self, home: Path) -> None:
        """Prepare samples in ``home``, which inputs may read and must not change."""

    def make(self, random: Any) -> Case:
        """Return an input."""

    def run(self, case: Case, folder: Path) -> None:
        """Give an input to the program, in an empty folder; refused ones raise ``BenchError``."""


class Runner:
    """Runs inputs in ``home``; those that break a property are written to ``findings``."""

    def __init__(self, home: Path, findings: Path) -> None:
        self._home, self._findings = home, findings
        self._made: dict[str, Target] = {}
        self._folder = home / "outer" / "inner" / "input"
        self._folder.mkdir(parents=True)
        (home / "outer" / "sentinel").write_text("nobody changes this\n", encoding="utf-8")
        self._guard = Guard(self._folder)

    def target(self, name: str) -> Target:
        """Return a target, prepared on first use."""
        if name not in self._made:
            home = self._home / "samples" / name
            home.mkdir(parents=True)
            self._made[name] = targets.target(name)(home)
        return self._made[name]

    def outcome(self, name: str, case: Case, limit_s: float = LIMIT_S) -> tuple[str, str, str, float]:
        """Run one input; return its outcome, kind and detail of a fault, and seconds."""
        target = self.target(name)
        os.chdir(self._home)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        start = time.perf_counter()
        try:
            with self._guard.watching(limit_s):
                target.run(case, self._folder)
            found = (ACCEPTED, "", "")
        except BenchError as error:
            found = _refused(error)
        except Violation as error:
            found = (FAULT, f"violation: {str(error)[:120]}", traceback.format_exc(limit=-16))
        except (Hang, MemoryError, Exception, SystemExit) as error:  # noqa: BLE001 - that nothing is raised is what is tested
            found = (FAULT, f"{type(error).__name__} in {_frame(error)}", traceback.format_exc(limit=-12))
        return *found, time.perf_counter() - start

    def inputs(self, name: str, seed: int, numbers: Iterable[int], progress: Progress) -> Tally:
        """Run the inputs ``numbers`` of a target."""
        tally = Tally(name)
        target = self.target(name)
        begin = cpu_s()
        before = self._snapshot()
        for number in numbers:
            progress.at(number)
            case = target.make(cases.random_of(seed, name, number))
            self._one(tally, number, case)
        tally.cpu_s = cpu_s() - begin
        changed = sorted(str(path) for path, _ in before ^ self._snapshot())
        if changed:
            self._note(tally, Fault(name, None, "violation: files outside the folder changed", ", ".join(changed)))
        return tally

    def kept(self, path: Path, progress: Progress) -> Tally:
        """Run an input that was kept as a file."""
        name, case, _ = cases.read(path)
        tally = Tally(name)
        self.target(name)
        progress.at(0)
        begin = cpu_s()
        self._one(tally, None, case)
        tally.cpu_s = cpu_s() - begin
        return tally

    def _one(self, tally: Tally, number: int | None, case: Case) -> None:
        outcome, kind, detail, seconds = self.outcome(tally.target, case)
        if kind.startswith("Hang"):  # or others had the machine
            begin = cpu_s()
            outcome, kind, detail, seconds = self.outcome(tally.target, case, AGAIN_S)
            if outcome != FAULT and (used := cpu_s() - begin) > LIMIT_S:
                outcome, kind, detail = FAULT, "Hang in all", f"{used:.1f} s of processor time"
        tally.inputs += 1
        tally.accepted += outcome == ACCEPTED
        tally.refused += outcome == REFUSED
        if seconds > tally.slowest_s:
            tally.slowest_s, tally.slowest = seconds, number
        if outcome == FAULT:
            fault = Fault(tally.target, number, kind, detail)
            if number is not None and tally.kinds.get(kind, 0) < KEPT_PER_KIND:
                fault.file = str(self._findings / f"{tally.target}-{number}.json")
                cases.write(Path(fault.file), tally.target, case, kind)
            self._note(tally, fault)

    def _note(self, tally: Tally, fault: Fault) -> None:
        tally.kinds[fault.kind] = tally.kinds.get(fault.kind, 0) + 1
        if tally.kinds[fault.kind] <= KEPT_PER_KIND:
            tally.faults.append(fault)

    def _snapshot(self) -> set[tuple[Path, int]]:
        """Return all files that inputs must leave alone, with the time of their last change."""
        own = self._folder
        return {
            (path, 0 if path.is_dir() else path.lstat().st_mtime_ns)
            for path in self._home.rglob("*")
            if path != own and own not in path.parents
        }


def cpu_s() -> float:
    """Return the seconds that processors have spent on this process and those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _refused(error: BenchError) -> tuple[str, str, str]:
    """A refusal counts unless it hides that memory ran out, or says nothing."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, MemoryError):
            told = "".join(traceback.format_exception(error))
            return FAULT, f"MemoryError, refused as {type(error).__name__}", told
        one = one.__cause__ or one.__context__
    if not error.message.strip():
        return FAULT, f"{type(error).__name__} without a message", traceback.format_exc(limit=-12)
    return REFUSED, "", ""


def _frame(error: BaseException) -> str:
    """Return the innermost place in the program under test that an exception, or its cause, went through."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    ours = [
        frame for frame in frames if any(part in frame.filename for part in ("/bench/", "/plugins/", "/workloads/"))
    ]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"
