"""What tells the rows of one algorithm on a board apart, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

_LONGEST = 30
"""Characters of a value that fit beside others; a hyperparameter may be a whole file."""


def settings(rows: pd.DataFrame) -> list[str]:
    """Return, for each row of a board, in what it differs from the other rows of its algorithm, such as ``lr=0.01``."""
    texts = [""] * len(rows)
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(rows["algorithm"].tolist()):
        positions.setdefault(name, []).append(position)
    columns = [(rows[name].tolist(), name) for name in _PARTS]
    for group in positions.values():
        if len(group) > 1:
            parts = [([column[position] for position in group], name) for column, name in columns]
            words = [(values, _words(frozenset(values), name)) for values, name in parts if len(set(values)) > 1]
            for number, position in enumerate(group):
                texts[position] = ", ".join([known[values[number]] for values, known in words if known[values[number]]])
    return texts


_PARTS = ("hyperparameters", "algorithm_version", "algorithm_source_sha256", "fillers")


@lru_cache(maxsize=2**12)
def _words(values: frozenset[str], part: str) -> Mapping[str, str]:
    """Return, for each of several values of one of :data:`_PARTS`, what it does not share with all the others.

    Boards of one protocol hold the same settings again and again, so the words are kept.
    """
    if part == "algorithm_version":
        return {version: f"version={version}" for version in values}
    if part == "algorithm_source_sha256":
        return {source: f"source={str(source)[:8]}" for source in values}
    read = _values if part == "hyperparameters" else _fillers
    facts = {text: read(text) for text in values}
    names = {name for row in facts.values() for name in row}
    differing = {name for name in names if len({row.get(name) for row in facts.values()}) > 1}
    return {
        text: ", ".join([f"{name}={row[name]}" for name in row if name in differing]) for text, row in facts.items()
    }


def _values(text: str) -> Mapping[str, str]:
    """Return the hyperparameters in a JSON object, as texts."""
    return {name: _short(str(value)) for name, value in json.loads(text or "{}").items()}


def _fillers(text: str) -> Mapping[str, str]:
    """Return the facts of a JSON list of algorithms that fill the other slots: their names, and all of each."""
    parts: list[dict[str, Any]] = json.loads(text)
    facts = {"with": "+".join(part["name"] for part in parts)}
    for part in parts:
        own = {"version": part.get("version"), "source": str(part.get("source_sha256"))[:8], **part.get("values", {})}
        facts |= {f"{part['name']}.{name}": _short(str(value)) for name, value in own.items()}
    return facts


def _short(text: str) -> str:
    """Return a value of 30 characters or fewer as it is, of a longer one the beginning and a part of its hash."""
    if len(text) <= _LONGEST:
        return text
    return f"{' '.join(text[:_LONGEST].split())[:20]}… ({hashlib.sha256(text.encode()).hexdigest()[:6]})"
