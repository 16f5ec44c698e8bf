"""From a request to the trials that answer it: values checked, points and seeds set, reference beside it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.algorithm import Algorithm
from bench.assembly import check_fit, fill
from bench.context import derive_seed
from bench.devices import DeviceClass, detect, parse_device
from bench.errors import BadValue
from bench.guards.names import kept
from bench.hyperparameter import Log, search_space
from bench.protocol import DIMENSIONS, Point, Protocol, at, protocol
from bench.record import TRIALS
from bench.registry import Registry
from bench.request import Request, default_tier, open_workload, reference_of, settings_of, stacks
from bench.source import source_sha256
from bench.trial import MEASURED, Data, Part, Trial
from bench.workload import DataRequest, Limits, Workload

CHECKPOINT_EVERY_S = 10.0
LEARNING_RATE_SPAN = 100.0
"""A grid of learning rates reaches this factor below and above the published one: four decades."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trials of a request, and the facts that they share.

    ``studies`` holds, for each study of the protocol, the trials that can be named before anything has run, in the
    order in which they run; what a study repeats after its selection comes from :meth:`reruns`. ``references`` maps
    each algorithm to the one that it is compared with: the part of the workload's reference that fills its slot.
    """

    studies: Sequence[Sequence[Trial]]
    workload: Workload
    protocol: Protocol
    device_class: DeviceClass
    references: Mapping[str, str]
    algorithms: Mapping[str, Sequence[Algorithm]] = field(repr=False)

    @property
    def trials(self) -> list[Trial]:
        """The trials of all studies, without the repetitions of what they select."""
        return [trial for study in self.studies for trial in study]

    @property
    def size(self) -> int:
        """How many trials there are in all, repetitions among them."""
        return sum(map(len, self.studies)) + self.protocol.reruns * self.protocol.studies * len(self.algorithms)

    def reruns(self, study: int, rows: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Return the repetitions of the points that ``study`` selects, given the rows of its trials.

        Each has a seed that no trial of any study had. An algorithm of which no trial was measured has none.
        """
        if not self.protocol.reruns:
            return []
        import pandas as pd

        from bench.score import select

        tried = pd.DataFrame([row for row in rows if row["outcome"] in MEASURED], columns=TRIALS.names)
        chosen = set(select(tried)["trial_id"]) if len(tried) else set()
        by_name = {trial.algorithm.name: trial for trial in self.studies[study] if trial.trial_id in chosen}
        seeds = [self.protocol.studies + study * self.protocol.reruns + again for again in range(self.protocol.reruns)]
        return [
            by_name[name].model_copy(update={"phase": "rerun", "seed": seed})
            for seed in seeds
            for name in _interleaved(list(by_name), seed)
        ]


@kept()  # it imports the algorithms
def make_plan(registry: Registry, request: Request) -> Plan:
    """Resolve ``request``; every name and value is checked here, before anything runs."""
    rules = protocol(request.protocol)
    _refuse_free_choice(request, rules)
    device = parse_device(request.device)
    device_class = detect(device)
    workload = open_workload(
        registry,
        request.workload,
        request.tier or default_tier(registry, request.workload, device, [*request.plugins, *request.with_plugins]),
        DataRequest(
            source=request.source,
            directory=request.directory,
            tokenizer=request.tokenizer,
            models=tuple(request.models),
        ),
        Limits(budget_factor=rules.budget_factor, stop_at_target=rules.stop_at_target),
    )
    algorithms = stacks(registry, request, workload)
    for stack in algorithms.values():
        check_fit(stack, workload)
    identity = workload.data()
    data = Data(
        source=identity.source,
        directory=None if request.directory is None else str(request.directory.absolute()),
        tokenizer=_absolute(request.tokenizer),
        sha256=identity.sha256,
        label=identity.label,
        models=tuple(str(folder.absolute()) for folder in request.models),
    )
    shared = {
        "workload": workload.name,
        "workload_version": workload.version,
        "tier": workload.tier_name,
        "precision": workload.tier.precision,
        "data": data,
        "protocol": rules.stamp(),
        "device": device,
        "device_class": device_class.name,
        "threads": device_class.cores if device == "cpu" else None,
        "timeout_s": workload.tier.timeout_s * rules.budget_factor,
        "checkpoint_every_s": CHECKPOINT_EVERY_S,
        "command_line": request.command_line,
        "budget_factor": rules.budget_factor,
        "stop_at_target": rules.stop_at_target,
    }
    references = {name: reference_of(stack[0], workload, registry) for name, stack in algorithms.items()}
    cast = {name: _Role(registry, stack, workload, rules, references[name]) for name, stack in algorithms.items()}
    seeds = request.seeds if request.seeds is not None else range(rules.seeds)
    return Plan(
        studies=_searched(cast, rules, shared) if rules.points else [_published(cast, seeds, shared)],
        workload=workload,
        protocol=rules,
        device_class=device_class,
        references=references,
        algorithms=algorithms,
    )


