"""What a tier needs in memory, counted on the meta device: nothing is allocated, so any size takes seconds.

The model is built, one backward pass and one optimizer step are taken on tensors without storage, and what exists
afterwards is counted; so the figures follow from what the code does and not from a formula about it. Activations,
workspaces and the allocator's rounding are not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.algorithm import Algorithm
from bench.assembly import assemble
from bench.context import Run
from bench.errors import BenchError, SlotFault, SlotMismatch
from bench.probes import optimizer_state_bytes
from bench.workload import Precision, TrainingWorkload, Workload

PRECISIONS: tuple[tuple[Precision, str], ...] = (("bf16", "pure bf16"), ("fp32", "fp32 weights and states"))
"""The precisions that estimates are made for, with their names for people."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of one algorithm on one tier in one precision.

    ``weights_bytes`` are the parameters and the buffers that an adaptation adds. ``gradients_bytes`` is what is alive
    at once: with updates inside the backward pass, the largest single gradient.
    """

    precision: str
    parameters: int
    trainable_parameters: int
    weights_bytes: int
    gradients_bytes: int
    states_bytes: int

    @property
    def weights_and_states_bytes(self) -> int:
        """What papers usually call the memory of a method."""
        return self.weights_bytes + self.states_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, gradients and optimizer states."""
        return self.weights_bytes + self.gradients_bytes + self.states_bytes


def estimate(algorithms: Sequence[Algorithm], workload: Workload, precision: Precision) -> Estimate:
    """Count the bytes of ``workload`` trained by ``algorithms`` (the first one under test, then the fillers)."""
    if not isinstance(workload, TrainingWorkload):
        raise SlotMismatch(f"{workload.name!r} is not trained: what its algorithms need is measured when they run")
    meta = torch.device("meta")
    run = Run(seed=0, steps=workload.tier.steps, device=meta, precision=precision)
    model = workload.model(0, meta)
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    parts = assemble(algorithms, workload, run, model)
    try:
        workload.loss(parts.model, workload.example(meta)).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in parts.model.parameters() if p.grad is not None]
        largest = max((p.numel() * p.element_size() for p in parts.model.parameters() if p.requires_grad), default=0)
        gradients_bytes = max(sum(g.numel() * g.element_size() for g in gradients), largest)
        if parts.closure:
            parts.optimizer.step(lambda: 0.0)
        else:
            parts.optimizer.step()
    except BenchError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SlotFault(
            f"{algorithms[0].name!r} cannot be estimated without data: {type(error).__name__}: {reason}",
            hint="its step must run on the meta device: no .item(), no branch on a tensor's value",
        ) from error
    parameters = list(parts.model.parameters())
    added = [] if parts.base_buffers is None else [b for b in parts.model.buffers() if id(b) not in parts.base_buffers]
    return Estimate(
        precision=precision,
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in (*parameters, *added)),
        gradients_bytes=gradients_bytes,
        states_bytes=optimizer_state_bytes(parts.optimizer),
    )
