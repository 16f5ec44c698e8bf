"""Algorithms that change more than the step, on the workload as it is listed, by the real loop and for a few steps.

Their own files prove the rules on toys; here a decoder with attention, micro-batches and its tuned reference has them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import Registry, Role
from bench.memory import estimate
from bench.workloads.llama_c4 import LlamaC4

pytestmark = pytest.mark.paper

REGISTRY = Registry()
STEPS = 4


def decoder(precision):
    """Return llama-c4's tier ``tiny`` with two narrower blocks and batches of two micro-batches."""
    tier = LlamaC4.tiers["tiny"]
    small = {"steps": STEPS, "evaluate_every": STEPS, "batch_size": 2, "micro_batch_size": 1, "validation_tokens": 512}
    small |= {"config": replace(tier.config, layers=2, hidden=64, ffn=96), "precision": precision}
    return type("Short", (LlamaC4,), {"tiers": {"tiny": replace(tier, **small)}})("tiny")


@pytest.mark.parametrize(
    ("name", "precision"),
    [("gradnorm-lorp", "fp32"), ("owlore", "fp32"), ("sso", "fp32"), ("tpsgd", "fp32"), ("tpsgd", "amp-bf16")],
)
def test_a_language_model_is_trained_out_of_the_box(name, precision, micro):
    workload = decoder(precision)
    reference = [replace(REGISTRY.algorithm(key), **values) for key, values in workload.tier.reference.items()]
    parts = micro.parts(REGISTRY.algorithm(name), *reference, workload=workload, micro_batches=2)
    before = micro.weights(parts)
    first, last = micro.train(parts, workload)
    assert last.step == STEPS
    assert math.isfinite(last.train_loss)
    assert last.metrics["loss"] < first.metrics["loss"]
    moved = {key for key, value in micro.weights(parts).items() if not torch.equal(before[key], value)}
    assert "lm_head.weight" in moved
    assert any(parts.run.role(key) is Role.ATTENTION_Q for key in moved)
    assert any(parts.run.role(key) is Role.MLP for key in moved)
    assert ("embedding.weight" in moved) == (name != "tpsgd")
    assert all(value.isfinite().all() for value in micro.weights(parts).values())


def test_owlore_s_estimate_counts_the_blocks_that_are_trained_at_a_time():
    counted = estimate([REGISTRY.algorithm("owlore")], LlamaC4("tiny"), "fp32")
    hidden, ffn, vocabulary, rank = 128, 344, 256, 4
    attention, mlp = hidden * rank + 2 * rank * hidden, hidden * rank + 2 * rank * ffn
    block = 4 * attention + 3 * mlp + 2 * 2 * hidden
    outside = 2 * vocabulary * hidden + hidden
    assert counted.states_bytes == 4 * (block + 2 * outside), "one block of four"
    assert counted.trainable_parameters == 4 * hidden**2 + 3 * hidden * ffn + 2 * hidden + outside
    assert counted.gradients_bytes == 4 * counted.trainable_parameters


def test_tpsgd_keeps_no_state_in_an_estimate():
    assert estimate([REGISTRY.algorithm("tpsgd")], LlamaC4("tiny"), "fp32").states_bytes == 0
