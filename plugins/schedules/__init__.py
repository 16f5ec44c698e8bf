"""Schedules: how the learning rate changes over a run."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of the schedules."""
    return [
        Entry(
            name="gradient-norms",
            target="bench.plugins.schedules.gradient_norms:GradientNorms",
            track="schedule",
            paper="arXiv:2310.07831",
            summary="log of the gradients' norms, for the refined schedule; training is not changed",
        ),
        Entry(
            name="linear-decay",
            target="bench.plugins.schedules.linear_decay:LinearDecay",
            track="schedule",
            paper="arXiv:2310.07831",
            summary="short warm-up, then a line to zero",
        ),
        Entry(
            name="refined",
            target="bench.plugins.schedules.refined:Refined",
            track="schedule",
            paper="arXiv:2310.07831",
            summary="the schedule that the gradient norms of an earlier run ask for",
        ),
        Entry(
            name="warmup-cosine",
            target="bench.plugins.schedules.warmup_cosine:WarmupCosine",
            track="schedule",
            paper="arXiv:1608.03983",
            summary="linear warm-up from zero, then a cosine to a tenth of the peak",
        ),
        Entry(
            name="warmup-linear",
            target="bench.plugins.schedules.warmup_linear:WarmupLinear",
            track="schedule",
            paper="arXiv:1810.04805",
            summary="linear warm-up from zero, then a line to a tenth of the peak",
        ),
    ]
