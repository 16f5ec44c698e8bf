"""A multilayer perceptron that is pretrained on several tasks at once, then fine-tuned on each of them alone.

    logits_k(x) = H_k f(x) + c_k,    f(x) = W₃ relu(W₂ relu(W₁ x + b₁) + b₂) + b₃

The backbone f is shared, a head (H_k, c_k) belongs to one task. Pretraining moves all of it by Adam on the mean of the
tasks' cross-entropies over few examples; fine-tuning on a task moves the backbone alone, as does joint training, which
is the bound of what one backbone can know of all tasks.

What is trained lies in the cache, one file for the common start and one for each expert, so that a merging method's
memory is its own. The file of an expert also has Adam's second moments (``exp_avg_sq``), which some methods merge by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from bench.artifacts import cached
from bench.context import derive_seed

from ._subspace_tasks import Examples, Generator, Task, draw_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from bench import Batch

    Tensors = dict[str, Tensor]

KIND: Final = "merge-subspace"
"""The folder of the cache, and what keeps these random streams apart from others."""

TRAINING_VERSION: Final = 1
"""Part of every recipe; raised by any change here or in the tasks that changes what is trained."""

CALIBRATION_EXAMPLES: Final = 512
"""Training examples per task that an algorithm may see, in batches of :data:`CALIBRATION_BATCH`."""

CALIBRATION_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the models are trained: Adam's ``lr``, the steps, and examples per task and step."""

    width: int = 256
    features: int = 64
    lr: float = 1e-3
    pretraining_steps: int = 800
    pretraining_batch: int = 32
    steps: int = 300
    batch: int = 64


