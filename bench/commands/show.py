"""``bench show``: everything about one plugin, published claims included, or about one workload."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from typing import Any

import click

from bench.after_training import PostTier
from bench.algorithm import TRAINING_SLOTS, Algorithm, slots
from bench.claims import Claim, claims_of
from bench.commands._print import echo, seconds_text, show_table
from bench.errors import UnknownName
from bench.hyperparameter import domain
from bench.registry import Registry
from bench.workload import Tier, Workload


@click.command("show")
@click.argument("name")
def command(name: str) -> None:
    """Show everything about the plugin or workload NAME."""
    registry = Registry()
    if name in registry.workloads:
        _workload(registry, registry.workload_class(name))
    elif name in registry.algorithms or any(broken.name == name for broken in registry.broken):
        _algorithm(registry, registry.algorithm_class(name))
    else:
        raise UnknownName("plugin or workload", name, [*registry.algorithms, *registry.workloads])


def _algorithm(registry: Registry, cls: type[Algorithm]) -> None:
    entry = registry.algorithms[cls.name]
    echo(f"{entry.name}: {entry.summary}\n")
    echo(f"track    {entry.track}\npaper    {entry.paper}")
    echo(f"package  {registry.packages[entry.name]} {registry.version(entry.name)}")
    echo(f"class    {entry.target}\nslots    {', '.join(slots(cls))}")
    if set(slots(cls)) - set(TRAINING_SLOTS):
        echo(f"looks at {cls.information}")
    if cls.needs:
        echo(f"needs    {', '.join(cls.needs)}")
    echo()
    echo(inspect.cleandoc(cls.__doc__ or "") + "\n")
    show_table([_field(cls, field) for field in dataclasses.fields(cls)], "table", fold=["help", "domain"])
    for deviation in cls.deviations:
        echo(f"\nDeviation: {deviation}")
    claims, unread = claims_of(cls.name, registry)
    for claim in claims:
        echo("\n" + _claim(claim))
    if unread:
        echo(f"\nClaims cannot be read: {unread}")


def _claim(claim: Claim) -> str:
    """Return a published statement with its numbers and where it can be tested; ``bench report`` says what came out."""
    values = [value for value in (claim.published_value, claim.published_baseline_value) if value is not None]
    numbers = " against ".join(f"{value:g}" for value in values)
    unit = " perplexity" if claim.published_unit == "perplexity" else ""
    tested = f"{claim.workload} from {claim.smallest_tier} on" if claim.workload else "by no workload"
    return (
        f"Claim: {claim.statement}\n"
        f"  {claim.metric.replace('_', ' ')}, {claim.direction} than {claim.baseline}'s: "
        f"{claim.comparison} of {numbers}{unit}, at {claim.published_at}\n"
        f"  testable {tested}; {claim.source}"
    )


def _field(cls: type[Algorithm], field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {
        "hyperparameter": field.name,
        "default": "none" if field.default is None else field.default,
        "domain": domain(cls, field.name),
        "search": field.metadata.get("search"),
        "help": field.metadata.get("help", ""),
    }


def _workload(registry: Registry, cls: type[Workload]) -> None:
    entry = registry.workloads[cls.name]
    echo(f"{cls.name} {cls.version}: {entry.summary}\n")
    echo(f"metric   {cls.metric} ({cls.direction})\ndata     {', '.join(cls.sources)}")
    echo(f"package  {registry.packages[cls.name]} {registry.version(cls.name)}\n")
    echo(inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "") + "\n")
    show_table([_tier(name, tier) for name, tier in cls.tiers.items()], "table")
    for name, tier in cls.tiers.items():
        echo(f"\n{name}: reference {_values(tier)}\n  tuning: {tier.tuning}")
        echo(f"  target: {tier.target.how if tier.target else 'none yet'}")
        if isinstance(tier, PostTier):
            echo(f"  points: {'; '.join(map(str, tier.points))}")


def _tier(name: str, tier: Tier) -> dict[str, Any]:
    return {
        "tier": name,
        "target": tier.target.value if tier.target else None,
        "steps": tier.steps,
        "batch": tier.batch_size,
        "evaluated": f"every {tier.evaluate_every}" if not isinstance(tier, PostTier) else "at each point",
        "precision": tier.precision,
        "data": tier.source,
        "takes": seconds_text(tier.expected_s if tier.expected_s is not None else math.nan),
        "on": tier.device_class,
    }


def _values(tier: Tier) -> str:
    return " + ".join(
        f"{name}({', '.join(f'{key}={value}' for key, value in values.items())})"
        for name, values in tier.reference.items()
    )
