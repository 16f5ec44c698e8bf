r"""gpt2-fineweb: the NanoGPT speed run: a GPT-2-sized model on FineWeb to a validation loss of 3.28.

Model, batch, length, data and target are those of the speed run's record of 3 November 2024 ("Untied embedding and
head", 4,578 steps): 12 blocks of hidden size 768 with 6 heads, 50,304 tokens (GPT-2's 50,257, padded), 512 sequences of
1,024 tokens a step. It is the last record whose model is a plain transformer. What the optimizer and the schedule do is
not fixed here but filled by the algorithm under test and the reference.

Validation is one fixed list: the first 10,485,760 targets of FineWeb's validation split. ``loss`` is the mean in nats
per token, computed in fp32, and does not depend on the batch size or the device.

Sequences are consecutive pieces of a stream of tokens, without padding; the data is FineWeb's sample of 10 billion
tokens in llm.c's binary shards, from the Hugging Face hub or a folder.

Tier ``tiny`` is the same model, smaller, on the bytes of the generated corpus. Its 300 steps, its schedule and its
target are its own: ``docs/gpt2-fineweb-tiny.md``.

Deviations: the seed sets the order of the data, by a buffer of 10,000 sequences that runs through the shards (the speed
run reads them in order); the end of a shard that does not fill one sequence is dropped (there: one batch); the budget
of tier ``124m`` is that of the speed run's AdamW record (9,536 steps), because its reference is AdamW at one learning
rate for all weights, with linear decay; the weights' gradients are means over all tokens of the batch, as there. Of the
model: see ``Gpt``.
Source: github.com/KellerJordan/modded-nanogpt; github.com/karpathy/llm.c, discussion 481, for the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from bench import Batch, DataIdentity, Role, Target, Tier, TrainingWorkload
from bench.context import derive_seed
from bench.errors import BadValue

from ._corpus import PINNED_TRAIN_DOCUMENTS, PINNED_VALIDATION_DOCUMENTS
from ._documents import Embedded
from ._fineweb import FineWeb
from ._gpt import Gpt, GptConfig, sequence_losses
from ._packed import EmbeddedTokens, PackedBatches, as_batch, validation_windows
from ._token_shards import ShardFolder

if TYPE_CHECKING:
    from torch import Tensor

    from ._packed import TokenSource
    from ._tokenizers import Tokens

_DOCUMENT_BYTES = 1_000
"""Less than the mean length of a generated document."""


@dataclass(frozen=True, kw_only=True)
class GptTier(Tier):
    """A tier with the shape of its model, the positions of a sequence, and the targets that are validated on."""

    config: GptConfig
    length: int
    validation_tokens: int


TINY = GptTier(
    config=GptConfig(vocabulary_size=256, hidden=64, layers=3, heads=4),
    length=64,
    validation_tokens=8_192,
    steps=300,
    evaluate_every=4,
    batch_size=32,
    micro_batch_size=32,
    precision="fp32",
    reference={
        "adamw": {"lr": 2e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0},
        "warmup-linear": {"warmup_fraction": 0.1, "final_factor": 0.1},
    },
    tuning="learning rates 3e-3 to 5e-2 at beta2 0.95, beta2 0.99 at two of them, the three best on five seeds: "
    "docs/gpt2-fineweb-tiny.md",
    source="embedded",
    device_class="cpu-1",
    target=Target(value=1.96, how="met by ten seeds of the reference at 65% to 93% of its budget, 76% on average"),
    timeout_s=3600.0,
    predicted_cv=0.11,
    expected_s=18.0,
    default_on=("cpu",),
)

SMALL = GptTier(
    config=GptConfig(vocabulary_size=50_304, hidden=768, layers=12, heads=6),
    length=1_024,
    validation_tokens=10_485_760,
    steps=9_536,
    evaluate_every=125,
    batch_size=512,
    micro_batch_size=32,
    precision="amp-bf16",
    reference={
        "adamw": {"lr": 1.8e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0},
        "warmup-linear": {"warmup_fraction": 0.026, "final_factor": 0.0},
    },
    tuning="published (the speed run's AdamW record: 1.8e-3, 250 steps of warm-up); not tuned here, no hardware for "
    "this tier yet",
    source="fineweb",
    device_class="none yet",
    target=Target(value=3.28, how="the rule of the public speed run, after llm.c's GPT-2; not from a run of ours"),
    timeout_s=30 * 24 * 3600.0,
    patience_steps=500,
    default_on=("cuda",),
)

TIERS: Mapping[str, GptTier] = {"tiny": TINY, "124m": SMALL}


class Gpt2FineWeb(TrainingWorkload):
    """The NanoGPT speed run; see the module."""

    name = "gpt2-fineweb"
    version = "1.1.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = TIERS
    sources = ("embedded", "local", "fineweb")
    roles: ClassVar[Mapping[str, Role]] = {
        r"embedding\.weight": Role.EMBEDDING,
        r"lm_head\.weight": Role.LM_HEAD,
        r"layers\.\d+\.attention\.q\.weight": Role.ATTENTION_Q,
        r"layers\.\d+\.attention\.k\.weight": Role.ATTENTION_K,
        r"layers\.\d+\.attention\.v\.weight": Role.ATTENTION_V,
        r"layers\.\d+\.attention\.o\.weight": Role.ATTENTION_O,
        r"layers\.\d+\.mlp\.(up|down)\.weight": Role.MLP,
    }

    def __post_init__(self) -> None:
        """Refuse also a tokenizer: the data is tokens already."""
        super().__post_init__()
        tokenizer = self.request.tokenizer
        if tokenizer is not None:
            raise BadValue(
                f"tokenizer {tokenizer!r} ({type(tokenizer).__name__}) has nothing to do: {self.name} reads tokens",
                hint="leave --tokenizer out; generated text is bytes, shards hold token ids",
            )

    @property
    def gpt_tier(self) -> GptTier:
        """The tier with the fields of this workload."""
        tier = self.tier
        assert isinstance(tier, GptTier)
        return tier

    @cached_property
    def tokens(self) -> TokenSource:
        """The chosen source of tokens."""
        tier = self.gpt_tier
        if self.source == "fineweb":
            return FineWeb(tier.config.vocabulary_size)
        if self.source == "local":
            assert self.request.directory is not None
            return ShardFolder(self.request.directory, tier.config.vocabulary_size)
        # enough that nothing repeats; the pinned documents suffice for the smallest tier
        train = tier.steps * tier.batch_size * tier.length // _DOCUMENT_BYTES
        return EmbeddedTokens(
            Embedded(
                train_documents=max(PINNED_TRAIN_DOCUMENTS, train),
                validation_documents=max(PINNED_VALIDATION_DOCUMENTS, tier.validation_tokens // _DOCUMENT_BYTES),
            )
        )

    @cached_property
    def validation(self) -> Tokens:
        """The fixed validation sequences, (N, T + 1) tokens."""
        tier = self.gpt_tier
        return validation_windows(self.tokens, length=tier.length, tokens=tier.validation_tokens)

    def data(self) -> DataIdentity:
        """Return the identity of tokens and length together."""
        source, length, content = self.tokens, self.gpt_tier.length, self.tokens.content
        return DataIdentity(
            source=source.name,
            sha256=sha256(f"{source.name} {content} {length}".encode()).hexdigest(),
            label=f"{source.label}, content {content[:12]}, sequences of {length} tokens",
        )

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the model, its weights drawn on the CPU so that every device starts from the same ones."""
        config = self.gpt_tier.config
        if device.type == "meta":
            with torch.device("meta"):
                return Gpt(config)
        return Gpt(config, torch.Generator().manual_seed(derive_seed(seed, "model"))).to(device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``input_ids`` and ``targets``, both (B, T): a target is the token after its position."""
        tier = self.gpt_tier
        stream = PackedBatches(
            self.tokens, length=tier.length, batch_size=tier.batch_size, steps=tier.steps, seed=seed, start=start
        )
        return (as_batch(rows, device) for rows in stream)

    def example(self, device: torch.device) -> Batch:
        """Return one sequence of eight zeros."""
        tokens = torch.zeros(1, 8, dtype=torch.long, device=device)
        return {"input_ids": tokens, "targets": tokens}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per token of the micro-batch."""
        losses = sequence_losses(model(batch["input_ids"]), batch["targets"])
        weights = batch.get("weights")
        return losses.mean() if weights is None else (weights.float() * losses).sum() / weights.float().sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``loss`` and ``perplexity``."""
        sums = []
        for start in range(0, len(self.validation), self.tier.micro_batch_size):
            batch = as_batch(self.validation[start : start + self.tier.micro_batch_size], device)
            sums.append(sequence_losses(model(batch["input_ids"]), batch["targets"]).double().sum())
        loss = float(torch.stack(sums).sum()) / len(self.validation)
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
