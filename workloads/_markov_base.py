"""The pre-trained model of the tiny fine-tuning workloads: its recipe, and the checkpoint that is shipped beside it.

The checkpoint is shipped because the bits of trained weights differ between processors and all results start from them.
``python -m bench.workloads._markov_base FILE`` trains it again (two minutes on one core), which gives the same recipe's
model and not, in general, the same bits: a new file is a new version of the workloads.
"""

from __future__ import annotations

import math
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from bench.artifacts import tensors_sha256
from bench.context import derive_seed
from bench.errors import BadData
from bench.roles import HIDDEN_MATRICES, Role, assign_roles

from ._finetune_model import FinetuneConfig, FinetuneModel
from ._markov import Markov, drawn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

BASE_SHA256: Final = "50fa7744e4ba368c5ec9c77b80b37b9ac5baafee0f53b7afaa67f556813aea43"
"""SHA-256 of names, types, shapes and contents of the shipped tensors."""

BASE_FILE: Final = Path(__file__).with_name("ft_markov_base.pt")

PRETRAINING_STEPS: Final = 2500
PRETRAINING_BATCH: Final = 64
PRETRAINING_RATE: Final = 2e-3
PRETRAINING_WARMUP: Final = 100
PRETRAINING_WEIGHT_DECAY: Final = 0.01

ROLES: Final[Mapping[str, Role]] = {
    r"(embedding|positions)\.weight": Role.EMBEDDING,
    r"lm_head\.weight": Role.LM_HEAD,
    r"(blocks\.\d+\.(attention|mlp)_)?norm\.weight": Role.NORM,
    r"(blocks\.\d+\.((attention|mlp)_norm|attention\.[qkvo]|mlp\.(up|down))|norm)\.bias": Role.BIAS,
    r"blocks\.\d+\.attention\.q\.weight": Role.ATTENTION_Q,
    r"blocks\.\d+\.attention\.k\.weight": Role.ATTENTION_K,
    r"blocks\.\d+\.attention\.v\.weight": Role.ATTENTION_V,
    r"blocks\.\d+\.attention\.o\.weight": Role.ATTENTION_O,
    r"blocks\.\d+\.mlp\.(up|down)\.weight": Role.MLP,
}


def pretraining_source() -> Markov:
    """Return P0, the source that the base has learned."""
    return drawn(0)


def symbol_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p(x_t | x_<t) in nats, (B, T-1), of logits (B, T, V) or (B, T-1, V) for tokens (B, T)."""
    targets = tokens[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, : targets.shape[1]].flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    return losses.view_as(targets)


def pretrain(steps: int = PRETRAINING_STEPS) -> FinetuneModel:
    """Return a new model after ``steps`` of the recipe: fresh batches of P0, AdamW, warm-up and cosine to 0."""
    model = FinetuneModel(FinetuneConfig(), torch.Generator().manual_seed(derive_seed(0, "ft-markov", "base")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_RATE, weight_decay=PRETRAINING_WEIGHT_DECAY)
    source = pretraining_source()
    for step in range(steps):
        done = max(0, step - PRETRAINING_WARMUP) / (PRETRAINING_STEPS - PRETRAINING_WARMUP)
        factor = min((step + 1) / PRETRAINING_WARMUP, (1.0 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = PRETRAINING_RATE * factor
        tokens = torch.from_numpy(source.sequences(PRETRAINING_BATCH, "pretraining", str(step)))
        optimizer.zero_grad()
        symbol_losses(model(tokens[:, :-1]), tokens).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def read_base(path: Path = BASE_FILE) -> dict[str, Tensor]:
    """Return the shipped tensors; raises :class:`~bench.errors.BadData` where they are missing or other ones."""
    hint = "install the package again: the file belongs to it"
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadData(f"the pre-trained model {path.name} cannot be read: {first}", hint=hint) from error
    if (digest := tensors_sha256(state)) != BASE_SHA256:
        raise BadData(
            f"the pre-trained model {path.name} has SHA-256 {digest[:12]}, not the pinned {BASE_SHA256[:12]}", hint=hint
        )
    return state


_base = cache(read_base)


def base_model(device: torch.device) -> FinetuneModel:
    """Return the pre-trained model, of which only the weights of the linear maps inside the blocks are trainable.

    On ``torch.device("meta")`` it has shapes only.
    """
    with torch.device("meta"):
        model = FinetuneModel(FinetuneConfig())
    if device.type != "meta":
        model.to_empty(device=device)
        model.load_state_dict(_base())
    for name, role in assign_roles((name for name, _ in model.named_parameters()), ROLES).items():
        model.get_parameter(name).requires_grad_(role in HIDDEN_MATRICES)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained = pretrain().state_dict()
    torch.save(trained, sys.argv[1])
    sys.stdout.write(f"{tensors_sha256(trained)}\n")
