"""``bench leaderboard``: what has been recorded, in order, one board per comparable set of trials."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands._options import format_option, results_option
from bench.commands._print import bytes_text, seconds_text, show_table
from bench.errors import BadValue, UnknownName
from bench.trial import OUTCOMES

if TYPE_CHECKING:
    import pandas as pd

    from bench.board import Board
    from bench.store import Store


@click.command("leaderboard")
@click.option("--workload", metavar="W", help="Only this workload.")
@click.option("--tier", metavar="T", help="Only this tier.")
@click.option(
    "--by",
    type=click.Choice(["time", "steps", "memory", "energy", "quality"]),
    default="time",
    show_default=True,
    help="What to order by.",
)
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curves too: .svg, .png, .pdf."
)
@results_option
@format_option
def command(workload: str | None, tier: str | None, by: Any, figure: Path | None, results: Path, form: str) -> None:
    """Rank the recorded trials; those that do not compare (other data, tier, device, ...) get boards of their own."""
    from bench.board import boards
    from bench.store import Store

    store = Store(results)
    trials = store.trials()
    for column, wanted in (("workload", workload), ("tier", tier)):
        trials = trials if wanted is None else _only(trials, column, wanted, results)
    found = boards(trials, by)
    if figure is not None:
        _draw(found, store, figure)
    if form in {"json", "csv"}:
        show_table([board.shared | row for board in found for row in board.records()], form)
        return
    if not found:
        click.echo("no trials are recorded yet")
    for board in found:
        _head(board.shared, form)
        show_table([_for_people(row) for row in board.records()], form, fold=["algorithm"])
        for row in board.records():
            if any(failure in row["outcomes"] for failure in OUTCOMES[3:]):  # more than reached, missed, completed
                click.echo(f"{row['algorithm']} {row['setting']}".rstrip() + f": {row['outcomes']}")
        for note in board.notes:
            click.echo(f"note: {note}")
        click.echo()


def _only(trials: pd.DataFrame, column: str, wanted: str, results: Path) -> pd.DataFrame:
    if wanted not in set(trials[column]):
        raise UnknownName(f"{column} in {results}", wanted, set(trials[column]))
    return trials[trials[column] == wanted]


def _draw(found: list[Board], store: Store, path: Path) -> None:
    from bench.figures import board_figure

    if len(found) != 1:
        raise BadValue(
            f"--figure draws one board; this selection has {len(found)}", hint="choose with --workload and --tier"
        )
    if path.suffix not in {".svg", ".png", ".pdf"}:
        raise BadValue(f"--figure {str(path)!r} must end in .svg, .png or .pdf")
    drawn = board_figure(found[0], store.trials(), store.curves())
    drawn.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    click.echo(f"drew {path}", err=True)


def _head(shared: dict[str, Any], form: str) -> None:
    mark = "### " if form == "md" else ""
    click.echo(f"{mark}{shared['workload']} {shared['workload_minor']}, tier {shared['tier']}, {shared['precision']}")
    target = "no target yet" if shared["target"] is None else f"target {shared['metric']} {shared['target']:g}"
    click.echo(
        f"data {shared['data_source']} ({shared['data_sha256'][:12]}), {target}, protocol {shared['protocol']}, "
        f"device {shared['device_class']}, by {shared['by']}\n"
    )


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    steps, cv = row["steps_to_target"], row["steps_cv"]
    busy = "*" if row["contended"] and row["hits"] else ""
    return {
        "rank": str(row["order"]) if row["ranked"] else f"({row['order']})",
        "algorithm": f"{row['algorithm']} {row['setting']}".rstrip(),
        "reached": f"{row['hits']}/{row['seeds']}",
        "steps": "-" if steps != steps else f"{steps:.1f}" + (f" (CV {cv:.1%})" if cv == cv else ""),  # noqa: PLR0124
        "time": seconds_text(row["time_to_target_s"]) + busy,
        "quality": _quality(row),
        "memory": f"{bytes_text(row['memory_bytes'])} {row['memory_source']}",
        "states": bytes_text(row["optimizer_state_bytes"]),
    }


def _quality(row: dict[str, Any]) -> str:
    if math.isnan(row["quality"]):
        return "-"
    return f"{row['quality']:.4f}" + (f" ± {row['quality_sd']:.4f}" if row["seeds"] > 1 else "")
