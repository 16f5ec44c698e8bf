"""The overview: what was measured, who leads where, what the numbers mean and what they do not."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.document import Block, Facts, Notes, Piece, Section, Tabular, pieces, text
from bench.report.evidence import Evidence
from bench.report.pictures import Drawer
from bench.report.table import Cell, Column, Row, cell, name_cell, table
from bench.report.text import NONE, count, fixed, interval, known, listing, number, plural, quantity
from bench.report.words import LIMITS, MEANS, RULES, TRUST
from bench.standings import Standings


def overview(evidence: Evidence, draw: Drawer) -> Section:
    """Return the first section of the page."""
    return Section(
        anchor=evidence.anchors("overview"),
        title="Overview",
        blocks=[_measured(evidence), _extent(evidence)],
        sections=[
            *(_standing(evidence, draw, each) for each in evidence.standings),
            _index(evidence),
            _trust(evidence),
            _reading(evidence),
        ],
    )


def _measured(evidence: Evidence) -> Block:
    trials = evidence.trials
    workloads = sorted({f"{board.shared['workload']} {board.shared['tier']}" for board in evidence.boards})
    shown = listing(workloads) if len(workloads) <= 6 else f"{len(workloads)} workloads"
    origins = sorted(trials["origin"].dropna().unique())
    imported = int(trials["origin"].notna().sum())
    amount = "All of them" if imported == len(trials) else plural(imported, "trial")
    whose = f" {amount} come from {listing(origins)}." if imported else ""
    return text(
        f"{plural(len(evidence.algorithms), 'algorithm')} on {shown}, in {plural(len(trials), 'trial')}.{whose} "
        "Trials compare only within a board: the same workload and version, tier, precision, data, protocol and class "
        "of device.",
        lead=True,
    )


def _extent(evidence: Evidence) -> Block:
    trials = evidence.trials
    days = sorted(day for day in trials["started_at"].dropna().str.slice(0, 10).unique() if day)
    contended = int(trials["contended"].eq(other=True).sum())
    items = [
        ("Trials", count(len(trials))),
        ("Algorithms", count(len(evidence.algorithms))),
        ("Boards", count(len(evidence.boards))),
        ("Training time, all trials", quantity(float(trials["time_s"].sum()), "s")),
        ("Measured", " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "not recorded"),
        ("On a busy machine", f"{count(contended)} of {count(len(trials))}"),
    ]
    return Facts(items=[(term, pieces(value)) for term, value in items])


_STANDING = [
    Column(key="algorithm", head="Algorithm", header=True),
    Column(key="order", head="Place", numeric=True),
    Column(key="ratio", head="Ratio to the reference", numeric=True, help="of the costs: below 1 is cheaper"),
    Column(key="score", head="Profile score", numeric=True, help="1 is best on every workload"),
    Column(key="reached", head="Reached", numeric=True, help="workloads on which it met the target"),
    Column(key="group", head="Group", numeric=True, help="rows of one group cannot be told apart"),
    Column(key="trapezoid", head="Score, trapezoid", numeric=True, help="the official integration in 100 points"),
]


def _standing(evidence: Evidence, draw: Drawer, standing: Standings) -> Section:
    shared = standing.shared
    title = f"Over all workloads: {shared['protocol']} on {shared['device_class']}, by {shared['by']}"
    rows, before = [], 0
    for row in standing.rows.to_dict("records"):
        group = int(row["group"]) if known(row["group"]) else 0
        cells = {
            "order": cell(count(row["order"]), row["order"]),
            "algorithm": name_cell(row["algorithm"], anchor=evidence.algorithm_anchors.get(row["algorithm"], "")),
            "group": cell(count(group) if group else NONE, group or None),
            "reached": cell(f"{count(row['reached'])}/{count(row['workloads'])}", row["reached"]),
            "ratio": cell(number(row["ratio"]), row["ratio"], detail=interval(row["ratio_low"], row["ratio_high"])),
            "score": cell(
                fixed(row["score"], 4),
                row["score"],
                detail=interval(row["score_low"], row["score_high"], lambda value: fixed(value, 3)),
            ),
            "trapezoid": cell(fixed(row["score_trapezoid"], 4), row["score_trapezoid"]),
        }
        itself = row["ratio"] == 1 and not known(row["ratio_low"])
        rows.append(Row(cells=cells, group=group, starts_group=group != before, reference=itself))
        before = group
    anchor = evidence.anchors("standing", shared["protocol"], shared["device_class"])
    shown = table(evidence.anchors(anchor, "table"), "Scores over all workloads, with intervals", _STANDING, rows)
    blocks: list[Block] = [Tabular(table=shown), *draw.standing(standing, anchor)]
    if standing.notes:
        blocks.append(Notes(title="Notes", items=[pieces(note) for note in standing.notes]))
    return Section(anchor=anchor, title=title, blocks=blocks, short=f"{shared['protocol']}, all workloads")


_INDEX = [
    Column(key="board", head="Board", header=True),
    Column(key="leaders", head="Leading group", help="the leader, and all that cannot be told from it"),
    Column(key="algorithms", head="Rows", numeric=True),
    Column(key="trials", head="Trials", numeric=True),
    Column(key="protocol", head="Protocol"),
    Column(key="device", head="Device class"),
]


def _index(evidence: Evidence) -> Section:
    rows = []
    for view in evidence.views:
        board = view.board
        leaders = list(dict.fromkeys(board.rows["algorithm"][board.rows["group"] == 1]))
        trials = len(view.trials)
        rows.append(
            Row(
                cells={
                    "board": name_cell(view.label, anchor=view.anchor),
                    "leaders": name_cell(", ".join(leaders)) if leaders else Cell(text="not ranked", tone="muted"),
                    "algorithms": cell(count(len(board.rows)), len(board.rows)),
                    "trials": cell(count(trials), trials),
                    "protocol": name_cell(board.shared["protocol"]),
                    "device": name_cell(board.shared["device_class"]),
                }
            )
        )
    telling = [
        column
        for column in _INDEX
        if column.key not in {"protocol", "device"} or len({row.cells[column.key].text for row in rows}) > 1
    ]
    anchor = evidence.anchors("boards")
    shown = table(evidence.anchors("boards", "table"), "The boards, and who leads each", telling, rows)
    return Section(anchor=anchor, title="Boards", blocks=[Tabular(table=shown)])


def _trust(evidence: Evidence) -> Section:
    counts = evidence.trials["trust_tier"].fillna("unknown").value_counts().sort_index()
    items = [
        (
            f"{name} ({plural(int(amount), 'trial')})",
            pieces(TRUST.get(str(name), "a tier that this version does not know")),
        )
        for name, amount in counts.items()
    ]
    return Section(
        anchor=evidence.anchors("trust"), title="How far to trust it", blocks=[Facts(items=items, wide=True)]
    )


def _reading(evidence: Evidence) -> Section:
    means: Sequence[tuple[str, tuple[Piece, ...]]] = [(term, pieces(meaning)) for term, meaning in MEANS.items()]
    limits = [*LIMITS, *(RULES[search] for search in _searches(evidence))]
    return Section(
        anchor=evidence.anchors("reading"),
        title="What the numbers mean, and what they do not",
        short="What the numbers mean",
        blocks=[
            Facts(items=means, wide=True),
            Notes(title="What they do not say", items=[pieces(limit) for limit in limits]),
        ],
    )


def _searches(evidence: Evidence) -> list[str]:
    used = {evidence.protocols[key].search for key in evidence.trials["protocol_sha256"] if key in evidence.protocols}
    return [search for search in RULES if search in used]
