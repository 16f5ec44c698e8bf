"""``bench new-plugin``: a pip package with a small algorithm that runs, passes its tests and waits to be changed."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from bench.entry import TRACKS


@click.command("new-plugin")
@click.argument("name")
@click.option("--track", required=True, metavar="T", help=f"What it is: {', '.join(TRACKS)}.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path(), metavar="DIR", help="Where to; default: here."
)
@click.option("--author", default="", metavar="TEXT", help="Who stands in its licence.")
def command(name: str, track: str, folder: Path, author: str) -> None:
    """Write the pip package bench-NAME: an algorithm with its tests, ready to be measured and then to be changed.

    NAME is what `--plugin` will take: lower-case letters, digits and hyphens. Nothing that exists is touched.
    """
    from bench.registry import Registry
    from bench.scaffold import create, names

    registry = Registry()
    root = create(names(name, registry), track, registry, folder=folder, author=author)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        click.echo(f"wrote {file}")
    place = str(root)
    click.echo("\nNext:\n")
    click.echo(f"    python -m pip install -e {shlex.quote(f'{place}[test]')}")
    click.echo(f"    python -m pytest {shlex.quote(place)}")
    click.echo(f"    bench check {name}")
