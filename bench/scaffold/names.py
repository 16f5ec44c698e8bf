"""What a new plugin may be called, and what its package, its module and its classes are called then."""

from __future__ import annotations

import builtins
import importlib.metadata
import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bench
from bench import spec
from bench.errors import BadValue

if TYPE_CHECKING:
    from bench.registry import Registry

LONGEST = 32
"""The most characters of a name: it is a column of every leaderboard, and part of every line of the templates."""

_FORM = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DOMAIN = f"a name has 2 to {LONGEST} characters: lower-case letters, digits and single hyphens, a letter first"

_HELD = frozenset({"con", "prn", "aux", "nul", "conformance"})
"""Names of devices on Windows, where no file may be called so; and one whose test is there already."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """All names that follow from the ``name`` of an algorithm, such as ``sign-descent``.

    ``module`` is ``sign_descent``, ``cls`` ``SignDescent``, ``package`` ``bench_sign_descent`` and ``distribution``,
    also the name of the folder, ``bench-sign-descent``.
    """

    name: str
    module: str
    cls: str
    package: str
    distribution: str


def names(name: str, registry: Registry) -> Names:
    """Return what follows from ``name``.

    Raises:
        BadValue: the name has another form, belongs to somebody already, or cannot be a module or a class.
    """
    if not 2 <= len(name) <= LONGEST or not _FORM.fullmatch(name):
        raise BadValue(f"NAME is {name[:80]!r} ({len(name)} characters)", hint=_DOMAIN)
    found = Names(
        name=name,
        module=name.replace("-", "_"),
        cls="".join(part.capitalize() for part in name.split("-")),
        package=f"bench_{name.replace('-', '_')}",
        distribution=f"bench-{name}",
    )
    _refuse_taken(found, registry)
    _refuse_unusable(found)
    return found


def _refuse_taken(found: Names, registry: Registry) -> None:
    """Refuse a name that somebody has, here at least: an algorithm, a workload, a broken plugin, a package."""
    name = found.name
    owner = registry.packages.get(name)
    if owner is not None:
        kind = "an algorithm" if name in registry.algorithms else "a workload"
        raise BadValue(f"NAME {name!r} is {kind} of the package {owner!r} already", hint="choose another name")
    if any(broken.name == name for broken in registry.broken) or name in _entry_points():
        raise BadValue(f"NAME {name!r} is an entry point of an installed package already", hint="choose another name")
    if _installed(found.distribution) or importlib.util.find_spec(found.package) is not None:
        raise BadValue(f"NAME {name!r}: the package {found.distribution!r} is installed", hint="choose another name")


def _refuse_unusable(found: Names) -> None:
    """Refuse a name whose module or class could not be imported, or would hide what the code needs."""
    if keyword.iskeyword(found.module) or keyword.issoftkeyword(found.module):
        raise BadValue(f"NAME {found.name!r} is a word of Python itself", hint=f"say more: {found.name}-descent")
    if found.module in sys.stdlib_module_names or found.module in _HELD:
        raise BadValue(f"NAME {found.name!r} is held by another module", hint=f"say more: {found.name}-descent")
    if found.cls in {*bench.__all__, *vars(builtins)}:
        raise BadValue(
            f"NAME {found.name!r} makes a class {found.cls}, which Python or the interface of bench has already",
            hint=f"say more: {found.name}-descent",
        )


def _entry_points() -> set[str]:
    return {point.name for point in importlib.metadata.entry_points(group=spec.NAME)}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
