"""What the pages are written from: the registry, and the committed records of this repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import bench
from bench.ledger import ledger
from bench.registry import Registry
from bench.report.evidence import Evidence, gather
from bench.report.text import plural

STORES = ("cpu-2", "cpu-1", "wikitext")
"""The folders of ``results/`` that hold comparisons; the others are searches and times of steps."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The registry and the records; ``root`` is the folder of the repository."""

    root: Path
    registry: Registry

    @cached_property
    def evidence(self) -> Evidence:
        """The committed records, as ``bench report`` gathers them."""
        return gather([self.root / "results" / name for name in STORES], self.registry)

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        """The verdicts on all claims, one row each."""
        found = ledger(self.evidence.boards, self.registry, self.evidence.protocols)
        return [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]

    @property
    def told(self) -> str:
        """How much is recorded, in words."""
        return f"{plural(len(self.evidence.trials), 'trial')} on {plural(len(self.evidence.boards), 'board')}"

    def links(self, up: str) -> Mapping[str, str]:
        """Return the addresses of the public names; ``up`` leads from a page to the folder of the generated ones."""
        return {name: f"{up}api/{home}.md#{name.lower()}" for name, home in bench._HOME.items()}  # noqa: SLF001 - our own
