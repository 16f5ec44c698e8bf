"""``bench report``: everything that is recorded, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bench.report.write import Form


@click.command("report")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Where to write the page.")
@click.option(
    "--results",
    "folders",
    type=click.Path(path_type=Path),
    multiple=True,
    default=[Path("results")],
    show_default=True,
    metavar="DIR",
    help="Folder of results; give it again for more folders.",
)
@click.option("--format", "form", type=click.Choice(["html", "md"]), help="Default: as FILE ends.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=True),
    metavar="DIR",
    help="Write every figure here too, as SVG and PNG.",
)
def command(out: Path, folders: tuple[Path, ...], form: Form | None, figures: Path | None) -> None:
    """Write a page that shows what is recorded: boards, figures, claims and where all of it comes from.

    The HTML page is one file that loads nothing, so it can be sent, archived or opened offline.
    """
    from bench.report import write_report

    write_report(out, folders, form=form, figures=figures)
    click.echo(f"wrote {out}", err=True)
