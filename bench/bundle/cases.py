"""The comparisons in a bundle: which trials belong together, and the installed workload that they claim to be of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bundle.contents import Bundle, Run
from bench.errors import BenchError
from bench.protocol import Protocol
from bench.registry import Registry
from bench.trial import Trial
from bench.workload import DataRequest, Limits, Workload

Board = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials of one algorithm beside the same fillers; where the protocol does not search, at one setting."""

    algorithm: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """How a reason names it."""
        trial = self.runs[0].trial
        if trial.phase != "measure":
            return self.algorithm
        values = ", ".join(f"{key}={value!r}" for key, value in trial.algorithm.values.items())
        return f"{self.algorithm}({values:.120})"

    def phase(self, name: str) -> list[Run]:
        """Return the runs of one phase."""
        return [run for run in self.runs if run.trial.phase == name]

    @property
    def counted(self) -> list[Run]:
        """The independent repetitions: the seeds of a fixed setting, or what the studies selected, again."""
        return [run for run in self.runs if run.trial.phase != "tune"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: all trials of the entrant that share a board, and those of the reference on it.

    ``workload`` is the installed one, ``None`` where ``why_unknown`` says why there is none that can be asked.
    """

    board: Board
    protocol: Protocol | None
    entrants: tuple[Group, ...]
    references: tuple[Group, ...]
    workload: Workload | None
    why_unknown: str = ""

    @property
    def name(self) -> str:
        """How a reason names it."""
        trial = self.runs[0].trial
        return f"{trial.workload} {trial.tier}, {trial.protocol.name}, {trial.device_class}"

    @property
    def runs(self) -> list[Run]:
        """All trials."""
        every = {run.folder: run for group in (*self.entrants, *self.references) for run in group.runs}
        return list(every.values())

    def reference_of(self, group: Group) -> Group | None:
        """Return the reference beside the same fillers; where none has the same, the only one there is."""
        own = fillers(group.runs[0].trial)
        same = [other for other in self.references if fillers(other.runs[0].trial) == own]
        if len(same) == 1:
            return same[0]
        return self.references[0] if len(self.references) == 1 else None


def cases(bundle: Bundle, registry: Registry) -> list[Case]:
    """Return the comparisons of ``bundle``, in the order of what they are of."""
    by_board: dict[Board, list[Run]] = {}
    for run in bundle.runs:
        by_board.setdefault(board(run.trial), []).append(run)
    rules = {protocol.sha256: protocol for protocol in bundle.protocols}
    found = []
    for key, runs in sorted(by_board.items()):
        own = [run for run in runs if run.trial.algorithm.name == bundle.manifest.plugin]
        tuned = [run for run in runs if run.trial.is_reference]
        protocol = rules.get(runs[0].trial.protocol.sha256)
        workload, why = _open(registry, runs[0].trial, protocol)
        entrants, references = _groups(own), _groups(tuned)
        if entrants or references:
            found.append(
                Case(
                    board=key,
                    protocol=protocol,
                    entrants=entrants,
                    references=references,
                    workload=workload,
                    why_unknown=why,
                )
            )
    return found


def board(trial: Trial) -> Board:
    """Return what must be equal for two trials to compare (:data:`bench.score.BOARD`); the device class comes last."""
    minor = minor_of(trial.workload_version)
    here = (trial.workload, minor, trial.tier, trial.precision, trial.data.source, trial.data.sha256)
    return (*here, trial.protocol.name, trial.protocol.sha256, trial.device_class)


def minor_of(version: str) -> str:
    """Return major.minor of a version."""
    return ".".join(version.split(".")[:2])


def fillers(trial: Trial) -> str:
    """Return what fills the other slots, as one text."""
    return json.dumps([part.model_dump(mode="json") for part in trial.fillers], sort_keys=True)


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        trial = run.trial
        setting = json.dumps(trial.algorithm.values, sort_keys=True) if trial.phase == "measure" else ""
        key = (trial.algorithm.name, setting, fillers(trial), trial.algorithm.source_sha256, trial.algorithm.version)
        found.setdefault(key, []).append(run)
    return tuple(
        Group(algorithm=key[0], runs=tuple(sorted(group, key=lambda run: _order(run.trial))))
        for key, group in sorted(found.items())
    )


def _order(trial: Trial) -> tuple[Any, ...]:
    return (trial.phase, trial.study, trial.point, trial.seed, trial.trial_id)


def _open(registry: Registry, trial: Trial, protocol: Protocol | None) -> tuple[Workload | None, str]:
    """Open the installed workload of the trial's name, under the limits of its protocol; or say why not."""
    if trial.workload not in registry.workloads:
        return None, f"no workload {trial.workload!r} is installed here"
    local = trial.data.source == "local"
    request = DataRequest(  # no path of a stranger: what they name is not opened here
        source=None if local else trial.data.source,
        directory=Path() if local else None,
        models=(Path(),) * len(trial.data.models),
    )
    limits = Limits(
        budget_factor=protocol.budget_factor if protocol else 1.0,
        stop_at_target=protocol.stop_at_target if protocol else False,
    )
    try:
        return registry.workload_class(trial.workload)(trial.tier, request, limits), ""
    except BenchError as error:
        return None, error.message


def setting_of(values: Mapping[str, Any]) -> str:
    """Return values as a reason shows them."""
    return ", ".join(f"{key}={value!r}" for key, value in values.items())[:200]
