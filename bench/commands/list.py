"""``bench list``: what there is. Light on purpose: no torch, no pandas."""

from __future__ import annotations

from typing import Any

import click

from bench.commands._options import format_option
from bench.commands._print import echo, show_table
from bench.entry import TRACKS
from bench.errors import UnknownName
from bench.registry import Registry


@click.command("list")
@click.argument("what", type=click.Choice(["plugins", "workloads", "protocols", "devices"]), default="plugins")
@click.option("--track", metavar="T", help=f"Only this track: {', '.join(TRACKS)}.")
@format_option
def command(what: str, track: str | None, form: str) -> None:
    """List plugins, workloads, protocols or device classes."""
    if track is not None and track not in TRACKS:
        raise UnknownName("track", track, TRACKS)
    if what == "protocols":
        show_table(_protocols(), form, fold=["summary"])
    elif what == "devices":
        show_table(_devices(), form, fold=["description"])
    else:
        registry = Registry()
        rows = _plugins(registry, track) if what == "plugins" else _workloads(registry)
        if form == "table" and what == "workloads":
            rows = [row | {"tiers": _few(row["tiers"].split())} for row in rows]
        if form == "table" and len({row["package"] for row in rows}) == 1:
            rows = [{key: value for key, value in row.items() if key != "package"} for row in rows]
        show_table(rows, form, fold=["paper", "summary"])
        for broken in registry.broken:
            echo(f"broken: {broken.name} (package {broken.package}): {broken.reason}", err=True)


def _plugins(registry: Registry, track: str | None) -> list[dict[str, Any]]:
    from bench.beside import claims_beside

    entries = sorted(registry.algorithms.values(), key=lambda entry: (TRACKS.index(entry.track), entry.name))
    return [
        {
            "name": entry.name,
            "track": entry.track,
            "paper": entry.paper,
            "package": registry.packages[entry.name],
            "claims": claims_beside(entry.target),
            "summary": entry.summary,
        }
        for entry in entries
        if track in {None, entry.track}
    ]


def _workloads(registry: Registry) -> list[dict[str, str]]:
    entries = sorted(registry.workloads.values(), key=lambda entry: entry.name)
    return [
        {
            "name": entry.name,
            "tiers": " ".join(entry.tiers),
            "package": registry.packages[entry.name],
            "summary": entry.summary,
        }
        for entry in entries
    ]


TIERS_WIDTH = 40
"""The most characters that a table gives to the names of tiers; bench show NAME has all of them."""


def _few(tiers: list[str]) -> str:
    """Return the names of ``tiers``, those that do not fit counted."""
    shown = len(tiers)
    while shown > 1 and len(_counted(tiers, shown)) > TIERS_WIDTH:
        shown -= 1
    return _counted(tiers, shown)


def _counted(tiers: list[str], shown: int) -> str:
    left = len(tiers) - shown
    return " ".join(tiers[:shown]) + (f" and {left} more" if left else "")


def _protocols() -> list[dict[str, str]]:
    from bench.protocol import protocols

    return [
        {"name": p.name, "version": p.version, "ranked": "yes" if p.ranked else "no", "summary": p.summary}
        for p in protocols().values()
    ]


def _devices() -> list[dict[str, str]]:
    from bench.devices import listed

    return [{"name": rule.name, "kind": rule.kind, "description": rule.description} for rule in listed()]
