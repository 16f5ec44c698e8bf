"""From a request to the trials that answer it: names resolved, values checked, seeds set, reference beside it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.algorithm import TRAINING_SLOTS, Algorithm, slots
from bench.assembly import check_fit, fill
from bench.devices import DeviceClass, detect, parse_device
from bench.errors import BadValue, UnknownName
from bench.protocol import Protocol, protocol
from bench.registry import Registry
from bench.run import derive_seed
from bench.source import source_sha256
from bench.trial import Data, Part, Trial
from bench.workload import DataRequest, Workload

CHECKPOINT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for; ``settings`` are texts of ``--set``; no ``seeds`` means as many as the protocol says."""

    plugins: Sequence[str]
    workload: str
    tier: str | None = None
    settings: Sequence[str] = ()
    with_plugins: Sequence[str] = ()
    protocol: str = "quick"
    seeds: Sequence[int] | None = None
    device: str = "cpu"
    source: str | None = None
    directory: Path | None = None
    tokenizer: str | None = None
    reference: bool = True
    command_line: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trials of a request in the order in which they run, and the facts that they share.

    ``references`` maps each algorithm to the one that it is compared with: the part of the workload's reference that
    fills its slot.
    """

    trials: Sequence[Trial]
    workload: Workload
    protocol: Protocol
    device_class: DeviceClass
    references: Mapping[str, str]
    algorithms: Mapping[str, Sequence[Algorithm]] = field(repr=False)


def make_plan(registry: Registry, request: Request) -> Plan:
    """Resolve ``request``; every name and value is checked here, before anything runs."""
    rules = protocol(request.protocol)
    device = parse_device(request.device)
    device_class = detect(device)
    workload = open_workload(
        registry,
        request.workload,
        request.tier or default_tier(registry, request.workload, device),
        DataRequest(source=request.source, directory=request.directory, tokenizer=request.tokenizer),
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
    )
    seeds = request.seeds if request.seeds is not None else range(rules.seeds)
    parts_of = {name: _parts(registry, stack) for name, stack in algorithms.items()}
    trials = []
    for seed in seeds:
        for name in _interleaved(list(algorithms), seed):
            parts = parts_of[name]
            trials.append(
                Trial(
                    algorithm=parts[0],
                    fillers=tuple(parts[1:]),
                    workload=workload.name,
                    workload_version=workload.version,
                    tier=workload.tier_name,
                    precision=workload.tier.precision,
                    data=data,
                    protocol=rules.stamp(),
                    study=0,
                    point=0,
                    seed=seed,
                    device=device,
                    device_class=device_class.name,
                    threads=device_class.cores if device == "cpu" else None,
                    timeout_s=workload.tier.timeout_s,
                    checkpoint_every_s=CHECKPOINT_EVERY_S,
                    command_line=request.command_line,
                )
            )
    return Plan(
        trials=trials,
        workload=workload,
        protocol=rules,
        device_class=device_class,
        references={name: reference_of(stack[0], workload, registry) for name, stack in algorithms.items()},
        algorithms=algorithms,
    )


def _absolute(tokenizer: str | None) -> str | None:
    """Return the name of a tokenizer's file so that a worker finds it from any folder; other names stay."""
    is_file = tokenizer is not None and Path(tokenizer).is_file()
    return str(Path(tokenizer).absolute()) if tokenizer is not None and is_file else tokenizer


def open_workload(registry: Registry, name: str, tier: str, request: DataRequest | None = None) -> Workload:
    """Open one tier of a workload on the requested data."""
    return registry.workload_class(name)(tier, request or DataRequest())


def default_tier(registry: Registry, workload: str, device: str) -> str:
    """Return the tier that is meant for this kind of device: the first one that says so, else the smallest."""
    tiers = registry.workload_class(workload).tiers
    kind = device.partition(":")[0]
    return next((name for name, tier in tiers.items() if kind in tier.default_on), next(iter(tiers)))


def _parts(registry: Registry, stack: Sequence[Algorithm]) -> list[Part]:
    """Return the parts of a trial: the first algorithm, and each further one that fills a slot."""
    owners = fill(stack)
    parts = []
    for position, algorithm in enumerate(stack):
        filled = [slot for slot in TRAINING_SLOTS if owners.get(slot) is algorithm]
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


def stacks(registry: Registry, request: Request, workload: Workload) -> dict[str, list[Algorithm]]:
    """Return, by the name of the algorithm under test, all algorithms of its trials in order of precedence."""
    settings = _settings(request)
    tuned = workload.tier.reference

    def build(name: str, *, plain: bool = False) -> Algorithm:
        return registry.algorithm(name, {} if plain else settings.get(name), **tuned.get(name, {}))

    extras = [build(name) for name in request.with_plugins]
    reference = {name: build(name, plain=True) for name in tuned}
    found = {name: [build(name), *extras, *reference.values()] for name in request.plugins}
    for name, stack in found.items():
        _refuse_idle(name, stack, request.with_plugins)
    for name in [reference_of(stack[0], workload, registry) for stack in found.values()]:
        if request.reference and name not in found:
            others = [part for other, part in reference.items() if other != name]
            found[name] = [reference[name], *extras, *others]
    return found


def reference_of(algorithm: Algorithm, workload: Workload, registry: Registry) -> str:
    """Return the part of the workload's reference that fills a slot of ``algorithm``, else its first part."""
    names = list(workload.tier.reference)
    wanted = set(slots(algorithm))
    return next((name for name in names if wanted & set(slots(registry.algorithm_class(name)))), names[0])


def _refuse_idle(name: str, stack: Sequence[Algorithm], with_plugins: Sequence[str]) -> None:
    owners = set(map(id, fill(stack).values()))
    for algorithm in stack[1 : 1 + len(with_plugins)]:
        if id(algorithm) not in owners:
            raise BadValue(
                f"--with {algorithm.name} would do nothing: {name!r} fills {', '.join(slots(stack[0]))} itself",
                hint="leave it out",
            )


def _settings(request: Request) -> dict[str, dict[str, str]]:
    """Sort the texts ``name=value`` and ``plugin.name=value`` by plugin."""
    named = [*request.plugins, *request.with_plugins]
    found: dict[str, dict[str, str]] = {}
    for text in request.settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadValue(f"--set {text!r} is not of the form name=value", hint="for example: --set lr=0.01")
        plugin, dot, name = key.rpartition(".")
        if not dot:
            if len(request.plugins) != 1:
                raise BadValue(
                    f"--set {text!r} does not say which of {', '.join(request.plugins)} it is for",
                    hint=f"write --set {request.plugins[0]}.{key}={value}",
                )
            plugin = request.plugins[0]
        if plugin not in named:
            raise UnknownName("plugin of this run", plugin, named)
        found.setdefault(plugin, {})[name] = value
    return found


def _interleaved(names: list[str], seed: int) -> list[str]:
    """Return ``names`` in an order that depends on the seed, so that no algorithm always runs first or last."""
    order = sorted(names)
    random.Random(derive_seed(seed, "order of trials")).shuffle(order)  # noqa: S311 - not a secret
    return order
