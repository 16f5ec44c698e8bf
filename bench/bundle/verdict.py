"""What verification found, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.bundle import limits
from bench.bundle.rules import NOTE, REJECT, REPRODUCE, RULES, UNSEEN, Effect

Decision = Literal["accept", "reject", "needs reproduction"]


SHOWN = 5
"""Of one rule so many findings are told one by one."""


@dataclass(frozen=True)
class Finding:
    """One place at which a rule is not fulfilled."""

    rule: str
    effect: Effect
    text: str


@dataclass(frozen=True)
class Check:
    """What came of one rule: ``holds``, or the rule's effect."""

    rule: str
    result: str
    demands: str


def found(rule: str, **facts: Any) -> Finding:
    """Return the finding of ``rule`` at the place that ``facts`` name."""
    return Finding(rule, RULES[rule].effect, RULES[rule].reason.format(**facts))


@dataclass(frozen=True)
class Verdict:
    """What verification says of a bundle.

    ``reasons`` are the sentences behind the verdict, ``notes`` what a reader should know besides, ``checks`` every rule
    with what came of it; ``facts`` say what was verified (``bundle``: its SHA-256).
    """

    verdict: Decision
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return asdict(self)


def judge(findings: Iterable[Finding], facts: dict[str, Any]) -> Verdict:
    """Return the verdict that follows from ``findings``: the worst of their effects."""
    order = list(RULES)
    every = sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.rule))
    effects = {finding.effect for finding in every}
    verdict: Decision = "reject" if REJECT in effects else "needs reproduction" if REPRODUCE in effects else "accept"
    failed = {finding.rule: finding.effect for finding in every}
    unseen = {name for rule in failed for name in UNSEEN.get(rule, ())}
    checks = [
        Check(name, failed.get(name, "not looked at" if name in unseen else "holds"), rule.demands)
        for name, rule in RULES.items()
    ]
    return Verdict(
        verdict=verdict,
        reasons=_told(finding for finding in every if finding.effect == (REJECT if REJECT in effects else REPRODUCE)),
        notes=_told(finding for finding in every if finding.effect == NOTE),
        checks=tuple(checks),
        findings=tuple(every),
        facts=facts,
    )


def _told(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the sentences of ``findings``; of a rule that fails everywhere the first ones and a number."""
    by_rule: dict[str, list[str]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding.text)
    told: list[str] = []
    for rule, texts in by_rule.items():
        more = len(texts) - SHOWN
        told += [f"{rule}: {text}" for text in texts[:SHOWN]] + (
            [f"{rule}: and {more if more < limits.FINDINGS - SHOWN else 'many'} more"] if more > 0 else []
        )
    return tuple(told)
