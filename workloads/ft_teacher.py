r"""ft-teacher: a pre-trained transformer learns to agree with a copy of itself whose weights were shifted.

In the teacher every matrix W (m, n) of attention and MLP is W + D with |D| = 0.4 |W| (Frobenius norm), D from a family
that one kind of adapter can express and others cannot; one tier each:

    rank-2            D ∝ B A                    B (m, 2), A (2, n)
    smallest          D ∝ values on the 10% of the entries of W that are smallest in magnitude
    singular-values   D ∝ U diag(s g) Vᵀ         W = U diag(s) Vᵀ
    shard             D[:, 8 i + q] ∝ E[:, q]    E (m, 8), repeated along the input
    hadamard          D ∝ W ∘ (B A)              B (m, 2), A (2, n)
    dense             D ∝ a full matrix

A, B, E, g and the values are Gaussian. The student starts from W and sees 1,024 sequences of the source that it was
pre-trained on, with the teacher's probabilities q; 120 steps of 16 sequences. With p the student's probabilities:

    kl = Σ_t Σ_x q_t(x) log(q_t(x) / p_t(x)) / positions        nats per position, on 512 other sequences
    kl_ratio = kl / kl of the untouched base                    1 at the start, 0 for the teacher

A plugin should win, or nearly win, the tier that its parametrisation can express. Trainable is what is trainable in
ft-markov, and the base is the same.

Source: this suite; nothing is published on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch
from torch import nn

from bench import Batch, DataIdentity, Tier
from bench.context import derive_seed

from ._markov import LENGTH, SYMBOLS, Floats, checked
from ._markov_base import BASE_SHA256, base_model, pretraining_source
from ._markov_training import MarkovTraining, as_tensor, example_tokens, parts, shuffled, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ._markov import Tokens

SHIFT: Final = 0.4
"""|D| / |W|."""

TRAIN_SEQUENCES: Final = 1024
TEST_SEQUENCES: Final = 512
TOKENS_SHA256: Final = "2399ab8d4b0723e96f7ef2eba0d6ad088306ec47f1141ee2a38409f3b35bc438"

SMALLEST_SHARE: Final = 0.1
SHARD_SIZE: Final = 8
SHIFT_RANK: Final = 2

Normal = Callable[..., Floats]
"""Standard normal draws of the shape that its arguments name."""


def _rank_2(weight: Floats, normal: Normal) -> Floats:
    return normal(weight.shape[0], SHIFT_RANK) @ normal(SHIFT_RANK, weight.shape[1])


def _smallest(weight: Floats, normal: Normal) -> Floats:
    chosen = np.argsort(np.abs(weight), axis=None, kind="stable")[: round(SMALLEST_SHARE * weight.size)]
    shift = np.zeros_like(weight)
    shift.flat[chosen] = normal(len(chosen))
    return shift


def _singular_values(weight: Floats, normal: Normal) -> Floats:
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    shift: Floats = (left * (values * normal(len(values)))) @ right
    return shift


def _shard(weight: Floats, normal: Normal) -> Floats:
    return np.tile(normal(weight.shape[0], SHARD_SIZE), weight.shape[1] // SHARD_SIZE)


def _hadamard(weight: Floats, normal: Normal) -> Floats:
    return weight * _rank_2(weight, normal)


def _dense(weight: Floats, normal: Normal) -> Floats:
    return normal(*weight.shape)


FAMILIES: Final[Mapping[str, Callable[[Floats, Normal], Floats]]] = {
    "rank-2": _rank_2,
    "smallest": _smallest,
    "singular-values": _singular_values,
    "shard": _shard,
    "hadamard": _hadamard,
    "dense": _dense,
}
"""Each family's D up to its norm, from W (m, n)."""


def shifted(weight: Tensor, family: str, name: str) -> Tensor:
    """Return W + D of the weight called ``name``; the draws are of NumPy's ``RandomState``, whose stream is frozen."""
    random = np.random.RandomState(derive_seed(0, "ft-teacher", family, name) % 2**32)
    exact = weight.detach().cpu().double().numpy()
    shift = FAMILIES[family](exact, lambda *shape: random.standard_normal(shape))
    scale = SHIFT * np.linalg.norm(exact) / np.linalg.norm(shift)
    return torch.from_numpy(exact + scale * shift).to(weight)


