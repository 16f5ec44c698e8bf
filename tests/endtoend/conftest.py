"""The command line in processes of its own, or in this one, with test plugins installed where Python finds them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.calibration import Pinning
from bench.plan import make_plan
from bench.registry import Registry
from bench.request import Request
from bench.store import Store
from bench.worker import work

SUPPORT = Path(__file__).parents[1] / "support"
LIMIT_S = 300.0
"""How long one command may take: long, because other work may have the machine."""

ENTRY_POINTS = {
    "bench_micro": ("micro = bench_micro",),
    "bench_broken": (
        "raises = bench_broken.raises",
        "exits = bench_broken.exits",
        "raises-in-hook = bench_broken.raises_in_hook",
        "returns-texts = bench_broken.returns_texts",
        "unknown-hook = bench_broken.unknown_hook",
        "takes-a-name = bench_broken.takes_a_name",
        "no-target = bench_broken.no_target",
        "late = bench_broken.late",
        "no-module = bench_broken.there_is_no_such_module",
    ),
}
"""Packages under tests/support, and what their distributions declare."""


def install(package: str, folder: Path) -> Path:
    """Put ``package`` of tests/support into ``folder`` as an installer would, and return the folder."""
    shutil.copytree(SUPPORT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    facts = folder / f"{package}-1.2.3.dist-info"
    facts.mkdir()
    name = package.replace("_", "-")
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    (facts / "entry_points.txt").write_text("\n".join(["[bench]", *ENTRY_POINTS[package], ""]))
    return folder


@pytest.fixture(scope="session")
def micro_site(tmp_path_factory) -> Path:
    """A folder of installed packages that holds the workload ``micro`` and the algorithms of the tests."""
    return install("bench_micro", tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session")
def broken_site(tmp_path_factory) -> Path:
    """A folder of installed packages that holds plugins which are broken each in its own way."""
    return install("bench_broken", tmp_path_factory.mktemp("broken"))


@dataclass
class Bench:
    """Starts ``bench`` in ``folder`` with the packages of ``sites`` on its path."""

    folder: Path
    sites: list[Path]
    python: Path = Path(sys.executable)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **extra: str) -> dict[str, str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("BENCH_", "PYTEST"))}
        path = [str(site) for site in self.sites] + [part for part in [known.get("PYTHONPATH")] if part]
        settings = {"PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200", "NO_COLOR": "1"}
        # threads that spin while they wait make a busy machine many times slower
        settings |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return known | settings | extra

    def start(self, *arguments: object, program: object = None, **environment: str) -> subprocess.Popen[str]:
        """Start a command and return at once; ``program`` is a script that stands for ``-m bench``."""
        way = ["-m", "bench"] if program is None else [str(program)]
        process = subprocess.Popen(
            [self.python, "-P", *way, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(
        self, *arguments: object, program: object = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*arguments, program=program, **environment)
        out, err = process.communicate(timeout=LIMIT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def bench_in(micro_site) -> Iterator[Callable[[Path], Bench]]:
    """The command line, each call in a process of its own, in a folder of the caller's, with ``micro`` installed."""
    commands: list[Bench] = []

    def make(folder: Path) -> Bench:
        commands.append(Bench(folder, [micro_site]))
        return commands[-1]

    yield make
    for command in commands:
        command.end()


@pytest.fixture
def bench(tmp_path, bench_in) -> Iterator[Bench]:
    """The command line in an empty folder; what it started ends with the test."""
    command = bench_in(tmp_path)
    yield command
    command.end()


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def bench_here(tmp_path, micro_site, monkeypatch, capfd) -> Callable[..., Answer]:
    """The command line in this process, whose workers are processes: cheaper, and open to monkeypatching."""
    from bench.cli import main

    command = Bench(tmp_path, [micro_site])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(micro_site))
    for name, value in command.environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object, environment: Mapping[str, str] | None = None) -> Answer:
        texts = [str(argument) for argument in arguments]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["bench", *texts])
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = main(texts)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so; fail when it does not come true."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture
def run_here(tmp_path, micro_site, monkeypatch):
    """Run a trial in this process, as the worker does in its own, but on one thread and no particular core."""
    monkeypatch.syspath_prepend(str(micro_site))
    monkeypatch.setattr("bench.worker.pin_threads", lambda _: Pinning(1, None, "a test"))
    handler = signal.getsignal(signal.SIGTERM)

    def run(name: str) -> dict[str, object]:
        plan = make_plan(Registry(), Request(plugins=[name], workload="micro", reference=False))
        return work(Store(tmp_path / "results", create=True).folder(plan.trials[0]) / "trial.json")

    yield run
    signal.signal(signal.SIGTERM, handler)
