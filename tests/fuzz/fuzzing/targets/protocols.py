"""Protocols: rules from TOML, and the JSON files in which a results folder keeps them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from random import Random
from typing import Any

from bench.errors import BadValue
from bench.protocol import Protocol, protocols
from bench.store import Store
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets.claims import SNIPPETS


class Protocols:
    """Reads rules as TOML, or a results folder with a file of rules."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._rules = [json.loads(json.dumps(one.rules())) for one in protocols().values()]
        for rules in self._rules:
            if "points" in rules:  # a few points break like many
                rules["points"] = [study[:2] for study in rules["points"]]
        self._texts = [_toml(rules) for rules in self._rules]

    def make(self, random: Random) -> Case:
        if random.random() < 0.3:
            content = mutate.text(random, random.choice(self._texts))
            if random.random() < 0.2:
                content += "\n" + random.choice(SNIPPETS)
            return {"toml": content.encode("utf-8", errors="surrogatepass")}
        raw = mutate.as_json(random, mutate.structure(random, random.choice(self._rules)))
        raw = mutate.data(random, raw) if random.random() < 0.3 else raw
        if random.random() < 0.02:
            raw = hostile.text(random).encode("utf-8", errors="surrogatepass")
        return {"json": raw}

    def run(self, case: Case, folder: Path) -> None:
        if "toml" in case:
            try:
                rules = tomllib.loads(case["toml"].decode("utf-8"))
            except (ValueError, RecursionError) as error:  # the package's own files are the only ones in TOML
                raise BadValue(f"no TOML: {type(error).__name__}") from None
            used(Protocol.read(rules))
            return
        (folder / "store.json").write_text('{"bench": "results", "schema_version": 1}')
        (folder / "protocols").mkdir()
        (folder / "protocols" / "quick-0123.json").write_bytes(case["json"])
        for rules in Store(folder).protocols().values():
            used(rules)


def used(rules: Protocol) -> None:
    """Do with accepted rules what boards and plans do."""
    if Protocol.read(rules.rules()).sha256 != rules.sha256:
        raise AssertionError(f"{rules} is another protocol when it is read again")
    if rules.replicates < 0 or rules.replicate not in {"seed", "study"}:
        raise AssertionError(f"{rules} has {rules.replicates} replicates")
    rules.stamp()


def _toml(rules: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in rules.items()) + "\n"
