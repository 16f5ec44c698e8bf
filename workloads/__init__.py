"""The built-in workloads, one file each. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import WorkloadEntry, hookimpl

_LLAMA_TIERS = ("tiny", "9m", "20m", "60m", "130m", "350m", "1b", "7b")


@hookimpl
def bench_workloads() -> list[WorkloadEntry]:
    """Return the entries of the built-in workloads."""
    return [
        WorkloadEntry(
            name="gpt2-fineweb",
            target="bench.workloads.gpt2_fineweb:Gpt2FineWeb",
            tiers=("tiny", "124m"),
            summary="the NanoGPT speed run: a GPT-2-sized model on FineWeb to a validation loss of 3.28",
        ),
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
        WorkloadEntry(
            name="resnet-cifar10",
            target="bench.workloads.resnet_cifar10:ResNetCifar10",
            tiers=("tiny", "11m"),
            summary="residual networks on small images: ResNet-18 on CIFAR-10, a small one on digits",
        ),
        WorkloadEntry(
            name="llama-c4-mixture",
            target="bench.workloads.llama_c4_mixture:LlamaC4Mixture",
            tiers=_LLAMA_TIERS,
            summary="the same decoder on several sources of documents with unequal weights, for selecting data",
        ),
    ]
