"""What a reviewer wants to know of an algorithm besides the checks: where it comes from, and what it consists of."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import sys
from typing import Any

from bench.algorithm import slots
from bench.claims import claims_of
from bench.conformance.check import Subject
from bench.conformance.sources import foreign_packages, parsed
from bench.hyperparameter import search_space
from bench.source import source_sha256, sources


def review(subject: Subject) -> dict[str, Any]:
    """Return the facts by name; hashes are SHA-256."""
    cls, registry = subject.cls, subject.registry
    package = registry.packages[subject.name]
    fields = cls().hyperparameters()
    searched = search_space(cls)
    return {
        "name": subject.name,
        "track": subject.entry.track,
        "slots": list(slots(cls)),
        "class": subject.entry.target,
        "package": package,
        "version": registry.version(subject.name),
        "source_sha256": source_sha256(cls),
        "sources": source_files(cls),
        "imports": foreign_packages(parsed(subject)),
        "paper": subject.entry.paper,
        "deviations": list(cls.deviations),
        "needs": list(cls.needs),
        "closure": cls.closure,
        "passes": cls.passes,
        "information": cls.information,
        "adapter_roles": {pattern: str(role) for pattern, role in cls.adapter_roles.items()},
        "hyperparameters": {name: value for name, value in fields.items() if name not in searched},
        "searched": {name: f"{fields[name]}, {search}" for name, search in searched.items()},
        "claims": len(claims_of(subject.name, registry)[0]),
        "docstring_lines": len(inspect.cleandoc(cls.__doc__ or "").splitlines()),
        "documentation": documentation(package),
    }


def source_files(cls: type) -> list[dict[str, Any]]:
    """Return module, file, lines and hash of every source that is part of the algorithm's identity."""
    return [
        {
            "module": name,
            "file": str(getattr(sys.modules[name], "__file__", None) or "none"),
            "lines": len(text.splitlines()),
            "sha256": hashlib.sha256(text).hexdigest(),
        }
        for name, text in sources(cls).items()
    ]


def documentation(package: str) -> list[str]:
    """Return what the metadata of ``package`` offers to read: its description, and the addresses that it names."""
    try:
        facts = importlib.metadata.metadata(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []
    text = facts.json.get("description", "")
    described = ["description"] if str(text).strip() else []
    return described + [str(address).strip() for address in facts.get_all("Project-URL") or []]
