"""The LLaMA decoder of the ReLoRA/GaLore pre-training protocol, and its next-token loss.

Pre-norm blocks with RMSNorm, a SwiGLU feed-forward network, rotary positions in the half-split layout, multi-head
causal attention, no biases, no dropout, embedding and head not tied. With the same weights this model gives the
logits of ``transformers.LlamaForCausalLM``.

Tensor names carry their shape as a suffix:

    B  sequences of the batch      D  hidden size           N  attention heads      V  vocabulary
    T  positions of a sequence     F  feed-forward size     H  size of one head, D / N

Source: arXiv:2302.13971 (LLaMA); sizes and protocol: arXiv:2307.05695 (ReLoRA), arXiv:2403.03507 (GaLore).
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.errors import BadValue

IGNORED = -100
"""The label of a position that is no target: padding."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a decoder.

    ``vocabulary_size`` is V (token ids are 0 .. V-1), ``hidden`` D, ``ffn`` F, ``layers`` the number of blocks,
    ``heads`` N; ``max_positions`` is the longest sequence that the model accepts; ``norm_epsilon`` is added to the mean
    square in RMSNorm; ``rotary_base`` is the base of the rotary frequencies; ``initial_std`` is the standard deviation
    of the initial linear and embedding weights.

    Raises :class:`~bench.errors.BadValue` for a size below 1 and for heads that do not cut ``hidden`` into even sizes.
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
                raise BadValue(f"{name} is {size!r}, but a size is at least 1")
        if self.hidden % (2 * self.heads):
            raise BadValue(
                f"hidden is {self.hidden} with {self.heads} heads, but rotary positions need heads of one even size",
                hint=f"choose a hidden size that is a multiple of {2 * self.heads}",
            )

    @property
    def head_size(self) -> int:
        """H, the size of one attention head."""
        return self.hidden // self.heads


class RMSNorm(nn.Module):
    """Scale to unit mean square, y = w x / sqrt(mean(x²) + ε) over the last dimension.

    The quotient is computed in fp32 and rounded to the dtype of x before it is multiplied by w: Hugging Face's order.
    ``torch.nn.RMSNorm`` multiplies first and rounds once, which in bf16 gives other numbers once w is not 1.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.weight * nn.functional.rms_norm(x_BTD, x_BTD.shape[-1:], eps=self.epsilon)


class Rotation(NamedTuple):
    """Rotary tables of shape (T, H): cosine, and sine with its first half negated."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x_BNTH: Tensor) -> Tensor:
        """Turn each pair (i, i + H/2) of the last dimension by its position's angle, in the dtype of x."""
        cos_TH, sin_TH = self.cos.to(x_BNTH.dtype), self.sin.to(x_BNTH.dtype)
        # Half a turn of the last dimension swaps the two halves in one kernel, forward and backward.
        return x_BNTH * cos_TH + x_BNTH.roll(x_BNTH.shape[-1] // 2, -1) * sin_TH


def rotation(positions: int, head_size: int, base: float, device: torch.device) -> Rotation:
    """Return the fp32 tables of positions t = 0 .. T-1, whose angles are t base^(-2i/H) for i = 0 .. H/2-1."""
    fractions = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), 1.0 / base**fractions)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


class Attention(nn.Module):
    """Multi-head causal self-attention, softmax(q kᵀ / sqrt(H)) v, with rotated q and k; padding is not masked."""

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
            rotary.rotate(q_BNTH), rotary.rotate(k_BNTH), v_BNTH, is_causal=True
        )
        y_BTD: Tensor = self.o(y_BNTH.transpose(1, 2).flatten(-2))
        return y_BTD


