"""The built-in plugins for fine-tuning, one file each. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    return [
        Entry(
            name="bone",
            target="bench.plugins.peft.bone:Bone",
            track="peft",
            paper="arXiv:2409.15371",
            summary="each block row of a weight times one small matrix, plus that matrix (block-affine, 'bat')",
        ),
        Entry(
            name="full-finetuning",
            target="bench.plugins.peft.full_finetuning:FullFineTuning",
            track="peft",
            paper="arXiv:1711.05101",
            summary="AdamW over everything that the workload leaves trainable",
        ),
        Entry(
            name="linear-probe",
            target="bench.plugins.peft.linear_probe:LinearProbe",
            track="peft",
            paper="arXiv:1610.01644",
            summary="AdamW over the head alone, everything else frozen",
        ),
        Entry(
            name="lora",
            target="bench.plugins.peft.lora:Lora",
            track="peft",
            paper="arXiv:2106.09685",
            summary="a low-rank matrix added to each frozen weight",
        ),
        Entry(
            name="miss",
            target="bench.plugins.peft.miss:Miss",
            track="peft",
            paper="arXiv:2409.15371",
            summary="one small matrix tiled along the inputs of each frozen weight (the later default of Bone)",
        ),
        Entry(
            name="pissa",
            target="bench.plugins.peft.pissa:Pissa",
            track="peft",
            paper="arXiv:2404.02948",
            summary="LoRA started from the principal part of each weight, which the frozen weight loses",
        ),
        Entry(
            name="rslora",
            target="bench.plugins.peft.rslora:RsLora",
            track="peft",
            paper="arXiv:2312.03732",
            summary="LoRA with a scale that falls with the root of the rank, so that high ranks learn more",
        ),
        Entry(
            name="svfit",
            target="bench.plugins.peft.svfit:SVFit",
            track="peft",
            paper="arXiv:2409.05926",
            summary="the singular values of each weight trained, the singular vectors frozen",
        ),
    ]
