"""The claims ledger: the verdict on every published claim of every algorithm, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.claims import broken_claims, load_claims
from bench.verdicts import BROKEN, Verdict, evaluate

if TYPE_CHECKING:
    import pandas as pd

    from bench.board import Board
    from bench.protocol import Protocol
    from bench.registry import Registry

COLUMNS = (
    "algorithm",
    "claim",
    "statement",
    "source",
    "baseline",
    "workload",
    "metric",
    "direction",
    "comparison",
    "published_at",
    "published_effect",
    "smallest_tier",
    "note",
    "scope",
    "verdict",
    "reason",
    "tested_at",
    "data_source",
    "precision",
    "protocol",
    "device_class",
    "setting",
    "baseline_setting",
    "effect",
    "effect_low",
    "effect_high",
    "replicates",
    "baseline_replicates",
    "detectable",
    "published_inside",
)
"""The columns of :func:`ledger`."""

_REAL = ("published_effect", "effect", "effect_low", "effect_high", "detectable")


def ledger(
    boards: Sequence[Board], registry: Registry, protocols: Mapping[str, Protocol] | None = None
) -> pd.DataFrame:
    """Return the ledger of every claim of ``registry``, one row per verdict, :data:`COLUMNS` as columns.

    ``protocols`` maps hashes to protocols, as a store does; by default the installed ones. A claims file that cannot
    be read is a row of its own with the verdict ``broken``.
    """
    import pandas as pd

    rows = [_record(verdict) for verdict in evaluate(load_claims(registry), boards, registry, protocols)]
    rows += [
        {"claim": broken.name, "source": broken.package, "scope": "file", "verdict": BROKEN, "reason": broken.reason}
        for broken in broken_claims(registry)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return frame.astype(dict.fromkeys(_REAL, "float64"))


def _record(verdict: Verdict) -> dict[str, Any]:
    """Return ``verdict`` as a row of the ledger."""
    claim, shared, found = verdict.claim, verdict.shared, verdict.effect
    row: dict[str, Any] = claim.model_dump() | {
        "claim": claim.id,
        "published_at": claim.published_at,
        "published_effect": claim.published_effect,
        "scope": verdict.scope,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "tested_at": shared.get("tier"),
        "setting": verdict.setting,
        "baseline_setting": verdict.baseline_setting,
        "published_inside": verdict.published_inside,
    }
    row |= {key: shared.get(key) for key in ("data_source", "precision", "protocol", "device_class")}
    if found is not None:
        row |= {"effect": found.value, "effect_low": found.low, "effect_high": found.high}
        row |= {"detectable": found.detectable}
        row |= {"replicates": found.replicates, "baseline_replicates": found.baseline_replicates}
    return {key: row[key] for key in COLUMNS if key in row}
