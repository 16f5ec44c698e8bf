"""The hash of an algorithm's source: its module and every module of the same package that it uses."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from types import ModuleType

SHARED = ("bench.plugins", "bench.workloads")
"""Inside our own distribution only what lies below these counts as a plugin's source; the rest is the framework."""


def source_sha256(cls: type) -> str:
    """Return the SHA-256 over the sources of the modules that define ``cls``; see :func:`sources`."""
    return sources_sha256(sources(cls))


def sources_sha256(modules: Mapping[str, bytes]) -> str:
    """Return the SHA-256 over ``modules``, name to source, ordered by name."""
    total = hashlib.sha256()
    for name, source in sorted(modules.items()):
        total.update(name.encode() + b"\0" + source + b"\0")
    return total.hexdigest()


def sources(cls: type) -> dict[str, bytes]:
    """Return, by module name, the sources of the modules that define ``cls``.

    Reached are the modules of its bases, those that a reached module imports at its top, and those of every object in
    its globals, as long as they belong to the same plugin package; so a change in shared numerics changes the identity
    of all who use them, no one else's.
    """
    root = _root(cls.__module__)
    reached: set[str] = set()
    waiting = [base.__module__ for base in cls.__mro__]
    while waiting:
        name = waiting.pop()
        if name in reached or not _below(name, root) or name not in sys.modules:
            continue
        reached.add(name)
        waiting += [*_mentioned(sys.modules[name]), *_imported(sys.modules[name])]
    return {name: _source(sys.modules[name]) for name in sorted(reached)}


def _root(module: str) -> str:
    return next((shared for shared in SHARED if _below(module, shared)), module.partition(".")[0])


def _below(module: str, root: str) -> bool:
    return module == root or module.startswith(root + ".")


def _mentioned(module: ModuleType) -> list[str]:
    found = []
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        inside = isinstance(value, ModuleType) and _below(value.__name__, module.__name__)
        if isinstance(name, str) and not inside:  # a package's globals hold every submodule that anybody imported
            found.append(name)
    return found


def _imported(module: ModuleType) -> list[str]:
    """Return the modules named by imports at the top of ``module``: a constant does not know where it comes from."""
    found = []
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            submodules = [name for name in (f"{home}.{alias.name}" for alias in node.names) if name in sys.modules]
            found += submodules if len(submodules) == len(node.names) else [home, *submodules]
    return found


def _source(module: ModuleType) -> bytes:
    try:
        return inspect.getsource(module).encode()
    except (OSError, TypeError):  # a notebook cell or an extension module: the name alone
        return b""
