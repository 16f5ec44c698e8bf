"""``bench import``: other people's public results in a folder of their own, for the same boards and the same report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands._options import results_option

if TYPE_CHECKING:
    import pandas as pd

ANOTHER_UNIT = 10.0
"""Where a step takes so many times as long as the reference's, or so much less, it is another kind of step."""


@click.group("import")
def command() -> None:
    """Import public results into a results folder of their own."""


@command.command("algoperf")
@click.argument("csv", type=click.Path(path_type=Path))
@results_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback for every error.")
def algoperf(csv: Path, results: Path) -> None:
    """Import AlgoPerf v0.5 from CSV, one line per trial."""
    from bench.imports.algoperf import ORIGIN, import_csv

    for line in _summary(import_csv(csv, results).to_pandas()):
        click.echo(line)
    click.echo(f"imported {ORIGIN} into {results}")
    click.echo(f"next: bench leaderboard --results {results}, or bench report --results {results} --out report.html")


def _summary(trials: pd.DataFrame) -> Iterator[str]:
    """Say what was imported: how much, under which protocol, what does not count, and what does not compare."""
    hits = int((trials["outcome"] == "reached").sum())
    submissions, workloads = trials["algorithm"].nunique(), trials["data_label"].nunique()
    reached = f"{hits} reached the target ({hits / len(trials):.0%})"
    yield f"{len(trials)} trials of {submissions} submissions on {workloads} workloads, {reached}"
    for name, own in trials.groupby("protocol"):
        yield f"  {name}: {len(own)} trials of {own['algorithm'].nunique()} submissions"
    left = trials[trials["tier"] == "unscored"]
    if len(left):
        yield f"  not scored: {len(left)} trials of {', '.join(sorted(left['data_label'].unique()))}"
    for name, times in _other_steps(trials).items():
        yield f"  do not compare {name} by steps: one takes {times:.3g} times as long as one of the reference"


def _other_steps(trials: pd.DataFrame) -> dict[str, float]:
    """Return the submissions whose steps are of another kind, with how long one takes relative to the reference's."""
    trials = trials.assign(step_s=(trials["time_s"] / trials["steps"]).where(trials["steps"] > 0))
    here = ["protocol", "data_label"]
    own = trials.groupby([*here, "algorithm"])["step_s"].median()
    reference = trials[trials["is_reference"]].groupby(here)["step_s"].median()
    relative = own.div(reference).groupby("algorithm").median().dropna()
    other = relative[(relative >= ANOTHER_UNIT) | (relative <= 1 / ANOTHER_UNIT)]
    return {str(name): float(times) for name, times in other.items()}
