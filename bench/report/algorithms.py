"""One section per algorithm: its card from the registry, what it cost here, and how much its hyperparameters matter."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.algorithm import Algorithm, slots
from bench.errors import BenchError
from bench.hyperparameter import domain
from bench.report.document import Block, Facts, Notes, Piece, Section, Tabular, pieces, source, text
from bench.report.evidence import Evidence
from bench.report.pictures import Drawer
from bench.report.prose import prose
from bench.report.table import Cell, Column, Row, cell, name_cell, table
from bench.report.text import count, known, listing, number, quantity
from bench.trial import MEASURED


def algorithms(evidence: Evidence, draw: Drawer) -> Section:
    """Return the section of the algorithms, one part for each that has trials."""
    parts = [
        Section(anchor=anchor, title=name, blocks=_blocks(evidence, draw, name), sections=())
        for name, anchor in evidence.algorithm_anchors.items()
    ]
    return Section(anchor=evidence.anchors("algorithms"), title="Algorithms", sections=parts)


def _blocks(evidence: Evidence, draw: Drawer, name: str) -> list[Block]:
    anchor = evidence.algorithm_anchors[name]
    trials = evidence.trials[evidence.trials["algorithm"] == name]
    return [
        *_card(evidence, name, trials),
        *_cost(evidence, name, f"{anchor}-cost"),
        *draw.sensitivity(name, anchor),
    ]


# -- the card ------------------------------------------------------------------------------------------------------
def _card(evidence: Evidence, name: str, trials: pd.DataFrame) -> list[Block]:
    entry = evidence.registry.algorithms.get(name)
    if entry is None:
        origins = sorted(trials["origin"].dropna().unique())
        whose = f" They come from {listing(origins)}." if origins else ""
        return [
            text(f"Not installed here: what follows is from the records alone.{whose}"),
            *_recorded(evidence, name, trials),
        ]
    lead = text(f"{entry.summary[:1].upper()}{entry.summary[1:]}.", lead=True)
    try:
        cls = evidence.registry.algorithm_class(name)
    except BenchError as error:
        return [lead, text(f"Its plugin does not load here: {error.message}."), *_recorded(evidence, name, trials)]
    facts = [
        ("Track", entry.track),
        ("Package", f"{evidence.registry.packages[name]} {evidence.registry.version(name)}"),
        ("Fills", listing(slots(cls))),
        ("Needs", listing(cls.needs)),
        ("Passes per step", "" if cls.passes == 1 else count(cls.passes)),
    ]
    items = [("Paper", source(entry.paper)), *((term, pieces(value)) for term, value in facts if value)]
    blocks: list[Block] = [lead, Facts(items=items)]
    blocks += _rule(cls)
    if dataclasses.fields(cls):
        blocks.append(Tabular(table=_hyperparameters(cls, f"{evidence.algorithm_anchors[name]}-hyperparameters")))
    if cls.deviations:
        title = "Where it differs from the paper or its code"
        blocks.append(Notes(title=title, items=[pieces(sentence) for sentence in cls.deviations]))
    return blocks


def _rule(cls: type[Algorithm]) -> list[Block]:
    """Return the docstrings of the class and of what its slots are declared to return: there the equation stands."""
    module = sys.modules[cls.__module__]
    built = [
        getattr(module, str(getattr(cls, slot).__annotations__.get("return", "")), None)
        for slot in slots(cls)
        if slot in vars(cls)
    ]
    told = dict.fromkeys([cls, *(found for found in built if isinstance(found, type))])
    blocks: list[Block] = []
    for found in told:
        if found is not cls:
            blocks.append(text(Piece(text=found.__name__, code=True), ", which works without the suite too:"))
        blocks += prose(found.__doc__)
    return blocks


_HYPERPARAMETERS = [
    Column(key="name", head="Hyperparameter", header=True),
    Column(key="default", head="Default", numeric=True, keep=True),
    Column(key="domain", head="Domain"),
    Column(key="search", head="Search range"),
    Column(key="help", head="What it is", wide=True),
]


def _hyperparameters(cls: type[Algorithm], anchor: str) -> Any:
    rows = []
    for field in dataclasses.fields(cls):
        default = "none" if field.default is None else field.default
        search = field.metadata.get("search")
        rows.append(
            Row(
                cells={
                    "name": name_cell(field.name, code=True),
                    "default": Cell(text=f"{default:g}" if isinstance(default, float) else str(default)),
                    "domain": Cell(text=domain(cls, field.name)),
                    "search": Cell(text="" if search is None else str(search)),
                    "help": Cell(text=str(field.metadata.get("help", ""))),
                }
            )
        )
    return table(anchor, "Hyperparameters", _HYPERPARAMETERS, rows, sortable=False)


# -- what only the records know ------------------------------------------------------------------------------------
def _recorded(evidence: Evidence, name: str, trials: pd.DataFrame) -> list[Block]:
    """Return the hyperparameters that the records hold, with the values that they had."""
    values: dict[str, list[Any]] = {}
    for settings in sorted(trials["hyperparameters"].dropna().unique()):
        for key, value in json.loads(settings).items():
            values.setdefault(key, []).append(value)
    versions = sorted(trials["algorithm_version"].dropna().unique())
    blocks: list[Block] = [
        Facts(items=[("Version", pieces(listing(versions))), ("Trials", pieces(count(len(trials))))])
    ]
    if values:
        rows = [
            Row(cells={"name": name_cell(key, code=True), "values": Cell(text=_range(found))})
            for key, found in values.items()
        ]
        columns = [
            Column(key="name", head="Hyperparameter", header=True),
            Column(key="values", head="Values in the records"),
        ]
        anchor = f"{evidence.algorithm_anchors[name]}-hyperparameters"
        blocks.append(Tabular(table=table(anchor, "Hyperparameters", columns, rows, sortable=False)))
    return blocks


def _range(values: Sequence[Any]) -> str:
    different = sorted({json.dumps(value) for value in values})
    if len(different) > 4 and all(map(known, values)):
        return f"{number(min(values))} to {number(max(values))}, {len(different)} values"
    return ", ".join(different)


# -- what it cost --------------------------------------------------------------------------------------------------
_COST = [
    Column(key="board", head="Workload", header=True),
    Column(key="trials", head="Trials", numeric=True),
    Column(key="state", head="Optimizer state", numeric=True),
    Column(key="per_parameter", head="Per trainable parameter", numeric=True),
    Column(key="step", head="Optimizer's step", numeric=True, help="median time of one step of the optimizer"),
    Column(key="gradient", head="Forward and backward", numeric=True, help="median time per step"),
    Column(key="whole", head="Whole step", numeric=True, help="all charged time divided by the steps, median"),
    Column(key="peak", head="Peak memory", numeric=True),
]


def _cost(evidence: Evidence, name: str, anchor: str) -> list[Block]:
    rows = []
    for view in evidence.views:
        trials = view.trials[(view.trials["algorithm"] == name) & view.trials["outcome"].isin(MEASURED)]
        if len(trials):
            cells = {
                "board": name_cell(view.label, anchor=view.anchor),
                "trials": cell(count(len(trials)), len(trials)),
            }
            rows.append(Row(cells=cells | _costs(trials)))
    shown = table(anchor, "What it cost, median over trials", _COST, rows)
    return [Tabular(table=shown)] if rows else []


def _costs(trials: pd.DataFrame) -> dict[str, Cell]:
    steps = trials["steps"].where(trials["steps"] > 0)
    state = trials["optimizer_state_bytes"].median()
    gpu = trials["nvml_peak_bytes"].notna().any()
    peak = trials["nvml_peak_bytes" if gpu else "rss_peak_bytes"].median()
    per_step = {
        "step": (trials["step_s"] / steps).median(),
        "gradient": (trials["gradient_s"] / steps).median(),
        "whole": (trials["time_s"] / steps).median(),
    }
    each = state / trials["trainable_parameters"].median()
    return {
        "state": cell(quantity(state, "bytes", 4), state),
        "per_parameter": cell(quantity(each, "bytes"), each),
        "peak": cell(quantity(peak, "bytes", 4), peak),
        **{key: cell(quantity(value, "s"), value) for key, value in per_step.items()},
    }
