"""Published claims held against boards, and nothing but boards.

A claim is tested on every board of its workload, at its smallest tier or a larger one, under a ranked protocol, that
holds both the algorithm and the baseline with as many replicates as the protocol asks for. The verdict is

    held                 the whole interval of the effect lies on the claimed side of 1 (a ratio) or 0 (a difference)
    refuted              the whole interval lies on the other side; an exact effect that is equal refutes too
    undecided            the interval holds 1 or 0; or replicates missed the target and the hit rates decide nothing
    not testable here    there are no such records; the reason says what is missing

Costs to a target are compared only where every replicate of both met it: over the hits alone, whoever misses looks
cheaper. Where some missed, Fisher's exact test of the hit rates decides. Bytes of optimizer state follow from shapes
and compare exactly. Every verdict is a record of its own; none hides another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.claims import Claim
from bench.effects import Effect, Row, effect, plural, to_target, truth, unfit
from bench.protocol import Protocol, protocols

if TYPE_CHECKING:
    from bench.board import Board
    from bench.registry import Registry

HELD, REFUTED, UNDECIDED = "held", "refuted", "undecided"
NOT_TESTABLE, MIXED, BROKEN = "not testable here", "mixed", "broken"
VERDICTS = (HELD, REFUTED, UNDECIDED, NOT_TESTABLE, MIXED, BROKEN)
"""``mixed`` is an overall line over boards that disagree, ``broken`` a claims file that cannot be read."""

EXACT_TOLERANCE = 0.005
"""Relative; step counters beside the moments, and figures printed with two digits, agree within it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the records say of one claim: on one board (``scope`` "board") or over all of them ("overall").

    ``shared`` is what the rows of the board share and empty without a board; ``effect`` is what was measured, ``None``
    where nothing could be. ``published_inside`` says whether the published effect lies in the measured interval.
    """

    claim: Claim
    verdict: str
    reason: str
    scope: str = "board"
    shared: Mapping[str, Any]
    setting: str = ""
    baseline_setting: str = ""
    effect: Effect | None = None
    published_inside: bool | None = None


def evaluate(
    claims: Iterable[Claim],
    boards: Sequence[Board],
    registry: Registry,
    protocols: Mapping[str, Protocol] | None = None,
) -> list[Verdict]:
    """Return the verdicts on ``claims``, ordered by algorithm, id and board, whatever the order of the input.

    A claim that several boards, or several settings on one board, can test gets a verdict for each and one over all.
    """
    rules = _installed() if protocols is None else protocols
    tables = [_Table(board.shared, board) for board in boards]
    tested = []
    for claim in sorted(claims, key=lambda claim: (claim.algorithm, claim.id)):
        found = _verdicts(claim, tables, registry, rules)
        tested += found if len(found) == 1 else [*found, _overall(claim, found)]
    return tested


@dataclass(frozen=True)
class _Table:
    """A board whose rows are turned into dictionaries once for all claims."""

    shared: Mapping[str, Any]
    board: Board

    @cached_property
    def records(self) -> Sequence[Row]:
        return self.board.records()


def _installed() -> Mapping[str, Protocol]:
    return {protocol.sha256: protocol for protocol in protocols().values()}


def _verdicts(
    claim: Claim, boards: Sequence[_Table], registry: Registry, rules: Mapping[str, Protocol]
) -> list[Verdict]:
    if claim.workload is None or claim.smallest_tier is None:
        return [_nowhere(claim, f"no workload here is {claim.published_on}")]
    tiers = registry.workloads[claim.workload].tiers
    wanted = tiers[tiers.index(claim.smallest_tier) :]
    mine = [board for board in boards if board.shared["workload"] == claim.workload]
    larger = " or larger" if len(wanted) > 1 else ""
    if not mine:
        return [_nowhere(claim, f"no records of {claim.workload}; needs tier {claim.smallest_tier}{larger}")]
    large = [board for board in mine if board.shared["tier"] in wanted]
    if not large:
        recorded = [tier for tier in tiers if any(board.shared["tier"] == tier for board in mine)]
        recorded += sorted({str(board.shared["tier"]) for board in mine} - set(tiers))
        return [_nowhere(claim, f"needs tier {claim.smallest_tier}{larger}; recorded: {', '.join(recorded)}")]
    ranked = [board for board in large if _is_ranked(board, rules)]
    if not ranked:
        names = sorted({str(board.shared["protocol"]) for board in large})
        return [_nowhere(claim, f"needs a ranked protocol; recorded: {', '.join(names)}")]
    ranked.sort(key=lambda board: (tiers.index(board.shared["tier"]), _key(board)))
    found = [
        _judge(claim, board, rules[board.shared["protocol_sha256"]], row, base)
        for board in ranked
        for row, base in _pairs(claim, board)
    ]
    return found or [_nowhere(claim, _lacking(claim, ranked))]


def _is_ranked(board: _Table, rules: Mapping[str, Protocol]) -> bool:
    protocol = rules.get(board.shared["protocol_sha256"])
    return protocol is not None and protocol.ranked


def _key(board: _Table) -> str:
    """Return a text that orders boards and does not depend on how they were made."""
    return repr([(key, str(board.shared[key])) for key in sorted(board.shared)])


def _nowhere(claim: Claim, reason: str) -> Verdict:
    return Verdict(claim=claim, verdict=NOT_TESTABLE, reason=reason, shared={})


# -- which rows compare ----------------------------------------------------------------------------------------------
def _pairs(claim: Claim, board: _Table) -> list[tuple[Row, Row]]:
    """Return the rows of the algorithm, each with those of the baseline: of the same fillers, or the only one."""
    rows, bases = _rows(board, claim.algorithm), _rows(board, claim.baseline)
    pairs = []
    for row in rows:
        matching = [base for base in bases if base["fillers"] == row["fillers"]]
        pairs += [(row, base) for base in matching or (bases if len(bases) == 1 else [])]
    return pairs


_CELL = ("hyperparameters", "fillers", "algorithm_version", "algorithm_source_sha256")


def _rows(board: _Table, name: str) -> list[Row]:
    """Return the rows of ``name``: as the workload tuned it for its reference if it is that, else every setting."""
    rows: list[Row] = [row for row in board.records if row["algorithm"] == name]
    rows.sort(key=lambda row: tuple(str(row[name]) for name in _CELL))
    return [row for row in rows if truth(row["is_reference"])] or rows


def _lacking(claim: Claim, boards: Sequence[_Table]) -> str:
    """Return which of the two each tier lacks."""
    found = []
    for board in boards:
        lacks = [name for name in (claim.algorithm, claim.baseline) if not _rows(board, name)]
        said = f"lacks {' and '.join(lacks)}" if lacks else "holds them beside different algorithms in the other slots"
        found.append(f"{board.shared['tier']} ({board.shared['protocol']}, {board.shared['device_class']}) {said}")
    return f"needs {claim.algorithm} and {claim.baseline} on one board; recorded: {'; '.join(dict.fromkeys(found))}"


# -- the verdict on a pair of rows -----------------------------------------------------------------------------------
def _judge(claim: Claim, board: _Table, protocol: Protocol, row: Row, base: Row) -> Verdict:
    facts: dict[str, Any] = {
        "claim": claim,
        "shared": board.shared,
        "setting": row["setting"],
        "baseline_setting": base["setting"],
    }
    if reason := unfit(claim, board.shared, protocol, row, base):
        return Verdict(verdict=NOT_TESTABLE, reason=reason, **facts)
    if to_target(claim.metric) and (row["hits"] < row["replicates"] or base["hits"] < base["replicates"]):
        verdict, reason = _by_hit_rates(claim, protocol, row, base)
        return Verdict(verdict=verdict, reason=reason, **facts)
    found = effect(claim, protocol, row, base)
    verdict, reason = _by_effect(claim, protocol, found)
    inside = _published_inside(claim, found)
    if inside is not None:
        where = ("the same" if inside else "not the same") if found.exact else f"{'in' if inside else 'outside'} ours"
        reason += f"; published {claim.published_effect:.4g} ({claim.published_at}): {where}"
    return Verdict(verdict=verdict, reason=reason, effect=found, published_inside=inside, **facts)


def _by_hit_rates(claim: Claim, protocol: Protocol, row: Row, base: Row) -> tuple[str, str]:
    import numpy as np
    from scipy.stats import fisher_exact

    (hits, n), (base_hits, base_n) = ((int(r["hits"]), int(r["replicates"])) for r in (row, base))
    kind = plural(protocol)
    said = f"{claim.algorithm} met the target in {hits} of {n} {kind}, {claim.baseline} in {base_hits} of {base_n}"
    if not hits and not base_hits:
        return NOT_TESTABLE, f"neither met the target: {said}"
    table = np.array([[hits, n - hits], [base_hits, base_n - base_hits]])
    p = float(fisher_exact(table).pvalue)
    said += f" (Fisher's exact test: p = {p:.2g})"
    if p >= 1 - protocol.confidence:
        return UNDECIDED, f"{said}; costs over the hits alone would favour whoever misses"
    side = "higher" if hits / n < base_hits / base_n else "lower"
    return HELD if side == claim.direction else REFUTED, f"by hit rates: {said}"


def _by_effect(claim: Claim, protocol: Protocol, found: Effect) -> tuple[str, str]:
    neutral = f"{claim.neutral:g}"
    if found.exact:
        said = f"exactly {found.value:.4g}, counted in bytes"
        if found.value == claim.neutral:
            return REFUTED, f"{said}: no difference"
        return HELD if (found.value < claim.neutral) == (claim.direction == "lower") else REFUTED, said
    kind = plural(protocol)
    said = (
        f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}] ({protocol.confidence:.0%}, "
        f"{found.replicates} and {found.baseline_replicates} {kind})"
    )
    if math.isnan(found.low) or math.isnan(found.high):
        return UNDECIDED, f"{said}: no interval"
    if found.low <= claim.neutral <= found.high:
        smallest = f"the smallest {claim.comparison} that these would show with power 0.8 is {found.detectable:.4g}"
        return UNDECIDED, f"{said} holds {neutral}; {smallest}"
    side = "lower" if found.high < claim.neutral else "higher"
    return (
        HELD if side == claim.direction else REFUTED,
        f"{said} lies {'below' if side == 'lower' else 'above'} {neutral}",
    )


def _published_inside(claim: Claim, found: Effect) -> bool | None:
    if found.exact:
        return math.isclose(found.value, claim.published_effect, rel_tol=EXACT_TOLERANCE)
    if math.isnan(found.low) or math.isnan(found.high):
        return None
    return found.low <= claim.published_effect <= found.high


def _overall(claim: Claim, found: Sequence[Verdict]) -> Verdict:
    counts = Counter(verdict.verdict for verdict in found)
    judged = [verdict for verdict in (HELD, REFUTED, UNDECIDED) if counts[verdict]]
    verdict = judged[0] if len(judged) == 1 else MIXED if judged else NOT_TESTABLE
    said = ", ".join(f"{name} in {counts[name]}" for name in (*judged, NOT_TESTABLE) if counts[name])
    return Verdict(
        claim=claim, verdict=verdict, reason=f"of {len(found)} comparisons: {said}", scope="overall", shared={}
    )
