"""What ``bench run`` prints before and after the trials."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bench.commands._print import bytes_text, seconds_text, show_table
from bench.hyperparameter import search_space

if TYPE_CHECKING:
    from bench.plan import Plan
    from bench.store import Store


def show_header(plan: Plan, store: Store | None) -> None:
    """Say what is about to be compared: workload, tier, data, target, device, protocol."""
    workload, tier = plan.workload, plan.workload.tier
    target = (
        "none for this tier and data" if workload.target is None else f"{workload.metric} {workload.target.value:g}"
    )
    trials = plan.trials
    listed = "" if plan.device_class.listed else " (not a listed class: ranked by steps only)"
    lines = {
        "workload": f"{workload.name} {workload.version}, tier {workload.tier_name}, {tier.precision}",
        "data": f"{trials[0].data.label}, sha256 {trials[0].data.sha256[:12]}",
        "target": f"{target}, {_extent(plan)}",
        "device": f"{plan.device_class.name}{listed}",
        "protocol": f"{plan.protocol.name} {plan.protocol.version}: {plan.protocol.summary}",
        "trials": f"{plan.size}, algorithms {', '.join(plan.algorithms)} {_reference_words(plan)}",
    }
    if store is not None:
        lines["results"] = str(store.root)
    for name, value in lines.items():
        click.echo(f"{name:<9} {value}")
    click.echo()


def _extent(plan: Plan) -> str:
    """Return how long a trial goes on."""
    steps, unit = plan.workload.tier.steps, plan.workload.unit
    return f"budget {steps} steps" if unit == "step" else f"{steps} {unit}{'' if steps == 1 else 's'}"


def _reference_words(plan: Plan) -> str:
    names = sorted(set(plan.references.values()))
    return f"(reference {', '.join(names)})"


def show_summary(plan: Plan, rows: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Print one line per algorithm: target reached or not, time, steps, memory, against the reference."""
    if plan.protocol.search != "published":
        _show_selected(plan, rows)
        rows = [row for row in rows if row["phase"] == "rerun"] or rows
    by_name = {name: [row for row in rows if row["algorithm"] == name] for name in plan.algorithms}
    click.echo()
    line = _line if plan.workload.unit == "step" else _line_after_training
    show_table([line(name, by_name[name], by_name.get(plan.references[name], [])) for name in plan.algorithms], "table")
    if len(rows) > len(plan.algorithms) and plan.workload.unit == "step":
        click.echo()
        for name, cell in by_name.items():
            click.echo(_spread(name, cell))
    if any(row["contended"] for row in rows):
        instead = ", steps do" if plan.workload.unit == "step" else ""
        click.echo(
            f"\n* the machine was busy (its calibration moved by more than 10%): this time does not rank{instead}"
        )
    if not plan.protocol.ranked:
        click.echo(
            f"\nprotocol {plan.protocol.name}: a first look, never ranked; for a comparison use --protocol default"
        )
    click.echo(f"recorded in {store.root}; see: bench leaderboard --results {store.root}")


def _show_selected(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what each study selected, and what its repetition with a fresh seed gave."""
    click.echo()
    found = []
    for row in rows:
        if row["phase"] != "rerun":
            continue
        same = ("algorithm", "study", "point")
        first = next(other for other in rows if other["phase"] == "tune" and all(other[k] == row[k] for k in same))
        found.append(
            {
                "algorithm": row["algorithm"],
                "study": row["study"],
                "selected": _changed(plan, row),
                "steps, selected": first["steps_to_target"],
                "steps, repeated": row["steps_to_target"],
            }
        )
    show_table(found, "table", fold=["selected"])
    click.echo("\nThe repetitions, with seeds that their studies have not seen:\n")


def _changed(plan: Plan, row: Mapping[str, Any]) -> str:
    """Return the searched values of a row, as text."""
    values: Mapping[str, Any] = json.loads(row["hyperparameters"])
    named = search_space(type(plan.algorithms[row["algorithm"]][0]))
    return ", ".join(f"{name}={values[name]}" for name in named)


def _line(name: str, cell: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    hits = [row for row in cell if row["outcome"] == "reached"]
    steps, seconds = _typical(hits, "steps_to_target"), _typical(hits, "time_to_target_s")
    busy = "*" if any(row["contended"] for row in cell) else ""
    outcomes = sorted({row["outcome"] for row in cell})
    nvml = [row["nvml_peak_bytes"] for row in cell if row["nvml_peak_bytes"] is not None]
    rss = [row["rss_peak_bytes"] for row in cell if row["rss_peak_bytes"] is not None]
    return {
        "algorithm": name,
        "outcome": ", ".join(outcomes) if len(cell) == 1 else f"{len(hits)}/{len(cell)} reached",
        "steps": "-" if math.isnan(steps) else f"{steps:.0f}",
        "vs ref": _ratio(steps, _typical(reference, "steps_to_target")),
        "time": seconds_text(seconds) + (busy if hits else ""),
        "vs ref ": _ratio(seconds, _typical(reference, "time_to_target_s")) + (busy if hits else ""),
        "quality": _number(_mean(cell, "quality")),
        "peak memory": f"{bytes_text(max(nvml))} NVML" if nvml else f"{bytes_text(max(rss))} RSS" if rss else "-",
        "states": bytes_text(_mean(cell, "optimizer_state_bytes")),
    }


def _line_after_training(
    name: str, cell: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    quality, busy = _mean(cell, "quality"), "*" if any(row["contended"] for row in cell) else ""
    difference = quality - _mean(reference, "quality")
    rss = [row["rss_peak_bytes"] for row in cell if row["rss_peak_bytes"] is not None]
    return {
        "algorithm": name,
        "looks at": ", ".join(sorted({row["information"] or "-" for row in cell})),
        "outcome": ", ".join(sorted({row["outcome"] for row in cell})),
        "quality": _number(quality),
        "vs ref": "-" if math.isnan(difference) else f"{difference:+.4f}",
        "time": seconds_text(_mean(cell, "time_s")) + busy,
        "stored": bytes_text(_mean(cell, "stored_bytes")),
        "peak memory": f"{bytes_text(max(rss))} RSS" if rss else "-",
    }


def _spread(name: str, cell: Sequence[Mapping[str, Any]]) -> str:
    steps = [row["steps_to_target_interpolated"] for row in cell if row["outcome"] == "reached"]
    text = f"{name}: {len(steps)} of {len(cell)} seeds reached the target"
    if len(steps) > 1:
        cv = statistics.stdev(steps) / statistics.mean(steps)
        text += f", at steps {min(steps):.0f} to {max(steps):.0f}, CV of steps-to-target {cv:.1%}"
    return text


def _typical(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    """Return the geometric mean of a positive column, as boards do for times and steps."""
    values = [float(row[column]) for row in rows if row[column] is not None]
    return statistics.geometric_mean(values) if values and min(values) > 0 else math.nan


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    values = [float(row[column]) for row in rows if row[column] is not None]
    return statistics.mean(values) if values else math.nan


def _ratio(value: float, reference: float) -> str:
    ratio = value / reference
    return "-" if math.isnan(ratio) else f"{ratio:.2f}x"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
