r"""ft-markov: a small transformer that learned one mixture of Markov chains is fine-tuned on another.

The base has learned P0, 8 chains over 32 symbols; the target P1 has 8 other chains. There are 512 training sequences of
32 symbols, 200 steps of 32 sequences each, and 1,024 fresh sequences to test on. Tier ``tiny`` replaces all chains; in
``part`` P1 is P0 with a quarter of the transition rows of each chain replaced, so that what is retained can be told
from what is learned. A run takes seconds on one core.

With x the symbols of test sequences, N their number after the first ones, in fp32,

    loss = Σ -log p(x_t | x_<t) / N              of P1, nats per symbol
    forgetting = the same on P0, minus the base's
    gap_closed = (loss of the base - loss) / (loss of the base - loss of full fine-tuning)

where the loss of full fine-tuning is a constant: that of the reference, the mean of five seeds. Compare forgetting at
equal ``loss``, because whatever learns more of P1 forgets more of P0.

Trainable are 12 matrices, 98,304 weights, the linear maps of attention and MLP; embeddings, norms, biases and head are
frozen. The seed sets the order of the batches and whatever the algorithm draws; the base is always the shipped one.

Source: this suite; nothing is published on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import torch

from bench import Batch, DataIdentity, Target, Tier

from ._markov import Markov, checked, drawn, partly
from ._markov_base import BASE_SHA256, base_model, pretraining_source, symbol_losses
from ._markov_training import MarkovTraining, as_tensor, example_tokens, parts, shuffled, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._markov import Tokens

TRAIN_SEQUENCES: Final = 512
TEST_SEQUENCES: Final = 1024
RETENTION_SEQUENCES: Final = 256
"""Of P0; forgetting is large, so fewer will do, and each evaluation pays for them."""


@dataclass(frozen=True, kw_only=True)
class MarkovTier(Tier):
    """A tier: the share of P0's transition rows that are new in P1, and what full fine-tuning reaches.

    ``full_loss`` is the mean test loss of the reference over five seeds; ``tokens_sha256`` pins all sequences.
    """

    new_rows: float
    full_loss: float
    tokens_sha256: str


def _reference(lr: float) -> dict[str, dict[str, float]]:
    return {
        "full-finetuning": {"lr": lr, "weight_decay": 0.0},
        "warmup-cosine": {"warmup_fraction": 0.1, "final_factor": 0.0},
    }


TINY = MarkovTier(
    new_rows=1.0,
    full_loss=2.743,
    tokens_sha256="0510e2112bd8a1d82447025625da2b99f07d6033276f1cfc4d408be9ac2eff3f",
    steps=200,
    evaluate_every=10,
    batch_size=32,
    micro_batch_size=32,
    precision="fp32",
    reference=_reference(4e-3),
    tuning="grid over learning rate 1e-3 to 1e-2, the two best on five seeds: docs/ft-tiny.md",
    source="markov",
    device_class="cpu-1",
    target=Target(
        value=3.0, how="what adapters of a tenth of the weights just reach; the reference at 22% of its budget"
    ),
    timeout_s=3600.0,
    predicted_cv=0.02,
    expected_s=9.0,
    default_on=("cpu", "cuda"),
)

PART = replace(
    TINY,
    new_rows=0.25,
    full_loss=2.231,
    tokens_sha256="c3c81d9ec6fbed788ce49e56ecb4780ab7d93e92faa64414c1996c89dee12be9",
    reference=_reference(1e-3),
    tuning="grid over learning rate 3e-4 to 2e-3, the best on five seeds: docs/ft-tiny.md",
    target=None,
    predicted_cv=None,
    default_on=(),
)


class Sequences(NamedTuple):
    """Training and test sequences of P1, test sequences of P0: each (N, 32)."""

    train: Tokens
    test: Tokens
    retention: Tokens


class FtMarkov(MarkovTraining):
    """Fine-tuning from one mixture of Markov chains to another; see the module."""

    name = "ft-markov"
    version = "1.1.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {"tiny": TINY, "part": PART}

    @property
    def markov_tier(self) -> MarkovTier:
        """The tier with the fields of this workload."""
        tier = self.tier
        assert isinstance(tier, MarkovTier)
        return tier

    @cached_property
    def target_source(self) -> Markov:
        """P1."""
        return partly(pretraining_source(), drawn(1), self.markov_tier.new_rows)

    @cached_property
    def sequences(self) -> Sequences:
        """All sequences, checked against the pinned hash."""
        sequences = Sequences(
            train=self.target_source.sequences(TRAIN_SEQUENCES, "train"),
            test=self.target_source.sequences(TEST_SEQUENCES, "test"),
            retention=pretraining_source().sequences(RETENTION_SEQUENCES, "retention"),
        )
        checked(sequences, self.markov_tier.tokens_sha256, f"{self.name}, tier {self.tier_name}")
        return sequences

    @cached_property
    def base_losses(self) -> tuple[float, float]:
        """The loss of the base on the test sequences of P1 and of P0."""
        base = base_model(torch.device("cpu")).eval()
        return _mean_loss(base, self.sequences.test), _mean_loss(base, self.sequences.retention)

    def data(self) -> DataIdentity:
        """Return the identity of sequences and pre-trained model together."""
        tokens = self.markov_tier.tokens_sha256
        return DataIdentity(
            source="markov",
            sha256=sha256(f"{tokens} {BASE_SHA256}".encode()).hexdigest(),
            label=f"Markov chains, {self.markov_tier.new_rows:.0%} of the rows new, sequences {tokens[:12]}, "
            f"base {BASE_SHA256[:12]}",
        )

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``tokens`` (B, 32)."""
        tokens = as_tensor(self.sequences.train, device)
        for chosen in shuffled(len(tokens), self.tier.batch_size, seed, start):
            yield {"tokens": tokens[chosen.to(device)]}

    def example(self, device: torch.device) -> Batch:
        """Return one sequence of zeros."""
        return {"tokens": example_tokens(device)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per symbol after the first of each sequence."""
        tokens = batch["tokens"]
        return weighted_mean(symbol_losses(model(tokens[:, :-1]), tokens).mean(1), batch.get("weights"))

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``loss``, ``forgetting`` and ``gap_closed``."""
        base, base_on_p0 = self.base_losses
        loss = _mean_loss(model, self.sequences.test, device)
        return {
            "loss": loss,
            "forgetting": _mean_loss(model, self.sequences.retention, device) - base_on_p0,
            "gap_closed": (base - loss) / (base - self.markov_tier.full_loss),
        }


@torch.no_grad()
def _mean_loss(model: nn.Module, sequences: Tokens, device: torch.device | None = None) -> float:
    tokens = as_tensor(sequences, device or torch.device("cpu"))
    losses = [symbol_losses(model(part[:, :-1]), part).double() for part in parts(tokens)]
    return float(torch.cat(losses).mean())
