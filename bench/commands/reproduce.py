"""``bench reproduce``: run chosen trials of a bundle again and compare."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands._print import echo, show_table

if TYPE_CHECKING:
    from bench.bundle import Quantity, Reproduction

EXITS = {"reproduced": 0, "not reproduced": 1, "undecided": 4, None: 1}
"""The exit code of each decision; of a bundle that was rejected, too."""


@click.command("reproduce")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trials", "number", type=click.IntRange(2, 1000), metavar="N", help="So many seeds; 3 by default.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), metavar="S", help="This seed; more than once.")
@click.option("--salt", default="", metavar="TEXT", help="A word of your own that enters the choice of seeds.")
@click.option("--workload", metavar="W", help="Only comparisons on this workload.")
@click.option("--tier", metavar="T", help="Only those on this tier.")
@click.option("--protocol", metavar="NAME", help="Only those under this protocol.")
@click.option("--device", metavar="cpu|cuda[:i]", help="Where to run; default: the kind of device of the bundle.")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="The data, if they are not public.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("reproduced"),
    show_default=True,
    help="Folder to run in.",
)
@click.option("--from-snapshot", is_flag=True, help="Run the SOURCE IN THE BUNDLE where it is not installed.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(ctx: click.Context, /, file: Path, form: str, results: Path, **options: Any) -> None:
    """Run some trials of the bundle FILE again, the reference's beside them, and compare the intervals.

    The bundle is verified first; one that is rejected is not run. Seeds are chosen by the bundle's hash, of the
    comparison that costs least. THIS EXECUTES the algorithm: as it is installed, if its source is the one that was
    measured, or with --from-snapshot the source in the bundle, which is a stranger's code. It runs with a bare
    environment, a private home and, where the system allows it, without a network; that is no protection against code
    that means harm. Read it first.

    Steps to the target decide, and ratios of times to the reference where both machines were free; so a slower
    machine's bundle is reproduced as well.

    Exit codes: 0 reproduced, 1 not reproduced or rejected, 4 undecided, 2 user error.
    """
    from bench.bundle import SEEDS, Wanted, reproduce
    from bench.errors import BadValue
    from bench.provenance import command_line

    seeds, number, directory = options.pop("seeds"), options.pop("number"), options.pop("data_dir")
    if seeds and number is not None:
        raise BadValue("--trials and --seed exclude each other", hint="--seed 3 --seed 5 runs these two")
    wanted = Wanted(seeds=seeds, number=number or SEEDS, directory=directory, command_line=command_line(), **options)
    found = reproduce(file, results, wanted, lambda line: echo(line, err=True))
    if form == "json":
        click.echo(json.dumps(found.record(), indent=1))
    else:
        _show(found, results)
    ctx.exit(EXITS[found.decision])


def _show(found: Reproduction, results: Path) -> None:
    if found.decision is None:
        echo("not run, since verification rejects it:")
        for reason in found.verified.reasons:
            echo(f"  {reason}")
        return
    if found.quantities:
        show_table([_row(one) for one in found.quantities], "table", fold=["why", "compared"])
    facts = found.facts
    echo(f"\n{facts['comparison']}: {facts['setting']}, seeds {', '.join(map(str, facts['seeds']))}")
    echo(f"theirs: {facts['theirs']['device_class']}; ours: {facts['ours']['device_class']}")
    failed = [trial for trial in facts["trials"] if trial["outcome_ours"] is None]
    if failed:
        echo(f"{len(failed)} of {len(facts['trials'])} trials have no measurement here; see {results}/runs")
    more = [one.seeds_needed for one in found.quantities if one.seeds_needed is not None]
    if found.decision == "undecided" and more:
        echo(f"about {max(more)} seeds would decide: --trials {max(more)}")
    echo(f"\n{found.decision}")


def _row(one: Quantity) -> dict[str, Any]:
    return {
        "quantity": one.name,
        "theirs": _text(one.theirs),
        "ours": _text(one.ours),
        "compared": _text(one.compared),
        "": one.decision,
        "why": one.why,
    }


def _text(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return "-" if math.isnan(value) else f"{value:.4g} [{low:.4g}, {high:.4g}]"
