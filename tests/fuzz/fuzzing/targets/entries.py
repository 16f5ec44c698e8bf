"""What a foreign package lists of itself: entries of any type, with any values."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bench.claims import broken_claims, load_claims
from bench.commands._print import render
from bench.commands.list import _plugins, _workloads
from bench.entry import Entry, WorkloadEntry
from bench.errors import BenchError, BrokenPlugin
from bench.registry import Registry
from bench.spec import hookimpl
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.hostile import CANARY

GOOD = {
    "name": "foreign",
    "target": "json.decoder:JSONDecoder",
    "track": "optimizer",
    "paper": "arXiv:2302.06675",
    "summary": "One line.",
}
WORKLOAD = {"name": "strange", "target": "json.decoder:JSONDecoder", "tiers": ["tiny", "big"], "summary": "One line."}
TARGETS = (
    f"{CANARY}:Algorithm",
    f"{CANARY}.inner:Algorithm",
    f"{CANARY}.inner.most:Algorithm",
    "antigravity.x:Y",
    "this.x:Y",
    "os:system",
    "json:",
    ":Class",
    ".json:Class",
    "..:x",
    "json..decoder:x",
    "json.decoder.:x",
    "__main__:x",
    "sys:exit",
    "builtins:exec",
    "a" * 70_000 + ":x",
    "a." * 2_000 + "a:x",
    "\0:x",
    "json\0:x",
    "é:x",
    "../json:x",
    "/etc/passwd:x",
)
ODD = (
    "entry",
    "workload",
    "texts",
    "nothing",
    "none",
    "text",
    "number",
    "generator",
    "raises",
    "exits",
    "dictionary",
    "class",
)


@dataclass(frozen=True)
class Point:
    """An entry point of a package that is not installed."""

    name: str
    value: str
    module: Any
    dist: Any = None

    def load(self) -> Any:
        """Return the module."""
        return self.module


class Entries:
    """Lists foreign packages beside ours, reads their claims, and asks for what they list."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        import fuzzing.home  # noqa: F401 - puts the module on the path that nothing may import

    def make(self, random: Random) -> Case:
        entry: Any = dict(GOOD)
        workload: Any = dict(WORKLOAD)
        if random.random() < 0.4:
            entry["target"] = random.choice(TARGETS)
        if random.random() < 0.2:
            workload["target"] = random.choice(TARGETS)
        entry = mutate.structure(random, entry) if random.random() < 0.6 else entry
        workload = mutate.structure(random, workload) if random.random() < 0.6 else workload
        return {
            "algorithms": random.choice(ODD) if random.random() < 0.2 else [entry] * random.choice((1, 1, 1, 2)),
            "workloads": random.choice(ODD) if random.random() < 0.2 else [workload],
            "point": hostile.text(random) if random.random() < 0.2 else "foreign",
            "value": hostile.text(random) if random.random() < 0.2 else "foreign",
        }

    def run(self, case: Case, folder: Path) -> None:  # noqa: ARG002 - a target's signature
        module = types.ModuleType("foreign")
        module.bench_algorithms = hookimpl(_hook("bench_algorithms", Entry, case["algorithms"]))  # type: ignore[attr-defined]
        module.bench_workloads = hookimpl(_hook("bench_workloads", WorkloadEntry, case["workloads"]))  # type: ignore[attr-defined]
        registry = Registry([Point(case["point"], case["value"], module)])  # type: ignore[list-item]
        for form in ("table", "json", "csv", "md"):
            render(_plugins(registry, None), form, width=100, fold=["summary"])
            render(_workloads(registry), form, width=100)
        load_claims(registry)
        for broken in [*registry.broken, *broken_claims(registry)]:
            if not f"{broken.name} (package {broken.package}): {broken.reason}".strip():
                raise AssertionError("broken without a reason")
        if registry.broken:
            raise BrokenPlugin(registry.broken[0].reason or "no reason")
        for name, entry in [*registry.algorithms.items(), *registry.workloads.items()]:
            if entry.target == GOOD["target"]:  # to ask for another imports what it names, and that is what it is for
                _used(registry, name)


def _used(registry: Registry, name: str) -> None:
    """Ask for a class that is not what its entry says."""
    for ask in (registry.algorithm_class, registry.workload_class):
        try:
            ask(name)
        except BenchError:
            continue
        raise AssertionError(f"{name!r} is no class of ours and was given")


def _hook(name: str, kind: type[Any], listed: Any) -> Callable[[], Any]:
    def hook() -> Any:
        if isinstance(listed, str):
            return _odd(listed)
        found = []
        for values in listed:
            if not isinstance(values, dict) or set(values) != set(kind.__dataclass_fields__):
                found.append(values)
                continue
            tiers = values.get("tiers")
            found.append(kind(**values | ({"tiers": tuple(tiers)} if isinstance(tiers, list) else {})))
        return found

    hook.__name__ = name
    return hook


def _odd(what: str) -> Any:
    if what == "raises":
        raise RuntimeError("a foreign package")
    if what == "exits":
        raise SystemExit(3)
    made = {
        "entry": Entry(**GOOD),
        "workload": WorkloadEntry(**WORKLOAD),
        "texts": ["a"],
        "nothing": [],
        "text": "foreign",
    }  # type: ignore[arg-type]
    made |= {"number": 3, "dictionary": GOOD, "class": Entry, "generator": (Entry(**GOOD) for _ in range(2))}
    return made.get(what)
