"""Claims: what papers say of an algorithm, as data beside its plugin.

For the target ``package.module:Class`` of an entry the claims are the resource ``module.claims.toml`` of ``package``;
where the target's module is itself a package, the resource lies inside it. The file is optional and nothing registers
it, so a third party's package brings its claims as ours do. Loading imports neither torch nor a plugin.
``docs/claims.md`` describes the format; :mod:`bench.verdicts` holds claims against records.
"""

from __future__ import annotations

import math
import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bench.beside import CLAIMS, beside
from bench.errors import BrokenPlugin
from bench.registry import Broken, Registry

Metric = Literal["time_to_target", "steps_to_target", "memory", "optimizer_state", "energy", "quality"]
Direction = Literal["lower", "higher"]
Comparison = Literal["ratio", "difference"]
Unit = Literal["metric", "perplexity"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80

_COMPARISONS: Mapping[tuple[str, str], Comparison] = {("quality", "metric"): "difference"}
"""By metric and unit; a cost, and a perplexity, is compared as a ratio."""


def _line(text: str) -> str:
    if not text.isprintable() or text != text.strip() or not text:
        raise ValueError("must be one line of printable text without space at its ends")
    return text


def _identifier(text: str) -> str:
    if not text.isascii() or text != text.lower() or not all(part.isalnum() for part in text.split("-")):
        raise ValueError("must be lower-case letters and digits joined by hyphens")
    return text


Line = Annotated[str, AfterValidator(_line)]


class Claim(BaseModel):
    """One published statement that compares ``algorithm`` with ``baseline``.

    ``metric`` is what is compared, ``direction`` where the algorithm is said to lie relative to the baseline, and
    ``comparison`` how: as the ratio algorithm / baseline of a cost, or as the difference algorithm - baseline of a
    quality. The published effect is ``published_value`` itself or, where ``published_baseline_value`` is given, the
    ratio or difference of the two. ``published_unit = "perplexity"`` says that they are exp of a workload's metric in
    nats; then perplexities compare as a ratio.

    It was published at ``tier`` of ``workload``, or on ``published_on`` where that is nothing that can be run here. It
    can be tested on ``workload`` from ``smallest_tier`` on; a claim without a workload can only be listed.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[str, AfterValidator(_identifier)] = Field(description="stable, unique per algorithm")
    statement: Line
    source: Line
    algorithm: Line
    baseline: Line
    metric: Metric
    direction: Direction
    comparison: Comparison
    published_value: float
    published_baseline_value: float | None = None
    published_unit: Unit = "metric"
    published_on: Line | None = None
    workload: Line | None = None
    tier: Line | None = None
    smallest_tier: Line | None = None
    note: Line | None = None

    @property
    def published_effect(self) -> float:
        """The published ratio or difference."""
        if self.published_baseline_value is None:
            return self.published_value
        if self.comparison == "ratio":
            return self.published_value / self.published_baseline_value
        return self.published_value - self.published_baseline_value

    @property
    def neutral(self) -> float:
        """The effect that means no difference."""
        return 1.0 if self.comparison == "ratio" else 0.0

    @property
    def published_at(self) -> str:
        """Where it was published: a tier of the workload, or what the paper trained."""
        return self.tier or self.published_on or ""


def load_claims(registry: Registry) -> list[Claim]:
    """Return every claim of every algorithm of ``registry``, by algorithm and id; broken files are left out."""
    return _load(registry)[0]


def broken_claims(registry: Registry) -> list[Broken]:
    """Return the claims files that :func:`load_claims` leaves out: the file, its package and what is wrong."""
    return _load(registry)[1]


def claims_of(name: str, registry: Registry) -> tuple[list[Claim], str]:
    """Return the claims of the algorithm ``name``, and why their file cannot be read; the empty text if it can."""
    claims, broken = _load(registry)
    file = f"{registry.algorithms[name].target.partition(':')[0]}{CLAIMS}"
    return [claim for claim in claims if claim.algorithm == name], "".join(
        one.reason for one in broken if one.name == file
    )


def _load(registry: Registry) -> tuple[list[Claim], list[Broken]]:
    modules: dict[str, list[str]] = {}
    for name, entry in sorted(registry.algorithms.items()):
        modules.setdefault(entry.target.partition(":")[0], []).append(name)
    claims: list[Claim] = []
    broken = []
    for module, algorithms in sorted(modules.items()):
        file = f"{module}{CLAIMS}"
        try:
            found = beside(module, CLAIMS)
            if found is not None:
                claims += read_claims(found.read_bytes(), file, algorithms, registry)
        except Exception as error:  # noqa: BLE001 - a stranger's package may raise anything when its data is opened
            reason = error.message if isinstance(error, BrokenPlugin) else f"{type(error).__name__}: {error}"
            broken.append(Broken(name=file, package=registry.packages[algorithms[0]], reason=reason))
    return sorted(claims, key=lambda claim: (claim.algorithm, claim.id)), broken


def read_claims(content: bytes, file: str, algorithms: Sequence[str], registry: Registry) -> list[Claim]:
    """Return the claims in ``content``, a claims file of ``algorithms``.

    Raises:
        BrokenPlugin: anything in it is wrong; the message names ``file``, the claim, the key, the value and what is
            allowed.
    """
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenPlugin(f"{file}: no TOML in UTF-8: {error}") from error
    for key in data:
        if key != "claim":
            raise BrokenPlugin(f"{file}: unknown key {key!r}; the only one is 'claim', an array of tables: [[claim]]")
    if not data and content.strip():  # comments alone say so on purpose; an empty file may have lost its claims
        return []
    raw = data.get("claim")
    if not isinstance(raw, list) or not raw or not all(isinstance(item, dict) for item in raw):
        raise BrokenPlugin(f"{file}: claim is {_shown(raw)}; it must be one or more tables: [[claim]]")
    claims: list[Claim] = []
    for number, item in enumerate(raw, start=1):
        where = f"{file}: claim {number} ({_shown(item.get('id', 'no id'))})"
        claim = _claim(item, where, algorithms)
        _check_names(claim, where, algorithms, registry)
        _check_place(claim, where, registry)
        _check_effect(claim, where)
        if any((claim.algorithm, claim.id) == (other.algorithm, other.id) for other in claims):
            raise BrokenPlugin(f"{where}: id {claim.id!r} is taken; ids are unique within an algorithm")
        claims.append(claim)
    return claims


def _claim(item: dict[str, Any], where: str, algorithms: Sequence[str]) -> Claim:
    if len(algorithms) == 1:  # the file says it
        item = {"algorithm": algorithms[0]} | item
    try:
        return Claim.model_validate(item)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    if first["type"] == "missing":
        raise BrokenPlugin(f"{where}: lacks the key {key!r}")
    if first["type"] == "extra_forbidden":
        raise BrokenPlugin(f"{where}: unknown key {key!r}; keys are {', '.join(Claim.model_fields)}")
    must = first["msg"].removeprefix("Value error, ")
    raise BrokenPlugin(f"{where}: {key} is {_shown(item[key])} ({type(item[key]).__name__}): {must}")


def _check_names(claim: Claim, where: str, algorithms: Sequence[str], registry: Registry) -> None:
    if claim.algorithm not in algorithms:
        _refuse(where, "algorithm", claim.algorithm, f"this file belongs to {', '.join(algorithms)}")
    if claim.baseline == claim.algorithm:
        _refuse(where, "baseline", claim.baseline, "an algorithm is not its own baseline")
    if claim.baseline not in registry.algorithms:
        _refuse(where, "baseline", claim.baseline, f"algorithms are {', '.join(sorted(registry.algorithms))}")
    if claim.workload is not None and claim.workload not in registry.workloads:
        _refuse(where, "workload", claim.workload, f"workloads are {', '.join(sorted(registry.workloads))}")


def _check_place(claim: Claim, where: str, registry: Registry) -> None:
    if (claim.workload is None) != (claim.smallest_tier is None):
        _refuse(where, "smallest_tier", claim.smallest_tier, "it goes with workload: both or neither")
    if (claim.tier is None) == (claim.published_on is None):
        _refuse(where, "tier", claim.tier, "say where it was published, by exactly one of tier and published_on")
    if claim.workload is None:
        if claim.tier is not None:
            _refuse(where, "tier", claim.tier, "a tier belongs to a workload; without one use published_on")
        return
    tiers = registry.workloads[claim.workload].tiers
    for key in ("tier", "smallest_tier"):
        value = getattr(claim, key)
        if value is not None and value not in tiers:
            _refuse(where, key, value, f"tiers of {claim.workload} are {', '.join(tiers)}")


def _check_effect(claim: Claim, where: str) -> None:
    if claim.published_unit == "perplexity" and claim.metric != "quality":
        _refuse(where, "published_unit", claim.published_unit, f"{claim.metric} has no perplexity; leave it out")
    allowed = _COMPARISONS.get((claim.metric, claim.published_unit), "ratio")
    if claim.comparison != allowed:
        _refuse(where, "comparison", claim.comparison, f"{claim.metric} in this unit compares as a {allowed}")
    if claim.comparison == "ratio":
        for key in ("published_value", "published_baseline_value"):
            value = getattr(claim, key)
            if value is not None and not value > 0:
                _refuse(where, key, value, "what makes a ratio must be positive")
    effect = claim.published_effect
    if not math.isfinite(effect):
        _refuse(where, "published_baseline_value", claim.published_baseline_value, "with it the effect is no number")
    if not (effect < claim.neutral if claim.direction == "lower" else effect > claim.neutral):
        limit = f"{claim.direction} than {claim.neutral:g}"
        _refuse(where, "direction", claim.direction, f"the published {claim.comparison} is {effect:g}, not {limit}")


def _refuse(where: str, key: str, value: Any, must: str) -> None:
    raise BrokenPlugin(f"{where}: {key} is {_shown(value)} ({type(value).__name__}): {must}")


def _shown(value: Any) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of very many digits"
