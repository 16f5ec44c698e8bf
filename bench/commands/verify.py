"""``bench verify``: hold a bundle against every rule, without running anything of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands._print import echo

if TYPE_CHECKING:
    from bench.bundle import Verdict

EXITS = {"accept": 0, "reject": 1, "needs reproduction": 4}
"""The exit code of each verdict."""


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print; json has every finding.",
)
@click.pass_context
def command(ctx: click.Context, file: Path, form: str) -> None:
    """Check the bundle FILE: accept, reject with reasons, or needs reproduction.

    Every number is computed again from the event logs, and held against the workloads, protocols and references that
    are installed here. Nothing of the bundle is imported, executed or written, and the algorithm that it is about is
    not imported even where it is installed.

    Exit codes: 0 accept, 1 reject, 4 needs reproduction, 2 there is no such file.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # what a bundle names is not downloaded
    from bench.bundle import verify

    verdict = verify(file)
    if form == "json":
        click.echo(json.dumps(verdict.record(), indent=1))
    else:
        show(verdict)
    ctx.exit(EXITS[verdict.verdict])


def show(verdict: Verdict) -> None:
    """Print a verdict for people."""
    facts = verdict.facts
    holds = sum(check.result == "holds" for check in verdict.checks)
    for part in facts.get("comparisons", []):
        count = f"{part['entrant_trials']} trials of {facts['plugin']}, {part['reference_trials']} of its reference"
        echo(f"{part['comparison']}: {count}")
    for note in verdict.notes:
        echo(f"note: {note}")
    echo(f"{holds} of {len(verdict.checks)} rules hold")
    echo(f"\n{verdict.verdict}" + (":" if verdict.reasons else ": nothing speaks against these records"))
    for reason in verdict.reasons:
        echo(f"  {reason}")
    if verdict.verdict == "needs reproduction":
        echo("\nnext: bench reproduce FILE runs some of its trials again, which executes its algorithm")
