"""The claims ledger: what papers say of the algorithms, and what the records say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.ledger import ledger
from bench.report.document import Block, Facts, Section, Tabular, pieces, text
from bench.report.evidence import Evidence
from bench.report.table import EMPTY, Cell, Column, Row, Table, cell, name_cell, table
from bench.report.text import NONE, count, interval, known, number, plural
from bench.verdicts import BROKEN, HELD, MIXED, NOT_TESTABLE, REFUTED, UNDECIDED

_ORDER = (REFUTED, HELD, MIXED, UNDECIDED, NOT_TESTABLE, BROKEN)
_TONES = {REFUTED: "bad", HELD: "good", MIXED: "open", UNDECIDED: "open", NOT_TESTABLE: "muted", BROKEN: "bad"}
_MEANS = {
    REFUTED: "the whole interval lies on the other side of “no difference” than the paper says",
    HELD: "the whole interval lies on the side that the paper says",
    MIXED: "several boards can test it, and they disagree",
    UNDECIDED: "the interval holds “no difference”: these repetitions cannot tell",
    NOT_TESTABLE: "no board here can test it; the reason says what is missing",
    BROKEN: "the file of the claims cannot be read",
}
"""The verdicts, those first that a reader should not miss."""


def claims(evidence: Evidence) -> Section:
    """Return the section of the ledger."""
    found = ledger(evidence.boards, evidence.registry, evidence.protocols)
    records = [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]
    records.sort(key=lambda row: _ORDER.index(row["verdict"]))
    anchor = evidence.anchors("claims")
    if not records:
        blocks: list[Block] = [text("No installed algorithm brings claims.")]
        return Section(anchor=anchor, title="Claims ledger", short="Claims", blocks=blocks)
    tested = [row for row in records if row["verdict"] not in {NOT_TESTABLE, BROKEN}]
    rest = [row for row in records if row["verdict"] in {NOT_TESTABLE, BROKEN}]
    whole = [row for row in records if row["scope"] != "board" or not _is_repeated(row, records)]
    counts = {name: sum(row["verdict"] == name for row in whole) for name in _ORDER}
    items = [
        (f"{name[:1].upper()}{name[1:]}: {count(amount)}", pieces(_MEANS[name]))
        for name, amount in counts.items()
        if amount
    ]
    told = (
        "Published statements about the algorithms that are installed here, each with its source, held against every "
        "board that can test it. A verdict speaks about these boards, not about whether a paper is right or wrong at "
        "its own scale."
    )
    blocks = [text(told), Facts(items=items, wide=True)]
    if tested:
        shown = _table(f"{anchor}-tested", f"Tested: {plural(len(tested), 'verdict')}", _TESTED, tested, evidence)
        blocks.append(Tabular(table=shown))
    else:
        blocks.append(text("None of them can be tested with what is recorded here."))
    if rest:
        caption = f"Not testable here: {plural(len(rest), 'claim')}"
        columns = [
            column for column in _REST if column is not _VERDICT or any(row["verdict"] == BROKEN for row in rest)
        ]
        blocks.append(Tabular(table=_table(f"{anchor}-rest", caption, columns, rest, evidence)))
    return Section(anchor=anchor, title="Claims ledger", short="Claims", blocks=blocks)


def _is_repeated(row: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a verdict on a board is one of several, over which another record speaks."""
    return any(
        other["scope"] == "overall" and (other["algorithm"], other["claim"]) == (row["algorithm"], row["claim"])
        for other in records
    )


_ALGORITHM = Column(key="algorithm", head="Algorithm", header=True)
_VERDICT = Column(key="verdict", head="Verdict")
_CLAIM = Column(key="claim", head="Claim", wide=True)
_PUBLISHED = Column(key="published", head="Published", numeric=True, help="ratio, or difference for quality")
_COMPARED = Column(key="compared", head="What is compared")
_REASON = Column(key="reason", head="Why", wide=True)
_TESTED = [
    _ALGORITHM,
    _VERDICT,
    _CLAIM,
    _COMPARED,
    Column(key="effect", head="Measured here", numeric=True, help="ratio, or difference for quality, with interval"),
    _PUBLISHED,
    Column(key="where", head="Tested on"),
    _REASON,
]
_REST = [_ALGORITHM, _VERDICT, _CLAIM, _COMPARED, _PUBLISHED, _REASON]


def _table(
    anchor: str, caption: str, columns: Sequence[Column], records: Sequence[Mapping[str, Any]], evidence: Evidence
) -> Table:
    rows = [Row(cells={column.key: _SHOWS[column.key](row, evidence) for column in columns}) for row in records]
    return table(anchor, caption, columns, rows)


def _algorithm(row: Mapping[str, Any], evidence: Evidence) -> Cell:
    if row["scope"] == "file":
        return name_cell(row["claim"])
    return name_cell(row["algorithm"], anchor=evidence.algorithm_anchors.get(row["algorithm"], ""))


def _claim(row: Mapping[str, Any], _: Evidence) -> Cell:
    note = f" {row['note']}" if isinstance(row["note"], str) else ""
    return Cell(text=row["statement"] if isinstance(row["statement"], str) else NONE, detail=f"{row['source']}.{note}")


def _verdict(row: Mapping[str, Any], _: Evidence) -> Cell:
    overall = "over all boards" if row["scope"] == "overall" else ""
    return cell(row["verdict"], _ORDER.index(row["verdict"]), tone=_TONES[row["verdict"]], detail=overall)


def _effect(row: Mapping[str, Any], _: Evidence) -> Cell:
    counted = row["effect_low"] == row["effect_high"] == row["effect"]
    found = "counted, not estimated" if counted else interval(row["effect_low"], row["effect_high"])
    return cell(number(row["effect"], 4), row["effect"], detail=found)


def _published(row: Mapping[str, Any], _: Evidence) -> Cell:
    return cell(number(row["published_effect"]), row["published_effect"])


def _compared(row: Mapping[str, Any], _: Evidence) -> Cell:
    if not isinstance(row["metric"], str):
        return EMPTY
    return name_cell(row["metric"].replace("_", " "), detail=f"against {row['baseline']}; {row['published_at']}")


def _where(row: Mapping[str, Any], _: Evidence) -> Cell:
    if not isinstance(row["tested_at"], str):
        return EMPTY
    detail = ", ".join(str(row[key]) for key in ("data_source", "protocol", "device_class"))
    if known(row["replicates"]):
        detail += f"; {count(row['replicates'])} repetitions against {count(row['baseline_replicates'])}"
    return name_cell(f"{row['workload']} {row['tested_at']}", detail=detail)


def _reason(row: Mapping[str, Any], _: Evidence) -> Cell:
    return Cell(text=str(row["reason"]))


_SHOWS = {
    "algorithm": _algorithm,
    "verdict": _verdict,
    "claim": _claim,
    "compared": _compared,
    "effect": _effect,
    "published": _published,
    "where": _where,
    "reason": _reason,
}
