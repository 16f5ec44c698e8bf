"""A language model small enough for a step in a millisecond, and what is needed to train it in the real loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from bench.algorithm import Algorithm, Batch, NamedParameters
from bench.conformance.optimizer_scene import STEPS
from bench.context import Run, derive_seed
from bench.hyperparameter import hyper
from bench.roles import Role
from bench.workload import DataIdentity, Tier, TrainingWorkload

VOCABULARY, LENGTH, BATCH, CLASSES = 32, 12, 8, 3


class Layer(nn.Module):
    """Attention with one head and an MLP, each behind a norm; x is (B, T, D)."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, ffn, bias=False), nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the next layer gets."""
        y = self.attention_norm(x)
        mixed = nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y), is_causal=True)
        x = x + self.o(mixed)
        output: Tensor = x + self.down(nn.functional.gelu(self.up(self.mlp_norm(x))))
        return output


class Decoder(nn.Module):
    """A decoder: tokens (B, T) to logits (B, T, outputs), or (B, outputs) of the mean over positions if ``pooled``."""

    def __init__(
        self, *, hidden: int = 16, ffn: int = 32, layers: int = 2, outputs: int = VOCABULARY, pooled: bool = False
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.layers = nn.ModuleList(Layer(hidden, ffn) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        output: Tensor = self.head(x.mean(dim=1) if self.pooled else x)
        return output


def drawn_decoder(seed: int, device: torch.device, std: float = 0.2, **shape: Any) -> Decoder:
    """Return a decoder whose matrices are N(0, ``std``²), drawn from a generator of its own."""
    with torch.device("meta"):
        model = Decoder(**shape)
    if device.type == "meta":
        return model
    model.to_empty(device=device)
    generator = torch.Generator().manual_seed(derive_seed(seed, "model"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.fill_(float(name.endswith("norm.weight")))
    return model


ROLES: Mapping[str, Role] = {
    r"embedding\.weight": Role.EMBEDDING,
    r"layers\.\d+\.q\.weight": Role.ATTENTION_Q,
    r"layers\.\d+\.k\.weight": Role.ATTENTION_K,
    r"layers\.\d+\.v\.weight": Role.ATTENTION_V,
    r"layers\.\d+\.o\.weight": Role.ATTENTION_O,
    r"layers\.\d+\.(up|down)\.weight": Role.MLP,
    r"(layers\.\d+\.(attention_|mlp_)|)norm\.weight": Role.NORM,
    r"(layers\.\d+\.(attention_|mlp_)|)norm\.bias": Role.BIAS,
}

TIER = Tier(
    steps=STEPS,
    evaluate_every=3,
    batch_size=BATCH,
    micro_batch_size=BATCH,
    precision="fp32",
    reference={},
    tuning="none: it is not compared",
    source="drawn",
    device_class="none",
)


class Text(TrainingWorkload):
    """Next tokens of drawn sequences, each token following from the one before by a rule with exceptions."""

    name = "conformance"
    version = "1.0.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {"micro": TIER, "every-step": replace(TIER, evaluate_every=1)}
    sources = ("drawn",)
    roles: ClassVar[Mapping[str, Role]] = {**ROLES, r"head\.weight": Role.LM_HEAD}

    def data(self) -> DataIdentity:
        """Return the identity of the rule."""
        return DataIdentity(source="drawn", sha256="0" * 64, label="drawn sequences")

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder."""
        return drawn_decoder(seed, device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield sequences of two sources."""
        for number in count(start):
            generator = torch.Generator().manual_seed(derive_seed(seed, "data", str(number)))
            tokens = torch.randint(VOCABULARY, (self.tier.batch_size, 1), generator=generator)
            for _ in range(LENGTH - 1):
                chance = torch.randint(8, (self.tier.batch_size, 1), generator=generator)
                tokens = torch.cat([tokens, (5 * tokens[:, -1:] + 3 + (chance == 0)) % VOCABULARY], dim=1)
            source = torch.arange(self.tier.batch_size) % 2
            yield {"input_ids": tokens.to(device), "labels": tokens.to(device), "source": source.to(device)}

    def example(self, device: torch.device) -> Batch:
        """Return one sequence."""
        tokens = torch.zeros(1, LENGTH, dtype=torch.long, device=device)
        return {"input_ids": tokens, "labels": tokens, "source": tokens[:, 0]}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sequence, (B,)."""
        logits, labels = model(batch["input_ids"])[:, :-1].float(), batch["labels"][:, 1:]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view_as(labels).mean(dim=1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss, weighted where the batch carries weights."""
        losses, weights = self.losses(model, batch), batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return the loss of sequences that no seed trains on."""
        return {"loss": float(self.loss(model, next(self.batches(10_000, 0, device))))}


class Sentences(Text):
    """Which of three classes the first token of a sequence belongs to, for algorithms that fine-tune."""

    roles: ClassVar[Mapping[str, Role]] = {**ROLES, r"head\.weight": Role.CLASSIFIER}

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder with a classifier; only its matrices are trainable, and not the embedding."""
        model = drawn_decoder(seed, device, outputs=CLASSES, pooled=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.ndim == 2 and name != "embedding.weight")
        return model

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sequence, (B,)."""
        logits, labels = model(batch["input_ids"]).float(), batch["labels"][:, 0] % CLASSES
        return nn.functional.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class Filler(Algorithm):
    """torch's AdamW in the slots that the algorithm under check leaves empty."""

    name = "filler"

    lr: Annotated[float, Gt(0)] = hyper(1e-2, help="learning rate")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.Optimizer:  # noqa: ARG002 - slot
        """Return the optimizer."""
        return torch.optim.AdamW(list(named_parameters), lr=self.lr)
