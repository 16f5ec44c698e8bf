"""The page: every section, in its order."""

from __future__ import annotations

from pathlib import Path

from bench.report.algorithms import algorithms
from bench.report.claims import claims
from bench.report.document import Page
from bench.report.evidence import Evidence
from bench.report.matrix import matrix
from bench.report.origins import provenance
from bench.report.overview import overview
from bench.report.pictures import Drawer
from bench.report.text import listing, plural
from bench.report.workloads import workloads


def build(evidence: Evidence, figures: Path | None = None) -> Page:
    """Return the report of ``evidence``; with ``figures`` every figure is written into that folder too."""
    draw = Drawer(evidence=evidence, folder=figures)
    classes = sorted(evidence.trials["device_class"].dropna().unique())
    where = f" on {listing(classes)}" if len(classes) <= 3 else f" on {len(classes)} classes of device"
    return Page(
        title="Training algorithms, measured",
        subtitle=f"{plural(len(evidence.trials), 'trial')} of {plural(len(evidence.algorithms), 'algorithm')}{where}",
        sections=[
            overview(evidence, draw),
            workloads(evidence, draw),
            algorithms(evidence, draw),
            matrix(evidence),
            claims(evidence),
            provenance(evidence),
        ],
    )
