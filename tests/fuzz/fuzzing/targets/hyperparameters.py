"""Values of hyperparameters: texts of ``--set``, values of ``trial.json``, and points of a search."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from bench.algorithm import Algorithm
from bench.errors import BenchError
from bench.hyperparameter import Choice, Linear, Log, check, domain, hyper, parse, search_space
from bench.protocol import at
from bench.registry import Registry
from bench.request import Request, settings_of
from bench.trial import digest
from fuzzing import hostile, mutate
from fuzzing.case import Case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every(Algorithm):
    """One field of every kind that a plugin may declare."""

    name = "every"
    real: float = hyper(1.0, help="any number")
    open_: Annotated[float, Gt(0), Lt(1)] = hyper(0.5, help="open", search=Linear(0.1, 0.9))
    closed: Annotated[float, Ge(-1), Le(1)] = hyper(0.5, help="closed", search=Log(0.1, 1.0))
    count: Annotated[int, Ge(1)] = hyper(1, help="a count", search=Choice((1, 2, 4)))
    switch: bool = hyper(False, help="on or off")
    text: str = hyper("a", help="any text")
    kind: Literal["a", "b", 3] = hyper("a", help="one of a few")
    maybe: float | None = hyper(None, help="a number or none")
    either: int | str | None = hyper(None, help="several types")


class Hyperparameters:
    """Gives values to all fields of all algorithms."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._registry = Registry()
        self._classes: dict[str, type[Algorithm]] = {
            name: self._registry.algorithm_class(name) for name in sorted(self._registry.algorithms)
        }
        self._classes["every"] = Every

    def make(self, random: Random) -> Case:
        name = "every" if random.random() < 0.3 else random.choice(list(self._classes))
        fields = [field for field in dataclasses.fields(self._classes[name]) if field.init]
        known = {field.name: field.default for field in fields}
        names = random.sample(list(known), min(len(known), random.choice((1, 1, 2, 4))))
        kind = random.choice(("texts", "texts", "values", "settings", "point"))
        if kind == "values":
            values = {key: hostile.value(random) if random.random() < 0.7 else known[key] for key in names}
            found = mutate.structure(random, values)
            return {
                "kind": kind,
                "name": name,
                "values": found if isinstance(found, dict) else dict.fromkeys(names, found),
            }
        if kind == "point":
            return {
                "kind": kind,
                "name": name,
                "point": [random.choice((random.random(), 0.0, 1.0)) for _ in range(random.randrange(6))],
            }
        texts = {key: self._text(random, known[key]) for key in names}
        if kind == "texts":
            return {"kind": kind, "name": name, "texts": texts}
        owner = random.choice(("", "", f"{name}.", hostile.text(random)))
        settings = [f"{owner}{key}={text}" for key, text in texts.items()]
        settings = [mutate.text(random, text) if random.random() < 0.3 else text for text in settings]
        return {"kind": kind, "name": name, "settings": settings}

    def _text(self, random: Random, default: Any) -> str:
        kind = random.random()
        if kind < 0.3:
            return random.choice(hostile.NUMBERS)
        if kind < 0.5:
            return str(default)
        if kind < 0.8:
            return mutate.text(random, str(default))
        return hostile.text(random)

    def run(self, case: Case, folder: Path) -> None:  # noqa: ARG002 - a target's signature
        name, cls = case["name"], self._classes[case["name"]]
        if case["kind"] == "point":
            self._built(cls, name, at(search_space(cls), case["point"]))
        elif case["kind"] == "values":
            values = check(cls, name, case["values"])
            self._built(cls, name, values)
        else:
            texts = case.get("texts")
            if texts is None:
                request = Request(plugins=[name], workload="micro", settings=case["settings"])
                texts = settings_of(request).get(name, {})
            self._built(cls, name, parse(cls, name, texts))

    def _built(self, cls: type[Algorithm], name: str, values: dict[str, Any]) -> None:
        """Build the algorithm; what it holds goes through ``trial.json`` and comes back the same."""
        algorithm = cls(**values)
        held = algorithm.hyperparameters()
        digest(held)
        again = cls(**check(cls, name, json.loads(json.dumps(held))))
        if again.hyperparameters() != held:
            raise AssertionError(f"{name}: {held} came back as {again.hyperparameters()}")
        if not all(domain(cls, key) for key in values):
            raise BenchError("")
