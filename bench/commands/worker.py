"""``bench worker``: run one trial; what every executor starts."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("worker")
@click.argument("trial", type=click.Path(path_type=Path))
@click.pass_context
def command(ctx: click.Context, trial: Path) -> None:
    """Run the trial described by TRIAL, a trial.json in its folder of a results store."""
    from bench import worker_environment

    worker_environment.prepare()
    from bench.trial import FAILED
    from bench.worker import work

    row = work(trial)
    click.echo(f"{row['trial_id']}: {row['outcome']} {row['outcome_reason'] or ''}".rstrip())
    ctx.exit(1 if row["outcome"] in FAILED else 0)
