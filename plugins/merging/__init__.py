"""The built-in plugins that merge trained models, one file each. This module is light: listing imports no torch."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    return [
        Entry(
            name="average",
            target="bench.plugins.merging.average:Average",
            track="merging",
            paper="arXiv:2203.05482",
            summary="the plain average of all weights",
        ),
        Entry(
            name="fisher-merging",
            target="bench.plugins.merging.fisher_merging:FisherMerging",
            track="merging",
            paper="arXiv:2111.09832",
            summary="average weighted by how much each model's predictions depend on a weight",
        ),
        Entry(
            name="opcm",
            target="bench.plugins.merging.opcm:Opcm",
            track="merging",
            paper="arXiv:2501.09522",
            summary="models one by one, each projected off what is merged already",
        ),
        Entry(
            name="task-arithmetic",
            target="bench.plugins.merging.task_arithmetic:TaskArithmetic",
            track="merging",
            paper="arXiv:2212.04089",
            summary="the sum of all task vectors, scaled, on the common start",
        ),
        Entry(
            name="ties",
            target="bench.plugins.merging.ties:Ties",
            track="merging",
            paper="arXiv:2306.01708",
            summary="task vectors trimmed, signs elected, those who agree averaged",
        ),
        Entry(
            name="weight-matching",
            target="bench.plugins.merging.weight_matching:WeightMatching",
            track="merging",
            paper="arXiv:2209.04836",
            summary="hidden units reordered until networks agree, then averaged",
        ),
    ]
