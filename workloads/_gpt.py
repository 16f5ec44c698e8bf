"""The GPT of the NanoGPT speed run, as its record of 3 November 2024 has it, and its next-token loss.

GPT-2's shape with the parts that made it train faster: rotary positions, RMSNorm without gains (also of the embedding,
and of queries and keys), a feed-forward network of four times the hidden size with squared ReLU, no biases, output
projections and head that start as zeros, embedding and head not tied.

Tensor names carry their shape as a suffix:

    B  sequences of the batch      D  hidden size           N  attention heads      V  vocabulary
    T  positions of a sequence     F  4 D                   H  size of one head, D / N

Source: the logs of the record "Untied embedding and head" in github.com/KellerJordan/modded-nanogpt; arXiv:2109.08668
for the squared ReLU.
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from bench.errors import BadValue

from ._llama import Rotation, rotation

EPSILON: Final = 2.0**-23
"""Added to the mean square in RMSNorm: the spacing of fp32 numbers at 1."""

ROTARY_BASE: Final = 10_000.0


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """The shape of a model.

    ``vocabulary_size`` is V (token ids are 0 .. V-1), ``hidden`` D, ``layers`` the number of blocks, ``heads`` N.

    Raises :class:`~bench.errors.BadValue` for a size below 1 and for heads that do not cut ``hidden`` into even sizes.
    """

    vocabulary_size: int
    hidden: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "hidden", "layers", "heads"):
            size = getattr(self, name)
            if size < 1:
                raise BadValue(f"{name} is {size!r} ({type(size).__name__}), but a size is at least 1")
        if self.hidden % (2 * self.heads):
            raise BadValue(
                f"hidden is {self.hidden} with {self.heads} heads, but rotary positions need heads of one even size",
                hint=f"choose a hidden size that is a multiple of {2 * self.heads}",
            )

    @property
    def head_size(self) -> int:
        """H, the size of one attention head."""
        return self.hidden // self.heads


def rms_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean(x²) + ε) over the last dimension; there is no gain."""
    return nn.functional.rms_norm(x, x.shape[-1:], eps=EPSILON)


class Attention(nn.Module):
    """Multi-head causal self-attention, softmax(q kᵀ / sqrt(H)) v, of rotated q and k with unit mean square."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.q = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k = nn.Linear(config.hidden, config.hidden, bias=False)
        self.v = nn.Linear(config.hidden, config.hidden, bias=False)
        self.o = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x_BTD: Tensor, rotary: Rotation) -> Tensor:
        q_BNTH, k_BNTH, v_BNTH = (
            projection(x_BTD).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        q_BNTH, k_BNTH = rms_norm(rotary.rotate(q_BNTH)), rms_norm(rotary.rotate(k_BNTH))
        # autocast may leave the norms in fp32, and the three must agree
        y_BNTH = nn.functional.scaled_dot_product_attention(
            q_BNTH.to(v_BNTH.dtype), k_BNTH.to(v_BNTH.dtype), v_BNTH, is_causal=True
        )
        y_BTD: Tensor = self.o(y_BNTH.transpose(1, 2).flatten(-2))
        return y_BTD


class MLP(nn.Module):
    """down(max(up(x), 0)²)."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, 4 * config.hidden, bias=False)
        self.down = nn.Linear(4 * config.hidden, config.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(nn.functional.relu(self.up(x_BTD)).square())
        return y_BTD


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary: Rotation) -> Tensor:
        h_BTD = x_BTD + self.attention(rms_norm(x_BTD), rotary)
        y_BTD: Tensor = h_BTD + self.mlp(rms_norm(h_BTD))
        return y_BTD


class Gpt(nn.Module):
    """The model: token ids in, logits of the next token out.

    The embedding starts as N(0, 1), q, k, v and ``up`` as U(-1/√D, 1/√D), torch's own ranges; o, ``down`` and the head
    as zeros. So every logit is 0 and the loss ln V at first, and the very first gradient is zero but for the head's.
    Every draw comes from ``generator``, module by module in the order of ``modules()`` (``None``: from torch's global
    one); it must live on the device of construction. On ``torch.device("meta")`` nothing is drawn or allocated.

    Runs in fp32, with everything in bf16, and with fp32 weights under bf16 autocast. The rotary tables are made in fp32
    in every forward pass and rounded to the dtype of q and k.

    Deviations: the record's tables are bf16 in every precision, its positions turn the other way (the same model up to
    the sign of half of each head's rows), and its norms of q and k take ε from bf16 (2⁻⁷), where it shrinks small
    vectors; here ε is 2⁻²³ everywhere.
    """

    def __init__(self, config: GptConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without storage: torch's own initialisation would cost time and use up the global generator.
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocabulary_size, config.hidden)
            self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.lm_head = nn.Linear(config.hidden, config.vocabulary_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew from ``generator`` (``None``: torch's global one)."""
        zeros = {self.lm_head, *(module for block in self.layers for module in _outputs(block))}
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
            elif isinstance(module, nn.Linear) and module in zeros:
                module.weight.zero_()
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each position of ``input_ids`` (B, T); t sees 0 .. t only."""
        rotary = rotation(input_ids.shape[1], self.config.head_size, ROTARY_BASE, input_ids.device)
        x_BTD = rms_norm(self.embedding(input_ids))
        for block in self.layers:
            x_BTD = block(x_BTD, rotary)
        logits_BTV: Tensor = self.lm_head(rms_norm(x_BTD))
        return logits_BTV


def _outputs(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the two layers of a block that write to the residual stream."""
    assert isinstance(block, Block)
    return block.attention.o, block.mlp.down


def sequence_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return each sequence's mean cross-entropy (B,) in nats per token, computed in fp32.

    ``targets_BT`` are the tokens that follow each position: they are shifted already.
    """
    losses_BT = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none"
    ).view_as(targets_BT)
    return losses_BT.mean(dim=1)