class Expert(nn.Module):
    """A backbone and the head of one task: inputs (B, D) in, logits (B, classes) out; see the module."""

    def __init__(self, generator: Generator, training: Training) -> None:
        super().__init__()
        width = training.width
        self.backbone = nn.Sequential(
            nn.Linear(generator.inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        ).append(nn.Linear(width, training.features))
        self.head = nn.Linear(training.features, generator.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(inputs))
        return logits


def empty_expert(generator: Generator, training: Training) -> Expert:
    """Return an expert whose weights hold anything; torch's own initialisation would use up its global generator."""
    with torch.device("meta"):
        model = Expert(generator, training)
    return model.to_empty(device="cpu")


class TrainedExperts:
    """The tasks of one seed and the models that were trained on them; what the cache has not is trained when asked for.

    Every method that returns a model builds it anew, on the CPU; ``head`` says whose head it has.
    """

    def __init__(self, generator: Generator, training: Training, seed: int) -> None:
        self.generator, self.training, self.seed = generator, training, seed

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, drawn at the first use."""
        return draw_tasks(self.generator, self.seed)

    def pretrained(self, head: int = 0) -> Expert:
        """Return the common start."""
        return self._built(self._start()[0], head)

    def expert(self, number: int) -> Expert:
        """Return the model that was fine-tuned on task ``number``, with this task's head."""
        state, _ = self._tuned("expert", [number])
        return self._built(self._start()[0] | state, number)

    def joint(self, head: int = 0) -> Expert:
        """Return the model that was fine-tuned on all tasks at once."""
        state, _ = self._tuned("joint", range(self.generator.tasks))
        return self._built(self._start()[0] | state, head)

    def prepare(self, numbers: Sequence[int]) -> None:
        """Train what the cache has not: the common start, the experts ``numbers`` and the jointly trained model."""
        self.sha256(numbers)
        self.joint()

    def sha256(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return the hashes of the common start and of the experts ``numbers``."""
        return (self._start()[1], *(self._tuned("expert", [number])[1] for number in numbers))

    def _built(self, state: Tensors, head: int) -> Expert:
        model = empty_expert(self.generator, self.training)
        named = {f"head.{name}": state[f"heads.{head}.{name}"] for name in ("weight", "bias")}
        model.load_state_dict({name: (state | named)[name] for name in model.state_dict()})
        return model

    def _cached(self, what: str, numbers: Sequence[int], build: Callable[[], Tensors]) -> tuple[Tensors, str]:
        recipe: dict[str, Any] = {
            "version": TRAINING_VERSION,
            "what": what,
            "tasks": list(numbers),
            "seed": self.seed,
            "generator": asdict(self.generator),
            "training": asdict(self.training),
        }
        return cached(KIND, recipe, build)

    def _rng(self, *purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, KIND, *purpose))

    def _start(self) -> tuple[Tensors, str]:
        return self._cached("pretrained", range(self.generator.tasks), self._pretrain)

    def _pretrain(self) -> Tensors:
        model, rng = empty_expert(self.generator, self.training), self._rng("weights")
        heads = nn.ModuleList(copy.deepcopy(model.head) for _ in range(self.generator.tasks))
        for layer in [*model.backbone, *heads]:
            if isinstance(layer, nn.Linear):
                draw_linear(layer, rng)
        examples = [task.pretraining for task in self.tasks]
        parameters = [*model.backbone.parameters(), *heads.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.training.lr)
        steps, batch = self.training.pretraining_steps, self.training.pretraining_batch
        self._train(model.backbone, list(heads), examples, optimizer, steps, batch, self._rng("pretraining"))
        state = {f"heads.{name}": value for name, value in heads.state_dict().items()}
        return state | {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}

    def _tuned(self, what: str, numbers: Sequence[int]) -> tuple[Tensors, str]:
        return self._cached(what, numbers, lambda: self._finetune(what, numbers))

    def _finetune(self, what: str, numbers: Sequence[int]) -> Tensors:
        heads: list[nn.Module] = [
            self.pretrained(number).head.requires_grad_(requires_grad=False) for number in numbers
        ]
        backbone = self.pretrained().backbone
        optimizer = torch.optim.Adam(backbone.parameters(), lr=self.training.lr)
        examples = [self.tasks[number].training for number in numbers]
        rng = self._rng(what, *map(str, numbers))
        self._train(backbone, heads, examples, optimizer, self.training.steps, self.training.batch, rng)
        named = dict(backbone.named_parameters(prefix="backbone"))
        moments = {f"exp_avg_sq.{name}": optimizer.state[value]["exp_avg_sq"] for name, value in named.items()}
        return {name: value.detach() for name, value in (named | moments).items()}

    @staticmethod
    @torch.enable_grad()  # a caller may have switched gradients off
    def _train(
        backbone: nn.Module,
        heads: Sequence[nn.Module],
        examples: Sequence[Examples],
        optimizer: torch.optim.Optimizer,
        steps: int,
        batch: int,
        rng: torch.Generator,
    ) -> None:
        """Minimise the mean over the tasks of the cross-entropy, ``batch`` examples of each task per step."""
        for _ in range(steps):
            chosen = [torch.randint(len(part), (batch,), generator=rng) for part in examples]
            inputs = torch.cat([part.inputs[index] for part, index in zip(examples, chosen, strict=True)])
            logits = [head(part) for head, part in zip(heads, backbone(inputs).split(batch), strict=True)]
            labels = torch.cat([part.labels[index] for part, index in zip(examples, chosen, strict=True)])
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(torch.cat(logits), labels))
            optimizer.step()


def calibration_batches(examples: Examples, device: torch.device) -> Sequence[Batch]:
    """Return the first :data:`CALIBRATION_EXAMPLES` as batches of ``inputs`` (B, D) and ``labels`` (B,)."""
    size, stop = CALIBRATION_BATCH, min(CALIBRATION_EXAMPLES, len(examples))
    inputs, labels = examples.inputs[:stop].to(device), examples.labels[:stop].to(device)
    return [
        {"inputs": inputs[start : start + size], "labels": labels[start : start + size]}
        for start in range(0, stop, size)
    ]


def draw_linear(layer: nn.Linear, rng: torch.Generator) -> None:
    """Draw weight and bias of ``layer`` from U(±1/√n), n its inputs: torch's own initialisation, from ``rng``."""
    bound = layer.in_features**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=rng)


@torch.no_grad()
def accuracy(backbone: nn.Module, head: nn.Module, examples: Examples) -> float:
    """Return the share of ``examples`` whose largest logit is that of their label."""
    device = next(head.parameters()).device
    right = head(backbone(examples.inputs.to(device))).argmax(-1) == examples.labels.to(device)
    return float(right.double().mean())
