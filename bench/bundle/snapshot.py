"""The source of an algorithm as it is installed: exactly the bytes that its source hash is taken over."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.bundle import layout
from bench.errors import BadBundle
from bench.hyperparameter import Choice, Log, search_space
from bench.registry import Registry
from bench.source import source_sha256, sources


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One algorithm: what its class declares, and its modules by the name of their file in the bundle."""

    facts: layout.Source
    files: Mapping[str, bytes]


def take(registry: Registry, name: str) -> Snapshot:
    """Return the source of the installed algorithm ``name``; it is imported for that, as ``bench run`` does.

    Raises:
        BadBundle: its name cannot name a folder, or there is no source to take.
    """
    if not re.fullmatch(layout.ALGORITHM, name):
        raise BadBundle(f"{name!r} cannot be packed: in a bundle names are letters, digits and . _ + -")
    cls = registry.algorithm_class(name)
    modules = sources(cls)
    missing = [module for module, source in modules.items() if not source and not _is_empty(module)]
    if missing or not modules:
        raise BadBundle(
            f"the source of {name!r} cannot be taken: {', '.join(missing) or cls.__module__} has no source file",
            hint="put it into a module of a package",
        )
    files = {}
    for module, source in modules.items():
        files[layout.source_file(name, module, package=hasattr(sys.modules[module], "__path__"))] = source
    return Snapshot(facts=facts_of(registry, name), files=files)


def facts_of(registry: Registry, name: str) -> layout.Source:
    """Return what a manifest says of the installed algorithm ``name``, which is imported for that."""
    cls = registry.algorithm_class(name)
    return layout.Source(
        target=registry.algorithms[name].target,
        package=registry.packages[name],
        version=registry.version(name),
        sha256=source_sha256(cls),
        defaults=cls().hyperparameters(),
        search=tuple(_range(field, search) for field, search in search_space(cls).items()),
    )


def _is_empty(module: str) -> bool:
    """Whether ``module`` has a file without content, as many packages' ``__init__`` do."""
    file = getattr(sys.modules[module], "__file__", None)
    return isinstance(file, str) and file.endswith(".py")


def _range(name: str, search: Any) -> layout.Range:
    if isinstance(search, Choice):
        return layout.Range(name=name, kind="choice", values=search.values)
    kind: Literal["log", "linear"] = "log" if isinstance(search, Log) else "linear"
    return layout.Range(name=name, kind=kind, values=(search.low, search.high))
