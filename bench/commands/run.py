"""``bench run``: train, measure, record, and say how it compares with the reference."""

from __future__ import annotations

from typing import Any

import click

from bench.commands._options import request_of, run_options
from bench.trial import FAILED


@click.command("run")
@run_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a workload with one or more algorithms and record what it took.

    Beside each seed of an algorithm runs the same seed of the workload's tuned reference. Trials that are recorded
    already are not run again; an interrupted one goes on where it stopped. A protocol that searches (external, grid-lr)
    tries its points, the reference's too, and repeats what each study selects with fresh seeds.
    """
    from bench.campaign import run_plan
    from bench.commands._progress import Progress
    from bench.commands._summary import show_header, show_summary
    from bench.plan import make_plan
    from bench.registry import Registry
    from bench.store import Store

    plan = make_plan(Registry(), request_of(options))
    store = Store(options["results"], create=True)
    show_header(plan, store)
    with Progress(plan) as progress:
        rows = run_plan(plan, store, progress)
    show_summary(plan, rows, store)
    ctx.exit(1 if any(row["outcome"] in FAILED for row in rows) else 0)
