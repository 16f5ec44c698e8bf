"""``bench resume``: go on with trials that were begun and have no measurement yet."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands._options import results_option
from bench.commands._print import echo, printable
from bench.trial import FAILED


@click.command("resume")
@results_option
@click.pass_context
def command(ctx: click.Context, results: Path) -> None:
    """Go on with every interrupted or failed trial of a results folder."""
    from bench.executor import run_trial
    from bench.store import Store

    store = Store(results)
    trials = store.unfinished()
    if not trials:
        echo("nothing to go on with: every trial has its outcome")
    failed = False
    for trial in trials:
        click.echo(
            printable(f"{trial.algorithm.name} on {trial.workload} {trial.tier}, seed {trial.seed} ... "), nl=False
        )
        row = run_trial(trial, store)
        echo(f"{row['outcome']} {row['outcome_reason'] or ''}".rstrip())
        failed = failed or row["outcome"] in FAILED
    ctx.exit(1 if failed else 0)
