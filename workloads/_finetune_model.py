"""The small transformer that the fine-tuning workloads start from.

Pre-norm blocks with layer norm, multi-head causal attention with separate query, key, value and output maps, a GELU
feed-forward network, learned positions, a final norm and an untied head without bias; every other linear map has one.

Tensor names carry their shape as a suffix:

    B  sequences of the batch      D  width                 N  attention heads      V  vocabulary
    T  positions of a sequence     F  feed-forward width    H  width of one head, D / N
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from bench.errors import BadValue

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The shape: V, the longest sequence, D, N, F and the number of blocks.

    Raises :class:`~bench.errors.BadValue` for a size below 1 and for a width that the heads do not divide.
    """

    vocabulary_size: int = 32
    max_positions: int = 32
    width: int = 64
    heads: int = 4
    ffn: int = 256
    blocks: int = 2

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1:
                raise BadValue(f"{name} is {size!r}, but a size is at least 1")
        if self.width % self.heads:
            raise BadValue(
                f"width is {self.width} with {self.heads} heads, which do not divide it",
                hint=f"choose a multiple of {self.heads}",
            )


class Attention(nn.Module):
    """Multi-head causal self-attention, o(softmax(q kᵀ / sqrt(H)) v)."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BNTH, k_BNTH, v_BNTH = (
            projection(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in (self.q, self.k, self.v)
        )
        y_BNTH = nn.functional.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, is_causal=True)
        y_BTD: Tensor = self.o(y_BNTH.transpose(1, 2).flatten(-2))
        return y_BTD


class MLP(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.ffn)
        self.down = nn.Linear(config.ffn, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(nn.functional.gelu(self.up(x_BTD)))
        return y_BTD


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        y_BTD: Tensor = h_BTD + self.mlp(self.mlp_norm(h_BTD))
        return y_BTD


class FinetuneModel(nn.Module):
    """The transformer: token ids (B, T) in, logits (B, T, V) of the token after each position out.

    A linear map with n inputs starts uniform in ±1/√n, weight and bias; token embeddings start as N(0, 1), positions as
    N(0, 0.02²), norms as 1 and 0. Every draw comes from ``generator``, in the order of ``modules()``; on
    ``torch.device("meta")`` nothing is drawn or allocated.
    """

    def __init__(self, config: FinetuneConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without storage: torch's own initialisation would cost time and use up the global generator.
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocabulary_size, config.width)
            self.positions = nn.Embedding(config.max_positions, config.width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
            self.norm = nn.LayerNorm(config.width)
            self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew from ``generator`` (``None``: torch's global one)."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02 if module is self.positions else 1.0, generator=generator)
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits; position t sees the tokens 0 .. t only."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.embedding(tokens_BT) + self.positions(places_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV
