"""Baselines: the yardsticks that every other algorithm is compared with."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of the baselines."""
    return [
        Entry(
            name="adafactor",
            target="bench.plugins.baselines.adafactor:Adafactor",
            track="optimizer",
            paper="arXiv:1804.04235",
            summary="momentum over a second moment kept as row and column averages",
        ),
        Entry(
            name="adamw",
            target="bench.plugins.baselines.adamw:AdamW",
            track="optimizer",
            paper="arXiv:1711.05101",
            summary="Adam with decoupled weight decay",
        ),
        Entry(
            name="apollo",
            target="bench.plugins.baselines.apollo:Apollo",
            track="optimizer",
            paper="arXiv:2412.05270",
            summary="raw gradient, each channel scaled as Adam scales it in a random projection",
        ),
        Entry(
            name="lamb",
            target="bench.plugins.baselines.lamb:LAMB",
            track="optimizer",
            paper="arXiv:1904.00962",
            summary="Adam's step of each tensor, rescaled to the tensor's length",
        ),
        Entry(
            name="nadamw",
            target="bench.plugins.baselines.nadamw:NAdamW",
            track="optimizer",
            paper="arXiv:2306.07179",
            summary="AdamW with Nesterov momentum, the baseline of AlgoPerf",
        ),
        Entry(
            name="sam",
            target="bench.plugins.baselines.sam:SAM",
            track="optimizer",
            paper="arXiv:2010.01412",
            summary="AdamW with the gradient of the worst point nearby, two passes per step",
        ),
        Entry(
            name="schedule-free",
            target="bench.plugins.baselines.schedule_free:ScheduleFree",
            track="optimizer",
            paper="arXiv:2405.15682",
            summary="AdamW that averages its iterates and needs no decay of the learning rate",
        ),
        Entry(
            name="sgd",
            target="bench.plugins.baselines.sgd:SGD",
            track="optimizer",
            paper="Sutskever et al., ICML 2013",
            summary="stochastic gradient descent with Nesterov momentum",
        ),
        Entry(
            name="shampoo",
            target="bench.plugins.baselines.shampoo:Shampoo",
            track="optimizer",
            paper="arXiv:2309.06497",
            summary="gradient between inverse roots of its covariances, with Adam's step length",
        ),
        Entry(
            name="soap",
            target="bench.plugins.baselines.soap:SOAP",
            track="optimizer",
            paper="arXiv:2409.11321",
            summary="Adam in the eigenbasis of Shampoo's preconditioner",
        ),
    ]
