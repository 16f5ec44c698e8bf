"""``bench plan``: the trials that ``bench run`` would do, with estimated time and memory. Runs nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from bench.commands._options import format_option, request_of, run_options
from bench.commands._print import bytes_text, seconds_text, show_table

if TYPE_CHECKING:
    from bench.plan import Plan
    from bench.store import Store
    from bench.trial import Trial


@click.command("plan")
@run_options
@format_option
def command(form: str, **options: Any) -> None:
    """Show the trials that `bench run` with the same options would do."""
    from bench.campaign import known_trials
    from bench.commands._summary import show_header
    from bench.plan import make_plan
    from bench.registry import Registry
    from bench.store import MARKER, Store

    plan = make_plan(Registry(), request_of(options))
    store = Store(options["results"]) if (options["results"] / MARKER).exists() else None
    known = _known_times(store, plan)
    bytes_of = {name: _bytes(plan, name) for name in plan.algorithms}
    rows: list[dict[str, Any]] = []
    trials = known_trials(plan, store)
    for trial in trials:
        done = store is not None and store.finished(trial) is not None
        seconds, basis = _seconds(trial, plan, known)
        rows.append(
            {
                "trial": trial.trial_id,
                "algorithm": trial.algorithm.name,
                **({} if plan.protocol.search == "published" else {"study": trial.study, "point": trial.point}),
                "seed": trial.seed,
                "state": "recorded" if done else "to do",
                "seconds": 0.0 if done else seconds,
                "basis": basis,
                "memory_bytes": bytes_of[trial.algorithm.name],
            }
        )
    if form in {"json", "csv"}:
        show_table(rows, form)
        return
    show_header(plan, store)
    people = [
        row | {"seconds": seconds_text(row["seconds"]), "memory_bytes": bytes_text(row["memory_bytes"])} for row in rows
    ]
    show_table(
        [{_HEADS.get(key, key): value for key, value in row.items()} for row in people], form, fold=["estimated from"]
    )
    total = sum(row["seconds"] for row in rows)
    click.echo(
        f"\nIn all: {'unknown time' if math.isnan(total) else seconds_text(total)} without evaluation and start-up."
    )
    if plan.size > len(trials):
        click.echo(f"{plan.size - len(trials)} repetitions of selected points follow once their studies are through.")
    click.echo("Memory is weights, gradients and optimizer states; activations and the framework come on top.")


_HEADS = {"seconds": "estimated time", "memory_bytes": "estimated memory", "basis": "estimated from"}


def _known_times(store: Store | None, plan: Plan) -> dict[str, float]:
    """Return the median seconds of recorded trials of the same tier, data and device class, by algorithm."""
    if store is None:
        return {}
    trials = store.trials()
    same = trials[
        (trials["workload"] == plan.workload.name)
        & (trials["tier"] == plan.workload.tier_name)
        & (trials["device_class"] == plan.device_class.name)
        & trials["outcome"].isin(["reached", "missed", "completed"])
    ]
    return {str(name): float(seconds) for name, seconds in same.groupby("algorithm")["time_s"].median().items()}


def _seconds(trial: Trial, plan: Plan, known: dict[str, float]) -> tuple[float, str]:
    if trial.algorithm.name in known:
        return known[trial.algorithm.name], "recorded trials of this algorithm here"
    if known:
        return max(known.values()), "recorded trials of other algorithms here"
    tier = plan.workload.tier
    if tier.expected_s is not None and tier.device_class == plan.device_class.name:
        return tier.expected_s, f"the reference on {tier.device_class}"
    return math.nan, "nothing: no trial of this tier was recorded on this device class"


def _bytes(plan: Plan, name: str) -> int | None:
    from bench.errors import BenchError
    from bench.memory import estimate

    precision = "bf16" if plan.workload.tier.precision == "bf16" else "fp32"
    try:
        return estimate(plan.algorithms[name], plan.workload, precision).total_bytes  # type: ignore[arg-type]
    except BenchError:
        return None  # a plugin whose step needs real values; the plan stays useful without this column
