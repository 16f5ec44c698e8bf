"""What the tuned reference of a tier needs: stored beside the workload, as data, with the interval of a repetition.

For the workload ``package.module:Class`` they are the resource ``module.reference.toml`` of ``package``. Anybody who
repeats the reference on new seeds gets a mean inside the *prediction* interval in 99 of 100 cases: it is wider than the
confidence interval of the true mean by what the new seeds scatter themselves.

    python -m bench.bundle.make_intervals results/cpu-1 results/cpu-2 results/tuning

derives the files from results folders and writes them.
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import stats

from bench.beside import beside
from bench.errors import BrokenPlugin
from bench.registry import Registry
from bench.trial import MEASURED
from bench.workload import Workload

SUFFIX = ".reference.toml"
CONFIDENCE = 0.99
"""The level of the intervals: one honest reference in a hundred lies outside."""

NARROWEST = 0.01
"""The least relative standard deviation that is assumed: another processor rounds differently."""

HITS_P = 0.01
"""Two hit rates differ where Fisher's exact test says so at this level."""

Measure = Literal["steps_to_target", "quality"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What some trials of the reference needed: ``mean`` is geometric, and ``sd`` of logarithms, for steps."""

    measure: Measure
    replicates: int
    hits: int
    mean: float
    sd: float


class Interval(BaseModel):
    """A stored sample of one tier under one protocol, with the interval for as many new repetitions."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    tier: str
    protocol: str
    algorithm: str
    workload_version: str
    measure: Measure
    replicates: Annotated[int, Field(ge=2)]
    hits: Annotated[int, Field(ge=0)]
    mean: float
    sd: Annotated[float, Field(ge=0)]
    low: float
    high: float
    device_class: str
    results: str

    def prediction(self, replicates: int) -> tuple[float, float]:
        """Return the interval for the mean of so many new repetitions."""
        return prediction(self.measure, self.mean, self.sd, self.replicates, replicates)

    def allows_hits(self, hits: int, replicates: int) -> bool:
        """Return whether so many hits may be of the same rate."""
        table = np.array([[hits, replicates - hits], [self.hits, self.replicates - self.hits]])
        return bool(stats.fisher_exact(table).pvalue >= HITS_P)


def prediction(measure: Measure, mean: float, sd: float, n: int, m: int) -> tuple[float, float]:
    """Return the interval that holds the mean of ``m`` new values, given mean and sd of ``n``.

    x̄ ± t_{n-1, 1-α/2} · s √(1/n + 1/m); for steps on logarithms, exp of both ends. Source: Hahn & Meeker, Statistical
    Intervals (1991), section 4.
    """
    log = measure == "steps_to_target"
    sd = max(sd, NARROWEST if log else NARROWEST * abs(mean))
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1)) * sd * math.sqrt(1 / n + 1 / m)
    return (mean * math.exp(-half), mean * math.exp(half)) if log else (mean - half, mean + half)


def sample_of(rows: Iterable[Mapping[str, Any]], measure: Measure | None = None) -> Sample | None:
    """Return what the trials ``rows`` needed; steps where all reached the target, unless ``measure`` says it.

    A miss counts with its whole budget, the least that it would have needed. ``None`` without a finite value.
    """
    measured = [row for row in rows if row["outcome"] in MEASURED]
    hits = sum(row["outcome"] == "reached" for row in measured)
    measure = measure or ("steps_to_target" if hits and hits == len(measured) else "quality")
    values = [_value(row, measure) for row in measured]
    if not values or not all(map(math.isfinite, values)):
        return None
    mean = statistics.fmean(values)
    return Sample(
        measure=measure,
        replicates=len(values),
        hits=hits,
        mean=math.exp(mean) if measure == "steps_to_target" else mean,
        sd=statistics.stdev(values) if len(values) > 1 else 0.0,
    )


def _value(row: Mapping[str, Any], measure: Measure) -> float:
    if measure == "quality":
        return math.nan if row["quality"] is None else float(row["quality"])
    return math.log(steps_of(row))


def steps_of(row: Mapping[str, Any]) -> float:
    """Return the steps to the target of a trial, at least one; a miss counts with its whole budget."""
    found = row["steps_to_target_interpolated"] if row["outcome"] == "reached" else None
    return max(float(row["budget_steps"] if found is None else found), 1.0)


def stored_intervals(registry: Registry, workload: Workload) -> list[Interval]:
    """Return what is stored for the tier of ``workload``, of versions that compare with the installed one.

    Raises :class:`~bench.errors.BrokenPlugin` for a file that is none.
    """
    module = registry.workloads[workload.name].target.partition(":")[0]
    found = beside(module, SUFFIX)
    if found is None:
        return []
    minor = workload.version.split(".")[:2]
    return [
        one
        for one in read_intervals(found.read_bytes(), f"{module}{SUFFIX}")
        if one.tier == workload.tier_name and one.workload_version.split(".")[:2] == minor
    ]


def read_intervals(content: bytes, file: str) -> list[Interval]:
    """Return the intervals in ``content``; whatever is wrong with it names ``file``."""
    try:
        data = tomllib.loads(content.decode("utf-8"))
        return [Interval.model_validate(item) for item in data["reference"]]
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise BrokenPlugin(f"{file} holds no reference intervals: {str(error).splitlines()[0]}") from None


# -- making them -----------------------------------------------------------------------------------------------------
def render(intervals: Sequence[Interval], command: str) -> str:
    """Return the text of a file."""
    lines = [
        "# What the tuned reference needs, and where a repetition lies in 99 of 100 cases: see docs/bundles.md.",
        f"# Made by: {command}",
        "",
    ]
    for one in intervals:
        lines.append("[[reference]]")
        for name, value in one.model_dump().items():
            lines.append(f"{name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def derive(workload: type[Workload], trials: Any, results: str) -> list[Interval]:
    """Return an interval for each tier and protocol of ``workload`` under which ``trials`` hold its tuned reference.

    ``trials`` is a table of a results folder. What counts: the tier's own data, the installed version (major.minor),
    a setting as the workload tunes it or a search, and at least three repetitions.
    """
    minor = ".".join(workload.version.split(".")[:2])
    here = trials[(trials["workload"] == workload.name) & trials["is_reference"].eq(other=True)]
    here = here[here["workload_version"].str.startswith(f"{minor}.") & (here["phase"] != "tune")]
    found = []
    keys = ["tier", "protocol", "algorithm", "device_class", "data_source", "hyperparameters", "fillers"]
    here = here.assign(hyperparameters=here["hyperparameters"].where(here["phase"] == "measure", ""))
    for (tier, protocol, algorithm, device, source, _, fillers), own in here.groupby(keys):
        sample = sample_of(own.to_dict("records"))
        if tier not in workload.tiers or source != workload.tiers[tier].source or sample is None or len(own) < 3:
            continue
        if {part["name"] for part in json.loads(fillers)} - set(workload.tiers[tier].reference):
            continue  # beside something that a user added
        mean, sd = float(f"{sample.mean:.6g}"), float(f"{sample.sd:.6g}")
        low, high = prediction(sample.measure, mean, sd, sample.replicates, sample.replicates)
        found.append(
            Interval(
                tier=tier,
                protocol=protocol,
                algorithm=algorithm,
                workload_version=str(own["workload_version"].max()),
                measure=sample.measure,
                replicates=sample.replicates,
                hits=sample.hits,
                mean=mean,
                sd=sd,
                low=float(f"{low:.6g}"),
                high=float(f"{high:.6g}"),
                device_class=device,
                results=results,
            )
        )
    return found
