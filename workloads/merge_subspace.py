"""merge-subspace: one backbone out of several that were fine-tuned on tasks in different subspaces.

All experts of a seed start from one pretrained network and differ in their backbones; each has the frozen head of its
task. Merging sees backbones (and, if the algorithm says so, training examples); here each task's head is put onto the
merged backbone again. With a_k the share of task k's 2,000 test examples whose largest logit is right, over the n
tasks that were merged,

    accuracy = Σ_k a_k / n,    normalised_accuracy = Σ_k (a_k / a_k of expert k) / n,    worst_task_accuracy = min_k a_k

``validation_accuracy`` is the first on 1,000 other examples per task: hyperparameters are chosen by it, never by the
test examples. Bounds over the same tasks and test examples come with every result: ``pretrained_accuracy``,
``finetuned_accuracy`` (each expert on its own task) and ``joint_accuracy`` (one backbone fine-tuned on all tasks of the
tier at once). ``backward_transfer`` is the mean, over the tasks of the point before, of how much their accuracy rose
since they were first merged.

A seed is a problem of its own: tasks, networks, and the order in which the experts are handed over.

Models of the user's own come in by ``--model-dir``, see ``_given_experts``.

Source: the tasks are this suite's own; the setting and its bounds are those of arXiv:2111.09832, arXiv:2212.04089 and
arXiv:2501.09522. Measured tables: docs/merging-tiny.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from numpy.random import RandomState
from torch import nn

from bench import Batch, DataIdentity, Experts, MergingWorkload, Point, PostTier, Role, Target, Tier
from bench.context import derive_seed
from bench.errors import BadValue, SlotFault
from bench.trial import digest

from ._given_experts import GivenExperts, sort_files
from ._merge_experts import TRAINING_VERSION, Expert, TrainedExperts, Training, accuracy, calibration_batches
from ._state_files import state_files, states_sha256
from ._subspace_tasks import Generator, Task

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SubspaceTier(PostTier):
    """A tier with the sizes of its tasks and how its networks are trained."""

    generator: Generator = field(default_factory=Generator)
    training: Training = field(default_factory=Training)


TINY = SubspaceTier(
    points=(Point(count=2), Point(count=4), Point(count=8)),
    reference={"average": {}},
    tuning="nothing to tune",
    source="generated",
    device_class="cpu-1",
    target=Target(
        value=0.7,
        how="parts methods on each of five seeds: OPCM reaches 0.707 to 0.739 in any order, task arithmetic and TIES "
        "at their best scales at most 0.688",
    ),
    timeout_s=1800.0,
    expected_s=15.0,
    default_on=("cpu", "cuda"),
)

TINY_16 = replace(
    TINY,
    points=(*TINY.points, Point(count=16)),
    generator=Generator(tasks=16),
    target=None,
    expected_s=30.0,
    default_on=(),
)


class Family(Protocol):
    """A common start and its experts; ``head`` and ``number`` are numbers of tasks."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of its seed, all of them."""

    def pretrained(self, head: int) -> Expert:
        """Return the common start with the head of a task."""

    def expert(self, number: int) -> Expert:
        """Return the expert of a task with its head."""

    def joint(self, head: int) -> Expert | None:
        """Return the jointly trained model with the head of a task, if there is one."""

    def prepare(self, numbers: Sequence[int]) -> None:
        """Do what building the models of ``numbers`` would otherwise do on the clock of a merging method."""

    def sha256(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return the hashes of the common start and of the experts of ``numbers``."""


class MergeSubspace(MergingWorkload):
    """Experts of synthetic tasks to one backbone; see the module."""

    name = "merge-subspace"
    version = "1.0.0"
    metric = "accuracy"
    direction = "max"
    takes_models = None
    labels = ("labels",)
    tiers: ClassVar[Mapping[str, Tier]] = {"tiny": TINY, "tiny-16": TINY_16}
    sources = ("generated",)
    roles: ClassVar[Mapping[str, Role]] = {
        r"backbone\.\d+\.weight": Role.MLP,
        r"backbone\.\d+\.bias": Role.BIAS,
        r"head\.(weight|bias)": Role.CLASSIFIER,  # a head's bias, too, is of its task alone
    }

    def __post_init__(self) -> None:
        """Refuse a tokenizer, and models whose names say nothing."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer is {self.request.tokenizer!r}, but {self.name} draws its examples",
                hint="leave out --tokenizer",
            )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of the models that the user named; none: the workload's own models."""
        return state_files(self.request.models)

    @property
    def tier(self) -> SubspaceTier:
        """The tier's definition; with models of the user's own its one point is to merge them all."""
        tier = super().tier
        assert isinstance(tier, SubspaceTier)
        if not self.files:
            return tier
        return replace(tier, points=(Point(count=len(sort_files(self.files, tier.generator.tasks)[1])),))

    def data(self) -> DataIdentity:
        """Return the identity of the tasks and of how the models came about."""
        tier = self.tier
        facts = {"version": TRAINING_VERSION, "generator": asdict(tier.generator), "training": asdict(tier.training)}
        label = f"{tier.generator.tasks} generated tasks in subspaces of {tier.generator.inputs} inputs"
        if not self.files:
            return DataIdentity(source=self.source, sha256=digest(facts), label=label)
        given = {"models": states_sha256(self.files)}
        return DataIdentity(
            source=self.source, sha256=digest(facts | given), label=f"{label}, models of the user's own"
        )

    def order(self, seed: int) -> tuple[int, ...]:
        """Return the numbers of the tasks in the order in which their experts are handed over."""
        tier = self.tier
        if self.files:
            return tuple(sort_files(self.files, tier.generator.tasks)[1])
        draws = RandomState(derive_seed(seed, self.name, "order") % 2**32)
        return tuple(int(number) for number in draws.permutation(tier.generator.tasks))

    def family(self, seed: int) -> Family:
        """Return the models and tasks of ``seed``; those of one seed are kept."""
        if seed not in self._families:
            self._families.clear()
            tier = self.tier
            given = GivenExperts(self.files, tier.generator, tier.training, seed) if self.files else None
            self._families[seed] = given or TrainedExperts(tier.generator, tier.training, seed)
        return self._families[seed]

    @cached_property
    def _families(self) -> dict[int, Family]:
        return {}

    @cached_property
    def _bounds(self) -> dict[tuple[int, int], dict[str, float]]:
        return {}

    def base_sha256(self, seed: int) -> str:
        """Return the hash of the common start and of all experts."""
        count = max(point.count or 0 for point in self.points)
        return digest(list(self.family(seed).sha256(self.order(seed)[:count])))

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the common start, with the head of the first task that is handed over."""
        if device.type == "meta":
            with device:
                return Expert(self.tier.generator, self.tier.training)
        return self.family(seed).pretrained(self.order(seed)[0]).to(device)

    def experts(self, seed: int, device: torch.device, count: int) -> Experts:
        """Return the experts of the first ``count`` tasks of :meth:`order`, training those that the cache has not."""
        family, numbers = self.family(seed), self.order(seed)[:count]
        family.prepare(numbers)
        return Experts(count, lambda index: family.expert(numbers[index]).to(device), lambda: self.model(seed, device))

    def calibration(self, seed: int, device: torch.device, count: int) -> Sequence[Sequence[Batch]]:
        """Return the first training examples of each task: ``inputs`` (B, D) and ``labels`` (B,)."""
        tasks = self.family(seed).tasks
        return [calibration_batches(tasks[number].training, device) for number in self.order(seed)[:count]]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of ``model`` with the head that it has."""
        losses = nn.functional.cross_entropy(model(batch["inputs"]).float(), batch["labels"], reduction="none")
        weights = batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    def examine(
        self, model: nn.Module, point: Point, history: Sequence[Mapping[str, float]], device: torch.device, seed: int
    ) -> dict[str, float]:
        """Return the metrics of the module's page, and ``accuracy_task_K`` for each task K that was merged."""
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise SlotFault(
                f"the merged model is {type(model).__name__} without a backbone",
                hint="merge into a model that has the submodules of the models to merge",
            )
        family, numbers = self.family(seed), self.order(seed)[: point.count]
        heads = {number: family.expert(number).head.to(device) for number in numbers}
        test = {number: accuracy(backbone, heads[number], family.tasks[number].test) for number in numbers}
        bounds = [self._bound(seed, number) for number in numbers]
        found = {
            "accuracy": fmean(test.values()),
            "normalised_accuracy": fmean(
                test[number] / bound["finetuned_accuracy"] for number, bound in zip(numbers, bounds, strict=True)
            ),
            "worst_task_accuracy": min(test.values()),
            "validation_accuracy": fmean(
                accuracy(backbone, heads[number], family.tasks[number].validation) for number in numbers
            ),
        }
        found |= {name: fmean(bound[name] for bound in bounds) for name in bounds[0]}
        found |= {f"accuracy_task_{number}": test[number] for number in sorted(numbers)}
        return found | _backward_transfer(found, history)

    def _bound(self, seed: int, number: int) -> dict[str, float]:
        """Return what the common start, the expert and the jointly trained model reach on a task's test examples."""
        if (seed, number) not in self._bounds:
            family = self.family(seed)
            models = {
                "pretrained_accuracy": family.pretrained(number),
                "finetuned_accuracy": family.expert(number),
                "joint_accuracy": family.joint(number),
            }
            test = family.tasks[number].test
            self._bounds[seed, number] = {
                name: accuracy(model.backbone, model.head, test) for name, model in models.items() if model is not None
            }
        return self._bounds[seed, number]


def _backward_transfer(now: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    first: dict[str, float] = {}
    for metrics in history:
        first = {name: value for name, value in metrics.items() if name.startswith("accuracy_task_")} | first
    return {"backward_transfer": fmean(now[name] - value for name, value in first.items())} if first else {}
