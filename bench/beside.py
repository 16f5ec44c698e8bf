"""Files that a package keeps beside its modules, found without importing one: claims, intervals of references.

For ``package.module`` the file is the resource ``module.SUFFIX`` of ``package``; where the module is itself a package,
the resource lies inside it. Light on purpose: ``bench list`` counts claims.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import module_from_spec

from bench.registry import locate

CLAIMS = ".claims.toml"
"""What the name of an algorithm's claims ends in."""

_HEADER = re.compile(rb"^[ \t]*\[\[[ \t]*claim[ \t]*\]\]", re.MULTILINE)


def beside(module: str, suffix: str) -> Traversable | None:
    """Return the file beside ``module`` that has its name and ``suffix``, if there is one, without importing it.

    A module outside any package has none.
    """
    package, _, name = module.rpartition(".")
    found = locate(module)
    if found is not None and found.submodule_search_locations is not None:
        package = module
    spec = locate(package) if package else None
    if spec is None:
        return None
    file = resources.files(module_from_spec(spec)).joinpath(f"{name}{suffix}")
    return file if file.is_file() else None


def claims_beside(target: str) -> int | None:
    """Return how many claims lie beside ``target``, the ``package.module:Class`` of an algorithm.

    The headers are counted and nothing is validated, because parsing every file would take a listing as long as all the
    rest of it. None stands for a file that cannot be read: the ledger says what is wrong with it.
    """
    try:
        file = beside(target.partition(":")[0], CLAIMS)
        return 0 if file is None else len(_HEADER.findall(file.read_bytes()))
    except Exception:  # noqa: BLE001 - a stranger's package may raise anything when its data is opened
        return None
