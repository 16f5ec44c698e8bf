"""Where the curve of a trial meets its target, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def crossing(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], judged_from: int) -> dict[str, Any]:
    """Return the columns of quality and target that follow from the evaluations ``rows`` and the facts in ``row``.

    Only evaluations from step ``judged_from`` on count against the target.
    """
    sign = 1.0 if row["metric_direction"] == "min" else -1.0
    values = [float(event["quality"]) for event in rows]
    judged = [i for i, event in enumerate(rows) if event["step"] >= judged_from]
    finite = [values[i] for i in judged if math.isfinite(values[i])]
    found: dict[str, Any] = {
        "quality": values[-1],
        "best_quality": sign * min(sign * value for value in finite) if finite else None,
        "steps": rows[-1]["step"],
    }
    target, times_s = row["target"], [event["cost"]["time_s"] for event in rows]
    facts = {"target": target, "direction": row["metric_direction"], "budget_s": row["budget_s"]}
    hit = next((i for i in judged if is_hit(values[i], times_s[i], **facts)), None)
    if hit is None:
        return found
    found["evaluations_to_target"] = hit
    found["steps_to_target"] = rows[hit]["step"]
    found["time_to_target_s"] = rows[hit]["cost"]["time_s"]
    if hit and rows[hit - 1]["step"] >= judged_from and math.isfinite(values[hit - 1]):
        before, after = rows[hit - 1], rows[hit]
        gap = values[hit - 1] - values[hit]
        share = min(max((values[hit - 1] - target) / gap, 0.0), 1.0) if gap else 1.0
        found["steps_to_target_interpolated"] = log_linear(before["step"], after["step"], share)
        found["time_to_target_interpolated_s"] = log_linear(before["cost"]["time_s"], after["cost"]["time_s"], share)
    else:
        found["steps_to_target_interpolated"] = float(rows[hit]["step"])
        found["time_to_target_interpolated_s"] = rows[hit]["cost"]["time_s"]
    return found


def is_hit(quality: float, time_s: float, *, target: float | None, direction: str, budget_s: float | None) -> bool:
    """Return whether an evaluation after ``time_s`` charged seconds meets the target within the budget."""
    if target is None or not math.isfinite(quality) or (budget_s is not None and time_s > budget_s):
        return False
    return quality <= target if direction == "min" else quality >= target


def log_linear(before: float, after: float, share: float) -> float:
    """Return the point ``share`` of the way from ``before`` to ``after`` in the logarithm (linear from or to zero)."""
    if before <= 0 or after <= 0:
        return before + share * (after - before)
    return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
