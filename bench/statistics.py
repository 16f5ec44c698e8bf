"""Intervals, tests and their power: arrays in, arrays of their common (broadcast) shape out.

Rules that hold for every function here:

- NaN in, NaN out, at that place only; so are infinite means.
- Fewer than two replicates say nothing about their spread: interval and p are NaN.
- A standard deviation of 0 gives an interval of no width; two such sides have p = 1 where they are equal, else 0.
- A count or a standard deviation below 0, or a confidence, power or level outside (0, 1), raises ``BadValue``.
- Elements are independent of each other and of their order; only :func:`holm` reads all of them as one family.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from bench.errors import BadValue

Array: TypeAlias = npt.NDArray[np.float64]

ROUNDING = 1e-13
"""Of the means' size: what the means and standard deviations of equal numbers can differ from equality and from 0."""

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gauss-Legendre quadrature of a power: at a level of 0.05 exact to four digits from 2 to 1000 replicates."""

LARGEST_NONCENTRALITY = 1e8
"""The power is 1 long before; the noncentral t distribution is not computable far beyond."""


@dataclass(frozen=True)
class Difference:
    """A difference between two means, its interval, and the two-sided p-value of "there is none"."""

    value: Array
    low: Array
    high: Array
    p: Array

    def exp(self) -> Difference:
        """Return a difference of logs as a ratio: exp of the value and of both ends; p stays."""
        return Difference(value=_exp(self.value), low=_exp(self.low), high=_exp(self.high), p=self.p)


def t_interval(
    mean: npt.ArrayLike, sd: npt.ArrayLike, n: npt.ArrayLike, confidence: float = 0.95
) -> tuple[Array, Array]:
    """Return the interval of a mean, x̄ ± t_{n-1, 1-α/2} · s / √n.

    x̄ = ``mean``, s = ``sd`` (with n - 1 in its denominator), n = ``n``, 1 - α = ``confidence``.
    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    mean = np.asarray(mean, dtype=np.float64)
    sd, n = _not_negative("sd", sd), _replicates("n", n)
    half = _t_quantile(n - 1, confidence) * sd / np.sqrt(n)
    mean = np.where(np.isfinite(mean), mean, np.nan)
    return np.asarray(mean - half), np.asarray(mean + half)


def log_t_interval(
    log_mean: npt.ArrayLike, log_sd: npt.ArrayLike, n: npt.ArrayLike, confidence: float = 0.95
) -> tuple[Array, Array]:
    """Return the interval of a geometric mean on the natural scale, exp(m ± t_{n-1, 1-α/2} · s / √n).

    m = ``log_mean`` and s = ``log_sd`` are mean and standard deviation of the natural logs; else as
    :func:`t_interval`. Exact for lognormal values, whose noise is relative, as that of times is.
    """
    low, high = t_interval(log_mean, log_sd, n, confidence)
    return _exp(low), _exp(high)


def wilson_interval(hits: npt.ArrayLike, n: npt.ArrayLike, confidence: float = 0.95) -> tuple[Array, Array]:
    """Return Wilson's score interval of a share p̂ = ``hits`` / ``n``; NaN where ``n`` is 0.

    (p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n), with z the 1 - α/2 quantile of the normal distribution.
    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    ``BadValue`` where ``hits`` exceeds ``n``.
    """
    hits, n = np.broadcast_arrays(_not_negative("hits", hits), _not_negative("n", n))
    if (hits > n).any():
        index = int(np.flatnonzero(hits > n)[0])
        raise BadValue(
            f"hits = {hits.flat[index]} of n = {n.flat[index]} trials: there cannot be more hits than trials",
            hint="count hits and trials over the same rows",
        )
    z = stats.norm.isf((1 - inside_unit("confidence", confidence)) / 2)
    n = np.where(n > 0, n, np.nan)
    share = hits / n
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    # The ends of "none" and "all" are 0 and 1 exactly, but for rounding.
    return np.where(hits == 0, n * 0.0, low), np.where(hits == n, 1.0, high)


