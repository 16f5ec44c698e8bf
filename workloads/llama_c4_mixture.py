r"""llama-c4-mixture: the decoder of ``llama-c4`` on several sources of documents, for selecting data.

Each training sample is drawn from one of C sources with given, unequal weights, and ``source``, int64 (B,), says which
one it was. What counts in the end are the sources and not the samples: validation is the plain average over them,

    loss = 1/C Σ_c loss_c,    loss_c = Σ_tokens of c -log p(token) / N_c        (nats per token; per byte in tier tiny)

with ``loss_<source>`` beside it, so that learning rare sources better than their share shows. The mixtures of
instruction data, for which selecting by source was published, are judged in this way.

``embedded`` is a mixture of six sources that is generated: prose 40%, dialogue 30%, ledger 12%, code 8%, glossary 6%,
sums 4%. Under ``--data-dir`` it is one folder of shards per source and a file ``mixture.json`` with their weights.
Model, optimizer, length, batch and steps of the larger tiers are those of ``llama-c4``. Tier ``tiny`` takes 32 windows
of 128 bytes instead of 16 of 256: as many bytes a step, and enough samples of each source to choose among.

Deviations: the published mixtures fine-tune pretrained models with LoRA at length 512; here all weights train from the
start, since no pretrained weights are at hand offline.
Source: arXiv:2407.19580 (the setting), arXiv:2403.03507 (model and protocol).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import nn

from bench import Batch, DataIdentity, Role, Target, Tier, TrainingWorkload
from bench.context import derive_seed
from bench.trial import digest

from ._batches import FixedBatches, validation_batches
from ._llama import Llama, token_losses
from ._mixture_batches import MixtureBatches
from ._mixture_documents import Share, embedded_mixture, local_mixture
from ._sequences import Sequences, Truncate, Windows
from ._tokenizers import ByteTokenizer, T5Tokenizer
from .llama_c4 import LENGTH, TINY, UNTUNED, LlamaC4, LlamaTier
from .llama_c4 import TIERS as LLAMA_TIERS

if TYPE_CHECKING:
    from torch import Tensor

TINY_LENGTH: Final = 128

TIERS: Mapping[str, LlamaTier] = {
    "tiny": replace(
        TINY,
        validation_tokens=6 * 1_536,
        steps=200,
        evaluate_every=3,
        batch_size=32,
        micro_batch_size=32,
        tuning="grid over learning rate 1e-3 to 5e-3 at beta2 0.95 on one seed, the best on five seeds: "
        "docs/llama-c4-mixture-tiny.md",
        device_class="cpu-1",
        target=Target(value=1.79, how="the reference's loss at 75% of its budget in its median seed (five seeds)"),
        predicted_cv=0.08,
        expected_s=None,
    ),
    **{
        name: replace(tier, source="embedded", tuning=UNTUNED, target=None)
        for name, tier in LLAMA_TIERS.items()
        if name != "tiny"
    },
}


class LlamaC4Mixture(TrainingWorkload):
    """LLaMA decoder pre-training on a mixture of sources; see the module."""

    name = "llama-c4-mixture"
    version = "1.1.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = TIERS
    sources = ("embedded", "local")
    roles: ClassVar[Mapping[str, Role]] = LlamaC4.roles

    @property
    def llama_tier(self) -> LlamaTier:
        """The tier with the fields of this workload."""
        tier = self.tier
        assert isinstance(tier, LlamaTier)
        return tier

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """The sources of documents with their names and weights; a batch's ``source`` is the place in this list."""
        if self.source == "local":
            assert self.request.directory is not None
            return local_mixture(self.request.directory)
        pinned = self.llama_tier.byte_level
        return embedded_mixture(None if pinned else self.tier.steps * self.tier.batch_size)

    @cached_property
    def sequences(self) -> tuple[Sequences, ...]:
        """The token sequences of each source."""
        tokenizer = self._tokenizer()
        cut = Windows(TINY_LENGTH) if self.llama_tier.byte_level else Truncate(LENGTH)
        return tuple(Sequences(share.source, tokenizer, cut) for share in self.shares)

    def _tokenizer(self) -> ByteTokenizer | T5Tokenizer:
        wanted = self.request.tokenizer
        if wanted == "bytes" or (wanted is None and (self.llama_tier.byte_level or self.source == "embedded")):
            return ByteTokenizer()
        from pathlib import Path

        return T5Tokenizer(None if wanted is None else Path(wanted))

    @cached_property
    def validation(self) -> Mapping[str, FixedBatches]:
        """The fixed list of validation documents of each source, by name; each has an equal part of the tokens."""
        tier = self.llama_tier
        limit = tier.validation_tokens // len(self.shares)
        return {
            share.name: validation_batches(sequences, batch_size=tier.micro_batch_size, token_limit=limit)
            for share, sequences in zip(self.shares, self.sequences, strict=True)
        }

    def data(self) -> DataIdentity:
        """Return the identity of the sources, in their order, and of their weights, tokenizer and cut together."""
        identities = [sequences.identity.sha256 for sequences in self.sequences]
        content = [[share.name, share.weight, sha] for share, sha in zip(self.shares, identities, strict=True)]
        weights = ", ".join(f"{share.name} {share.weight}" for share in self.shares)
        tokenizer, cut = self.sequences[0].tokenizer.identity, self.sequences[0].cut
        return DataIdentity(
            source=self.source,
            sha256=digest(content),
            label=f"{self.source} mixture: {weights}; tokenizer {tokenizer[:15]}, {cut!r}",
        )

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder, its weights drawn on the CPU so that every device starts from the same ones."""
        if device.type == "meta":
            with torch.device("meta"):
                return Llama(self.llama_tier.config)
        generator = torch.Generator().manual_seed(derive_seed(seed, "model"))
        return Llama(self.llama_tier.config, generator).to(device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``input_ids`` and ``labels``, both (B, T), -100 at padding, and ``source``, (B,)."""
        weights = [share.weight for share in self.shares]
        stream = MixtureBatches(self.sequences, weights, batch_size=self.tier.batch_size, seed=seed, start=start)
        return (_to(batch, device) for batch in stream)

    def example(self, device: torch.device) -> Batch:
        """Return one sequence of eight zeros from source 0."""
        tokens = torch.zeros(1, 8, dtype=torch.long, device=device)
        return {"input_ids": tokens, "labels": tokens, "source": tokens[:, 0]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per target token of the micro-batch, whatever its sources."""
        return token_losses(model(batch["input_ids"]), batch["labels"], batch.get("weights")).mean()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``loss``, the plain average over the sources, its exponential, and ``loss_<source>`` of each."""
        losses = {name: _mean(model, batches, device) for name, batches in self.validation.items()}
        loss = sum(losses.values()) / len(losses)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity} | {f"loss_{name}": value for name, value in losses.items()}


def _mean(model: nn.Module, batches: FixedBatches, device: torch.device) -> float:
    """Return the token-weighted mean loss of ``batches``."""
    found = [
        token_losses(model(batch["input_ids"]), batch["labels"]) for batch in (_to(cpu, device) for cpu in batches)
    ]
    return float(sum(part.sum.double() for part in found)) / float(sum(part.count.double() for part in found))


def _to(batch: Mapping[str, Any], device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
