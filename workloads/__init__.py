"""The built-in workloads, one file each. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import WorkloadEntry, hookimpl

_LLAMA_TIERS = ("tiny", "9m", "20m", "60m", "130m", "350m", "1b", "7b")


@hookimpl
def bench_workloads() -> list[WorkloadEntry]:
    """Return the entries of the built-in workloads."""
    return [
        WorkloadEntry(
            name="llama-c4",
            target="bench.workloads.llama_c4:LlamaC4",
            tiers=_LLAMA_TIERS,
            summary="LLaMA decoder pre-training on C4, fp32 weights and states",
        ),
        WorkloadEntry(
            name="llama-c4-bf16",
            target="bench.workloads.llama_c4_bf16:LlamaC4Bf16",
            tiers=_LLAMA_TIERS,
            summary="the same in pure bf16: weights, gradients and states, no master copy",
        ),
    ]
