"""Tuning protocols: which settings and seeds make a comparison. Each is a versioned TOML file in ``protocols/``.

Nothing is drawn when trials run: the points of a search are written in the file, and its hash is part of every trial's
identity. :func:`design` is what drew them.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from bench import trial

Search = Literal["published", "space", "learning-rate", "imported"]
SEARCHES: tuple[Search, ...] = ("published", "space", "learning-rate", "imported")
"""Where settings come from: the published ones, points of the whole search space, points along the learning rate
alone, or (``imported``) from somewhere else, so that this protocol cannot be run here."""

DIMENSIONS = 4
"""The most hyperparameters that a search may have."""

Point = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol.

    A protocol of the published setting (``search = "published"``) has ``seeds`` trials per algorithm. A searched one
    has ``studies``; each tries its own ``points`` (studies x points x dimensions, each coordinate in [0, 1]) with one
    seed, selects one point, and repeats that point ``reruns`` times with seeds that the study has not seen.

    ``budget_factor`` multiplies the budget of the tier in steps and seconds. ``stop_at_target`` ends a trial with the
    evaluation that meets the target, whatever the tier's patience. ``ranked`` says whether rows enter a ranking;
    ``confidence`` is the level of every interval, ``comparison`` the test against the reference: ``welch``, on
    logarithms. Bad rules raise :class:`~bench.errors.BadValue`.
    """

    name: str
    version: str
    summary: str
    seeds: int
    ranked: bool
    studies: int = 1
    search: Search = "published"
    points: tuple[tuple[Point, ...], ...] = ()
    reruns: int = 0
    budget_factor: float = 1.0
    stop_at_target: bool = False
    confidence: float = 0.95
    comparison: str = "welch"
    generator: str = ""

    def __post_init__(self) -> None:
        """Refuse rules that contradict each other."""
        if self.search not in SEARCHES:
            raise BadValue(f"protocol {self.name}: search = {self.search!r}", hint=f"one of {', '.join(SEARCHES)}")
        if bool(self.points) != (self.search in {"space", "learning-rate"}):
            raise BadValue(f"protocol {self.name}: points belong to a search of space or learning-rate")
        if self.points and len(self.points) != self.studies:
            raise BadValue(f"protocol {self.name}: {len(self.points)} lists of points for {self.studies} studies")
        coordinates = [value for study in self.points for point in study for value in point]
        if not all(0 <= value <= 1 for value in coordinates):
            raise BadValue(f"protocol {self.name}: a coordinate of a point lies outside [0, 1]")
        if not 0 < self.confidence < 1 or not self.budget_factor > 0 or self.comparison != "welch":
            raise BadValue(f"protocol {self.name}: confidence, budget_factor or comparison is out of its domain")

    @property
    def replicate(self) -> Literal["seed", "study"]:
        """What an independent repetition is."""
        return "seed" if self.search == "published" else "study"

    @property
    def replicates(self) -> int:
        """How many independent repetitions a rank needs."""
        return self.seeds if self.search == "published" else self.studies * max(self.reruns, 1)

    def rules(self) -> dict[str, Any]:
        """Return the rules as they are hashed and stored; a later field at its default value is left out.

        So a new kind of rule changes no protocol that does not use it.
        """
        fields = dataclasses.fields(self)
        core = {"name", "version", "summary", "seeds", "ranked"}
        return {f.name: getattr(self, f.name) for f in fields if f.name in core or getattr(self, f.name) != f.default}

    @cached_property
    def sha256(self) -> str:
        """The hash of the rules."""
        from bench import trial  # imported late: listings do not need it

        return trial.digest(self.rules())

    def stamp(self) -> trial.Protocol:
        """Return what a trial's identity keeps of the protocol: name, version and the hash of its rules."""
        from bench import trial

        return trial.Protocol(name=self.name, version=self.version, sha256=self.sha256)

    @classmethod
    def read(cls, rules: Mapping[str, Any]) -> Protocol:
        """Return the protocol whose :meth:`rules` these are; others raise ``BadValue``."""
        if not isinstance(rules, Mapping):
            raise BadValue(f"the rules of a protocol are {rules!r:.40} ({type(rules).__name__}); they must be a table")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(rules) - known):
            raise BadValue(f"a protocol has no rule {', '.join(unknown)}", hint=f"known: {', '.join(sorted(known))}")
        for name, value in rules.items():
            _check_type(name, value)
        try:
            points = tuple(tuple(tuple(map(float, point)) for point in study) for study in rules.get("points", ()))
            return cls(**{**rules, "points": points})
        except BadValue:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise BadValue(f"these are not the rules of a protocol: {error}") from None


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("studies", "seeds", "reruns"), (int,)),
    **dict.fromkeys(("ranked", "stop_at_target"), (bool,)),
    **dict.fromkeys(("budget_factor", "confidence"), (float, int)),
    "points": (list, tuple),
}
"""The types of the rules; those that are not named here are texts."""


