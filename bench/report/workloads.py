"""One section per board: what is compared, its tables and figures, and with what it does not compare, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.board import BOARD, Board
from bench.errors import BenchError
from bench.report.board_tables import board_tables
from bench.report.document import Block, Facts, Notes, Piece, Section, Tabular, pieces, text
from bench.report.evidence import Evidence, View
from bench.report.last_metrics import last_metrics
from bench.report.pictures import Drawer
from bench.report.text import count, known, listing, plural, shortest, values_text

MOST_NAMED = 8
"""How many other boards a section names one by one."""


def workloads(evidence: Evidence, draw: Drawer) -> Section:
    """Return the section of the workloads, one part per board."""
    parts = [_part(evidence, draw, view) for view in evidence.views]
    return Section(anchor=evidence.anchors("workloads"), title="Workloads", sections=parts)


def _part(evidence: Evidence, draw: Drawer, view: View) -> Section:
    blocks: list[Block] = [*_what(evidence, view.board), _facts(evidence, view)]
    tables = board_tables(view.board, view.anchor, evidence.algorithm_anchors)
    blocks += [Tabular(table=shown) for shown in tables]
    blocks += draw.board(view)
    if (metrics := last_metrics(view)) is not None:
        blocks.append(Tabular(table=metrics))
    if view.board.notes:
        blocks.append(Notes(title="Notes", items=[pieces(note) for note in view.board.notes]))
    if others := _others(evidence, view):
        blocks.append(Notes(title="Not comparable with", items=others))
    return Section(anchor=view.anchor, title=view.label, blocks=blocks)


# -- what it is ----------------------------------------------------------------------------------------------------
def _what(evidence: Evidence, board: Board) -> list[Block]:
    """Return what the installed workload says of itself: nothing where it is not installed."""
    name = board.shared["workload"]
    if name not in evidence.registry.workloads:
        return [text("The workload is not installed here: what follows is from the records alone.")]
    entry = evidence.registry.workloads[name]
    blocks: list[Block] = [text(f"{entry.summary[:1].upper()}{entry.summary[1:]}.")]
    try:
        cls = evidence.registry.workload_class(name)
    except BenchError as error:
        return [*blocks, text(f"Its plugin does not load here: {error.message}.")]
    tier = cls.tiers.get(board.shared["tier"])
    if tier is None or ".".join(cls.version.split(".")[:2]) != board.shared["workload_minor"]:
        return blocks
    tuned = "; ".join(f"{part} ({values_text(values)})" for part, values in tier.reference.items())
    blocks.append(text("Reference: ", Piece(text=tuned, code=True), ". How it was tuned: ", _sentence(tier.tuning)))
    if tier.target is not None and board.shared["target"] is not None:
        blocks.append(text(f"Target: {_sentence(tier.target.how)}"))
    return blocks


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _facts(evidence: Evidence, view: View) -> Block:
    shared, trials = view.board.shared, view.trials
    rules = evidence.protocols.get(shared["protocol_sha256"])
    goal = {"min": "at most", "max": "at least"}.get(shared.get("metric_direction") or "", "")
    better = {"min": "less is better", "max": "more is better"}.get(shared.get("metric_direction") or "", "")
    unit = "points" if trials["information"].notna().any() else "steps"
    target = f"{shared['metric']} {goal} {shortest(shared['target'])}" if known(shared["target"]) else "none is set"
    budgets = sorted(trials["budget_steps"].dropna().unique())
    labels = sorted(trials["data_label"].dropna().unique())
    items = [
        ("Workload", f"{shared['workload']} {shared['workload_minor']}, tier {shared['tier']}"),
        ("Target", target),
        ("Precision", shared["precision"]),
        ("Device class", shared["device_class"]),
        ("Metric", f"{shared['metric']}, {better}" if better else shared["metric"]),
        ("Budget", f"{listing([count(value) for value in budgets])} {unit}" if budgets else ""),
        ("Ordered by", f"{shared['by']} to target" if shared["by"] in {"time", "steps"} else shared["by"]),
        ("Trials", count(len(trials))),
        ("Trust", listing(sorted(trials["trust_tier"].dropna().unique()))),
        ("From", shared.get("origin") or ""),
        ("Protocol", f"{shared['protocol']}: {rules.summary}" if rules else shared["protocol"]),
        ("Data", f"{shared['data_source']}: {listing(labels)}" if labels else str(shared["data_source"])),
    ]
    return Facts(items=[(term, pieces(str(value))) for term, value in items if value])


# -- what does not compare -----------------------------------------------------------------------------------------
_DIFFERENCES = (
    ("workload_minor", "another version of the workload"),
    ("tier", "another tier"),
    ("precision", "another precision"),
    ("data_source", "other data"),
    ("data_sha256", "other data"),
    ("protocol", "another protocol"),
    ("protocol_sha256", "other rules of the protocol"),
    ("device_class", "another class of device"),
)
"""Why two boards of one workload do not compare, by what differs."""


def _others(evidence: Evidence, view: View) -> list[tuple[Piece, ...]]:
    """Return the boards of the same workload, each with the reason why it is apart."""
    here = view.board.shared
    found = [
        pieces(Piece(text=other.label, anchor=other.anchor), f": {listing(_reasons(here, other.board.shared))}")
        for other in evidence.views
        if other.board.shared["workload"] == here["workload"] and other is not view
    ]
    rest = len(found) - MOST_NAMED
    return found if rest <= 0 else [*found[:MOST_NAMED], pieces(f"and {plural(rest, 'more board')} of this workload")]


def _reasons(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    assert {name for name, _ in _DIFFERENCES} == set(BOARD) - {"workload"}
    found: dict[str, None] = {}
    for key, why in _DIFFERENCES:
        if str(here[key]) != str(there[key]) and not (key == "protocol_sha256" and "another protocol" in found):
            found[why] = None
    return list(found)
