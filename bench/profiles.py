"""Performance profiles and scores of a group of algorithms over several workloads.

``costs`` is a frame of what it cost each algorithm (index) to reach the target of each workload (columns), in seconds,
steps, bytes or joules: above 0, and inf where the target was missed. A NaN is refused with ``BadValue``, because a cost
that nobody knows is neither a cost nor a miss. Results are sorted by label, so that the order of the input never
matters, not even in the last bit. Every score is relative to the group: adding or leaving out one algorithm can
change the order of the others.

Sources: Dolan & Moré, Benchmarking optimization software with performance profiles, Math. Program. 91 (2002);
Dahl et al., Benchmarking neural network training algorithms (AlgoPerf), arXiv:2306.07179.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import integrate

from bench.errors import BadValue
from bench.statistics import Array, inside_unit

Positions: TypeAlias = npt.NDArray[np.intp]

CELL = ["algorithm", "workload"]

BATCH_ELEMENTS = 2_000_000
"""So many resampled costs are held at a time, which bounds the memory of a bootstrap."""


def ratios_to_best(costs: pd.DataFrame) -> pd.DataFrame:
    """Return r_{s,w} = t_{s,w} / min over s of t_{s,w}: 1 for the best of a workload, inf for a miss."""
    costs = _checked("costs", costs)
    return pd.DataFrame(_ratios(costs.to_numpy()), index=costs.index, columns=costs.columns)


def performance_profile(costs: pd.DataFrame, taus: npt.ArrayLike) -> pd.DataFrame:
    """Return ρ_s(τ) = the share of workloads with r_{s,w} <= τ: one row per τ as given, one column per algorithm.

    A miss is beyond every τ, inf too. NaN if there are no workloads. ``BadValue`` for a τ below 1, or NaN.
    """
    thresholds = np.asarray(taus, dtype=np.float64)
    if not (thresholds >= 1).all():
        raise BadValue(f"taus holds {thresholds[~(thresholds >= 1)][0]}, not at least 1", hint="no ratio is below 1")
    ratios = ratios_to_best(costs)
    values = ratios.to_numpy()
    within = (values <= thresholds[:, np.newaxis, np.newaxis]) & np.isfinite(values)
    return pd.DataFrame(_mean(within.astype(np.float64)), index=pd.Index(thresholds, name="tau"), columns=ratios.index)


def profile_score(costs: pd.DataFrame, limit: float = 4.0) -> pd.Series[float]:
    """Return B_s = 1/(τ_max - 1) ∫ ρ_s(τ) dτ over [1, τ_max], τ_max = ``limit``, in closed form.

    A workload counts from its own r on, so that B_s = mean over w of max(0, τ_max - r_{s,w}) / (τ_max - 1), in [0, 1].
    NaN if there are no workloads.
    """
    costs = _checked("costs", costs)
    return pd.Series(score_array(costs.to_numpy(), _above_one(limit)), index=costs.index, name="score")


def profile_score_trapezoid(costs: pd.DataFrame, limit: float = 4.0, points: int = 100) -> pd.Series[float]:
    """Return the integral of :func:`profile_score` as AlgoPerf's code takes it, to compare with published figures.

    The trapezoid rule over ``points`` equally spaced τ in [1, ``limit``]. It takes a step of ρ for one at the middle of
    its piece: off by at most half a piece, 0.5 / 99 at 100 points, and by less where several workloads average.
    """
    if points < 2:
        raise BadValue(f"points = {points!r} is below 2", hint="AlgoPerf takes 100")
    taus = np.linspace(1.0, _above_one(limit), points)
    profile = performance_profile(costs, taus)
    area = integrate.trapezoid(profile.to_numpy(), taus, axis=0)
    return pd.Series(area / (limit - 1), index=profile.columns, name="score")


def held_out_gate(base: pd.DataFrame, held_out: pd.DataFrame, limit: float = 4.0) -> pd.DataFrame:
    """Return the costs on the base workloads that count, given those on their held-out variants.

    ``held_out`` has its columns named by the base workload; not every base workload needs one. In this order:

    1. A held-out cost becomes inf where the base cost is.
    2. In every column, base and held-out, what is above ``limit`` times the column's smallest becomes inf.
    3. A base cost becomes inf where the held-out one is.

    An algorithm that ``held_out`` lacks missed; one that only ``held_out`` has missed the base and falls to rule 1.
    Source: AlgoPerf and its scoring code at v0.5.
    """
    base, held_out = _checked("base", base), _checked("held_out", held_out)
    positions = _positions(held_out.columns, base.columns)
    variants = held_out.reindex(index=base.index).fillna(np.inf).to_numpy()
    gated = gate(base.to_numpy(), variants, positions, _above_one(limit))
    return pd.DataFrame(gated, index=base.index, columns=base.columns)


def median_over_studies(studies: pd.DataFrame, n_studies: int) -> pd.DataFrame:
    """Return the costs as medians over ``n_studies`` studies each.

    ``studies`` has the columns algorithm, workload, study, cost, and one row per study. A NaN cost is a miss here, and
    so is a study that is not there, as are all those of an algorithm that was not run on a workload. ``BadValue`` for a
    study that is there twice, and for more than ``n_studies``.
    """
    algorithms, workloads, cube = _cube("studies", studies, n_studies)
    return pd.DataFrame(np.median(cube, axis=-1), index=algorithms, columns=workloads)


def bootstrap_profile_scores(
    base: pd.DataFrame,
    held_out: pd.DataFrame | None,
    *,
    studies: int,
    limit: float = 4.0,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return algorithm, score, low, high: profile scores in closed form with percentile bootstrap intervals.

    ``base`` and ``held_out`` (None: there are none) are frames as :func:`median_over_studies` takes, ``studies`` is its
    ``n_studies``; workloads of ``held_out`` are named by their base workload. Each of ``resamples`` draws the studies
    of every algorithm on every workload anew, with replacement (workloads are strata: never drawn), and goes the whole
    way again: medians, :func:`held_out_gate`, score. The interval lies between the quantiles 1/2 ± ``confidence``/2 of
    these scores. It is for these entrants on these workloads; with few studies it is narrow rather than wide.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    tail = (1 - inside_unit("confidence", confidence)) / 2
    algorithms, workloads, cube = _cube("base", base, studies)
    positions: Positions = np.empty(0, dtype=np.intp)
    if held_out is not None:
        _, variants, held_out_cube = _cube("held_out", held_out, studies, algorithms)
        positions = _positions(variants, workloads)
        cube = np.concatenate([cube, held_out_cube], axis=1)

    def scores(medians: Array) -> Array:
        own, others = np.split(medians, [len(workloads)], axis=-1)
        return score_array(gate(own, others, positions, _above_one(limit)), limit)

    drawn = np.concatenate([scores(medians) for medians in resampled_medians(cube, resamples, seed)])
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    score = scores(np.median(cube, axis=-1))
    return pd.DataFrame({"algorithm": algorithms, "score": score, "low": low, "high": high})


def resampled_medians(cube: Array, resamples: int, seed: int) -> Iterator[Array]:
    """Yield medians over resampled studies, resample x algorithm x workload, so many resamples at a time as fit."""
    if resamples < 1:
        raise BadValue(f"resamples = {resamples!r} is below 1", hint="2000 give the ends of an interval two digits")
    generator = np.random.default_rng(seed)
    batch = max(1, BATCH_ELEMENTS // max(1, cube.size))
    for start in range(0, resamples, batch):
        shape = (min(batch, resamples - start), *cube.shape)
        picks = generator.integers(cube.shape[-1], size=shape)
        yield np.median(np.take_along_axis(np.broadcast_to(cube, shape), picks, axis=-1), axis=-1)


def _ratios(costs: Array) -> Array:
    """Return costs, [..., algorithm, workload], over the smallest of their workload."""
    best = costs.min(axis=-2, keepdims=True, initial=np.inf)
    with np.errstate(invalid="ignore"):  # inf / inf where everybody missed
        return np.where(np.isfinite(costs), costs / best, np.inf)


def score_array(costs: Array, limit: float) -> Array:
    """Return :func:`profile_score` over the last two axes of ``costs``, algorithm x workload."""
    return _mean(np.maximum(0.0, limit - _ratios(costs)) / (limit - 1))


def gate(base: Array, held_out: Array, positions: Positions, limit: float) -> Array:
    """Apply the three rules of :func:`held_out_gate`; column j of ``held_out`` belongs to base ``positions[j]``."""
    held_out = _near_best(np.where(np.isinf(base[..., positions]), np.inf, held_out), limit)
    base = _near_best(base, limit)
    base[..., positions] = np.where(np.isinf(held_out), np.inf, base[..., positions])
    return base


def _near_best(costs: Array, limit: float) -> Array:
    return np.where(costs > limit * costs.min(axis=-2, keepdims=True, initial=np.inf), np.inf, costs)


def _mean(over_workloads: Array) -> Array:
    """Return means along the last axis, NaN of nothing; numpy warns there."""
    count = over_workloads.shape[-1]
    return np.asarray(over_workloads.sum(axis=-1) / count if count else np.full(over_workloads.shape[:-1], np.nan))


def _cube(
    name: str, studies: pd.DataFrame, n_studies: int, algorithms: pd.Index | None = None
) -> tuple[pd.Index, pd.Index, Array]:
    """Return the sorted algorithms (or those given), the sorted workloads, and algorithm x workload x study costs."""
    if n_studies < 1:
        raise BadValue(f"n_studies = {n_studies!r} is below 1", hint="give the number of studies of the protocol")
    if algorithms is not None:
        studies = studies[studies["algorithm"].isin(algorithms)]
    studies = studies.sort_values([*CELL, "study"])
    number = studies.groupby(CELL).cumcount()
    for wrong, what in (
        (studies.duplicated([*CELL, "study"]), "is there twice"),
        (number >= n_studies, f"is one of more than {n_studies}"),
    ):
        if wrong.any():
            row = studies[wrong].iloc[0]
            raise BadValue(
                f"study {row['study']} of {row['algorithm']} on {row['workload']} {what} in {name}",
                hint="give one row per algorithm, workload and study, and the number of studies of the protocol",
            )
    costs = studies["cost"].fillna(np.inf).to_numpy(dtype=np.float64)
    _refuse_costs(name, costs)
    algorithms = pd.Index(studies["algorithm"].unique(), name="algorithm") if algorithms is None else algorithms
    workloads = pd.Index(studies["workload"].unique(), name="workload").sort_values()
    cube = np.full((len(algorithms), len(workloads), n_studies), np.inf)
    rows, columns = (labels.get_indexer(pd.Index(studies[labels.name])) for labels in (algorithms, workloads))
    cube[rows, columns, number.to_numpy()] = costs
    return algorithms, workloads, cube


def _positions(held_out: pd.Index, base: pd.Index) -> Positions:
    positions = np.asarray(base.get_indexer(held_out), dtype=np.intp)
    if (positions < 0).any():
        raise BadValue(
            f"held_out has a workload {held_out[positions < 0][0]!r} that base lacks",
            hint=f"name the workloads of held_out by their base workload: {', '.join(map(str, base))}",
        )
    return positions


def _checked(name: str, costs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs as floats, sorted by both labels; ``BadValue`` for a label that is there twice and no cost."""
    for labels in (costs.index, costs.columns):
        if not labels.is_unique:
            raise BadValue(f"{name} has {labels[labels.duplicated()][0]!r} twice", hint="give every label once")
    costs = costs.astype(np.float64).sort_index(axis=0).sort_index(axis=1)
    _refuse_costs(name, costs.to_numpy())
    return costs


def _refuse_costs(name: str, costs: Array) -> None:
    if not (costs > 0).all():
        raise BadValue(
            f"{name} holds a cost of {costs[~(costs > 0)][0]}, not a number above 0", hint="the cost of a miss is inf"
        )


def _above_one(limit: float) -> float:
    if not 1 < limit < np.inf:
        raise BadValue(f"limit = {limit!r} is not a finite number above 1", hint="AlgoPerf takes 4")
    return limit
