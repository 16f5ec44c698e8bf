"""What a user asked for, with its names resolved: the workload, and the algorithms that take part together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.algorithm import Algorithm, slots
from bench.assembly import fill
from bench.errors import BadValue, UnknownName
from bench.registry import Registry
from bench.workload import DataRequest, Limits, Workload


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
    models: Sequence[Path] = ()
    reference: bool = True
    command_line: str = ""


def open_workload(
    registry: Registry, name: str, tier: str, request: DataRequest | None = None, limits: Limits | None = None
) -> Workload:
    """Open one tier of a workload on the requested data, under the limits of a protocol."""
    return registry.workload_class(name)(tier, request or DataRequest(), limits or Limits())


def default_tier(registry: Registry, workload: str, device: str, plugins: Sequence[str] = ()) -> str:
    """Return the tier that is meant for this kind of device and offers what ``plugins`` need.

    It is the first one that says so; where none offers all, the first one for the device; else the smallest.
    """
    cls = registry.workload_class(workload)
    kind = device.partition(":")[0]
    meant = [name for name, tier in cls.tiers.items() if kind in tier.default_on] or list(cls.tiers)[:1]
    needs = {need for name in plugins for need in registry.algorithm_class(name).needs}
    return next((name for name in meant if needs <= cls(name).offers), meant[0])


def stacks(registry: Registry, request: Request, workload: Workload) -> dict[str, list[Algorithm]]:
    """Return, by the name of the algorithm under test, all algorithms of its trials in order of precedence."""
    settings = settings_of(request)
    tuned = workload.tier.reference

    def build(name: str, *, plain: bool = False) -> Algorithm:
        return registry.algorithm(name, {} if plain else settings.get(name), **tuned.get(name, {}))

    extras = [build(name) for name in request.with_plugins]
    reference = {name: build(name, plain=True) for name in tuned}
    found = {name: [build(name), *extras, *reference.values()] for name in request.plugins}
    for name, stack in found.items():
        _refuse_idle(name, stack, request.with_plugins, workload.slots)
    for name in [reference_of(stack[0], workload, registry) for stack in found.values()]:
        if request.reference and name not in found:
            others = [part for other, part in reference.items() if other != name]
            found[name] = [reference[name], *extras, *others]
    return found


def reference_of(algorithm: Algorithm, workload: Workload, registry: Registry) -> str:
    """Return the part of the workload's reference that fills a slot of ``algorithm``, else its first part."""
    return reference_for(slots(algorithm), workload, registry)


def reference_for(filled: Iterable[str], workload: Workload, registry: Registry) -> str:
    """Return the part of the workload's reference that fills one of the slots ``filled``, else its first part."""
    names, wanted = list(workload.tier.reference), set(filled)
    return next((name for name in names if wanted & set(slots(registry.algorithm_class(name)))), names[0])


def _refuse_idle(name: str, stack: Sequence[Algorithm], with_plugins: Sequence[str], wanted: Sequence[str]) -> None:
    owners = set(map(id, fill(stack, wanted).values()))
    for algorithm in stack[1 : 1 + len(with_plugins)]:
        if id(algorithm) not in owners:
            raise BadValue(
                f"--with {algorithm.name} would do nothing: {name!r} fills {', '.join(slots(stack[0]))} itself",
                hint="leave it out",
            )


def settings_of(request: Request) -> dict[str, dict[str, str]]:
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
