"""``bench repair``: tables from the event logs again, what cannot be used out of the way."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands._options import results_option


@click.command("repair")
@results_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(ctx: click.Context, results: Path, dry_run: bool, form: str) -> None:
    """Put a damaged results folder in order; what was measured is never deleted.

    The event logs are the truth: tables are derived from them again. What cannot be used is moved into DIR/damaged. A
    trial that runs at the moment is left alone. Exit code 1 if something is still damaged afterwards.
    """
    from bench.commands._print import show_table
    from bench.inspection import inspect
    from bench.repair import LEFT_ALONE, repair

    if dry_run:
        found = [finding for finding in inspect(results) if finding.damaged]
        rows = [{"path": one.path, "what": one.what, "would": one.remedy} for one in found]
    else:
        deeds = repair(results)
        rows = [{"path": one.finding.path, "what": one.finding.what, "done": one.done} for one in deeds]
    if rows or form == "json":
        show_table(rows, form, fold=("what", "would", "done", "path"))
    else:
        click.echo(f"nothing to repair in {str(results)!r}")
    ctx.exit(1 if any(row.get("done", "").startswith(LEFT_ALONE) for row in rows) else 0)
