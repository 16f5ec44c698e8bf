"""Find plugins by their entry points, list them from light entries, import a class when it is used."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from bench import spec
from bench.algorithm import Algorithm, slots
from bench.entry import TRACKS, Entry, WorkloadEntry
from bench.errors import BadValue, BrokenPlugin, UnknownName
from bench.hyperparameter import check, compound, parse

if TYPE_CHECKING:
    from bench.workload import Workload

PIN = "BENCH_PLUGINS"
"""Environment variable that pins the plugin set: a comma-separated list of entry-point names to load."""

E = TypeVar("E", Entry, WorkloadEntry)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A plugin that could not be listed: where it comes from, and why."""

    name: str
    package: str
    reason: str


class Registry:
    """All known algorithms and workloads by name, and the plugins that are broken.

    ``entry_points`` replaces the installed ones (tests, embedding). A plugin that fails to load, whose hook raises, or
    whose entries are wrong is kept in :attr:`broken` with its reason and stops nothing else.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self.hooks = pluggy.PluginManager(spec.NAME)
        self.hooks.add_hookspecs(spec)
        self.broken: list[Broken] = []
        self.algorithms: dict[str, Entry] = {}
        self.workloads: dict[str, WorkloadEntry] = {}
        self.packages: dict[str, str] = {}
        for point in _pinned(_installed() if entry_points is None else entry_points):
            self._load(point)

    # -- listing ---------------------------------------------------------------------------------------------------
    def _load(self, point: importlib.metadata.EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else point.value
        # By module, since two packages may call their entry points alike; a module that is known already stays.
        known = self.hooks.has_plugin(point.value)
        try:
            module = point.load()
            self.hooks.register(module, name=point.value)
            self.hooks.check_pending()
            algorithms = self._entries(module, "bench_algorithms", Entry, package)
            workloads = self._entries(module, "bench_workloads", WorkloadEntry, package, taken=algorithms)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a foreign module may raise anything at all
            if not known and self.hooks.has_plugin(point.value):
                self.hooks.unregister(name=point.value)
            self.broken.append(Broken(name=point.name, package=package, reason=_reason(error)))
            return
        self.algorithms.update(algorithms)
        self.workloads.update(workloads)
        self.packages.update(dict.fromkeys([*algorithms, *workloads], package))

    def _entries(self, module: Any, hook: str, kind: type[E], package: str, taken: Iterable[str] = ()) -> dict[str, E]:
        """Return what ``hook`` of ``module`` lists, checked; names are unique over algorithms and workloads."""
        owners = self.packages | dict.fromkeys(taken, package)
        fresh: dict[str, E] = {}
        for entry in getattr(module, hook)() if hasattr(module, hook) else ():
            if not isinstance(entry, kind):
                raise BadValue(f"{hook} returned {entry!r} ({type(entry).__name__}), not {kind.__name__} objects")
            _check_texts(entry)
            if entry.name in owners:
                raise BadValue(f"the name {entry.name!r} is taken already, by the package {owners[entry.name]!r}")
            if isinstance(entry, Entry) and entry.track not in TRACKS:
                raise BadValue(f"{entry.name!r} names the track {entry.track!r}; tracks are {', '.join(TRACKS)}")
            _find_target(entry.target)
            fresh[entry.name] = entry
            owners[entry.name] = package
        return fresh

    # -- use -------------------------------------------------------------------------------------------------------
    def algorithm_class(self, name: str) -> type[Algorithm]:
        """Import the class of the algorithm ``name``."""
        self._refuse_broken(name)
        entry = _get("plugin", name, self.algorithms)
        cls = _import_target(f"plugin {name!r}", entry.target)
        if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
            raise BrokenPlugin(f"plugin {name!r}: {entry.target} is {cls!r}; it must be a subclass of bench.Algorithm")
        if cls.name != name:
            raise BrokenPlugin(f"plugin {name!r}: {entry.target} calls itself {cls.name!r}; entry and class must agree")
        if not slots(cls):
            raise BrokenPlugin(f"plugin {name!r}: {entry.target} overrides no slot of bench.Algorithm")
        _refuse_bad_fields(name, cls)
        return cls

    def algorithm(self, name: str, texts: Mapping[str, str] | None = None, /, **values: Any) -> Algorithm:
        """Build the algorithm ``name`` from ``values`` and, over them, the command line's ``texts``; bad ones raise."""
        cls = self.algorithm_class(name)
        check(cls, name, values)
        return cls(**values | parse(cls, name, texts or {}))

    def workload_class(self, name: str) -> type[Workload]:
        """Import the class of the workload ``name``."""
        from bench.workload import Workload

        self._refuse_broken(name)
        entry = _get("workload", name, self.workloads)
        cls = _import_target(f"workload {name!r}", entry.target)
        if not (isinstance(cls, type) and issubclass(cls, Workload)):
            raise BrokenPlugin(f"workload {name!r}: {entry.target} is {cls!r}; it must be a subclass of bench.Workload")
        if cls.name != name or tuple(cls.tiers) != entry.tiers:
            raise BrokenPlugin(
                f"workload {name!r}: {entry.target} is {cls.name!r} with tiers {tuple(cls.tiers)}, "
                f"its entry says {entry.tiers}; entry and class must agree"
            )
        return cls

    def version(self, name: str) -> str:
        """Return the version of the package that provides ``name``."""
        try:
            return importlib.metadata.version(self.packages[name])
        except (KeyError, importlib.metadata.PackageNotFoundError):
            return "unknown"

    def _refuse_broken(self, name: str) -> None:
        for broken in self.broken:
            if name == broken.name and name not in self.algorithms and name not in self.workloads:
                raise BrokenPlugin(
                    f"plugin {name!r} of the package {broken.package!r} is broken: {broken.reason}",
                    hint=f"mend or uninstall it: pip uninstall {broken.package}",
                )


