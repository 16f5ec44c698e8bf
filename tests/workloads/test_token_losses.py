from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.workloads._llama import IGNORED, token_losses


def by_hand(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, float]:
    total, count = 0.0, 0.0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            label = int(labels[b, t + 1])
            if label != IGNORED:
                row = logits[b, t].double()
                total += float(weights[b]) * float(row.exp().sum().log() - row[label])
                count += float(weights[b])
    return total, count


def padded() -> tuple[Tensor, Tensor]:
    """Logits and labels of four sequences: full, padded from position 5 and 1 on, and with a hole."""
    logits = 3 * torch.randn(4, 10, 13, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 13, (4, 10), generator=torch.Generator().manual_seed(1))
    labels[1, 5:] = labels[2, 1:] = labels[3, 4] = IGNORED
    return logits, labels


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0, 1.0], [0.5, 2.0, 7.0, 0.0]])
def test_token_losses_are_those_of_a_loop_over_sequences_and_positions(weights):
    logits, labels = padded()
    chosen = None if weights is None else torch.tensor(weights)
    total, count = by_hand(logits, labels, torch.ones(4) if chosen is None else chosen)
    found = token_losses(logits, labels, chosen)
    assert float(found.sum) == pytest.approx(total, rel=1e-5)
    assert float(found.count) == count
    assert float(found.mean()) == pytest.approx(total / count, rel=1e-5)


def test_token_losses_of_a_batch_are_the_sums_over_its_parts():
    logits, labels = padded()
    whole, first, second = (token_losses(logits[part], labels[part]) for part in (slice(4), slice(1), slice(1, 4)))
    torch.testing.assert_close(whole.sum, first.sum + second.sum)
    assert whole.count == first.count + second.count
    legacy = (first.mean() + second.mean()) / 2
    assert not torch.allclose(whole.mean(), legacy)  # the mean of batch means weighs the tokens of short batches more


def test_weights_of_zero_and_one_select_sequences_and_a_common_factor_does_not_matter():
    logits, labels = padded()
    chosen = [0, 3]
    weights = torch.tensor([1.0, 0.0, 0.0, 1.0])
    selected = token_losses(logits[chosen], labels[chosen])
    for factor in (1.0, 0.25):
        torch.testing.assert_close(token_losses(logits, labels, factor * weights).mean(), selected.mean())


def test_weights_scale_each_sequences_gradient_and_padding_gets_none():
    logits, labels = padded()
    logits.requires_grad_()
    (plain,) = torch.autograd.grad(token_losses(logits, labels).sum, logits)
    weights = torch.tensor([0.5, 2.0, 7.0, 0.0])
    (weighted,) = torch.autograd.grad(token_losses(logits, labels, weights).sum, logits)
    torch.testing.assert_close(weighted, weights[:, None, None] * plain)
    assert not plain[1, 4:].any()
    assert not plain[2].any()
    assert not plain[:, -1].any()
    assert plain[0, :-1].abs().amax(-1).min() > 0


def test_bf16_logits_give_an_fp32_loss_of_the_rounded_logits():
    logits, labels = padded()
    rounded = logits.to(torch.bfloat16)
    total, count = by_hand(rounded.float(), labels, torch.ones(4))
    assert float(token_losses(rounded, labels).mean()) == pytest.approx(total / count, rel=1e-5)


def test_the_mean_over_no_target_token_is_not_a_number():
    logits, labels = padded()
    found = token_losses(logits[2:3], labels[2:3])
    assert float(found.count) == 0.0
    assert math.isnan(float(found.mean()))
