"""Hold a bundle against every rule; nothing of it is imported, executed or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.bundle import limits, rules_curve, rules_pairs, rules_plan, rules_records, rules_reference, rules_workload
from bench.bundle.cases import Case, cases
from bench.bundle.contents import Bundle, read
from bench.bundle.verdict import Finding, Verdict, found, judge
from bench.errors import BadBundle
from bench.registry import Registry


def verify(path: Path | str, registry: Registry | None = None) -> Verdict:
    """Return what verification says of the bundle in the file ``path``.

    What it is held against is installed here: workloads with their references, protocols, device classes. The
    algorithm that was submitted is never imported, even where it is installed.

    Raises:
        BadBundle: there is no such file, or it cannot be opened. A file that is no bundle is rejected.
    """
    path = Path(path)
    if not path.is_file():
        raise BadBundle(f"there is no file {str(path)!r}", hint="give the file that bench pack wrote")
    try:
        bundle = read(path)
    except BadBundle as error:
        return judge([found("readable", why=error.message)], {"file": path.name})
    return verify_bundle(bundle, registry)


def verify_bundle(bundle: Bundle, registry: Registry | None = None) -> Verdict:
    """Return what verification says of a bundle that was read."""
    registry = registry or Registry()
    every = cases(bundle, registry)
    return judge(_some(_findings(bundle, every, registry)), _facts(bundle, every))


def _some(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield of each rule the first findings: a bundle that is wrong everywhere needs no list of all."""
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.rule] += 1
        if counts[finding.rule] <= limits.FINDINGS:
            yield finding


def _findings(bundle: Bundle, every: list[Case], registry: Registry) -> Iterator[Finding]:
    yield from rules_records.check(bundle, every)
    for case in every:
        yield from rules_workload.check(case)
        yield from rules_plan.check(case, bundle)
        yield from rules_reference.check(case, every, bundle, registry)
        yield from rules_curve.check(case)
        yield from rules_pairs.check(case)


def _facts(bundle: Bundle, every: list[Case]) -> dict[str, Any]:
    """Return what was verified, for people and for a record of it."""
    return {
        "bundle_sha256": bundle.sha256,
        "plugin": bundle.manifest.plugin,
        "created_at": bundle.manifest.created_at,
        "trials": len(bundle.runs),
        "comparisons": [
            {
                "comparison": case.name,
                "entrant_trials": sum(len(group.runs) for group in case.entrants),
                "reference_trials": sum(len(group.runs) for group in case.references),
            }
            for case in every
        ],
    }
