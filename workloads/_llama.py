"""The LLaMA decoder of the GaLore/ReLoRA pre-training protocol, and its next-token loss.

Pre-norm blocks with RMSNorm, a SwiGLU feed-forward network, rotary positions in the half-split layout, full multi-head causal
attention, no biases, no dropout, embedding and head untied.  Weights that two implementations share are interchangeable: with
the same weights this model gives the logits of ``transformers.LlamaForCausalLM``.

Tensor names carry their shape as a suffix:

    B  sequences of the batch      D  hidden size           N  attention heads      V  vocabulary
    T  positions of a sequence     F  feed-forward size     H  size of one head (D / N)

Source: Touvron et al., arXiv:2302.13971; sizes and protocol: Lialin et al. (ReLoRA), arXiv:2307.05695, and Zhao et al.
(GaLore), arXiv:2403.03507.
"""
# The shape suffixes are capitals on purpose.
# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

IGNORED = -100
"""The label of a position that is not a target: padding."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of one decoder.

    Attributes:
        vocabulary_size: V, token ids are 0 .. V-1; the embedding of V-1 is the padding embedding, see `Llama`.
        hidden: D, the width of the residual stream.
        ffn: F, the width between the two halves of the feed-forward network.
        layers: the number of blocks.
        heads: N, which must divide D into heads of an even size.
        max_positions: the longest sequence that `forward` accepts.
        norm_epsilon: added to the mean square in RMSNorm.
        rotary_base: the base of the geometric series of rotary frequencies.
        initial_std: the standard deviation of the initial linear and embedding weights.

    Raises:
        ValueError: a size is not positive, or the heads do not divide the hidden size into even parts.
    """

    vocabulary_size: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    max_positions: int = 2048
    norm_epsilon: float = 1e-6
    rotary_base: float = 10_000.0
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "hidden", "ffn", "layers", "heads", "max_positions"):
            size = getattr(self, name)
            if size < 1:
                raise ValueError(f"{name} is {size!r}, but a size must be at least 1")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden is {self.hidden} with {self.heads} heads, but rotary positions need heads of an even size: "
                f"choose a hidden size that is a multiple of {2 * self.heads}"
            )

    @property
    def head_size(self) -> int:
        """H, the width of one attention head."""
        return self.hidden // self.heads


class RMSNorm(nn.Module):
    """y = w * x / sqrt(mean(x^2) + epsilon) over the last dimension.

    The quotient is computed in fp32 and rounded to the dtype of x before the multiplication by w, as Hugging Face does;
    `torch.nn.RMSNorm` rounds once, after the multiplication, which differs in bf16 as soon as w is not 1.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor) -> Tensor:
        x32_BTD = x_BTD.float()
        scale_BT1 = torch.rsqrt(x32_BTD.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x32_BTD * scale_BT1).to(x_BTD.dtype)


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, shape (T, H) both, the sine negated in its first half."""

    cos_TH: Tensor
    sin_TH: Tensor

    def apply(self, x_BNTH: Tensor) -> Tensor:
        """Rotate each pair (i, i + H/2) of the last dimension by its position's angle, in the dtype of `x_BNTH`."""
        cos_TH, sin_TH = self.cos_TH.to(x_BNTH.dtype), self.sin_TH.to(x_BNTH.dtype)
        return x_BNTH * cos_TH + x_BNTH.roll(x_BNTH.shape[-1] // 2, -1) * sin_TH


def rotation(positions: int, head_size: int, base: float, device: torch.device) -> Rotation:
    """The rotary tables of positions 0 .. T-1: angle(t, i) = t * base^(-2i/H), i = 0 .. H/2-1, in fp32."""
    exponents_h = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    angles_Th = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), base**-exponents_h)
    cos_Th, sin_Th = angles_Th.cos(), angles_Th.sin()
    return Rotation(torch.cat((cos_Th, cos_Th), -1), torch.cat((-sin_Th, sin_Th), -1))


class Attention(nn.Module):
    """Multi-head causal self-attention, softmax(q k^T / sqrt(H)) v, with rotated q and k."""

    def __init__(self, config: LlamaConfig) -> None:
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
        y_BNTH = nn.functional.scaled_dot_product_attention(
            rotary.apply(q_BNTH), rotary.apply(k_BNTH), v_BNTH, is_causal=True
        )
        y_BTD: Tensor = self.o(y_BNTH.transpose(1, 2).flatten(-2))
        return y_BTD


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(nn.functional.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary: Rotation) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return x_BTD


