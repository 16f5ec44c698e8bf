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
        WorkloadEntry(
            name="compress-llama",
            target="bench.workloads.compress_llama:CompressLlama",
            tiers=(
                "tiny",
                "tiny-2-4",
                "tiny-1-4",
                "tiny-compensation",
                "845k",
                "845k-2-4",
                "845k-1-4",
                "845k-compensation",
                "hf",
                "hf-2-4",
                "hf-compensation",
            ),
            summary="post-training compression of a LLaMA decoder: what each kept ratio costs in perplexity",
        ),
        WorkloadEntry(
            name="ft-glue",
            target="bench.workloads.ft_glue:FtGlue",
            tiers=("mrpc", "cola", "rte", "stsb", "sst2", "qnli", "qqp", "mnli"),
            summary="RoBERTa-base fine-tuned on the tasks of GLUE, one tier each",
        ),
        WorkloadEntry(
            name="merge-subspace",
            target="bench.workloads.merge_subspace:MergeSubspace",
            tiers=("tiny", "tiny-16"),
            summary="experts of tasks in different subspaces, fine-tuned from one network, merged into one",
        ),
        WorkloadEntry(
            name="merge-permuted-digits",
            target="bench.workloads.merge_permuted_digits:MergePermutedDigits",
            tiers=("tiny", "tiny-6"),
            summary="networks that learned the same digits from different initial weights, merged into one",
        ),
        WorkloadEntry(
            name="ft-markov",
            target="bench.workloads.ft_markov:FtMarkov",
            tiers=("tiny", "part"),
            summary="fine-tuning of a small transformer from one mixture of Markov chains to another",
        ),
        WorkloadEntry(
            name="ft-teacher",
            target="bench.workloads.ft_teacher:FtTeacher",
            tiers=("rank-2", "smallest", "singular-values", "shard", "hadamard", "dense"),
            summary="fine-tuning towards a copy of the model whose weights were shifted in a known way",
        ),
    ]