def _refuse_free_choice(request: Request, rules: Protocol) -> None:
    """Refuse what a searched protocol decides itself, and protocols that only name imported results."""
    if rules.search == "imported":
        raise BadValue(f"protocol {rules.name} cannot be run here: its results were imported")
    if rules.search == "published":
        return
    if request.seeds is not None:
        raise BadValue(f"protocol {rules.name} has seeds of its own", hint="leave out --seed and --seeds")
    own = [name for name in settings_of(request) if name in request.plugins]
    if own:
        raise BadValue(
            f"protocol {rules.name} searches the hyperparameters of {', '.join(own)} itself",
            hint="leave out --set, or use --protocol default",
        )


class _Role:
    """One algorithm under test with what fills the other slots: the part of a trial that differs between algorithms."""

    def __init__(
        self, registry: Registry, stack: Sequence[Algorithm], workload: Workload, rules: Protocol, reference: str
    ) -> None:
        self._registry, self._first, self._rules = registry, stack[0], rules
        self._tuned = workload.tier.reference.get(stack[0].name, {})
        self._parts = _parts(registry, stack, workload.slots)
        self._reference = reference

    def at(self, point: Point | None) -> dict[str, Any]:
        """Return the fields of a trial at ``point`` of the search, or at the setting that was asked for."""
        name, part = self._first.name, self._parts[0]
        if point is not None:
            values = {**self._tuned, **at(self._space(), point)}
            part = part.model_copy(update={"values": self._registry.algorithm(name, **values).hyperparameters()})
        tuned = self._registry.algorithm(name, **self._tuned) if name == self._reference else None
        as_tuned = tuned is not None and (point is not None or tuned == self._first)
        fillers = tuple(self._parts[1:])
        return {"algorithm": part, "fillers": fillers, "reference": self._reference, "is_reference": as_tuned}

    def _space(self) -> dict[str, Any]:
        name, cls = self._first.name, type(self._first)
        if self._rules.search == "learning-rate":
            published = getattr(self._first, "lr", None)
            if not isinstance(published, float) or published <= 0:
                raise BadValue(f"protocol {self._rules.name} needs a learning rate, and {name!r} has no number lr > 0")
            return {"lr": Log(published / LEARNING_RATE_SPAN, published * LEARNING_RATE_SPAN)}
        space = search_space(cls)
        if not 1 <= len(space) <= DIMENSIONS:
            raise BadValue(
                f"protocol {self._rules.name} searches 1 to {DIMENSIONS} hyperparameters, and {name!r} declares "
                f"{len(space)} search ranges",
                hint="use --protocol default, or declare ranges: hyper(..., search=Log(low, high))",
            )
        return space


def _published(cast: Mapping[str, _Role], seeds: Sequence[int], shared: Mapping[str, Any]) -> list[Trial]:
    """Return one trial per seed and algorithm; the order of the algorithms changes from seed to seed."""
    fields = {name: role.at(None) for name, role in cast.items()}
    return [
        Trial(**fields[name], **shared, phase="measure", study=0, point=0, seed=seed)
        for seed in seeds
        for name in _interleaved(list(cast), seed)
    ]


def _searched(cast: Mapping[str, _Role], rules: Protocol, shared: Mapping[str, Any]) -> list[list[Trial]]:
    """Return the trials of every study: all its points with the study's number as their seed."""
    return [
        [
            Trial(**cast[name].at(point), **shared, phase="tune", study=study, point=number, seed=study)
            for number, point in enumerate(points)
            for name in _interleaved(list(cast), study * len(points) + number)
        ]
        for study, points in enumerate(rules.points)
    ]


def _absolute(tokenizer: str | None) -> str | None:
    """Return the name of a tokenizer's file so that a worker finds it from any folder; other names stay."""
    is_file = tokenizer is not None and Path(tokenizer).is_file()
    return str(Path(tokenizer).absolute()) if tokenizer is not None and is_file else tokenizer


def _parts(registry: Registry, stack: Sequence[Algorithm], wanted: Sequence[str]) -> list[Part]:
    """Return the parts of a trial: the first algorithm, and each further one that fills a slot."""
    owners = fill(stack, wanted)
    parts = []
    for position, algorithm in enumerate(stack):
        filled = [slot for slot in wanted if owners.get(slot) is algorithm]
        if filled or position == 0:
            parts.append(
                Part(
                    name=algorithm.name,
                    version=registry.version(algorithm.name),
                    source_sha256=source_sha256(type(algorithm)),
                    slots=tuple(filled),
                    values=algorithm.hyperparameters(),
                )
            )
    return parts


def _interleaved(names: list[str], seed: int) -> list[str]:
    """Return ``names`` in an order that depends on the seed, so that no algorithm always runs first or last."""
    order = sorted(names)
    random.Random(derive_seed(seed, "order of trials")).shuffle(order)  # noqa: S311 - not a secret
    return order