class MLP(nn.Module):
    """SwiGLU, down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = nn.functional.silu(self.gate(x_BTD)) * self.up(x_BTD)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary: Rotation) -> Tensor:
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary)
        y_BTD: Tensor = h_BTD + self.mlp(self.mlp_norm(h_BTD))
        return y_BTD


class Llama(nn.Module):
    """The decoder: token ids in, logits of the next token out.

    Linear and embedding weights start as N(0, ``initial_std``²), norms as 1. Every draw comes from ``generator``,
    module by module in the order of ``modules()``, so a seed fixes the weights whatever else used torch's global
    generator (``None``: draw from that one). The generator must live on the device of construction. On
    ``torch.device("meta")`` nothing is drawn or allocated; ``to_empty`` and :meth:`reset_parameters` make such a model
    real.

    The published configurations say ``pad_token_id: -1``, and torch takes that for the last row of the embedding: it
    starts as zeros and its gradient is always zero, while the padding that the data really has, id 0, is an ordinary
    token. Kept as published: token V-1 enters as zeros unless an algorithm moves weights that have no gradient; its row
    of the head is ordinary.

    Runs in fp32, with everything in bf16, and with fp32 weights under bf16 autocast. The rotary tables are made in fp32
    in every forward pass, so converting the model cannot harm them, and are rounded to the dtype of q and k, where they
    are applied.

    Deviations: under autocast Hugging Face's current code rotates in fp32, because its tables have the dtype of the
    residual stream; here, as in GaLore's code, q and k are rotated in their own dtype, bf16.
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without storage: torch's own initialisation would cost time and use up the global generator.
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
        """Draw all weights anew from ``generator`` (``None``: torch's global one)."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.initial_std, generator=generator)
        self.embedding.weight[-1] = 0.0

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each position of ``input_ids`` (B, T); t sees 0 .. t only.

        Raises :class:`~bench.errors.BadValue` for sequences longer than ``max_positions``.
        """
        config, positions = self.config, input_ids.shape[1]
        if positions > config.max_positions:
            raise BadValue(
                f"input_ids have {positions} positions, but the model is made for at most {config.max_positions}",
                hint="cut the sequences, or raise max_positions in the configuration",
            )
        rotary = rotation(positions, config.head_size, config.rotary_base, input_ids.device)
        x_BTD = self.embedding(input_ids)
        for block in self.layers:
            x_BTD = block(x_BTD, rotary)
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy in nats, summed over the target tokens, and their number: fp32 scalars on the logits' device.

    With sequence weights both are weighted sums, so that weights of 0 and 1 mean the same as leaving sequences out.
    """

    sum: Tensor
    count: Tensor

    def mean(self) -> Tensor:
        """Return the mean per target token; not a number where there is none.

        Training minimises it for each micro-batch. A validation loss that does not depend on the batch size adds sums
        and counts over all batches before dividing; the published ("legacy") one is the mean of the batches' means.
        """
        return self.sum / self.count


def token_losses(logits_BTV: Tensor, labels_BT: Tensor, weights_B: Tensor | None = None) -> TokenLoss:
    """Return the next-token cross-entropy: logits at t against the label at t+1, labels of -100 left out.

    sum = Σ_b w_b Σ_t -log softmax(logits[b, t])[labels[b, t+1]],    count = Σ_b w_b |{t : labels[b, t+1] ≠ -100}|

    ``logits_BTV`` of any floating dtype are converted to fp32 first. ``labels_BT`` are not shifted: the input ids, with
    -100 at padding. ``weights_B`` are one weight per sequence, not negative; ``None`` means 1 for each.

    Deviations: the published scripts take the loss in the dtype of the logits, so in pure bf16 every token's loss is
    rounded to 8 significant bits.
    """
    # Shift the labels and not the logits: cutting the last position off the largest tensor would copy it.
    targets_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
    losses_BT = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets_BT)
    counts_BT = (targets_BT != IGNORED).float()
    if weights_B is None:
        return TokenLoss(losses_BT.sum(), counts_BT.sum())
    weights_B1 = weights_B.float()[:, None]
    return TokenLoss((weights_B1 * losses_BT).sum(), (weights_B1 * counts_BT).sum())
