"""What GLUE measures: accuracy, F1, Matthews, Pearson and Spearman correlation, through scikit-learn and SciPy.

A model that says the same of every example has a correlation of 0, where the formula divides by 0. One that says
anything but finite numbers has no metric: all are NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def measured(names: Sequence[str], outputs: NDArray[np.float64], labels: NDArray[Any]) -> dict[str, float]:
    """Return the metrics ``names`` of a model's ``outputs`` (N, K): logits of K classes, or K = 1 score.

    ``labels`` (N,) are numbers of classes or scores. F1 is that of class 1; ``matthews`` is a correlation, in [-1, 1],
    as ``pearson`` and ``spearman`` are; tables of papers give all five times 100.
    """
    if not np.isfinite(outputs).all():
        return dict.fromkeys(names, math.nan)
    predictions = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return {name: _METRICS[name](predictions, labels) for name in names}


def _accuracy(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _matthews(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearman(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function: Any, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained model is nearly constant, and SciPy says so at every evaluation
        return float(function(predictions, np.asarray(labels, dtype=np.float64)).statistic)


_METRICS = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews, "pearson": _pearson, "spearman": _spearman}
