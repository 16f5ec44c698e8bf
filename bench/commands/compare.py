"""``bench compare``: two algorithms against each other, board by board."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands import _figures_text as texts
from bench.commands._options import format_option, results_option
from bench.commands._print import show_table
from bench.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from bench.board import Board
    from bench.comparison import Comparison

MEASURES = ("time", "steps", "memory", "energy", "quality")


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--workload", required=True, metavar="W", help="The fixed problem.")
@click.option("--tier", metavar="T", help="Only this tier.")
@click.option("--protocol", metavar="NAME", help="Only this protocol.")
@click.option("--by", type=click.Choice(MEASURES), default="time", show_default=True, help="What the verdict is about.")
@results_option
@format_option
def command(
    a: str, b: str, workload: str, tier: str | None, protocol: str | None, by: Any, results: Path, form: str
) -> None:
    """Compare algorithms A and B on one workload: ratios A / B with intervals, tests, and a verdict in words.

    Below 1, A is cheaper. Only trials of one board compare: same version, tier, data, protocol and device class. A name
    given twice compares the settings of that algorithm with each other.
    """
    from bench.board import boards
    from bench.comparison import compare
    from bench.store import Store

    store = Store(results)
    trials = store.trials()
    for column, wanted in (("workload", workload), ("tier", tier), ("protocol", protocol)):
        trials = texts.only(trials, column, wanted, results)
    for name in (a, b):
        if name not in set(trials["algorithm"]):
            raise UnknownName(f"algorithm with trials of {workload} in {results}", name, set(trials["algorithm"]))
    found = boards(trials, by, store.protocols())
    compared = [compare(board, *pair, trials) for board in found for pair in _pairs(board, a, b)]
    if form in {"json", "csv"}:
        show_table([one.record() for one in compared], form)
    elif compared:
        for one in compared:
            _show(one, form)
    if not compared:
        _explain(found, a, b, quiet=form in {"json", "csv"})


def _pairs(board: Board, a: str, b: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the pairs of rows of a board to compare, each setting by itself."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in board.records():
        rows.setdefault(row["algorithm"], []).append(row)
    return list(combinations(rows.get(a, []), 2)) if a == b else list(product(rows.get(a, []), rows.get(b, [])))


def _explain(found: list[Board], a: str, b: str, *, quiet: bool) -> None:
    """Say why no row of A meets one of B."""
    from bench.comparison import why_not

    if a == b:
        raise BadValue(f"{a!r} has one setting on each board, and nothing to compare it with", hint="name another one")
    ones, others = ([board.shared for board in found if name in set(board.rows["algorithm"])] for name in (a, b))
    reasons = why_not(ones, others)
    click.echo(f"{a} and {b} share no board", err=quiet)
    for reason in reasons:
        click.echo(f"not comparable: {reason}", err=quiet)


# -- one comparison --------------------------------------------------------------------------------------------------
def _show(one: Comparison, form: str) -> None:
    from bench.comparison import label

    click.echo(texts.heading(one.board.shared, form))
    click.echo(f"{one.verdict}\n")
    names = (label(one.a), label(one.b))
    names = names if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")
    lines = [_cost(one, "steps"), _cost(one, "time"), _paired(one, "steps"), _paired(one, "time")]
    lines += [_cost(one, "memory"), _cost(one, "energy"), _quality(one), _reached(one), _expected(one)]
    table = [
        {"": line[0], names[0]: line[1], names[1]: line[2], "A / B": line[3], "p": line[4], "shows from": line[5]}
        for line in lines
        if any(text not in {"", "-"} for text in line[1:])
    ]
    show_table(table, form, fold=["A / B", *names])
    for note in _notes(one):
        click.echo(f"note: {note}")
    click.echo()


Line = tuple[str, str, str, str, str, str]
"""What, A, B, A against B, p, and from which effect on a comparison of this size shows it."""


def _cost(one: Comparison, name: str) -> Line:
    column, text = COLUMNS[name]
    ratio = texts.with_interval(one.figures, f"{name}_ratio", texts.ratio_text)
    limit = one.figures[f"{name}_detectable_ratio"]
    shows = "-" if math.isnan(limit) else f"{limit - 1:.0%}"
    sides = [texts.with_interval(row, column, text) for row in (one.a, one.b)]
    return (name, sides[0], sides[1], ratio, texts.p_text(one.figures[f"{name}_ratio_p"]), shows)


def _memory_text(value: float) -> str:
    from bench.commands._print import bytes_text

    return bytes_text(value)


COLUMNS = {
    "steps": ("steps_to_target", texts.steps_text),
    "time": ("time_to_target_s", texts.time_text),
    "memory": ("memory_bytes", _memory_text),
    "energy": ("energy_j", texts.energy_text),
}
"""The column of a row for each cost, and how people read it."""


def _paired(one: Comparison, name: str) -> Line:
    pairs = one.figures[f"{name}_pairs"]
    if math.isnan(pairs) or pairs < 2:
        return ("", "", "", "", "", "")
    ratio = texts.with_interval(one.figures, f"{name}_paired_ratio", texts.ratio_text)
    t, flip = (texts.p_text(one.figures[f"{name}_{test}"]) for test in ("paired_ratio_p", "sign_flip_p"))
    return (f"{name}, {pairs:.0f} pairs of seeds", "", "", ratio, f"{t} (sign flip {flip})", "")


def _quality(one: Comparison) -> Line:
    sides = [texts.with_interval(row, "quality", lambda value: f"{value:.4f}") for row in (one.a, one.b)]
    difference = texts.with_interval(one.figures, "quality_difference", lambda value: f"{value:+.4f}")
    p = texts.p_text(one.figures["quality_difference_p"])
    metric = one.board.shared["metric"] or "quality"
    return (f"{metric}, A - B", sides[0], sides[1], difference, p, "")


def _reached(one: Comparison) -> Line:
    sides = [
        f"{row['hits']}/{row['replicates']}"
        + ("" if math.isnan(row["hit_rate_low"]) else f" [{row['hit_rate_low']:.0%}, {row['hit_rate_high']:.0%}]")
        for row in (one.a, one.b)
    ]
    return ("reached, log-rank p", sides[0], sides[1], "", texts.p_text(one.figures["log_rank_p"]), "")


def _expected(one: Comparison) -> Line:
    sides = [texts.steps_text(row["expected_steps"]) for row in (one.a, one.b)]
    return ("expected steps", sides[0], sides[1], "", "", "")


def _notes(one: Comparison) -> list[str]:
    notes = ["one comparison: p is not adjusted; shows from: the effect that this many replicates show 4 times in 5"]
    if one.a["contended"] or one.b["contended"]:
        notes.append("measured on a busy machine: times do not compare")
    if not math.isnan(one.figures["separation_p"]) and any(row["hits"] < row["replicates"] for row in (one.a, one.b)):
        notes.append("ratios are over the hits alone; the verdict counts a miss with the least it would have needed")
    return notes
