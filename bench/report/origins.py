"""Provenance: what ran where, with which versions, under which rules, how undisturbed, and what failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from bench.protocol import Protocol, protocols
from bench.report.document import Block, Code, Facts, Section, Tabular, pieces, text
from bench.report.evidence import Evidence
from bench.report.table import Cell, Column, Row, cell, name_cell, table
from bench.report.text import NONE, count, known, number, percent, plural, shortest
from bench.trial import MEASURED, OUTCOMES


def provenance(evidence: Evidence) -> Section:
    """Return the last section of the page."""
    parts = [
        ("Results folders", _folders(evidence)),
        ("Versions", _versions(evidence)),
        ("Machines", _machines(evidence)),
        ("Busy machines", _contention(evidence)),
        ("Protocols", _protocols(evidence)),
        ("Failures", _failures(evidence)),
        ("Commands", _commands(evidence)),
    ]
    sections = [
        Section(anchor=evidence.anchors("provenance", title), title=title, blocks=blocks)
        for title, blocks in parts
        if blocks
    ]
    return Section(anchor=evidence.anchors("provenance"), title="Provenance", sections=sections)


def _folders(evidence: Evidence) -> list[Block]:
    rows = [
        Row(cells={"folder": name_cell(each.name, code=True), "trials": cell(count(each.trials), each.trials)})
        for each in evidence.sources
    ]
    columns = [
        Column(key="folder", head="Folder", header=True),
        Column(key="trials", head="Trials", numeric=True),
    ]
    blocks: list[Block] = [
        Tabular(table=table(evidence.anchors("folders"), "What this page was made from", columns, rows))
    ]
    if evidence.repeated:
        which = plural(evidence.repeated, "trial is", "trials are")
        blocks.append(text(f"{which} in more than one folder; of each the one that finished first counts."))
    if broken := sorted(evidence.registry.broken, key=lambda each: (each.name, each.package)):
        items = [(each.name, pieces(f"{each.package}: {each.reason}")) for each in broken]
        blocks += [text("Plugins that do not load here:"), Facts(items=items, wide=True)]
    return blocks


_SOFTWARE = (
    ("bench_version", "bench"),
    ("git_sha", "Commit"),
    ("git_dirty", "Changed since"),
    ("python_version", "Python"),
    ("torch_version", "torch"),
    ("numpy_version", "numpy"),
    ("pandas_version", "pandas"),
    ("pyarrow_version", "pyarrow"),
)
_HARDWARE = (
    ("device_class", "Device class"),
    ("cpu_model", "Processor"),
    ("cores", "Cores"),
    ("threads", "Threads"),
    ("gpu_name", "GPU"),
    ("gpu_driver", "Driver"),
    ("cuda_version", "CUDA"),
    ("platform", "Platform"),
)


def _versions(evidence: Evidence) -> list[Block]:
    ours = evidence.trials[evidence.trials["origin"].isna()]
    if ours.empty:
        return [text("All trials are imported: their software is not recorded.")]
    anchor = evidence.anchors("versions")
    blocks: list[Block] = [Tabular(table=_counted(anchor, "Software, by trials", ours, _SOFTWARE))]
    dirty = int(ours["git_dirty"].eq(other=True).sum())
    if dirty:
        blocks.append(text(f"{plural(dirty, 'trial')} ran from a checkout with changes that its commit does not have."))
    own = (("algorithm", "Algorithm"), ("algorithm_version", "Version"), ("algorithm_source_sha256", "Source"))
    blocks.append(Tabular(table=_counted(evidence.anchors("sources"), "Algorithms, by source", ours, own)))
    return blocks


def _machines(evidence: Evidence) -> list[Block]:
    shown = _counted(evidence.anchors("machines"), "Machines, by trials", evidence.trials, _HARDWARE)
    return [Tabular(table=shown)]


def _counted(anchor: str, caption: str, trials: pd.DataFrame, names: Sequence[tuple[str, str]]) -> Any:
    """Return a table of the distinct combinations of columns, with how many trials have each."""
    keys = trials[[key for key, _ in names]].astype(object)
    values = [tuple(_fact(key, value) for (key, _), value in zip(names, row, strict=True)) for row in keys.to_numpy()]
    counts = pd.Series(values).value_counts()
    rows = [
        Row(
            cells={
                **{key: name_cell(part) for (key, _), part in zip(names, combination, strict=True)},
                "trials": cell(count(int(counts[combination])), int(counts[combination])),
            }
        )
        for combination in sorted(counts.index)
    ]
    head, *rest = names
    columns = [
        Column(key=head[0], head=head[1], header=True),
        *(Column(key=key, head=label) for key, label in rest),
        Column(key="trials", head="Trials", numeric=True),
    ]
    return table(anchor, caption, columns, rows)


def _fact(key: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and not known(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("sha256") or key == "git_sha":
        return str(value)[:12]
    return shortest(value) if known(value) else str(value)


# -- contention and failures -----------------------------------------------------------------------------------------
def _contention(evidence: Evidence) -> list[Block]:
    rows = []
    for view in evidence.views:
        trials = view.trials
        busy, probed = int(trials["contended"].eq(other=True).sum()), int(trials["calibration_readings"].gt(0).sum())
        if not probed:
            continue
        spread = trials["calibration_matmul_spread"].max()
        rows.append(
            Row(
                cells={
                    "board": name_cell(view.label, anchor=view.anchor),
                    "busy": cell(f"{count(busy)} of {count(len(trials))}", busy / len(trials)),
                    "share": cell(percent(busy / len(trials)), busy / len(trials)),
                    "spread": cell(f"{number(spread)}×" if known(spread) else NONE, spread),
                }
            )
        )
    columns = [
        Column(key="board", head="Workload", header=True),
        Column(key="busy", head="Trials on a busy machine", numeric=True),
        Column(key="share", head="Share", numeric=True),
        Column(
            key="spread", head="Widest spread", numeric=True, help="slowest calibration over fastest, matrix product"
        ),
    ]
    if not rows:
        return []
    told = (
        "A fixed calculation runs at every evaluation, outside the clock. Where it moves by more than 10%, the machine "
        "was busy with something else, and the time of the trial does not rank."
    )
    shown = table(evidence.anchors("contention"), "How undisturbed the machine was", columns, rows)
    return [text(told), Tabular(table=shown)]


def _failures(evidence: Evidence) -> list[Block]:
    trials = evidence.trials[~evidence.trials["outcome"].isin(MEASURED - {"timeout", "diverged"})]
    keys = ["algorithm", "workload", "tier", "protocol", "outcome", "outcome_reason"]
    parts = trials[keys].fillna("").astype(str)
    order = {name: str(place) for place, name in enumerate(OUTCOMES)}
    counts = pd.Series([tuple(row) for row in parts.to_numpy()], dtype=object).value_counts()
    rows = [
        Row(
            cells={
                "algorithm": name_cell(each[0], anchor=evidence.algorithm_anchors.get(each[0], "")),
                "workload": name_cell(f"{each[1]} {each[2]}", detail=each[3]),
                "outcome": cell(each[4].replace("_", " "), order.get(each[4], each[4])),
                "reason": Cell(text=each[5] or NONE),
                "trials": cell(count(int(counts[each])), int(counts[each])),
            }
        )
        for each in sorted(counts.index)
    ]
    if not rows:
        return [text("No trial failed.")]
    columns = [
        Column(key="algorithm", head="Algorithm", header=True),
        Column(key="workload", head="Workload"),
        Column(key="outcome", head="Outcome"),
        Column(key="reason", head="Reason", wide=True),
        Column(key="trials", head="Trials", numeric=True),
    ]
    return [Tabular(table=table(evidence.anchors("failures"), "Trials without a regular end", columns, rows))]


# -- rules and commands ----------------------------------------------------------------------------------------------
def _protocols(evidence: Evidence) -> list[Block]:
    keys = ["protocol", "protocol_version", "protocol_sha256"]
    used = evidence.trials[keys].fillna(NONE).value_counts()
    installed = {rules.sha256 for rules in protocols().values()}
    rows = []
    for name, version, sha256 in sorted(used.index):
        rules = evidence.protocols.get(sha256)
        kept = "installed" if sha256 in installed else "stored with the results" if rules else "not stored"
        rows.append(
            Row(
                cells={
                    "name": name_cell(f"{name} {version}", detail=sha256[:12]),
                    "rules": Cell(
                        text=_rules(rules) if rules else "not known here", detail=rules.summary if rules else ""
                    ),
                    "kept": name_cell(kept),
                    "trials": cell(count(int(used[name, version, sha256])), int(used[name, version, sha256])),
                }
            )
        )
    columns = [
        Column(key="name", head="Protocol", header=True),
        Column(key="rules", head="Rules", wide=True),
        Column(key="kept", head="Rules are"),
        Column(key="trials", head="Trials", numeric=True),
    ]
    return [Tabular(table=table(evidence.anchors("protocols"), "Protocols and their rules", columns, rows))]


def _rules(rules: Protocol) -> str:
    """Return the rules in words."""
    parts = (
        [plural(rules.seeds, "seed")] if rules.search == "published" else [plural(rules.studies, "study", "studies")]
    )
    if rules.points:
        parts.append(f"{plural(len(rules.points[0]), 'point')} each")
    parts.append(
        {
            "published": "published setting",
            "space": "points of the search space",
            "learning-rate": "learning rates",
            "imported": "imported",
        }[rules.search]
    )
    if rules.reruns:
        parts.append(f"the selected point repeated with {plural(rules.reruns, 'fresh seed')}")
    if rules.budget_factor != 1:
        parts.append(f"{number(rules.budget_factor)} times the budget")
    if rules.stop_at_target:
        parts.append("stops at the target")
    parts.append("ranked" if rules.ranked else "never ranked")
    return ", ".join([*parts, f"intervals at {percent(rules.confidence)}", f"test: {rules.comparison}"])


def _commands(evidence: Evidence) -> list[Block]:
    lines = _distinct(evidence.trials["command_line"].dropna())
    return [Code(lines=lines)] if lines else [text("No command was recorded.")]


def _distinct(texts: Iterable[Any]) -> list[str]:
    """Return texts once each, sorted, one line each."""
    return sorted({" ".join(json.dumps(str(each), ensure_ascii=False)[1:-1].split()) for each in texts})
