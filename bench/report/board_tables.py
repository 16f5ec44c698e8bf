"""The tables of a board: the result, the comparison with the reference, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.board import Board
from bench.report.table import EMPTY, Cell, Column, Row, Table, cell, name_cell, table
from bench.report.text import (
    NONE,
    common_scale,
    count,
    fixed,
    interval,
    known,
    number,
    percent,
    places,
    probability,
    quantity,
)

Show = Callable[[Mapping[str, Any]], Cell]
Records = Sequence[Mapping[str, Any]]


def _with_interval(records: Records, name: str, kind: str = "", digits: int = 3, star: str = "") -> Show:
    """Return what shows the column ``name`` of a row with its interval, in the unit that suits all ``records``."""
    unit = common_scale((row[name] for row in records), kind)

    def show(row: Mapping[str, Any]) -> Cell:
        value = row[name]
        mark = "*" if star and row.get(star) and known(value) else ""
        ends = interval(row.get(f"{name}_low"), row.get(f"{name}_high"), lambda bound: number(bound / unit[0], digits))
        return cell(quantity(value, kind, digits, unit) + mark, value, detail=ends)

    return show


def _amount(records: Records, name: str, kind: str, digits: int = 3) -> Show:
    """Return what shows a quantity without an interval, in the unit that suits all ``records``."""
    unit = common_scale((row[name] for row in records), kind)
    return lambda row: cell(quantity(row[name], kind, digits, unit), row[name])


def _plain(name: str, show: Callable[[Any], str] = number) -> Show:
    return lambda row: cell(show(row[name]), row[name])


def _reached(row: Mapping[str, Any]) -> Cell:
    if not row["replicates"]:
        return EMPTY
    return cell(
        f"{count(row['hits'])}/{count(row['replicates'])}",
        row["hit_rate"],
        detail=interval(row["hit_rate_low"], row["hit_rate_high"], percent),
    )


def _place(row: Mapping[str, Any]) -> Cell:
    order = count(row["order"])
    return cell(order if row["ranked"] else f"({order})", row["order"])


def _group(row: Mapping[str, Any]) -> Cell:
    return cell(count(row["group"]), row["group"]) if row["group"] else EMPTY


def _quality(row: Mapping[str, Any]) -> Cell:
    return _measured(row, "quality")


def _difference(row: Mapping[str, Any]) -> Cell:
    return _measured(row, "quality_difference", sign="+")


def _measured(row: Mapping[str, Any], name: str, sign: str = "") -> Cell:
    """Return a value on the plain scale, to as many decimals as its interval bears."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    decimals = places(low, high)
    sign = sign if known(value) and value > 0 else ""
    return cell(sign + fixed(value, decimals), value, detail=interval(low, high, lambda end: fixed(end, decimals)))


def _ratio(name: str) -> Show:
    show = _with_interval((), f"{name}_ratio")

    def shown(row: Mapping[str, Any]) -> Cell:
        found = show(row)
        p = row.get(f"{name}_ratio_p")
        return found if not known(p) else cell(found.text, found.value, detail=f"{found.detail} p {probability(p)}")

    return shown


def _detectable(name: str) -> Show:
    return lambda row: cell(_times(row[f"{name}_detectable_ratio"]), row[f"{name}_detectable_ratio"])


def _times(value: Any) -> str:
    return f"{number(value)}×" if known(value) else NONE


def _text(name: str) -> Show:
    return lambda row: name_cell(str(row[name])) if isinstance(row[name], str) and row[name] else EMPTY


def _result(records: Records, by: str) -> list[tuple[Column, Show]]:
    """Return the columns of the result: first what the board is ordered ``by``, which a phone then shows at once."""
    steps = _with_interval(records, "steps_to_target", digits=4)
    time = _with_interval(records, "time_to_target_s", "s", star="contended")
    columns = [
        (Column(key="steps", head="Steps to target", numeric=True), steps),
        (Column(key="time", head="Time to target", numeric=True, help="*: measured on a busy machine"), time),
        (Column(key="quality", head="Quality", numeric=True, help="the metric at the end of the budget"), _quality),
        (Column(key="reached", head="Reached", numeric=True, help="repetitions that met the target"), _reached),
        (Column(key="group", head="Group", numeric=True, help="rows of one group cannot be told apart"), _group),
        (Column(key="memory", head="Peak memory", numeric=True), _with_interval(records, "memory_bytes", "bytes", 4)),
        (Column(key="energy", head="Energy", numeric=True), _with_interval(records, "energy_j", "j")),
    ]
    place = (Column(key="place", head="Place", numeric=True, help="in parentheses: no rank"), _place)
    return [place, *sorted(columns, key=lambda column: column[0].key != by)]


_INFORMATION: tuple[Column, Show] = (
    Column(key="information", head="Looks at", help="kinds are ranked apart"),
    _text("information"),
)

_RARE = {"adapter": "adapter_bytes", "forgetting": "forgetting", "stored": "stored_bytes"}
"""The columns of the costs that are shown only where a row has what they show, and where that stands."""

_IN_TRAINING = frozenset({"state", "trainable"})
"""The columns that mean nothing after training."""


def _known_of(records: Records, name: str) -> bool:
    return any(known(row[name]) for row in records)


_TRUST: tuple[Column, Show] = (Column(key="trust", head="Trust"), _text("trust_tier"))

