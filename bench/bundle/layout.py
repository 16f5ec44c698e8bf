"""What lies where in a bundle, and its manifest.

manifest.json                          everything else with its SHA-256 and size, and what was packed
trials.parquet, curves.parquet         the rows of all trials, as a results folder has them
runs/<trial id>/trial.json             what was asked of the trial
runs/<trial id>/events.jsonl           what happened: the truth from which the rows are derived
protocols/<name>-<hash>.json           the rules of each protocol
sources/<algorithm>/<module path>.py   the modules that the source hash of an algorithm is taken over
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import BadBundle

FORMAT = 1
MANIFEST, TRIALS, CURVES = "manifest.json", "trials.parquet", "curves.parquet"

ALGORITHM = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}"
"""The names of algorithms that can be packed: they name folders."""

_PATTERNS = (
    re.compile(r"manifest\.json|trials\.parquet|curves\.parquet"),
    re.compile(r"runs/[0-9a-f]{20}/(trial\.json|events\.jsonl)"),
    re.compile(r"protocols/[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}-[0-9a-f]{12}\.json"),
    re.compile(rf"sources/{ALGORITHM}(/[A-Za-z_][A-Za-z0-9_]*)+\.py"),
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class File(_Strict):
    """One member."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Range(_Strict):
    """What tuning may search of one hyperparameter: two ends, or the values of a choice."""

    name: Line
    kind: Literal["log", "linear", "choice"]
    values: Annotated[tuple[bool | int | float | str | None, ...], Field(min_length=1, max_length=1000)]


class Source(_Strict):
    """An algorithm as it was installed when it was packed: where its class is, and what the class declares."""

    target: Line
    package: Line
    version: Line
    sha256: Sha256
    defaults: dict[Line, Any]
    search: tuple[Range, ...]  # in the order of the fields: the first coordinate of a point belongs to the first


class Manifest(_Strict):
    """The first member of a bundle; ``algorithms`` has the source of every algorithm that takes part."""

    bench: Literal["bundle"]
    format: int
    created_at: Line
    bench_version: Line
    schema_version: int
    plugin: Line
    algorithms: dict[Line, Source]
    files: dict[Line, File]


def is_known(name: str) -> bool:
    """Return whether a bundle has a member of this name."""
    return any(pattern.fullmatch(name) for pattern in _PATTERNS)


def trial_file(trial_id: str) -> str:
    """Return the name of the member with what was asked of a trial."""
    return f"runs/{trial_id}/trial.json"


def events_file(trial_id: str) -> str:
    """Return the name of the member with the event log of a trial."""
    return f"runs/{trial_id}/events.jsonl"


def source_file(algorithm: str, module: str, *, package: bool) -> str:
    """Return the name of the member with the source of ``module``, which may be a ``package``."""
    tail = "/__init__" if package else ""
    return f"sources/{algorithm}/{module.replace('.', '/')}{tail}.py"


def module_of(name: str) -> tuple[str, str]:
    """Return algorithm and module of the member ``sources/...``."""
    _, algorithm, path = name.removesuffix(".py").split("/", 2)
    return algorithm, path.removesuffix("/__init__").replace("/", ".")


def sources_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, by algorithm and module, the members that hold sources; a module that lies in two raises."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if not name.startswith("sources/"):
            continue
        algorithm, module = module_of(name)
        modules = found.setdefault(algorithm, {})
        if module in modules or any(keyword.iskeyword(part) for part in module.split(".")):
            raise BadBundle(f"{name} is no module, or the module {module} is there twice")
        modules[module] = name
    return found