TIER = Tier(
    steps=120,
    evaluate_every=10,
    batch_size=16,
    micro_batch_size=16,
    precision="fp32",
    reference={
        "full-finetuning": {"lr": 3e-3, "weight_decay": 0.0},
        "warmup-cosine": {"warmup_fraction": 0.1, "final_factor": 0.0},
    },
    tuning="learning rate 3e-3 or 6e-3 on one seed: docs/ft-tiny.md",
    source="markov",
    device_class="cpu-1",
    timeout_s=3600.0,
    expected_s=3.0,
)


class FtTeacher(MarkovTraining):
    """Learning a known shift of the weights; see the module."""

    name = "ft-teacher"
    version = "1.0.0"
    metric = "kl_ratio"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {
        "rank-2": replace(TIER, default_on=("cpu", "cuda")),
        "smallest": TIER,
        "singular-values": TIER,
        "shard": TIER,
        "hadamard": TIER,
        "dense": TIER,
    }

    @cached_property
    def sequences(self) -> tuple[Tokens, Tokens]:
        """Training and test sequences, each (N, 32), checked against the pinned hash."""
        source = pretraining_source()
        train = source.sequences(TRAIN_SEQUENCES, "teacher", "train")
        test = source.sequences(TEST_SEQUENCES, "teacher", "test")
        checked((train, test), TOKENS_SHA256, self.name)
        return train, test

    @cached_property
    def teacher(self) -> nn.Module:
        """The base with every trainable matrix shifted."""
        model = base_model(torch.device("cpu")).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(shifted(parameter, self.tier_name, name))
        return model.requires_grad_(requires_grad=False)

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """The teacher's log-probabilities (N, 32, 32) of training and test sequences."""
        train, test = (_log_probabilities(self.teacher, tokens) for tokens in self.sequences)
        return train, test

    @cached_property
    def base_kl(self) -> float:
        """The KL divergence of the untouched base from the teacher on the test sequences."""
        return self._kl(base_model(torch.device("cpu")).eval(), torch.device("cpu"))

    def data(self) -> DataIdentity:
        """Return the identity of sequences, pre-trained model and shift together."""
        shift = f"{self.tier_name} shift of norm {SHIFT}"
        return DataIdentity(
            source="markov",
            sha256=sha256(f"{TOKENS_SHA256} {BASE_SHA256} {shift}".encode()).hexdigest(),
            label=f"{shift}, sequences {TOKENS_SHA256[:12]}, base {BASE_SHA256[:12]}",
        )

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``tokens`` (B, 32) and ``targets``, the teacher's log-probabilities (B, 32, 32)."""
        tokens, targets = as_tensor(self.sequences[0], device), self.targets[0].to(device)
        for chosen in shuffled(len(tokens), self.tier.batch_size, seed, start):
            places = chosen.to(device)
            yield {"tokens": tokens[places], "targets": targets[places]}

    def example(self, device: torch.device) -> Batch:
        """Return one sequence of zeros with targets of zeros."""
        return {"tokens": example_tokens(device), "targets": torch.zeros(1, LENGTH, SYMBOLS, device=device)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean KL divergence from the teacher in nats per position."""
        divergences = _divergences(model(batch["tokens"]), batch["targets"])
        return weighted_mean(divergences.mean(1), batch.get("weights"))

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``kl`` and ``kl_ratio``."""
        divergence = self._kl(model, device)
        return {"kl": divergence, "kl_ratio": divergence / self.base_kl}

    @torch.no_grad()
    def _kl(self, model: nn.Module, device: torch.device) -> float:
        tokens, targets = as_tensor(self.sequences[1], device), self.targets[1].to(device)
        pairs = zip(parts(tokens), parts(targets), strict=True)
        return float(torch.cat([_divergences(model(part), wanted).double() for part, wanted in pairs]).mean())


def _divergences(logits: Tensor, targets: Tensor) -> Tensor:
    """Return KL(q || p) per position, (B, T), of student logits and the teacher's log-probabilities (B, T, V)."""
    student = logits.float().log_softmax(-1)
    return nn.functional.kl_div(student, targets, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def _log_probabilities(model: nn.Module, tokens: Tokens) -> Tensor:
    everything = as_tensor(tokens, torch.device("cpu"))
    return torch.cat([model(part).log_softmax(-1) for part in parts(everything)])
