r"""ft-glue: RoBERTa-base fine-tuned on a task of GLUE; a tier per task.

Every task starts from the base model (none from MNLI's result), with a fresh head that is trained in full: dropout,
dense, tanh, dropout, linear, 0.59 million parameters and more, which is more than many adapters have. Texts are cut to
128 tokens and padded to the longest of a batch; batches are of 32. The budget is 30 epochs on MRPC, CoLA, RTE and
STS-B, 10 on SST-2, QNLI, QQP and MNLI, of the published sizes whatever the data is.

The labels of the test splits are hidden, so the validation split decides, as in every paper; nothing else here uses it.
``score`` is the task's own metric: accuracy (MRPC, RTE, SST-2, QNLI, QQP, and MNLI's matched split), Matthews
correlation (CoLA) or Pearson correlation (STS-B). Beside it are F1 (MRPC, QQP), Spearman correlation (STS-B), accuracy
(all that have classes, and MNLI's mismatched split) and the mean loss. With z the outputs and y the label,

    loss = -log softmax(z)[y]        or, on STS-B, a regression,        loss = (z - y)²

Targets come from runs of our own, and there is none yet, so no tier has a target. What published scores of RoBERTa-base
suggest (medians of five seeds, about a standard error below LoRA's; to be confirmed): MRPC 0.885, CoLA 0.60, RTE 0.74,
STS-B 0.90, SST-2 0.94, QNLI 0.92. One standard error is 0.015 on MRPC, 0.024 on RTE, 0.0075 on SST-2: one seed ranks
nothing.

Deviations: LoRA's scripts pad to 512 tokens and start MRPC, RTE and STS-B from MNLI's adapter; a batch may span the end
of an epoch; the reference has one learning rate for all tasks, where RoBERTa's paper takes the best of three per task,
and AdamW's usual β₂ = 0.999 and ε = 1e-8 (there 0.98 and 1e-6).
Source: arXiv:1804.07461 (tasks), arXiv:1907.11692 (model and fine-tuning).
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
from torch.nn import functional

from bench import Batch, DataIdentity, Role, Tier, TrainingWorkload
from bench.errors import BadValue

from ._glue_batches import Batches, Encoded
from ._glue_data import TASKS, Glue, Rows, Task
from ._glue_files import GlueFiles
from ._glue_hub import GlueHub
from ._glue_metrics import measured
from ._roberta import LENGTH, ROLES, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 32
_EVALUATED_AT_ONCE = 64
"""Examples per batch of a validation split; their activations bound the memory of an evaluation, nothing else."""


@dataclass(frozen=True, kw_only=True)
class GlueTier(Tier):
    """A tier with its task and how often it sees the training split."""

    task: Task
    epochs: int


def _tier(name: str, epochs: int, default_on: tuple[str, ...] = ()) -> GlueTier:
    steps = math.ceil(epochs * TASKS[name].sizes["train"] / BATCH_SIZE)
    return GlueTier(
        task=TASKS[name],
        epochs=epochs,
        steps=steps,
        evaluate_every=int(0.015 * steps),
        batch_size=BATCH_SIZE,
        micro_batch_size=BATCH_SIZE,
        precision="fp32",
        reference={
            "full-finetuning": {"lr": 2e-5, "head_lr": 2e-5, "weight_decay": 0.1},
            "warmup-linear": {"warmup_fraction": 0.06, "final_factor": 0.0},
        },
        tuning="published (arXiv:1907.11692: the middle of its rates 1e-5 to 3e-5, weight decay 0.1, warm-up 0.06); "
        "not tuned here, no hardware for this tier yet",
        source="glue",
        device_class="none yet",
        default_on=default_on,
    )


TIERS: Mapping[str, GlueTier] = {
    "mrpc": _tier("mrpc", 30, default_on=("cuda",)),
    "cola": _tier("cola", 30),
    "rte": _tier("rte", 30),
    "stsb": _tier("stsb", 30),
    "sst2": _tier("sst2", 10),
    "qnli": _tier("qnli", 10),
    "qqp": _tier("qqp", 10),
    "mnli": _tier("mnli", 10),
}


class FtGlue(TrainingWorkload):
    """RoBERTa-base fine-tuned on GLUE; see the module."""

    name = "ft-glue"
    version = "1.0.0"
    metric = "score"
    direction = "max"
    tiers: ClassVar[Mapping[str, Tier]] = TIERS
    sources = ("glue", "local")
    roles: ClassVar[Mapping[str, Role]] = ROLES
    takes_models = 1

    def __post_init__(self) -> None:
        """Refuse a tokenizer: it belongs to the model."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer is {self.request.tokenizer!r}, but {self.name} takes that of its model",
                hint="leave out --tokenizer; --model-dir DIR names a folder with model and tokenizer",
            )

    @property
    def offers(self) -> frozenset[str]:
        """Also ``pretrained``."""
        return super().offers | {"pretrained"}

    @property
    def task(self) -> Task:
        """The task of this tier."""
        tier = self.tier
        assert isinstance(tier, GlueTier)
        return tier.task

    @cached_property
    def glue(self) -> Glue:
        """The rows of the task."""
        directory = self.request.directory
        return Glue(self.task, GlueHub() if directory is None else GlueFiles(directory))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Model and tokenizer that everything starts from."""
        return Checkpoint(*self.request.models)

    @cached_property
    def encoded(self) -> Mapping[str, Encoded]:
        """Every split as token ids."""
        return {split: self._encode(rows) for split, rows in self.glue.splits.items()}

    def _encode(self, rows: Rows) -> Encoded:
        return Encoded(self.checkpoint.encode(rows.texts), rows.labels, self.checkpoint.tokenizer.pad_token_id)

    def data(self) -> DataIdentity:
        """Return the identity of rows, tokenizer and weights together; what is missing of them is found here."""
        checkpoint, glue = self.checkpoint, self.glue
        assert checkpoint.tokenizer is not None, "it is read here so that a damaged one is found before the first trial"
        parts = f"{self.source} {self.task.name} {glue.content} {checkpoint.content} {LENGTH}"
        return DataIdentity(
            source=self.source,
            sha256=sha256(parts.encode()).hexdigest(),
            label=f"{glue.label}, {LENGTH} tokens of {checkpoint.name}, content {checkpoint.content[:12]}",
        )

    def base_sha256(self, seed: int) -> str | None:
        """Return the SHA-256 of the file of weights."""
        return self.checkpoint.weights_sha256

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the trained encoder with a fresh head, which the seed sets."""
        return self.checkpoint.classifier(self.task.outputs, seed, device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``inputs``, token ids (B, T), and ``labels`` (B,)."""
        stream = Batches(self.encoded["train"], batch_size=self.tier.batch_size, seed=seed, start=start)
        return (_to(batch, device) for batch in stream)

    def example(self, device: torch.device) -> Batch:
        """Return an example of eight tokens."""
        labels = torch.zeros(1, dtype=torch.long if self.task.classes else torch.float32, device=device)
        return {"inputs": torch.zeros(1, 8, dtype=torch.long, device=device), "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of the micro-batch."""
        losses, weights = _losses(model(batch["inputs"]), batch["labels"]), batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``score``, ``loss`` and the task's metrics; those of MNLI's second split end in ``_mismatched``."""
        found = {}
        for number, split in enumerate(self.task.validation):
            metrics = self._measure(model, split, device)
            if number == 0:
                found = {"score": metrics[self.task.metrics[0]], **metrics}
            else:
                suffix = split.removeprefix("validation")
                found |= {f"{name}{suffix}": value for name, value in metrics.items()}
        return found

    def _measure(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        outputs, labels, losses = [], [], []
        for cpu_batch in self.encoded[split].in_batches_of(_EVALUATED_AT_ONCE):
            batch = _to(cpu_batch, device)
            outputs.append(model(batch["inputs"]).double())
            losses.append(_losses(outputs[-1], batch["labels"]).double())
            labels.append(cpu_batch["labels"])
        metrics = measured(self.task.metrics, torch.cat(outputs).cpu().numpy(), torch.cat(labels).numpy())
        return {**metrics, "loss": float(torch.cat(losses).mean())}


def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each example: cross-entropy in nats, or the squared error where labels are scores."""
    if labels.is_floating_point():
        return (outputs[:, 0].float() - labels).square()
    return functional.cross_entropy(outputs.float(), labels, reduction="none")


def _to(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
