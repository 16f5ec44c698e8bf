"""Optimizers: how a gradient becomes a step."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of the optimizers."""
    home = "bench.plugins.optimizers"
    galore, track = "arXiv:2403.03507", "optimizer"
    return [
        Entry(
            name="galore",
            target=f"{home}.galore:GaLore",
            track=track,
            paper=galore,
            summary="Adam on a low-rank projection of each gradient matrix",
        ),
        Entry(
            name="galore-8bit",
            target=f"{home}.galore_8bit:GaLore8bit",
            track=track,
            paper=galore,
            summary="GaLore whose Adam moments are stored in block-wise 8-bit",
        ),
        Entry(
            name="galore-per-layer",
            target=f"{home}.galore_per_layer:GaLorePerLayer",
            track=track,
            paper=galore,
            summary="GaLore that updates each parameter inside the backward pass and frees its gradient",
        ),
        Entry(
            name="lion",
            target=f"{home}.lion:Lion",
            track=track,
            paper="arXiv:2302.06675",
            summary="step by the sign of an interpolation between momentum and gradient",
        ),
        Entry(
            name="muon",
            target=f"{home}.muon:Muon",
            track=track,
            paper="Jordan et al., 2024",
            summary="orthogonalised momentum for hidden matrices, AdamW for the rest",
        ),
    ]
