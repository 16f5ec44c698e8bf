"""What an algorithm's source files say without being run: names of workloads, imports, whether listing is light."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from bench.conformance.check import Subject
from bench.source import SHARED, sources

HEAVY = ("torch", "pandas", "matplotlib", "pyarrow", "scipy")
"""What no listing may import: it would take seconds."""

_LIGHT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
module = importlib.import_module(sys.argv[2])
list(module.bench_algorithms())
print(json.dumps([name for name in json.loads(sys.argv[3]) if name in sys.modules]))
"""


@dataclass(frozen=True)
class Place:
    """A line of a module."""

    module: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}"


def parsed(subject: Subject) -> dict[str, ast.Module]:
    """Return the syntax trees of the modules that define the algorithm, by name."""
    return {name: ast.parse(text) for name, text in sources(subject.cls).items()}


# -- names of workloads ----------------------------------------------------------------------------------------------
def named_workloads(trees: Mapping[str, ast.Module], workloads: Collection[str]) -> list[tuple[Place, str]]:
    """Return where string constants hold a workload's name as a whole word; docstrings and help do not count."""
    wanted = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in _spellings(workloads)}
    found = []
    for module, tree in trees.items():
        silent = set(_prose(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
                hits = [name for name, pattern in wanted.items() if pattern.search(node.value)]
                found += [(Place(module, node.lineno), name) for name in hits]
    return found


def _spellings(names: Collection[str]) -> list[str]:
    return sorted({spelling for name in names for spelling in (name, name.replace("-", "_"))})


def _prose(tree: ast.Module) -> Iterator[int]:
    """Yield the identities of constants that are read by people: docstrings, deviations, help and hints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield id(node.value)
        elif isinstance(node, ast.keyword) and node.arg in {"help", "hint"}:
            yield from map(id, ast.walk(node.value))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "deviations" for target in targets):
                yield from map(id, ast.walk(node.value))


# -- imports ---------------------------------------------------------------------------------------------------------
def imports(trees: Mapping[str, ast.Module]) -> list[tuple[Place, str]]:
    """Return every module that is imported, absolute, and where; for ``from a import b`` both ``a`` and ``a.b``."""
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(Place(module, node.lineno), alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                home = _home(module, node)
                names = [home, *(f"{home}.{alias.name}" for alias in node.names)]
                found += [(Place(module, node.lineno), name) for name in names]
    return found


def _home(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    spec = importlib.util.find_spec(module)
    package = spec.parent if spec is not None and spec.parent else module
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def own_package(module: str) -> str:
    """Return the package whose private parts ``module`` may use: its distribution's."""
    return next((shared for shared in SHARED if f"{module}.".startswith(f"{shared}.")), module.partition(".")[0])


def private_imports(trees: Mapping[str, ast.Module]) -> list[tuple[Place, str]]:
    """Return the imports of private modules, or of private names, of other packages than the algorithm's own."""
    return [
        (place, name)
        for place, name in imports(trees)
        if any(re.match(r"_(?!_)", part) for part in name.split("."))
        and not f"{name}.".startswith(f"{own_package(place.module)}.")
    ]


def foreign_packages(trees: Mapping[str, ast.Module]) -> list[str]:
    """Return the packages that are imported besides torch, numpy, Python's own, the framework and the own package."""
    usual = {"torch", "numpy", "bench", *sys.stdlib_module_names, *(own_package(module) for module in trees)}
    return sorted({name.partition(".")[0] for _, name in imports(trees)} - usual - {""})


# -- listing ---------------------------------------------------------------------------------------------------------
def entry_module(subject: Subject) -> str | None:
    """Return the module whose hook lists the algorithm; ``None`` where the registry was not made by entry points."""
    for name, module in subject.registry.hooks.list_name_plugin():
        hook = getattr(module, "bench_algorithms", None)
        if hook is not None and subject.name in {entry.name for entry in hook()}:
            return name
    return None


@cache
def heavy_imports(module: str, path: tuple[str, ...]) -> list[str]:
    """Return which heavy packages a process has imported once it imported ``module`` and asked for its entries."""
    command = [sys.executable, "-c", _LIGHT, json.dumps(path), module, json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603 - our program
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        raise ImportError(f"{module} cannot be imported alone: {lines[-1]}")
    found: list[str] = json.loads(done.stdout)
    return found
