"""``bench compare``: two algorithms against each other, board by board."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands import _figures_text as texts
from bench.commands._options import format_option, results_option
from bench.commands._print import bytes_text, echo, show_table, words
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
        _explain(found, a, b, form)


def _pairs(board: Board, a: str, b: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the pairs of rows of a board to compare, each setting by itself."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in board.records():
        rows.setdefault(row["algorithm"], []).append(row)
    return list(combinations(rows.get(a, []), 2)) if a == b else list(product(rows.get(a, []), rows.get(b, [])))


def _explain(found: list[Board], a: str, b: str, form: str) -> None:
    """Say why no row of A meets one of B; where a program reads the output, not there."""
    from bench.comparison import why_not

    quiet = form in {"json", "csv"}
    if a == b:
        raise BadValue(f"{a!r} has one setting on each board, and nothing to compare it with", hint="name another one")
    ones, others = ([board.shared for board in found if name in set(board.rows["algorithm"])] for name in (a, b))
    reasons = why_not(ones, others)
    echo(words(f"{a} and {b} share no board", form), err=quiet)
    for reason in reasons:
        echo(words(f"not comparable: {reason}", form), err=quiet)


# -- one comparison --------------------------------------------------------------------------------------------------
def _show(one: Comparison, form: str) -> None:
    from bench.comparison import label

    echo(texts.heading(one.board.shared, form))
    echo(words(one.verdict, form) + "\n")
    names = [label(one.a), label(one.b)]
    names = names if names[0] != names[1] else [f"{names[0]} (A)", f"{names[1]} (B)"]
    lines = [*(_cost(one, name) for name in COLUMNS), _quality(one), _reached(one), _expected(one)]
    heads = ("", *names, "A / B", "p", "shows from")
    told = [line for line in lines if any(text not in {"", "-"} for text in line[1:])]
    show_table([dict(zip(heads, line, strict=True)) for line in told], form, fold=[*names, "A / B"])
    for note in _notes(one):
        echo(words(f"note: {note}", form))
    click.echo()


Line = tuple[str, str, str, str, str, str]
"""What, A, B, A against B, p, and from which effect on a comparison of this size shows it."""

COLUMNS = {
    "steps": ("steps_to_target", texts.steps_text),
    "time": ("time_to_target_s", texts.time_text),
    "memory": ("memory_bytes", bytes_text),
    "energy": ("energy_j", texts.energy_text),
}
"""The column of a row for each cost, and how people read it."""


def _cost(one: Comparison, name: str) -> Line:
    column, text = COLUMNS[name]
    limit = one.figures[f"{name}_detectable_ratio"]
    return (
        name,
        texts.with_interval(one.a, column, text),
        texts.with_interval(one.b, column, text),
        texts.with_interval(one.figures, f"{name}_ratio", texts.ratio_text),
        texts.p_text(one.figures[f"{name}_ratio_p"]),
        "-" if math.isnan(limit) else f"{limit - 1:.0%}",
    )


def _quality(one: Comparison) -> Line:
    sides = [texts.with_interval(row, "quality", lambda value: f"{value:.4f}") for row in (one.a, one.b)]
    difference = texts.with_interval(one.figures, "quality_difference", lambda value: f"{value:+.4f}")
    p = texts.p_text(one.figures["quality_difference_p"])
    return (f"{one.board.shared['metric'] or 'quality'}, A - B", sides[0], sides[1], difference, p, "-")


def _reached(one: Comparison) -> Line:
    sides = [
        f"{row['hits']}/{row['replicates']}"
        + ("" if math.isnan(row["hit_rate_low"]) else f" [{row['hit_rate_low']:.0%}, {row['hit_rate_high']:.0%}]")
        for row in (one.a, one.b)
    ]
    return ("reached", sides[0], sides[1], "-", texts.p_text(one.figures["log_rank_p"]), "-")


def _expected(one: Comparison) -> Line:
    sides = [texts.steps_text(row["expected_steps"]) for row in (one.a, one.b)]
    return ("expected steps", sides[0], sides[1], "-", "-", "-")


def _notes(one: Comparison) -> Iterator[str]:
    yield "p is not adjusted: this is one comparison; that of reached is log-rank over steps, misses censored"
    yield "shows from: the difference that so many replicates show 4 times in 5 at this noise"
    for name in ("steps", "time"):
        pairs = one.figures[f"{name}_pairs"]
        if pairs >= 2:
            ratio = texts.with_interval(one.figures, f"{name}_paired_ratio", texts.ratio_text)
            t, flip = (texts.p_text(one.figures[f"{name}_{test}"]) for test in ("paired_ratio_p", "sign_flip_p"))
            yield f"{name} over {pairs:.0f} pairs of seeds (same weights, same data): {ratio}, p {t}, sign flips {flip}"
    if one.a["contended"] or one.b["contended"]:
        yield "measured on a busy machine: times do not compare"
    if one.a["memory_source"] != one.b["memory_source"]:
        yield f"memory from {one.a['memory_source']} and {one.b['memory_source']} does not compare"
    if any(0 < row["hits"] < row["replicates"] for row in (one.a, one.b)):
        yield "ratios are over the hits alone; the verdict counts a miss with the least that it would have needed"
