"""Tests of paired differences: this minus the reference within one seed or study, of logs for ratios."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from bench.errors import BadValue
from bench.statistics import Difference, welch

EXACT_SIGN_FLIPS, SIGN_FLIPS = 12, 9999
"""Up to so many differences all 2^n sign patterns are counted; beyond, so many of them are drawn."""


def paired(differences: npt.ArrayLike, confidence: float = 0.95) -> Difference:
    """Return the mean of paired differences d along the last axis.

    d̄ ± t_{n-1, 1-α/2} · s_d / √n, p from t = d̄ √n / s_d, with d = ``differences`` and 1 - α = ``confidence``. It is
    :func:`bench.statistics.welch` against a mean that is known to be 0. One NaN or infinite difference makes its whole
    row NaN: a pair of which one missed is no pair, and leaving it out is for the caller to say. NaN for no differences;
    one has a mean and no interval. Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    rows = np.sort(np.asarray(differences, dtype=np.float64), axis=-1)
    n = rows.shape[-1]
    finite = np.isfinite(rows).all(axis=-1) & (n > 0)
    rows = np.where(finite[..., np.newaxis], rows, 0.0)
    mean = np.where(finite, rows.sum(axis=-1) / max(n, 1), np.nan)
    sd = rows.std(axis=-1, ddof=1) if n > 1 else np.nan
    return welch(mean, sd, n, 0.0, 0.0, np.inf, confidence)


def sign_flip(differences: npt.ArrayLike) -> float:
    """Return the two-sided p-value of the sign-flip test of paired differences d, one row of them.

    Were there no difference, every d_i could as well be -d_i: p is the share of the sign patterns whose mean is as
    extreme as d̄, twice the smaller tail. Exact up to ``EXACT_SIGN_FLIPS`` differences; beyond, ``SIGN_FLIPS`` patterns
    are drawn from a fixed seed. At n = 5 the smallest p is 1/16. NaN for no differences, or one that is not finite.
    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    row = np.sort(np.asarray(differences, dtype=np.float64))
    if row.ndim != 1:
        raise BadValue(f"differences has shape {row.shape}, not one row", hint="call sign_flip once per comparison")
    if row.size == 0 or not np.isfinite(row).all():
        return float("nan")
    if row.size == 1:
        return 1.0  # scipy refuses one; its two patterns are as extreme as each other
    test = stats.permutation_test(
        (row,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**row.size if row.size <= EXACT_SIGN_FLIPS else SIGN_FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
