"""Commands as forks of one loaded process, which has a small disk of its own where the system lets it have one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.inspection import inspect
from bench.record import COST
from bench.store import Store

SERVER = Path(__file__).parents[2] / "support" / "fork_server.py"
MOUNT = 'mount -t tmpfs -o size=4m none "$1" && shift && exec "$@"'

VARYING = {name for name, _ in COST if name.endswith("_s") or name.startswith("calibration")}
VARYING |= {"contended", "rss_peak_bytes", "time_to_target_s", "time_to_target_interpolated_s"}
VARYING |= {"attempts", "started_at", "finished_at", "command_line", "git_sha", "git_dirty", "threads"}
"""The columns of ``trials`` in which a run that was disturbed may differ from one that was not; no others."""

CURVE_VARYING = {"time_s", "wall_s"}


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, negative for a signal, and what it said."""

    code: int
    text: str


@dataclass(frozen=True)
class Started:
    """A command that runs."""

    pid: int
    out: Path

    def text(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def workers(self) -> list[int]:
        """The processes that it has started."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


@dataclass
class Forks:
    """The command line; ``disk`` is the mount point of the small disk, ``None`` where there is none."""

    process: subprocess.Popen[str]
    folder: Path
    disk: Path | None
    number: int = 0
    running: list[Started] = field(default_factory=list)

    def ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments: object, out: Path | None = None, **options: Any) -> Started:
        """Start a command; ``options`` are those of the server: ``environment``, ``limits``, ``eager``."""
        self.number += 1
        file = out or self.folder / f"{self.number}.txt"
        pid = self.ask(start=[str(argument) for argument in arguments], out=str(file), **options)
        self.running.append(Started(pid, file))
        return self.running[-1]

    def wait(self, started: Started) -> Ended:
        """Wait until a command has ended."""
        code = self.ask(wait=started.pid)
        self.running.remove(started)
        return Ended(code, started.text() if started.out.is_file() else "")

    def __call__(self, *arguments: object, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(*arguments, **options))

    def seen(self, path: Path) -> Path:
        """Where this process sees a file of the small disk, which is mounted for the commands alone."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def mount(self, **options: str) -> None:
        """Change the small disk: its ``size``, or whether it can be written (``mode``, ``ro`` or ``rw``)."""
        words = ",".join(["remount", *(f"{key}={value}" if key != "mode" else value for key, value in options.items())])
        assert self.ask(inside=["mount", "-o", words, str(self.disk)]) == 0

    def end(self) -> None:
        for started in [*self.running]:
            started.kill()
            self.wait(started)


@pytest.fixture(scope="session")
def server(bench_in, tmp_path_factory) -> Iterator[Forks]:
    """One server for all tests of this folder."""
    folder = tmp_path_factory.mktemp("forks")
    bench, disk = bench_in(folder), folder / "disk"
    disk.mkdir()
    program = [str(bench.python), "-P", str(SERVER)]
    inside = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(disk)]
    alone = shutil.which("unshare") is not None and not subprocess.call([*inside, "true"], stderr=subprocess.DEVNULL)
    process = subprocess.Popen(
        [*(inside if alone else []), *program],
        cwd=folder,
        env=bench.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Forks(process, folder, disk if alone else None)
    process.kill()
    process.communicate()


@pytest.fixture
def forks(server) -> Iterator[Forks]:
    """The command line; what it started ends with the test."""
    yield server
    server.end()


@pytest.fixture
def disk(forks) -> Iterator[Path]:
    """A disk of 4 MiB, empty; the commands see it under this path, this process through ``forks.seen``."""
    if forks.disk is None:
        pytest.skip("this system lets nobody mount a small disk of their own (unshare -rm)")
    yield forks.disk
    forks.end()
    forks.mount(mode="rw", size="4m")
    for path in forks.seen(forks.disk).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def lasting(results: Path) -> dict[str, list[str]]:
    """Return what the tables say of each trial, but for the columns of time, as texts that are equal to the bit."""
    store, found = Store(results), {}
    for name, varying in (("trials", VARYING), ("curves", CURVE_VARYING)):
        for row in store.table(name).drop_columns(sorted(varying)).to_pylist():
            found.setdefault(row["trial_id"], []).append(repr(row))
    return found


@pytest.fixture
def same() -> Callable[[Path, Path], None]:
    """Fail unless every trial of a store has the records of an undisturbed one, every float to its last bit."""

    def check(results: Path, undisturbed: Path) -> None:
        found, wanted = lasting(results), lasting(undisturbed)
        assert found
        assert found == {trial_id: wanted[trial_id] for trial_id in found}

    return check


@pytest.fixture
def sound() -> Callable[[Path], pd.DataFrame]:
    """Return the rows of a store; fail where pandas cannot read it, or where more is wrong than a kill may leave."""

    def check(results: Path, *allowed: str) -> pd.DataFrame:
        wrong = [finding for finding in inspect(results) if finding.damaged and finding.kind not in allowed]
        assert wrong == []
        return pd.read_parquet(results / "trials") if (results / "trials").exists() else pd.DataFrame()

    return check


@pytest.fixture
def soon() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something is so and return it; fail when it does not come true."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 120
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)
        return found

    return wait


@pytest.fixture
def events() -> Callable[[Path], bytes]:
    """Return the event logs of a store as they stand."""
    return lambda results: b"".join(path.read_bytes() for path in sorted(results.glob("runs/*/events.jsonl")))