class Llama(nn.Module):
    """The decoder: token ids in, next-token logits out.

    Linear and embedding weights start as N(0, initial_std^2), norms as 1.  All draws come from `generator`, in the order of
    `parameters()`, so a seed fixes the weights whatever else has used torch's global generator; with None they come from the
    global one.  The generator belongs to the device of construction.  On ``torch.device("meta")`` nothing is drawn or
    allocated: `to_empty` and `reset_parameters` make such a model real.

    The published configurations say ``pad_token_id: -1``, which torch reads as "the last row of the embedding is padding": it
    starts as zeros and never gets a gradient, while the true padding id is an ordinary token.  Kept as published: token V-1
    is embedded as zero throughout training unless an algorithm moves weights whose gradient is zero.  Its row of the head is
    ordinary.

    Precision: runs in fp32, with all weights in bf16, and with fp32 weights under bf16 autocast.  Rotary tables are computed
    in fp32 for every forward pass, so converting the model cannot round them twice, and are rounded to the dtype of queries
    and keys, where they are applied.

    Deviations:
        Hugging Face keeps the tables in the dtype of the residual stream, which under autocast is fp32, and so rotates there in
        fp32; the code of the GaLore lineage rotates in the dtype of queries and keys, as here.
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without storage, so that torch's own initialisation neither costs time nor touches the global generator.
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocabulary_size, config.hidden, padding_idx=-1)
            self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = RMSNorm(config.hidden, config.norm_epsilon)
            self.lm_head = nn.Linear(config.hidden, config.vocabulary_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew from `generator` (None: torch's global one), see the class."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.initial_std, generator=generator)
        self.embedding.weight[-1] = 0.0

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the token that follows each position of `input_ids` (B, T); position t sees 0 .. t only.

        Raises:
            ValueError: the sequences are longer than `max_positions`.
        """
        positions = input_ids.shape[1]
        if positions > self.config.max_positions:
            raise ValueError(
                f"input_ids have {positions} positions, but the model is built for at most {self.config.max_positions}: "
                "shorten the sequences or raise max_positions"
            )
        rotary = rotation(positions, self.config.head_size, self.config.rotary_base, input_ids.device)
        x_BTD = self.embedding(input_ids)
        for block in self.layers:
            x_BTD = block(x_BTD, rotary)
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV


class TokenLoss(NamedTuple):
    """Cross-entropy in nats, summed over target tokens, and how many there were; fp32 scalars on the logits' device.

    With sequence weights both are weighted, so that 0/1 weights mean the same as leaving sequences out.
    """

    sum: Tensor
    count: Tensor

    def mean(self) -> Tensor:
        """The mean per target token, not a number where there is none.

        Training minimises it per micro-batch.  Validation adds sums and counts over all batches first: then the number does
        not depend on the batch size.  The mean of these means over batches is the published ("legacy") number's.
        """
        return self.sum / self.count


def token_losses(logits_BTV: Tensor, labels_BT: Tensor, weights_B: Tensor | None = None) -> TokenLoss:
    """Next-token cross-entropy: position t's logits against the label of t+1, labels of -100 left out.

    sum = sum_b w_b sum_t -log softmax(logits[b, t])[labels[b, t+1]],   count = sum_b w_b #{t : labels[b, t+1] != -100}

    Args:
        logits_BTV: any floating dtype; they are converted to fp32 first.
        labels_BT: token ids, not shifted: the input ids with -100 at padding.
        weights_B: one non-negative weight per sequence, 1 where None.

    Deviations:
        the published code takes the loss in the logits' dtype; in pure bf16 that rounds every token's loss to 8 bits.
    """
    # The labels are shifted rather than the logits cut: a view of (B*T, V) then needs no copy of the largest tensor.
    targets_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
    losses_BT = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets_BT)
    counts_BT = (targets_BT != IGNORED).to(losses_BT.dtype)
    if weights_B is None:
        return TokenLoss(losses_BT.sum(), counts_BT.sum())
    weights_B = weights_B.to(losses_BT.dtype)
    return TokenLoss(weights_B @ losses_BT.sum(1), weights_B @ counts_BT.sum(1))
