"""What the committed records say of an algorithm: its claims, and its rows on the boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.text import count, interval, known, number
from bench.verdicts import BROKEN, NOT_TESTABLE

from . import docstring
from .context import Context
from .markdown import code, escape, sentence, table


def claims(context: Context, name: str) -> list[str]:
    """Return the section of the claims of the algorithm ``name``."""
    mine = [row for row in context.ledger if row["algorithm"] == name and row["verdict"] != BROKEN]
    if not mine:
        return ["## Claims", "No published comparison of it is kept as a claim."]
    told = (
        f"{_many(len({row['claim'] for row in mine}), 'published statement')}, each with what our records in "
        "`results/` say of it ([how a verdict is reached](../../claims.md)). A verdict is about our tier and data, "
        "not about the paper at its own scale."
    )
    by_claim = [[row for row in mine if row["claim"] == claim] for claim in dict.fromkeys(row["claim"] for row in mine)]
    tested = [rows for rows in by_claim if rows[0]["verdict"] != NOT_TESTABLE]
    blocks = ["## Claims", told, *(block for rows in tested for block in _tested(rows))]
    rest = [rows[0] for rows in by_claim if rows not in tested]
    if rest:
        lines = [f"- {_said(row)} *{escape(sentence(str(row['reason'])))}*" for row in rest]
        blocks += [f"### Not testable here: {len(rest)}", "\n".join(lines)]
    return blocks


def _many(amount: int, one: str) -> str:
    return f"{count(amount)} {one}{'' if amount == 1 else 's'}"


def _tested(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [
        (f"**{escape(row['verdict'])}**", _where(row), _effect(row), escape(sentence(str(row["reason"]))))
        for row in rows
    ]
    heads = ("verdict", "tested on", "measured [interval]", "why")
    return [f"### {code(rows[0]['claim'])}", _said(rows[0]), table(heads, shown)]


def _said(row: Mapping[str, Any]) -> str:
    note = f" {docstring.inline(sentence(row['note']))}" if isinstance(row["note"], str) else ""
    compared = f"{row['metric'].replace('_', ' ')}, {row['comparison']} to {row['baseline']}"
    return (
        f"{docstring.inline(row['statement'])} ({docstring.papers(row['source'])}; {escape(compared)}: published "
        f"{escape(number(row['published_effect'], 4))} at {escape(str(row['published_at']))}).{note}"
    )


def _where(row: Mapping[str, Any]) -> str:
    if not isinstance(row["tested_at"], str):
        return "all boards together"
    parts = [f"{row['workload']} {row['tested_at']}", row["data_source"], row["protocol"], row["device_class"]]
    parts += [str(row[key]) for key in ("setting",) if row[key]]
    return escape(", ".join(map(str, parts)))


def _effect(row: Mapping[str, Any]) -> str:
    if not known(row["effect"]):
        return "–"
    if row["effect_low"] == row["effect_high"] == row["effect"]:
        return f"{escape(number(row['effect'], 4))}, counted"
    return escape(f"{number(row['effect'], 4)} {interval(row['effect_low'], row['effect_high'])}".strip())


# -- boards ----------------------------------------------------------------------------------------------------------
def boards(context: Context, name: str) -> list[str]:
    """Return the section of the boards on which the algorithm ``name`` has a row."""
    rows = [
        (escape(view.label), escape(row["setting"] or ""), *_row(view.board.shared, row))
        for view in context.evidence.views
        for row in view.board.records()
        if row["algorithm"] == name
    ]
    if not rows:
        return ["## Measured here", "It has no row on a committed board yet."]
    heads = ("board", "setting", "place", "group", "reached", "steps to target", "over the reference", "quality")
    told = "Its rows on the boards of `results/` ([how to read them](../../reading-a-leaderboard.md))."
    filled = [place for place in range(len(heads)) if any(row[place] not in {"", "–"} for row in rows)]
    return [
        "## Measured here",
        told,
        table([heads[place] for place in filled], [[row[place] for place in filled] for row in rows]),
    ]


def _row(shared: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    targeted = known(shared["target"])
    steps = interval(row["steps_to_target_low"], row["steps_to_target_high"], lambda end: number(end, 4))
    ratio = interval(row["steps_ratio_low"], row["steps_ratio_high"])
    found = [
        count(row["order"]) if row["ranked"] else f"({count(row['order'])})",
        count(row["group"]) if row["group"] else "–",
        f"{count(row['hits'])}/{count(row['replicates'])}" if targeted else "–",
        f"{number(row['steps_to_target'], 4)} {steps}".strip(),
        "reference" if row["is_reference"] else f"{number(row['steps_ratio'])} {ratio}".strip(),
        number(row["quality"], 4),
    ]
    if row["information"]:
        found[3], found[4] = "–", found[4] if row["is_reference"] else "–"
    return [escape(text) for text in found]
