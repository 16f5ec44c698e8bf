"""``bench doctor``: is this machine fit to measure on, do the plugins import, are the results readable?"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click

from bench.commands._options import results_option
from bench.errors import BenchError


@click.command("doctor")
@results_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(ctx: click.Context, results: Path, form: str) -> None:
    """Check this machine, the plugins and the results; exit code 1 if something is broken.

    Of the results everything that is damaged is listed, and nothing is changed: bench repair does that.
    """
    rows = []
    for state, what, found in chain(_machine(), _plugins(), _results(results)):
        rows.append({"state": state, "what": what, "found": found})
        if form == "table":
            click.echo(f"{state:<4}  {what:<10} {found}")
    if form == "json":
        click.echo(json.dumps(rows, indent=1))
    ctx.exit(1 if any(row["state"] == "bad" for row in rows) else 0)


Finding = tuple[str, str, str]


def _machine() -> Iterator[Finding]:
    import torch

    from bench.calibration import Calibration
    from bench.devices import detect
    from bench.nvml_probe import NvmlProbe
    from bench.provenance import collect

    facts = collect("cpu")
    yield "ok", "versions", f"bench {facts.bench_version}, python {facts.python_version}, torch {facts.torch_version}"
    for device in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]:
        found = detect(device)
        name = found.name if found.listed else f"{found.name} (not listed: ranked by steps only)"
        yield "ok" if found.listed else "warn", device, f"device class {name}; {found.hardware}"
    with NvmlProbe.start("cuda:0" if torch.cuda.is_available() else "cpu") as probe:
        probe.ready()
        reading = probe.finish()
    yield "ok", "nvml", f"memory: {reading.nvml_source}; energy: {reading.energy_source}"
    calibration = Calibration("cpu")
    for _ in range(5):
        calibration.measure()
    columns = calibration.columns()
    spread = max(columns["calibration_matmul_spread"], columns["calibration_copy_spread"])
    busy = f"slowest of five calibrations {spread:.2f} times the fastest"
    yield (
        "warn" if calibration.contended else "ok",
        "load",
        f"{busy}{': busy, times will not rank' if calibration.contended else ''}",
    )


def _plugins() -> Iterator[Finding]:
    from bench.guards.names import kept
    from bench.registry import Registry

    registry = Registry()
    for broken in registry.broken:
        yield "bad", "plugin", f"{broken.name} (package {broken.package}): {broken.reason}"
    fine = 0
    for name in (*registry.algorithms, *registry.workloads):
        try:
            with kept():  # a module that patches what everybody shares must not change how the rest is looked at
                registry.algorithm_class(name) if name in registry.algorithms else registry.workload_class(name)
            fine += 1
        except BenchError as error:
            yield "bad", "plugin", error.message
    yield "ok", "plugins", f"{fine} import"


def _results(results: Path) -> Iterator[Finding]:
    from bench.inspection import inspect
    from bench.store import MARKER, Store, looks_like_results

    if not (results / MARKER).exists() and not looks_like_results(results):
        yield "ok", "results", f"none yet in {str(results)!r}"
        return
    try:
        findings = inspect(results)
    except BenchError as error:
        yield "bad", "results", error.message
        return
    damage = [finding for finding in findings if finding.damaged]
    for finding in damage:
        yield "bad", "results", f"{finding.path}: {finding.what} (repair: {finding.remedy})"
    for note, count in Counter(finding.what for finding in findings if not finding.damaged).items():
        first = next(finding.path for finding in findings if finding.what == note)
        yield "ok", "results", f"{first}{f' and {count - 1} more' if count > 1 else ''}: {note}"
    if damage:
        yield "bad", "results", f"{len(damage)} things are damaged: bench repair --results {results}"
    else:
        store = Store(results)
        yield "ok", "results", f"{len(store.trials())} trials in {str(results)!r}"
        if open_trials := store.unfinished():
            words = f"{len(open_trials)} trials have no measurement yet: bench resume --results {results}"
            yield "warn", "results", words
    free = shutil.disk_usage(results).free
    yield "ok" if free > 1e9 else "warn", "disk", f"{free / 1e9:.1f} GB free"