def _check_type(name: str, value: Any) -> None:
    kinds = _KINDS.get(name, (str,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise BadValue(f"a protocol's {name} is {value!r:.40} ({type(value).__name__}); it must be {wanted}")


def protocols() -> Mapping[str, Protocol]:
    """Return every protocol by name."""
    files = sorted(resources.files("bench.protocols").iterdir(), key=lambda file: file.name)
    loaded = [Protocol.read(tomllib.loads(file.read_text("utf-8"))) for file in files if file.name.endswith(".toml")]
    return {protocol.name: protocol for protocol in loaded}


def protocol(name: str) -> Protocol:
    """Return the protocol ``name``."""
    known = protocols()
    if name not in known:
        raise UnknownName("protocol", name, known)
    return known[name]


def design(studies: int, points: int, dimensions: int = DIMENSIONS, seed: int = 0) -> tuple[tuple[Point, ...], ...]:
    """Return the points of ``studies`` studies, distinct over all of them, as one scrambled Halton sequence.

    Study s has the points s n to (s + 1) n - 1 of the sequence of ``scipy.stats.qmc.Halton(dimensions, seed)``, for
    n ``points``, rounded to six decimals. Any number of algorithms share the design: one with fewer dimensions uses
    the first coordinates.
    """
    from scipy.stats import qmc

    drawn = qmc.Halton(dimensions, scramble=True, seed=seed).random(studies * points).round(6)
    return tuple(
        tuple(tuple(map(float, row)) for row in drawn[study * points : (study + 1) * points])
        for study in range(studies)
    )


def grid(points: int) -> tuple[tuple[Point, ...], ...]:
    """Return one study of ``points`` evenly spaced values of one coordinate, both ends among them."""
    return (tuple((round(number / (points - 1), 6),) for number in range(points)),)


def at(space: Mapping[str, Any], point: Sequence[float]) -> dict[str, Any]:
    """Return the values of a search ``space`` (name to ``Log``, ``Linear`` or ``Choice``) at ``point``.

    The first coordinate belongs to the first name, and so on: with u in [0, 1], ``Log`` gives low (high / low)^u,
    ``Linear`` low + u (high - low), both to four significant digits, and ``Choice`` the value number floor(u n) of n.
    """
    if len(space) > len(point):
        raise BadValue(f"{len(space)} hyperparameters to search ({', '.join(space)}), {len(point)} coordinates")
    return {name: _value(search, u) for (name, search), u in zip(space.items(), point, strict=False)}


def _value(search: Any, u: float) -> Any:
    from bench.hyperparameter import Choice, Log

    if isinstance(search, Choice):
        return search.values[min(math.floor(u * len(search.values)), len(search.values) - 1)]
    ratio = search.high / search.low if isinstance(search, Log) else math.nan
    value = search.low * ratio**u if isinstance(search, Log) else search.low + u * (search.high - search.low)
    return float(f"{value:.4g}")
