"""Make the sources in a bundle importable: a private folder that a worker, and nobody else, finds before others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import spec
from bench.bundle.contents import Bundle
from bench.bundle.layout import source_file
from bench.errors import BadBundle

ENTRY = "bench_bundle_entry"
"""The module that lists what the folder provides; it is ours."""


def write_site(bundle: Bundle, names: Sequence[str], taken: Sequence[str], site: Path) -> list[str]:
    """Write the sources of the algorithms ``names`` into ``site``; return the entry points that a worker may load.

    ``taken`` are modules that must stay as they are installed: that of the workload, those of other algorithms.

    Raises:
        BadBundle: a source would take the place of something that is no version of this plugin.
    """
    roots = {module.partition(".")[0] for name in names for module in bundle.sources[name]}
    for root in sorted(roots):
        _refuse_other(root, taken)
    for name in names:
        for module, source in bundle.sources[name].items():
            path = site / Path(*_file(bundle, name, module).split("/")[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)
    _write_entry(bundle, names, site)
    points = importlib.metadata.entry_points(group=spec.NAME)
    return sorted({point.name for point in points if point.module.partition(".")[0] not in roots} | {ENTRY})


def _file(bundle: Bundle, name: str, module: str) -> str:
    package = source_file(name, module, package=True)
    return package if package in bundle.manifest.files else source_file(name, module, package=False)


def _refuse_other(root: str, taken: Sequence[str]) -> None:
    """Refuse a source whose package is the framework, a library, or the home of something that must not change."""
    if root == "bench":
        raise BadBundle(
            "the source is part of bench itself and cannot run beside it",
            hint="install the bench in which it is so, and leave out --from-snapshot",
        )
    if root in {module.partition(".")[0] for module in taken}:
        raise BadBundle(
            f"the source would replace the package {root!r}, which also provides what it is measured by",
            hint="install the plugin, and leave out --from-snapshot",
        )
    plugins = {point.module.partition(".")[0] for point in importlib.metadata.entry_points(group=spec.NAME)}
    known = root in sys.stdlib_module_names or importlib.util.find_spec(root) is not None
    if root == ENTRY or (known and root not in plugins):
        raise BadBundle(f"the source would replace the installed package {root!r}, which is no plugin")


def _write_entry(bundle: Bundle, names: Sequence[str], site: Path) -> None:
    facts: Mapping[str, str] = {name: bundle.manifest.algorithms[name].target for name in names}
    entries = ", ".join(
        f"Entry(name={name!r}, target={target!r}, track='optimizer', paper='', summary='from a bundle')"
        for name, target in facts.items()
    )
    lines = ["from bench import Entry, hookimpl", "", "@hookimpl", "def bench_algorithms():", f"    return [{entries}]"]
    (site / f"{ENTRY}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    info = site / f"{ENTRY}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {ENTRY}\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{spec.NAME}]\n{ENTRY} = {ENTRY}\n", encoding="utf-8")