_COMPARISON: list[tuple[Column, Show]] = [
    (
        Column(key="steps", head="Steps", numeric=True, help="ratio to the reference, below 1 is cheaper"),
        _ratio("steps"),
    ),
    (Column(key="time", head="Time", numeric=True, help="ratio to the reference, below 1 is cheaper"), _ratio("time")),
    (Column(key="memory", head="Memory", numeric=True, help="ratio to the reference"), _ratio("memory")),
    (Column(key="energy", head="Energy", numeric=True, help="ratio to the reference"), _ratio("energy")),
    (Column(key="quality", head="Quality, difference", numeric=True, help="this minus the reference"), _difference),
    (
        Column(key="detectable", head="Detectable speed-up", numeric=True, help="in steps, power 0.8"),
        _detectable("steps"),
    ),
    (
        Column(key="detectable_time", head="Detectable in time", numeric=True, help="power 0.8"),
        _detectable("time"),
    ),
]


def _cost(records: Records) -> list[tuple[Column, Show]]:
    times = _amount(records, "expected_time_s", "s")
    state = _amount(records, "optimizer_state_bytes", "bytes", 4)
    spread = "coefficient of variation over repetitions"
    return [
        (
            Column(key="expected", head="Expected steps", numeric=True, help="all steps spent / hits"),
            _steps("expected_steps"),
        ),
        (Column(key="expected_time", head="Expected time", numeric=True, help="all time spent / hits"), times),
        (Column(key="cv", head="Spread of steps", numeric=True, help=spread), _plain("steps_to_target_cv", percent)),
        (Column(key="state", head="Optimizer state", numeric=True), state),
        (Column(key="trainable", head="Trainable parameters", numeric=True), _plain("trainable_parameters", count)),
        (
            Column(key="adapter", head="Adapter", numeric=True, help="what fine-tuning stores beside the base"),
            _amount(records, "adapter_bytes", "bytes", 4),
        ),
        (
            Column(key="forgetting", head="Forgetting", numeric=True, help="the rise of the loss before fine-tuning"),
            _plain("forgetting"),
        ),
        (
            Column(
                key="stored", head="Stored bytes", numeric=True, help="of the compressed matrices, at the last point"
            ),
            _amount(records, "stored_bytes", "bytes", 4),
        ),
        (
            Column(
                key="selected", head="Steps, as selected", numeric=True, help="of the selected tuning trials: flatters"
            ),
            _steps("selected_steps_to_target"),
        ),
        (Column(key="tuning", head="Tuning trials", numeric=True), _plain("tuning_trials", count)),
        (Column(key="tuning_time", head="Time of tuning", numeric=True), _amount(records, "tuning_time_s", "s")),
        (Column(key="basis", head="Basis", help="what its value rests on"), _text("basis")),
        (Column(key="outcomes", head="Outcomes"), _text("outcomes")),
        (Column(key="version", head="Version"), _text("algorithm_version")),
    ]


def _steps(name: str) -> Show:
    return lambda row: cell(number(row[name], 4), row[name])


_TO_TARGET = frozenset({"reached", "steps", "time", "expected", "expected_time", "cv", "selected"})
"""The columns that mean nothing where there is no target."""

STAR = "* measured on a busy machine: this time does not rank"


def board_tables(board: Board, anchor: str, algorithms: Mapping[str, str]) -> list[Table]:
    """Return the tables of ``board``, their identifiers beginning with ``anchor``.

    ``algorithms`` maps the algorithms to the identifiers of their sections. The comparison is left out where no row
    has a reference.
    """
    records = board.records()
    busy = [STAR] if any(row["contended"] and known(row["time_to_target_s"]) for row in records) else []
    result, cost = _result(records, board.shared["by"]), _cost(records)
    cost = [(column, show) for column, show in cost if column.key not in _RARE or _known_of(records, _RARE[column.key])]
    if board.rows["information"].notna().any():
        result = [(column, show) for column, show in result if column.key not in _TO_TARGET - {"reached"}]
        result.insert(1, _INFORMATION)
        cost = [(column, show) for column, show in cost if column.key not in _IN_TRAINING | _TO_TARGET]
        time = Column(key="whole_time", head="Time", numeric=True, help="charged, all points together")
        cost.insert(0, (time, _amount(records, "time_s", "s")))
    if board.rows["trust_tier"].nunique() > 1:
        result.append(_TRUST)
    if board.shared["target"] is None:
        result, cost = (
            [(column, show) for column, show in columns if column.key not in _TO_TARGET] for columns in (result, cost)
        )
    found = [_table(f"{anchor}-result", f"Result, ordered by {board.shared['by']}", result, records, algorithms, busy)]
    if any(not row["is_reference"] and known(row["quality_difference"]) for row in records):
        columns = sorted(_COMPARISON, key=lambda column: column[0].key != board.shared["by"])
        compared = _table(f"{anchor}-compared", "Against the reference", columns, records, algorithms, ())
        found.append(compared)
    found.append(_table(f"{anchor}-cost", "What it took", cost, records, algorithms, ()))
    return found


def _table(
    anchor: str,
    caption: str,
    columns: Sequence[tuple[Column, Show]],
    records: Sequence[Mapping[str, Any]],
    algorithms: Mapping[str, str],
    notes: Sequence[str],
) -> Table:
    rows, before = [], None
    for row in records:
        name = name_cell(row["algorithm"], anchor=algorithms.get(row["algorithm"], ""), detail=row["setting"])
        cells = {"algorithm": name, **{column.key: show(row) for column, show in columns}}
        group = int(row["group"]) if known(row["group"]) else 0
        rows.append(Row(cells=cells, group=group, starts_group=group != before, reference=row["is_reference"] is True))
        before = group
    head = Column(key="algorithm", head="Algorithm", header=True)
    return table(anchor, caption, [head, *(column for column, _ in columns)], rows, notes=notes)
