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
            name="auon",
            target=f"{home}.auon:AuON",
            track=track,
            paper="arXiv:2509.24320",
            summary="momentum divided by its norm and by the root mean square of a hyperbolic cosine",
        ),
        Entry(
            name="auon-hybrid",
            target=f"{home}.auon_hybrid:AuONHybrid",
            track=track,
            paper="arXiv:2509.24320",
            summary="AuON after a Newton-Schulz iteration",
        ),
        Entry(
            name="conda",
            target=f"{home}.conda:Conda",
            track=track,
            paper="arXiv:2509.24218",
            summary="Adam whose second moment is tracked in the singular basis of the momentum",
        ),
        Entry(
            name="dct-adamw",
            target=f"{home}.dct_adamw:DctAdamW",
            track=track,
            paper="arXiv:2505.17967",
            summary="Adam on the columns of a cosine basis that fit each gradient, with error feedback",
        ),
        Entry(
            name="diffgrad",
            target=f"{home}.diffgrad:DiffGrad",
            track=track,
            paper="arXiv:1909.11015",
            summary="Adam whose step is halved where the gradient hardly changes",
        ),
        Entry(
            name="fira",
            target=f"{home}.fira:Fira",
            track=track,
            paper="arXiv:2410.01623",
            summary="GaLore plus the rest of each gradient, scaled by Adam's ratio in the subspace",
        ),
        Entry(
            name="frugal",
            target=f"{home}.frugal:Frugal",
            track=track,
            paper="arXiv:2411.07837",
            summary="Adam for a part of the weights at a time, sign descent without state for the rest",
        ),
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
            name="gradnorm-lorp",
            target=f"{home}.gradnorm_lorp:GradNormLoRP",
            track=track,
            paper="arXiv:2412.19616",
            summary="weights as magnitude times normalised direction, whose gradient is projected",
        ),
        Entry(
            name="lion",
            target=f"{home}.lion:Lion",
            track=track,
            paper="arXiv:2302.06675",
            summary="step by the sign of an interpolation between momentum and gradient",
        ),
        Entry(
            name="m-fac",
            target=f"{home}.m_fac:MFAC",
            track=track,
            paper="arXiv:2107.03356",
            summary="the exact inverse of an empirical Fisher matrix of the last gradients, never formed",
        ),
        Entry(
            name="mkor",
            target=f"{home}.mkor:MKOR",
            track=track,
            paper="arXiv:2306.01685",
            summary="Kronecker factors kept as inverses by rank-one updates precondition the gradients of LAMB",
        ),
        Entry(
            name="mkor-hybrid",
            target=f"{home}.mkor_hybrid:MKORHybrid",
            track=track,
            paper="arXiv:2306.01685",
            summary="MKOR that falls back to LAMB once the loss falls too slowly",
        ),
        Entry(
            name="muon",
            target=f"{home}.muon:Muon",
            track=track,
            paper="Jordan et al., 2024",
            summary="orthogonalised momentum for hidden matrices, AdamW for the rest",
        ),
        Entry(
            name="normuon",
            target=f"{home}.normuon:NorMuon",
            track=track,
            paper="arXiv:2510.05491",
            summary="Muon with every row of the orthogonalised step divided by its running root mean square",
        ),
        Entry(
            name="owlore",
            target=f"{home}.owlore:OwLore",
            track=track,
            paper="arXiv:2405.18380",
            summary="GaLore in a few blocks at a time, drawn by their share of outliers",
        ),
        Entry(
            name="q-galore",
            target=f"{home}.q_galore:QGaLore",
            track=track,
            paper="arXiv:2407.08296",
            summary="GaLore with 8-bit weights and moments, 4-bit projectors and ever rarer renewals",
        ),
        Entry(
            name="sso",
            target=f"{home}.sso:SSO",
            track=track,
            paper="arXiv:2302.02607",
            summary="several steps on a surrogate from one gradient of the loss at the outputs",
        ),
        Entry(
            name="tpsgd",
            target=f"{home}.tpsgd:TpSGD",
            track=track,
            paper="arXiv:2208.08503",
            summary="each layer learns a random projection of the label, without back-propagation",
        ),
    ]
