"""``bench leaderboard``: what has been recorded, in order, one board per comparable set of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands import _figures_text as texts
from bench.commands._options import format_option, results_option
from bench.commands._print import bytes_text, echo, show_table, words
from bench.errors import BadValue
from bench.trial import OUTCOMES

if TYPE_CHECKING:
    from bench.board import Board
    from bench.store import Store

ORDERS = ("time", "steps", "memory", "energy", "quality", "pareto")


@click.command("leaderboard")
@click.option("--workload", metavar="W", help="Only this workload.")
@click.option("--tier", metavar="T", help="Only this tier.")
@click.option("--protocol", metavar="NAME", help="Only this protocol.")
@click.option("--by", type=click.Choice(ORDERS), default="time", show_default=True, help="What to order by.")
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curves too: .svg, .png, .pdf."
)
@click.option("--write", is_flag=True, help="Write every board of the results into RESULTS/leaderboards/ too.")
@results_option
@format_option
def command(
    workload: str | None,
    tier: str | None,
    protocol: str | None,
    by: Any,
    figure: Path | None,
    write: bool,
    results: Path,
    form: str,
) -> None:
    """Rank the recorded trials; those that do not compare (other data, tier, device, ...) get boards of their own.

    Figures have 95% intervals. Rows of one group cannot be told apart. Ratios are to the reference: below 1 is cheaper.
    """
    from bench.board import boards
    from bench.store import Store

    store = Store(results)
    trials = store.trials()
    for column, wanted in (("workload", workload), ("tier", tier), ("protocol", protocol)):
        trials = texts.only(trials, column, wanted, results)
    found = boards(trials, by, store.protocols())
    if figure is not None:
        _draw(found, store, figure)
    if write:
        _write(store)
    if form in {"json", "csv"}:
        show_table([board.shared | row for board in found for row in board.records()], form)
        return
    if not found:
        click.echo("no trials are recorded yet")
    for board in found:
        _show(board, form)
    for name, group in groupby(found, lambda board: board.shared["workload"]):
        _not_comparable(name, [board.shared for board in group], form)


def _draw(found: list[Board], store: Store, path: Path) -> None:
    from bench.figures import board_figure, save

    if len(found) != 1:
        raise BadValue(
            f"--figure draws one board; this selection has {len(found)}",
            hint="choose with --workload, --tier and --protocol",
        )
    save(board_figure(found[0], store.trials(), store.curves()), path)
    click.echo(f"drew {path}", err=True)


def _write(store: Store) -> None:
    from bench import leaderboards

    written = leaderboards.write(store)
    click.echo(f"wrote {len(written)} boards into {store.root / leaderboards.FOLDER}", err=True)


# -- one board -------------------------------------------------------------------------------------------------------
def _show(board: Board, form: str) -> None:
    echo(texts.heading(board.shared, form))
    records = board.records()
    lines = [_line(row, board.shared) for row in records]
    told = {key: key for key in lines[0] if any(line[key] not in {"", "-"} for line in lines)}
    names = {row["reference"] for row in records} - {None}
    told |= {RATIO: f"vs {names.pop()}"} if RATIO in told and len(names) == 1 else {}
    table = [{head: line[key] for key, head in told.items()} for line in lines]
    show_table(table, form, fold=[told[key] for key in FOLDED if key in told])
    for row in records:
        if any(failure in row["outcomes"] for failure in OUTCOMES[3:]):  # more than reached, missed, completed
            echo(words(f"{row['algorithm']} {row['setting']}".rstrip() + f": {row['outcomes']}", form))
    for note in board.notes:
        echo(words(f"note: {note}", form))
    click.echo()


RATIO = "vs reference"
FOLDED = ("time", "steps", RATIO, "quality", "algorithm")
"""The columns that give way on a narrow terminal, the first one first."""


def _line(row: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, str]:
    """Return a row for people; a column in which no row has anything is left out by the caller."""
    by = shared["by"]
    busy = "*" if row["contended"] and row["hits"] else ""
    basis = "" if row["basis"] in {None, "seeds"} else f" {row['basis']}"
    return {
        "rank": str(row["order"]) if row["ranked"] else f"({row['order']})",
        "group": str(row["group"]) if row["ranked"] else "",
        "algorithm": f"{row['algorithm']} {row['setting']}".rstrip(),
        "looks at": row["information"] or "",
        "reached": f"{row['hits']}/{row['replicates']}{basis}" if shared["target"] is not None else "-",
        "n": str(row["replicates"]) if shared["target"] is None else "",
        "steps": "-" if row["information"] else texts.with_interval(row, "steps_to_target", texts.steps_text),
        "time": texts.time_text(row["time_s"])
        if row["information"]
        else texts.with_interval(row, "time_to_target_s", texts.time_text) + busy,
        "expected": _expected(row, by),
        RATIO: _against_reference(row, by),
        "quality": _quality(row),
        "forgetting": "-" if math.isnan(row["forgetting"]) else f"{row['forgetting']:.3f}",
        "adapter": bytes_text(row["adapter_bytes"]),
        "stored": bytes_text(row["stored_bytes"]),
        "memory": texts.memory_text(row),
        "energy": texts.energy_text(row["energy_j"]),
        "front": "yes" if row["pareto"] and by == "pareto" else "",
        "trust": "" if row["trust_tier"] == "self-reported" else row["trust_tier"],
    }


def _expected(row: Mapping[str, Any], by: str) -> str:
    """Return the expected running time where the row missed some times: else it says what the mean says."""
    if not 0 < row["hits"] < row["replicates"]:
        return ""
    if by == "time":
        return texts.time_text(row["expected_time_s"])
    return f"{texts.steps_text(row['expected_steps'])} steps"


def _against_reference(row: Mapping[str, Any], by: str) -> str:
    """Return the ratio of what the board is ordered by; of quality, the difference."""
    if by == "quality":
        return texts.with_interval(row, "quality_difference", lambda value: f"{value:+.4f}")
    name = "steps" if by == "pareto" else by
    text = texts.with_interval(row, f"{name}_ratio", texts.ratio_text)
    return text if text == "-" else text.replace(" ", "x ", 1) if " " in text else f"{text}x"


def _quality(row: Mapping[str, Any]) -> str:
    if math.isnan(row["quality"]):
        return "-"
    return f"{row['quality']:.4f}" + ("" if math.isnan(row["quality_sd"]) else f" ± {row['quality_sd']:.4f}")


# -- between boards --------------------------------------------------------------------------------------------------
def _not_comparable(workload: str, shared: Sequence[Mapping[str, Any]], form: str) -> None:
    """Say in what several boards of a workload differ."""
    if len(shared) < 2:
        return
    from bench.comparison import WORDS, differing, shown

    echo(words(f"not comparable: the {len(shared)} boards of {workload} differ in", form) + "\n")
    keys = differing(shared)
    show_table([{WORDS.get(key, key): shown(one, key) for key in keys} for one in shared], form, fold=list(WORDS))
    click.echo()
