"""``bench pack``: everything that was measured of one algorithm as one file that others can check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands._options import results_option
from bench.commands._print import bytes_text, echo

if TYPE_CHECKING:
    from bench.bundle import Bundle


@click.command("pack")
@click.option("--plugin", required=True, metavar="P", help="The algorithm.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The file.")
@click.option("--workload", metavar="W", help="Only its trials on this workload.")
@click.option("--tier", metavar="T", help="Only those on this tier.")
@click.option("--protocol", metavar="NAME", help="Only those under this protocol.")
@results_option
def command(
    plugin: str, out: Path, workload: str | None, tier: str | None, protocol: str | None, results: Path
) -> None:
    """Pack all trials of an algorithm, and of the reference it is compared with, into one file.

    The file holds records, event logs, the rules of the protocols, and the source of every algorithm that took part.
    Of a comparison nothing can be left out: every seed, every point and every failure is in it. Check it yourself
    before you send it: bench verify FILE.
    """
    from bench.bundle import pack
    from bench.store import Store

    bundle = pack(Store(results), plugin, out, workload=workload, tier=tier, protocol=protocol)
    for line in _contents(bundle):
        echo(line)
    echo(f"wrote {out}: {bytes_text(bundle.size_bytes)}, SHA-256 {bundle.sha256}")
    echo(f"next: bench verify {out}")


def _contents(bundle: Bundle) -> Iterator[str]:
    """Say what is in the bundle: trials by comparison and algorithm, sources, folders that it names."""
    counts: dict[tuple[str, ...], list[str]] = {}
    for run in bundle.runs:
        trial = run.trial
        key = (trial.workload, trial.tier, trial.protocol.name, trial.device_class, trial.algorithm.name)
        counts.setdefault(key, []).append(str(run.row["outcome"]))
    for (workload, tier, protocol, device, algorithm), outcomes in sorted(counts.items()):
        ends = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes)))
        yield f"{workload} {tier}, {protocol}, {device}: {len(outcomes)} trials of {algorithm} ({ends})"
    for name, modules in sorted(bundle.sources.items()):
        yield f"source of {name}: {', '.join(sorted(modules))}"
    named = {run.trial.data.directory for run in bundle.runs} | {
        m for run in bundle.runs for m in run.trial.data.models
    }
    for folder in sorted(filter(None, named)):
        yield f"note: the records name the folder {folder}"
