"""Which trials of a bundle are run again: some seeds of one comparison, on both sides, picked by the bundle's hash."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.bundle.cases import Case, Group
from bench.bundle.contents import Bundle, Run
from bench.errors import BadBundle

SEEDS = 3
"""How many seeds run again where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting of the entrant and, seed by seed, its trials with those of the reference.

    The second of a pair is ``None`` where the bundle is about the reference itself.
    """

    case: Case
    group: Group
    reference: Group | None
    pairs: tuple[tuple[Run, Run | None], ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order in which they run."""
        return [run.trial.seed for run, _ in self.pairs]

    @property
    def runs(self) -> list[Run]:
        """All trials, both sides of a seed after each other; which side begins alternates."""
        found: list[Run] = []
        for number, pair in enumerate(self.pairs):
            there = [run for run in pair if run is not None]
            found += there if number % 2 else there[::-1]
        return found


def choose(
    bundle: Bundle, cases: Iterable[Case], *, number: int = SEEDS, seeds: Sequence[int] = (), salt: str = ""
) -> Choice:
    """Return what to run again: of ``cases`` and settings the cheapest one, of its seeds ``number``, or ``seeds``.

    The order of the seeds follows from the SHA-256 of bundle, ``salt`` and seed. A submitter knows the bundle, and
    could make many until the choice suits; a salt, or seeds, of one's own cannot be known before.

    Raises:
        BadBundle: there is no comparison, or it has no such seeds.
    """
    found = [one for case in cases for group in case.entrants if (one := _choice(case, group)) is not None]
    if not found:
        raise BadBundle("the bundle has no trials that could run again", hint="see bench verify")
    cheapest = min(found, key=lambda one: (_cost_s(one), one.case.name, one.group.name))
    pairs = {run.trial.seed: (run, other) for run, other in cheapest.pairs}
    lacking = sorted(set(seeds) - set(pairs))
    if lacking:
        known = ", ".join(map(str, sorted(pairs)))
        raise BadBundle(f"{cheapest.group.name} has no seed {lacking[0]} with its reference", hint=f"seeds are {known}")
    order = sorted(pairs, key=lambda seed: hashlib.sha256(f"{bundle.sha256}\0{salt}\0{seed}".encode()).hexdigest())
    chosen = list(dict.fromkeys(seeds)) or order[:number]
    return Choice(
        case=cheapest.case,
        group=cheapest.group,
        reference=cheapest.reference,
        pairs=tuple(pairs[seed] for seed in chosen),
    )


def _choice(case: Case, group: Group) -> Choice | None:
    """Return all pairs of a setting, the repetitions of what was selected where the protocol searches."""
    reference = case.reference_of(group)
    itself = reference is group or (reference is not None and reference.algorithm == group.algorithm)
    others = {} if reference is None or itself else {run.trial.seed: run for run in reference.counted}
    pairs: list[tuple[Run, Run | None]] = [
        (run, others.get(run.trial.seed)) for run in group.counted if itself or run.trial.seed in others
    ]
    if not pairs:
        return None
    return Choice(case=case, group=group, reference=None if itself else reference, pairs=tuple(pairs))


def _cost_s(choice: Choice) -> float:
    """Return the median wall-clock time of a pair."""
    walls = [[float(run.row["wall_s"] or 0.0) for run in pair if run is not None] for pair in choice.pairs]
    return statistics.median(map(sum, walls))
