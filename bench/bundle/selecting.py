"""What a study of a bundle selects, by the rule that selects in a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.bundle.contents import Run
from bench.record import NOT_FINITE, TRIALS
from bench.score import select
from bench.trial import MEASURED


def selected(tried: Sequence[Run]) -> list[int]:
    """Return the point that a study selects by :func:`bench.score.select`; none where nothing was measured."""
    rows = [_frame_row(run) for run in tried if run.row["outcome"] in MEASURED]
    if not rows:
        return []
    return sorted(int(point) for point in select(pd.DataFrame(rows, columns=TRIALS.names))["point"])


_TEXTS = frozenset(NOT_FINITE)


def _frame_row(run: Run) -> dict[str, Any]:
    """Return the row as a table holds it: text that stands for a number that is not finite is that number again."""
    return {name: float(value) if value in _TEXTS else value for name, value in run.row.items() if name != "metrics"}
