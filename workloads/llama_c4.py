r"""llama-c4: LLaMA decoder pre-training on C4, the protocol of ReLoRA and GaLore with its faults mended.

The model, tokenizer, batch, length, steps and schedule of the published runs; fp32 weights and states (under bf16
autocast where the hardware is a GPU), because a bf16 second moment with β₂ = 0.999 cannot decay and that changes
rankings. Pure bf16 is a workload of its own, ``llama-c4-bf16``.

Validation is one fixed list of documents. ``loss`` is the token-weighted fp32 mean

    loss = Σ_tokens -log p(token) / N_tokens        (nats per token; per byte in the byte-level tier)

and does not depend on batch size or devices. ``loss_legacy`` is what the published scripts print: the mean over the N
micro-batches of each one's mean loss, times N / (N + 1), because their batch counter starts at 1.

Tier ``tiny`` is byte-level, cuts documents into consecutive windows instead of keeping only the first 256 tokens (256
bytes are some 60 tokens of text), and decays linearly; its data is generated unless other data is named.

Deviations: evaluation every 1% of the steps instead of every 1000 steps; a schedule that ends with the run instead of a
cyclic one; data order from the trial's seed instead of always 42 (seed 0 is 42 for C4); the default precision, as said.
Source: arXiv:2403.03507 (Table 2, Appendix C), arXiv:2307.05695.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from bench import Batch, DataIdentity, Role, Target, Tier, TrainingWorkload
from bench.context import derive_seed

from ._batches import Batches, FixedBatches, validation_batches
from ._documents import Embedded, LocalShards
from ._hub import C4
from ._llama import Llama, LlamaConfig, token_losses
from ._sequences import Sequences, Truncate, Windows
from ._tokenizers import ByteTokenizer, T5Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LENGTH = 256
UNTUNED = "published (Conda's scripts: 1e-3 at every size); not tuned here, no hardware for this tier yet"


@dataclass(frozen=True, kw_only=True)
class LlamaTier(Tier):
    """A tier with the shape of its model and how its documents become sequences."""

    config: LlamaConfig
    byte_level: bool = False
    validation_tokens: int = 10_000_000


def _published(
    shape: tuple[int, int, int, int], steps: int, micro_batch_size: int, default_on: tuple[str, ...] = ()
) -> LlamaTier:
    """Return a tier of the published protocol; ``shape`` is hidden, ffn, layers, heads."""
    hidden, ffn, layers, heads = shape
    return LlamaTier(
        config=LlamaConfig(vocabulary_size=32_000, hidden=hidden, ffn=ffn, layers=layers, heads=heads),
        steps=steps,
        evaluate_every=steps // 100,
        batch_size=512,
        micro_batch_size=micro_batch_size,
        precision="amp-bf16",
        reference={
            "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
            "warmup-cosine": {"warmup_fraction": 0.1, "final_factor": 0.1},
        },
        tuning=UNTUNED,
        source="c4",
        device_class="none yet",
        timeout_s=30 * 24 * 3600.0,
        patience_steps=steps // 20,
        default_on=default_on,
    )


TINY = LlamaTier(
    config=LlamaConfig(vocabulary_size=256, hidden=128, ffn=344, layers=4, heads=4),
    byte_level=True,
    validation_tokens=8_192,
    steps=300,
    evaluate_every=4,
    batch_size=16,
    micro_batch_size=16,
    precision="fp32",
    reference={
        "adamw": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0},
        "warmup-linear": {"warmup_fraction": 0.1, "final_factor": 0.1},
    },
    tuning="grid over learning rate 1e-3 to 1e-2 and beta2 0.95, 0.99, 0.999, the two best on five seeds: "
    "docs/llama-c4-tiny.md",
    source="embedded",
    device_class="cpu-2",
    target=Target(value=1.76, how="the reference's loss at 75% of its budget in its median seed (five seeds)"),
    timeout_s=3600.0,
    predicted_cv=0.07,
    expected_s=78.0,
    default_on=("cpu",),
)

TIERS: Mapping[str, LlamaTier] = {
    "tiny": TINY,
    "9m": _published((128, 352, 4, 4), 10_000, 256),  # no schedule is published below 60M: that of 60M
    "20m": _published((256, 688, 4, 4), 10_000, 256),
    "60m": _published((512, 1376, 8, 8), 10_000, 256, default_on=("cuda",)),
    "130m": _published((768, 2048, 12, 12), 20_000, 256),
    "350m": _published((1024, 2736, 24, 16), 60_000, 128),
    "1b": _published((2048, 5461, 24, 32), 100_000, 16),  # 24 layers and 32 heads; the paper's Table 5 swaps them
    "7b": _published((4096, 11008, 32, 32), 150_000, 8),
}


class LlamaC4(TrainingWorkload):
    """LLaMA decoder pre-training on C4; see the module."""

    name = "llama-c4"
    version = "1.1.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = TIERS
    sources = ("embedded", "local", "c4")
    roles: ClassVar[Mapping[str, Role]] = {
        r"embedding\.weight": Role.EMBEDDING,
        r"lm_head\.weight": Role.LM_HEAD,
        r"(layers\.\d+\.(attention|mlp)_)?norm\.weight": Role.NORM,
        r"layers\.\d+\.attention\.q\.weight": Role.ATTENTION_Q,
        r"layers\.\d+\.attention\.k\.weight": Role.ATTENTION_K,
        r"layers\.\d+\.attention\.v\.weight": Role.ATTENTION_V,
        r"layers\.\d+\.attention\.o\.weight": Role.ATTENTION_O,
        r"layers\.\d+\.mlp\.(gate|up|down)\.weight": Role.MLP,
    }

    @property
    def llama_tier(self) -> LlamaTier:
        """The tier with the fields of this workload."""
        tier = self.tier
        assert isinstance(tier, LlamaTier)
        return tier

    @cached_property
    def sequences(self) -> Sequences:
        """The chosen documents, tokenizer and cut."""
        return Sequences(
            self._documents(), self._tokenizer(), Windows(LENGTH) if self.llama_tier.byte_level else Truncate(LENGTH)
        )

    def _documents(self) -> Embedded | LocalShards | C4:
        if self.source == "embedded":
            wanted = self.tier.steps * self.tier.batch_size
            return (
                Embedded()
                if self.llama_tier.byte_level
                else Embedded(train_documents=wanted, validation_documents=100_000)
            )
        if self.source == "local":
            directory: Path | None = self.request.directory
            assert directory is not None
            return LocalShards(directory)
        return C4()

    def _tokenizer(self) -> ByteTokenizer | T5Tokenizer:
        wanted = self.request.tokenizer
        if wanted == "bytes" or (wanted is None and (self.llama_tier.byte_level or self.source == "embedded")):
            return ByteTokenizer()
        from pathlib import Path

        return T5Tokenizer(None if wanted is None else Path(wanted))

    @cached_property
    def validation(self) -> FixedBatches:
        """The fixed list of validation documents."""
        tier = self.llama_tier
        return validation_batches(self.sequences, batch_size=tier.micro_batch_size, token_limit=tier.validation_tokens)

    def data(self) -> DataIdentity:
        """Return the identity of documents, tokenizer and cut together."""
        return self.sequences.identity

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder, its weights drawn on the CPU so that every device starts from the same ones."""
        if device.type == "meta":
            with torch.device("meta"):
                return Llama(self.llama_tier.config)
        generator = torch.Generator().manual_seed(derive_seed(seed, "model"))
        return Llama(self.llama_tier.config, generator).to(device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``input_ids`` and ``labels``, both (B, 256); labels are -100 at padding."""
        stream = Batches(self.sequences, batch_size=self.tier.batch_size, seed=seed, start=start)
        return (_to(batch, device) for batch in stream)

    def example(self, device: torch.device) -> Batch:
        """Return one sequence of eight zeros."""
        tokens = torch.zeros(1, 8, dtype=torch.long, device=device)
        return {"input_ids": tokens, "labels": tokens}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per target token of the micro-batch."""
        return token_losses(model(batch["input_ids"]), batch["labels"], batch.get("weights")).mean()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``loss``, ``loss_legacy`` and both perplexities."""
        sums, means, tokens = [], [], 0.0
        for cpu_batch in self.validation:
            batch = _to(cpu_batch, device)
            found = token_losses(model(batch["input_ids"]), batch["labels"])
            sums.append(found.sum.double())
            means.append(found.mean().double())
            tokens += float(found.count)
        batches = len(means)
        loss = float(torch.stack(sums).sum()) / tokens
        legacy = float(torch.stack(means).sum()) / (batches + 1)
        return {
            "loss": loss,
            "loss_legacy": legacy,
            "perplexity": _exp(loss),
            "perplexity_legacy": _exp(legacy),
        }


def _to(batch: Mapping[str, Any], device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
