"""``python -m bench.bundle.make_intervals RESULTS...``: write the reference intervals beside the workloads."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.bundle.intervals import SUFFIX, Interval, derive, render
from bench.errors import BenchError
from bench.registry import Registry
from bench.store import Store


def make(registry: Registry, folders: Sequence[Path]) -> dict[Path, str]:
    """Return, by its path, the text of each file that follows from the results in ``folders``.

    Where several folders hold the same tier and protocol, the one on the device class of the tier counts; among equals
    the first.
    """
    command = shlex.join(["python", "-m", "bench.bundle.make_intervals", *(folder.as_posix() for folder in folders)])
    tables = {folder.as_posix(): Store(folder).trials() for folder in folders}
    by_path: dict[Path, list[Interval]] = {}
    for name in sorted(registry.workloads):
        workload = registry.workload_class(name)
        found: dict[tuple[str, ...], Interval] = {}
        for folder, trials in tables.items():
            for one in derive(workload, trials, folder):
                key = (one.tier, one.protocol, one.algorithm)
                meant = one.device_class == workload.tiers[one.tier].device_class
                if key not in found or (meant and found[key].device_class != one.device_class):
                    found[key] = one
        if found:
            module = registry.workloads[name].target.partition(":")[0]
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.origin is not None:
                path = Path(spec.origin).with_suffix("").with_suffix(SUFFIX)
                by_path.setdefault(path, []).extend(found[key] for key in sorted(found))
    return {path: render(intervals, command) for path, intervals in by_path.items()}


def main(arguments: Sequence[str]) -> int:
    """Write the files; print their paths."""
    if not arguments:
        sys.stderr.write("name the results folders: python -m bench.bundle.make_intervals RESULTS...\n")
        return 2
    try:
        files = make(Registry(), [Path(argument) for argument in arguments])
    except BenchError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
