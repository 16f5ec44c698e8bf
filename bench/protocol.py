"""Tuning protocols: which settings and seeds make a comparison. Each is a versioned TOML file in ``protocols/``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from bench.errors import UnknownName

if TYPE_CHECKING:
    from bench import trial


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol; ``seeds`` is how many seeds a cell has, ``ranked`` whether its rows enter a ranking."""

    name: str
    version: str
    summary: str
    seeds: int
    ranked: bool

    def stamp(self) -> trial.Protocol:
        """Return what a trial's identity keeps of the protocol: name, version and the hash of its rules."""
        from bench import trial  # imported late: listings do not need it

        return trial.Protocol(name=self.name, version=self.version, sha256=trial.digest(vars(self)))


def protocols() -> Mapping[str, Protocol]:
    """Return every protocol by name."""
    files = sorted(resources.files("bench.protocols").iterdir(), key=lambda file: file.name)
    loaded = [Protocol(**tomllib.loads(file.read_text("utf-8"))) for file in files if file.name.endswith(".toml")]
    return {protocol.name: protocol for protocol in loaded}


def protocol(name: str) -> Protocol:
    """Return the protocol ``name``."""
    known = protocols()
    if name not in known:
        raise UnknownName("protocol", name, known)
    return known[name]