def welch(
    mean_a: npt.ArrayLike,
    sd_a: npt.ArrayLike,
    n_a: npt.ArrayLike,
    mean_b: npt.ArrayLike,
    sd_b: npt.ArrayLike,
    n_b: npt.ArrayLike,
    confidence: float = 0.95,
) -> Difference:
    """Return the difference of two means, a - b, without assuming that their variances are equal.

    With v_a = s_a²/n_a and v_b alike: (x̄_a - x̄_b) ± t_{ν, 1-α/2} √(v_a + v_b), p from t = (x̄_a - x̄_b)/√(v_a + v_b),
    ν = (v_a + v_b)² / (v_a²/(n_a - 1) + v_b²/(n_b - 1)). On means of logs, ``.exp()`` of the result is the ratio a / b.
    Source: Welch, The generalization of 'Student's' problem ..., Biometrika 34 (1947); ν from Satterthwaite (1946).
    A 95% interval covers 94% or more where n_a = n_b >= 3, whatever the variances, but where the smaller sample is the
    noisier one less: 93% at 3 against 10, 90% at 2 against 5 (simulated, for twice the standard deviation).
    Deviations: differences and standard deviations within ``ROUNDING`` of the means' size count as 0.
    """
    mean_a, mean_b = np.asarray(mean_a, dtype=np.float64), np.asarray(mean_b, dtype=np.float64)
    n_a, n_b = _replicates("n_a", n_a), _replicates("n_b", n_b)
    size = np.maximum(np.abs(mean_a), np.abs(mean_b)) * ROUNDING
    with np.errstate(invalid="ignore", divide="ignore"):
        value = _above(size, mean_a - mean_b)
        v_a = _above(size, _not_negative("sd_a", sd_a)) ** 2 / n_a
        v_b = _above(size, _not_negative("sd_b", sd_b)) ** 2 / n_b
        share = v_a / (v_a + v_b)
        degrees = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
        error = np.sqrt(v_a + v_b)
        p = 2 * stats.t.sf(np.abs(value) / error, degrees)
    exact = (error == 0) & ~np.isnan(value)
    half = np.where(exact, 0.0, _t_quantile(degrees, confidence) * error)
    p = np.where(exact, np.where(value == 0, 1.0, 0.0), p)
    return Difference(value=value, low=np.asarray(value - half), high=np.asarray(value + half), p=p)


