r"""compress-llama: make a trained LLaMA decoder smaller, in one shot, and measure what that costs.

At each point of a tier the algorithm gets the dense model and replaces the linears of its blocks (q, k, v, o, gate, up,
down); embedding, head and norms stay. A point asks for a kept ratio ρ (stored values of those linears over their dense
values), for N of each M consecutive weights along the input axis, or for a branch of rank r beside each compressed
linear. What is stored is counted from what comes back (``_compression_accounting``); more than was asked is a fault.

    log_perplexity_increase = (1/k) Σ_{i ≤ k} (log PPL_i - log PPL_dense)      (nats per token or byte, lower is better)

is the mean over the points so far, so at the last point the area under the increase over the grid: one number for a
method. ``perplexity`` and ``point_increase`` are those of the point alone, ``shifted_perplexity`` that of another
domain. Perplexity is the exponential of the token-weighted fp32 mean over one fixed list of sequences; a value that is
not finite counts as infinite and stays in the mean. ``kept_ratio`` is measured, ``linear_bytes`` is what takes the
place of the linears, ``stored_bytes`` the whole model, both at 16 bits a value, ``whole_model_ratio`` its values over
the dense ones.

Small tiers start from models that the suite trains itself, one per seed (``_compress_base``); tiers ``hf`` from a
checkpoint in Hugging Face's layout, named by ``--model-dir`` (``_compress_hf``).

Deviations: the papers score one ratio at a time, on WikiText-2 or C4 in the tokens of the published LLaMA models; the
small tiers' text is the suite's own, and the seed changes model and calibration set together.
Source: arXiv:2403.07378 (SVD-LLM: ratios, uniform rank), arXiv:2301.00774 (SparseGPT: patterns, calibration),
arXiv:2410.21271 (EoRA: compensation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from bench import Batch, CompressionWorkload, DataIdentity, Point, PostTier, Role, Tier
from bench.errors import BadData, BadValue
from bench.roles import assign_roles

from ._compress_base import Recipe, TrainedBase
from ._compress_hf import Checkpoint, CheckpointBase
from ._compression_accounting import Layout, account
from ._documents import Embedded, LocalShards
from ._hub import C4
from ._llama import LlamaConfig, token_losses

if TYPE_CHECKING:
    from torch import Tensor

    from ._documents import Source

NOTHING_TO_TUNE = "one-shot and in closed form, at the published settings; nothing is tuned"


@dataclass(frozen=True, kw_only=True)
class CompressTier(PostTier):
    """A tier with the recipe of its base model (``None``: a checkpoint) and sequences per batch."""

    recipe: Recipe | None
    sequences_per_batch: int = 16


TINY = Recipe(config=LlamaConfig(vocabulary_size=256, hidden=64, ffn=168, layers=2, heads=2), steps=600)
MEDIUM = Recipe(config=LlamaConfig(vocabulary_size=256, hidden=128, ffn=336, layers=4, heads=4), steps=2_000)

RATIOS = tuple(Point(kept_ratio=ratio) for ratio in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4))
HALF = (Point(pattern=(2, 4)),)
QUARTER = (Point(pattern=(1, 4)),)
BRANCHES = tuple(Point(pattern=(1, 4), rank=rank) for rank in (4, 8, 16))
HF_RATIOS = RATIOS[:4]
HF_BRANCH = (Point(pattern=(2, 4), rank=128),)

LOW_RANK: Mapping[str, Mapping[str, Any]] = {"svd": {}}
PRUNED: Mapping[str, Mapping[str, Any]] = {"magnitude-pruning": {}}
COMPENSATED: Mapping[str, Mapping[str, Any]] = {"svd-compensation": {}, "sparsegpt": {}}


def _trained(
    recipe: Recipe,
    points: tuple[Point, ...],
    reference: Mapping[str, Mapping[str, Any]],
    expected_s: float,
    default_on: tuple[str, ...] = (),
) -> CompressTier:
    return CompressTier(
        recipe=recipe,
        points=points,
        reference=reference,
        tuning=NOTHING_TO_TUNE,
        source="embedded",
        device_class="cpu-1",
        timeout_s=2 * 3600.0,
        expected_s=expected_s,
        default_on=default_on,
    )


def _published(points: tuple[Point, ...], reference: Mapping[str, Mapping[str, Any]]) -> CompressTier:
    return CompressTier(
        recipe=None,
        sequences_per_batch=1,
        points=points,
        reference=reference,
        tuning=NOTHING_TO_TUNE,
        source="c4",
        device_class="none yet",
        precision="bf16",
    )


_EVERYWHERE = ("cpu", "cuda")
TIERS: Mapping[str, CompressTier] = {
    "tiny": _trained(TINY, RATIOS, LOW_RANK, 20.0, _EVERYWHERE),
    "tiny-2-4": _trained(TINY, HALF, PRUNED, 5.0, _EVERYWHERE),
    "tiny-1-4": _trained(TINY, QUARTER, PRUNED, 5.0, _EVERYWHERE),
    "tiny-compensation": _trained(TINY, BRANCHES, COMPENSATED, 10.0, _EVERYWHERE),
    "845k": _trained(MEDIUM, RATIOS, LOW_RANK, 60.0),
    "845k-2-4": _trained(MEDIUM, HALF, PRUNED, 20.0),
    "845k-1-4": _trained(MEDIUM, QUARTER, PRUNED, 20.0),
    "845k-compensation": _trained(MEDIUM, BRANCHES, COMPENSATED, 60.0),
    "hf": _published(HF_RATIOS, LOW_RANK),
    "hf-2-4": _published(HALF, PRUNED),
    "hf-compensation": _published(HF_BRANCH, COMPENSATED),
}


class CompressLlama(CompressionWorkload):
    """Post-training compression of a LLaMA decoder; see the module."""

    name = "compress-llama"
    version = "1.0.0"
    metric = "log_perplexity_increase"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = TIERS
    sources = ("embedded", "local", "c4")
    takes_models = 1
    blocks = r"(lm\.model\.)?layers\.\d+"
    # Each pattern serves the suite's own decoder and that of transformers.
    roles: ClassVar[Mapping[str, Role]] = {
        r"embedding\.weight|lm\.model\.embed_tokens\.weight": Role.EMBEDDING,
        r"(lm\.)?lm_head\.weight": Role.LM_HEAD,
        r"(layers\.\d+\.(attention|mlp)_)?norm\.weight"
        r"|lm\.model\.(layers\.\d+\.(input|post_attention)_layer)?norm\.weight": Role.NORM,
        r"layers\.\d+\.attention\.q\.weight|lm\.model\.layers\.\d+\.self_attn\.q_proj\.weight": Role.ATTENTION_Q,
        r"layers\.\d+\.attention\.k\.weight|lm\.model\.layers\.\d+\.self_attn\.k_proj\.weight": Role.ATTENTION_K,
        r"layers\.\d+\.attention\.v\.weight|lm\.model\.layers\.\d+\.self_attn\.v_proj\.weight": Role.ATTENTION_V,
        r"layers\.\d+\.attention\.o\.weight|lm\.model\.layers\.\d+\.self_attn\.o_proj\.weight": Role.ATTENTION_O,
        r"layers\.\d+\.mlp\.(gate|up|down)\.weight"
        r"|lm\.model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight": Role.MLP,
    }

    def __post_init__(self) -> None:
        """Refuse what does not fit the tier: a checkpoint and its text belong to tiers ``hf``, bytes to the others."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer {self.request.tokenizer!r} has nothing to do: text is read in bytes or in the tokens of "
                "the checkpoint",
                hint="leave --tokenizer out",
            )
        hf = [name for name, tier in TIERS.items() if tier.recipe is None]
        if self.compress_tier.recipe is not None and self.request.models:
            raise BadData(
                f"tier {self.tier_name!r} of {self.name} trains its own model, but --model-dir was given",
                hint=f"leave --model-dir out, or choose a tier that takes one: {', '.join(hf)}",
            )
        wrong = "embedded" if self.compress_tier.recipe is None else "c4"
        if self.source == wrong:
            raise BadData(
                f"tier {self.tier_name!r} of {self.name} does not read the source {wrong!r}",
                hint=f"tiers {', '.join(hf)} read c4 or --data-dir DIR, the others embedded or --data-dir DIR",
            )

    @property
    def compress_tier(self) -> CompressTier:
        """The tier with the fields of this workload."""
        tier = self.tier
        assert isinstance(tier, CompressTier)
        return tier

    @cached_property
    def base(self) -> TrainedBase | CheckpointBase:
        """The base model and its text."""
        recipe, source = self.compress_tier.recipe, self._documents()
        if recipe is not None:
            return TrainedBase(recipe=recipe, source=source)
        if not self.request.models:
            raise BadData(
                f"tier {self.tier_name!r} of {self.name} needs a LLaMA checkpoint in Hugging Face's layout",
                hint="name its folder by --model-dir DIR (config.json, *.safetensors, tokenizer), for example from "
                "hf download NAME --local-dir DIR; its text by --data-dir DIR or --data c4",
            )
        dtype = torch.bfloat16 if self.tier.precision == "bf16" else torch.float32
        return CheckpointBase(checkpoint=Checkpoint(self.request.models[0], dtype), source=source)

    def _documents(self) -> Source:
        if self.source == "local":
            assert self.request.directory is not None
            return LocalShards(self.request.directory)
        return Embedded() if self.source == "embedded" else C4()

    @cached_property
    def layout(self) -> Layout:
        """Which matrices are compressed, and what stays."""
        model = self.base.model(0, torch.device("meta"))
        return Layout.of(model, assign_roles((name for name, _ in model.named_parameters()), self.roles))

    @cached_property
    def _dense(self) -> dict[int, float]:
        return {}

    @cached_property
    def _calibration(self) -> dict[int, Tensor]:
        return {}

    def data(self) -> DataIdentity:
        """Return the identity of text, tokens, calibration and evaluation together."""
        return self.base.identity

    def base_sha256(self, seed: int) -> str | None:
        """Return the hash of the dense weights of ``seed``."""
        return self.base.sha256(seed)

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the dense model of ``seed``, trained where the cache does not have it."""
        return self.base.model(seed, device)

    def calibration(self, seed: int, device: torch.device) -> Sequence[Batch]:
        """Return batches of ``tokens`` (B, T), no padding among them, all of the training split."""
        if seed not in self._calibration:  # it is asked for at every point, and reading text is no part of a method
            self._calibration[seed] = self.base.calibration(seed)
        parts = torch.split(self._calibration[seed], self.compress_tier.sequences_per_batch)
        return [{"tokens": part.to(device, copy=True)} for part in parts]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per token that has one before it."""
        return token_losses(model(batch["tokens"]), batch["tokens"], batch.get("weights")).mean()

    @torch.no_grad()
    def log_perplexity(self, model: nn.Module, tokens: Tensor, device: torch.device) -> float:
        """Return the mean of -log p(token) over windows (N, T), in nats; infinite where it is not a finite number."""
        parts = torch.split(tokens, 4 * self.compress_tier.sequences_per_batch)  # nothing is kept for a backward pass
        sums, counts = torch.zeros((), dtype=torch.float64), 0.0
        for part in parts:
            found = token_losses(model(part.to(device)), part.to(device))
            sums += found.sum.double().cpu()
            counts += float(found.count)
        mean = float(sums) / counts
        return mean if math.isfinite(mean) else math.inf

    def dense_log_perplexity(self, seed: int, device: torch.device) -> float:
        """Return that of the dense model of ``seed`` on the validation windows; measured once."""
        if seed not in self._dense:
            model = self.model(seed, device).eval()
            self._dense[seed] = self.log_perplexity(model, self.base.validation, device)
        return self._dense[seed]

    def examine(
        self, model: nn.Module, point: Point, history: Sequence[Mapping[str, float]], device: torch.device, seed: int
    ) -> dict[str, float]:
        """Return perplexities, their increase and the storage of a compressed model."""
        found = account(model, self.layout, point.pattern)
        found.check(point)
        log_perplexity = self.log_perplexity(model, self.base.validation, device)
        dense = self.dense_log_perplexity(seed, device)
        increase = log_perplexity - dense
        metrics = {
            self.metric: sum([*(row["point_increase"] for row in history), increase]) / (len(history) + 1),
            "point_increase": increase,
            "perplexity": _exp(log_perplexity),
            "dense_perplexity": _exp(dense),
            "kept_ratio": found.kept_ratio,
            "whole_model_ratio": found.whole_model_ratio,
            "linear_bytes": float(found.linear_bytes),
            "stored_bytes": float(found.stored_bytes),
        }
        if self.base.shifted is not None:
            metrics["shifted_perplexity"] = _exp(self.log_perplexity(model, self.base.shifted, device))
        return metrics


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
