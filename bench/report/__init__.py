"""The report: one self-contained page about everything that a store holds, as HTML or Markdown.

    from bench.report import write_report
    write_report(Path("report.html"), [Path("results")])

:mod:`~bench.report.evidence` reads the stores and derives boards and standings, the modules of the sections turn them
into a :class:`~bench.report.document.Page` of plain texts, tables and figures, and :mod:`~bench.report.render` is the
only one that knows HTML or Markdown.
"""

from __future__ import annotations

from bench.report.document import Page
from bench.report.evidence import Evidence, gather
from bench.report.page import build
from bench.report.render import html, markdown
from bench.report.write import write_report

__all__ = ["Evidence", "Page", "build", "gather", "html", "markdown", "write_report"]