def power_of_ratio(
    ratio: npt.ArrayLike, log_sd: npt.ArrayLike, n_a: npt.ArrayLike, n_b: npt.ArrayLike, alpha: float = 0.05
) -> Array:
    """Return the probability that :func:`welch` on logs sees a true ratio ρ at level ``alpha``, two-sided.

    σ = ``log_sd`` is the standard deviation of the logs on both sides, about the coefficient of variation. The power
    depends on n_a, n_b and δ = |ln ρ| / (σ √(1/n_a + 1/n_b)) alone. Where σ is 0 it is 1, and 0 for a ratio of 1.
    Given the share u of a in the sum of squares, u ~ Beta((n_a - 1)/2, (n_b - 1)/2), Welch's statistic is a multiple of
    a noncentral t variable with n_a + n_b - 2 degrees of freedom and noncentrality δ; over u it is integrated, which
    takes about 0.1 ms per element.
    Deviations: the textbook's power is that of the pooled t test, more than Welch's test has: 0.83 against 0.81 for
    a ratio of 0.9 at σ = 0.05 with 5 and 5 replicates, and 0.50 against 0.40 with 3 and 3.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    if (ratio <= 0).any():
        raise BadValue(f"ratio = {ratio[ratio <= 0].flat[0]} is not above 0", hint="give this / reference")
    n_a, n_b, error = _pooled(log_sd, n_a, n_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.abs(np.log(ratio)) / error
    power = _power(np.minimum(shift, LARGEST_NONCENTRALITY), *_critical(n_a, n_b, alpha))
    # σ = 0 and ρ = 1: 0/0. The two sides are then always equal, and p is 1.
    return np.where((error == 0) & (ratio == 1), 0.0, power)


def detectable_ratio(
    log_sd: npt.ArrayLike, n_a: npt.ArrayLike, n_b: npt.ArrayLike, power: float = 0.8, alpha: float = 0.05
) -> Array:
    """Return the minimal detectable effect as a ratio above 1: the ρ at which :func:`power_of_ratio` is ``power``.

    ρ = exp(δ σ √(1/n_a + 1/n_b)), σ = ``log_sd``, with the δ at which the power is as asked for, found once per pair of
    n_a and n_b. Exactly 1 where σ is 0 (any difference is then seen), or where so little power is asked for that chance
    alone has it. ``BadValue`` unless ``alpha`` < ``power`` < 1.
    """
    if not inside_unit("alpha", alpha) < inside_unit("power", power):
        raise BadValue(f"power = {power} is not above alpha = {alpha}", hint="a test that says nothing has that power")
    n_a, n_b, error = _pooled(log_sd, n_a, n_b)
    # Complex numbers as pairs of real ones; the power is the same with the sides exchanged.
    pairs, inverse = np.unique(np.minimum(n_a, n_b) + 1j * np.maximum(n_a, n_b), return_inverse=True)
    shifts = np.array([_noncentrality(pair.real, pair.imag, power, alpha) for pair in pairs.tolist()], dtype=np.float64)
    return _exp(shifts[inverse].reshape(error.shape) * error)


def holm(p: npt.ArrayLike) -> Array:
    """Return p-values adjusted for their number, so that a level bounds the chance of any false finding.

    With p_(1) <= ... <= p_(m): p̃_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). NaN stays NaN and is not counted.
    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    ``BadValue`` for a p outside [0, 1].
    """
    p = np.asarray(p, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise BadValue(f"p = {p[(p < 0) | (p > 1)].flat[0]} is not in [0, 1]", hint="give p-values as they are")
    order = np.argsort(p, axis=None, kind="stable")  # NaN last
    counted = np.count_nonzero(~np.isnan(p))
    scaled = p.flat[order[:counted]] * np.arange(counted, 0, -1)
    adjusted = np.full(p.size, np.nan)
    adjusted[order[:counted]] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.reshape(p.shape)


def expected_running_time(spent_total: npt.ArrayLike, hits: npt.ArrayLike) -> Array:
    """Return all that was spent, on hits and on misses, per hit: Σ T_i / #hits; inf where nothing hit.

    The expected cost of repeating trials until one hits. ``spent_total`` may be seconds or steps.
    Source: Hansen, Auger, Finck & Ros, Real-parameter black-box optimization benchmarking: experimental setup (2010).
    """
    spent_total, hits = _not_negative("spent_total", spent_total), _not_negative("hits", hits)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((hits == 0) & ~np.isnan(spent_total), np.inf, spent_total / hits)


def _pooled(log_sd: npt.ArrayLike, n_a: npt.ArrayLike, n_b: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """Return n_a, n_b and, of their shape, the standard error of a difference of two means of one variance."""
    sd, n_a, n_b = np.broadcast_arrays(
        _not_negative("log_sd", log_sd), _replicates("n_a", n_a), _replicates("n_b", n_b)
    )
    return n_a, n_b, np.asarray(sd * np.sqrt(1 / n_a + 1 / n_b))


def _critical(n_a: Array, n_b: Array, alpha: float) -> tuple[Array, Array]:
    """Return, for each quantile of u, what a noncentral t variable has to exceed, and its degrees of freedom."""
    n_a, n_b = n_a[..., np.newaxis], n_b[..., np.newaxis]
    u = special.betaincinv((n_a - 1) / 2, (n_b - 1) / 2, (POINTS + 1) / 2)
    v_a, v_b = u / ((n_a - 1) * n_a), (1 - u) / ((n_b - 1) * n_b)
    degrees = (v_a + v_b) ** 2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))
    scale = np.sqrt((v_a + v_b) * (n_a + n_b - 2) / (1 / n_a + 1 / n_b))
    return np.asarray(stats.t.isf(inside_unit("alpha", alpha) / 2, degrees) * scale), n_a + n_b - 2


def _power(shift: Array, critical: Array, degrees: Array) -> Array:
    """Return P(|T| > c) at noncentrality ``shift``, averaged over u."""
    shift = shift[..., np.newaxis]
    # Both tails as upper ones, P(T < -c; δ) = P(T > c; -δ): the lower tail itself is NaN for some large δ.
    tails = stats.nct.sf(critical, degrees, shift) + stats.nct.sf(critical, degrees, -shift)
    return np.asarray(tails @ WEIGHTS / 2, dtype=np.float64)


@lru_cache(maxsize=4096)
def _noncentrality(n_a: float, n_b: float, power: float, alpha: float) -> float:
    """Return the δ at which the test has that power."""
    if np.isnan(n_a) or np.isnan(n_b):
        return float("nan")
    critical, degrees = _critical(np.asarray(n_a), np.asarray(n_b), alpha)

    def lack(shift: float) -> float:
        return power - float(_power(np.asarray(shift), critical, degrees))

    if lack(0.0) <= 0:  # with 2 against many, Welch's test exceeds its level
        return 0.0
    high = 4.0
    while lack(high) > 0:
        high *= 2
    return float(optimize.brentq(lack, 0.0, high, xtol=1e-6))


def _t_quantile(degrees: Array, confidence: float) -> Array:
    """Return the 1 - α/2 quantile, computed once per distinct number: a million cells share a few."""
    distinct, inverse = np.unique(degrees, return_inverse=True)
    quantiles = np.asarray(stats.t.isf((1 - inside_unit("confidence", confidence)) / 2, distinct), dtype=np.float64)
    return quantiles[inverse].reshape(degrees.shape)


def _exp(values: Array) -> Array:
    with np.errstate(over="ignore"):  # the upper end at two replicates may well be "anything"
        return np.asarray(np.exp(values), dtype=np.float64)


def _above(size: Array, values: Array) -> Array:
    """Return values with those that are rounding errors set to 0, and those that are infinite to NaN."""
    return np.where(np.isfinite(values), np.where(np.abs(values) <= size, 0.0, values), np.nan)


def _replicates(name: str, n: npt.ArrayLike) -> Array:
    n = _not_negative(name, n)
    return np.where(n >= 2, n, np.nan)


def _not_negative(name: str, values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if (array < 0).any():
        raise BadValue(f"{name} = {array[array < 0].flat[0]} is below 0", hint="give counts and spreads as they are")
    return array


def inside_unit(name: str, value: float) -> float:
    """Return ``value``; ``BadValue`` unless it lies between 0 and 1."""
    if not 0 < value < 1:
        raise BadValue(f"{name} = {value!r} ({type(value).__name__}) is not between 0 and 1", hint="such as 0.95")
    return value