def _refuse_bad_fields(name: str, cls: type[Algorithm]) -> None:
    """Refuse a class whose hyperparameters are no fields, or have types that cannot be resolved."""
    bare = [key for key, value in vars(cls).items() if isinstance(value, dataclasses.Field)]
    if bare:
        raise BrokenPlugin(
            f"plugin {name!r}: {cls.__qualname__} declares {', '.join(bare)} but is no dataclass",
            hint="write @dataclass(frozen=True, kw_only=True) above it",
        )
    try:
        check(cls, name, {})
        wrong = compound(cls)
    except (NameError, TypeError, AttributeError) as error:
        raise BrokenPlugin(
            f"plugin {name!r}: the types of the hyperparameters of {cls.__qualname__} cannot be resolved: {error}",
            hint="import what they name when the module runs, not only under TYPE_CHECKING",
        ) from error
    if wrong:
        raise BrokenPlugin(
            f"plugin {name!r}: {', '.join(wrong)} of {cls.__qualname__} is no number, text, switch or none",
            hint="write one field per number, such as beta1 and beta2",
        )


def _installed() -> Iterator[importlib.metadata.EntryPoint]:
    yield from sorted(importlib.metadata.entry_points(group=spec.NAME), key=lambda point: (point.name, point.value))


def _pinned(points: Iterable[importlib.metadata.EntryPoint]) -> list[importlib.metadata.EntryPoint]:
    found = list(points)
    pin = os.environ.get(PIN)
    if pin is None:
        return found
    wanted = {name.strip() for name in pin.split(",")} - {""}
    for name in sorted(wanted - {point.name for point in found}):
        raise UnknownName(f"entry point of {PIN}", name, [point.name for point in found])
    return [point for point in found if point.name in wanted]


def _get(kind: str, name: str, table: Mapping[str, E]) -> E:
    try:
        return table[name]
    except KeyError:
        raise UnknownName(kind, name, table) from None


def _check_texts(entry: Entry | WorkloadEntry) -> None:
    """Refuse what no listing can show."""
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        texts = value if field.name == "tiers" else (value,)
        if not isinstance(texts, tuple) or not all(isinstance(text, str) and text.isprintable() for text in texts):
            must = "one line of printable text" if texts is not value else "a tuple of printable texts"
            raise BadValue(f"the {field.name} of an entry is {value!r:.80} ({type(value).__name__}); it must be {must}")


def _find_target(target: str) -> None:
    """Raise unless the module of ``target`` can be found; it is not imported."""
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise BadValue(f"target {target!r} is not of the form 'package.module:Class'")
    if locate(module) is None:
        raise BadValue(f"target {target!r}: there is no module {module!r}")


def locate(module: str) -> ModuleSpec | None:
    """Return where ``module`` is; unlike ``importlib.util.find_spec`` this runs no code of the packages above it."""
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    for name in accumulate(module.split("."), "{}.{}".format):
        if name in sys.modules:
            spec = sys.modules[name].__spec__
        else:
            found = (finder.find_spec(name, path) for finder in sys.meta_path)
            spec = next((one for one in found if one is not None), None)
        path = None if spec is None else spec.submodule_search_locations
        if spec is not None and path is not None and spec.origin is None:  # a namespace: only its import tells its path
            path = importlib.import_module(name).__path__
        if path is None and name != module:  # nothing is below a module that is no package
            return None
    return spec


def _import_target(what: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise BrokenPlugin(
            f"{what}: {target} cannot be imported: {_reason(error)}", hint="see its traceback with --debug"
        ) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
