"""The models of compress-llama's small tiers: byte-level decoders that the suite trains itself, one per seed.

The recipe is fixed: AdamW at learning rate 3e-3, β = (0.9, 0.95), weight decay 0.1 on every parameter, 16 windows of
128 bytes a step, linear warm-up over the first tenth, then a cosine down to a tenth; no clipping, fp32, one thread (the
number of threads changes the order of sums, so the bits). The weights are kept in the user's cache and hashed.

All text is cut into full windows of 128 bytes inside a document, so nothing is ever padded. Training and calibration
use the training split, perplexity the first windows of the validation split. Calibration: all training windows in one
fixed shuffled order, of which seed s takes the s-th piece, so that the sets of different seeds share nothing. The
shifted domain is dialogue, in the same invented language but with speakers, questions and replies, which the training
text does not have; its bytes are pinned.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from bench import DataIdentity, cached
from bench.context import derive_seed
from bench.errors import BadData

from ._batches import Batches, FixedBatches, as_batch, shuffled, validation_batches
from ._llama import Llama, LlamaConfig, token_losses
from ._mixture_corpus import document
from ._sequences import Sequences, Windows
from ._tokenizers import ByteTokenizer

if TYPE_CHECKING:
    from ._documents import Source

LENGTH: Final = 128
RECIPE_VERSION: Final = 1
SHIFTED_SOURCE: Final = "dialogue"
SHIFTED_DOCUMENTS: Final = 24
SHIFTED_WINDOWS: Final = 128
SHIFTED_SHA256: Final = "787b59e172b328f4e2e0c9d242850c19df4b81936b10b9a0033c54d153d9c87c"
_EVALUATION_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a base model is trained; every field changes the result and is part of its name in the cache."""

    config: LlamaConfig
    steps: int
    batch_size: int = 16
    lr: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    warmup_fraction: float = 0.1
    final_factor: float = 0.1

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by at step 0, 1, ..."""
        warmup = round(self.warmup_fraction * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    def train(self, sequences: Sequences, seed: int) -> dict[str, Tensor]:
        """Return the trained weights; the global generators are left alone."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.enable_grad(), torch.device("cpu"):
                return self._train(sequences, seed)
        finally:
            torch.set_num_threads(threads)

    def _train(self, sequences: Sequences, seed: int) -> dict[str, Tensor]:
        model = Llama(self.config, torch.Generator().manual_seed(derive_seed(seed, "compress-llama", "model")))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        for batch in islice(Batches(sequences, batch_size=self.batch_size, seed=seed), self.steps):
            optimizer.zero_grad()
            token_losses(model(batch["input_ids"]), batch["labels"]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """A base model that is trained where the cache does not have it, and its text.

    Args:
        recipe: how it is trained.
        source: where documents come from.
        calibration_windows: sequences of one calibration set.
        evaluation_windows: sequences of the validation split; a smaller split is taken whole.
    """

    recipe: Recipe
    source: Source
    calibration_windows: int = 64
    evaluation_windows: int = 512
    _states: dict[int, tuple[dict[str, Tensor], str]] = field(default_factory=dict, repr=False)

    @cached_property
    def sequences(self) -> Sequences:
        """All text in full windows."""
        return Sequences(self.source, ByteTokenizer(), Windows(LENGTH, minimum=LENGTH))

    @property
    def identity(self) -> DataIdentity:
        """What decides text, cut, calibration and evaluation."""
        text = self.sequences.identity
        facts = (text.sha256, self.calibration_windows, self.evaluation_windows, SHIFTED_SHA256)
        return DataIdentity(source=text.source, sha256=sha256(repr(facts).encode()).hexdigest(), label=text.label)

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the trained model of ``seed``; on ``meta`` its shapes only."""
        with torch.device("meta"):
            model = Llama(self.recipe.config)
        if device.type != "meta":
            state = {name: value.to(device, copy=True) for name, value in self._state(seed)[0].items()}
            model.load_state_dict(state, assign=True)
        return model

    def sha256(self, seed: int) -> str:
        """Return the hash of the weights of ``seed``."""
        return self._state(seed)[1]

    def calibration(self, seed: int) -> Tensor:
        """Return the windows (N, 128) of ``seed``."""
        items = list(self.sequences.items("train"))
        sets = len(items) // self.calibration_windows
        if not sets:
            raise BadData(
                f"the training split of {self.source.label} has {len(items)} full windows of {LENGTH} bytes",
                hint=f"a calibration set needs {self.calibration_windows}",
            )
        order = shuffled(range(len(items)), seed=0, epoch=0)
        first = seed % sets * self.calibration_windows
        chosen = [items[place] for place in islice(order, first, first + self.calibration_windows)]
        return as_batch(self.sequences.matrix(chosen))["input_ids"]

    @cached_property
    def validation(self) -> Tensor:
        """The first windows (N, 128) of the validation split."""
        limit = self.evaluation_windows * LENGTH - 1
        return _whole(validation_batches(self.sequences, batch_size=_EVALUATION_BATCH, token_limit=limit))

    @cached_property
    def shifted(self) -> Tensor:
        """Windows (128, 128) of the shifted domain."""
        cut, tokenizer = Windows(LENGTH, minimum=LENGTH), ByteTokenizer()
        texts = (document(SHIFTED_SOURCE, index, "validation") for index in range(SHIFTED_DOCUMENTS))
        matrix = np.stack(list(islice(cut.items(texts, tokenizer), SHIFTED_WINDOWS)))
        found = sha256(matrix.astype("<u2").tobytes()).hexdigest()
        if found != SHIFTED_SHA256:
            raise BadData(
                f"the shifted domain has SHA-256 {found}, expected {SHIFTED_SHA256}",
                hint="its generator was changed or is damaged: install bench anew",
            )
        return as_batch(matrix)["input_ids"]

    def _state(self, seed: int) -> tuple[dict[str, Tensor], str]:
        if seed not in self._states:
            facts: dict[str, Any] = {
                "version": RECIPE_VERSION,
                "recipe": asdict(self.recipe),
                "text": self.sequences.identity.sha256,
                "seed": seed,
            }
            self._states[seed] = cached("compress-llama", facts, lambda: self.recipe.train(self.sequences, seed))
        return self._states[seed]


def _whole(batches: FixedBatches) -> Tensor:
    return torch.cat([batch["input_ids"] for batch in batches])
