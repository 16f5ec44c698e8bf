"""Workloads that begin where training ends: compression of a trained model, merging of several.

Instead of steps a trial has *points*: how small a model must become, how many models become one. At each point the
slot is called once, with freshly built models, and what it returns is examined; the last point is the trial's result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.algorithm import COMPRESSION_SLOTS, MERGING_SLOTS
from bench.errors import BadValue
from bench.workload import Precision, Tier, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bench.algorithm import Batch
    from bench.experts import Experts

Axes = Mapping[str, tuple[str | None, ...]]
"""For each parameter, the name of the permutation that may act on each of its axes; ``None``: none may."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is asked of one call of a slot after training.

    ``kept_ratio`` in (0, 1]: stored values of the compressed matrices over their dense values; ``pattern`` (n, m): n of
    each m consecutive weights along the input axis stay; ``rank``: of the branch that compensates; ``count``: how many
    models are merged.
    """

    kept_ratio: float | None = None
    pattern: tuple[int, int] | None = None
    rank: int | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no algorithm can serve."""
        if self.kept_ratio is not None and not 0 < self.kept_ratio <= 1:
            raise BadValue(f"a point keeps {self.kept_ratio!r} of the values", hint="a number above 0, at most 1")
        if self.pattern is not None and not 0 < self.pattern[0] <= self.pattern[1]:
            raise BadValue(f"a point has the pattern {self.pattern!r}", hint="n of m with 0 < n <= m")
        for name in ("rank", "count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadValue(f"a point has {name} {value!r}", hint="a whole number above 0")

    def __str__(self) -> str:
        parts = {
            "kept ratio": self.kept_ratio,
            "pattern": None if self.pattern is None else f"{self.pattern[0]}:{self.pattern[1]}",
            "rank": self.rank,
            "models": self.count,
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class PostTier(Tier):
    """One size of a workload after training: its ``points``, mild to harsh; what a step is in training is a point."""

    points: tuple[Point, ...]
    steps: int = 0
    evaluate_every: int = 1
    batch_size: int = 1
    micro_batch_size: int = 1
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Count the points; a protocol's factor of the budget means nothing here."""
        if not self.points:
            raise BadValue("a tier has no points", hint="name at least one")
        object.__setattr__(self, "steps", len(self.points))


class PostWorkload(Workload):
    """Base of the kinds after training. ``labels`` are the keys of a batch that only few algorithms may see."""

    unit = "point"
    labels: ClassVar[tuple[str, ...]] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of this tier."""
        tier = self.tier
        assert isinstance(tier, PostTier), f"tier {self.tier_name!r} of {self.name!r} is no PostTier"
        return tier.points

    @property
    def offers(self) -> frozenset[str]:
        """What every point of this tier says."""
        said: dict[str, list[object]] = {
            "kept-ratio": [point.kept_ratio for point in self.points],
            "pattern": [point.pattern for point in self.points],
            "branch-rank": [point.rank for point in self.points],
        }
        return frozenset(name for name, values in said.items() if all(value is not None for value in values))

    def at(self, step: int) -> str:
        """Return what the point asks."""
        return str(self.points[step - 1])

    @property
    def judged_from_step(self) -> int:
        """Only the last point is the result: the others ask for something else."""
        return len(self.points)

    @abstractmethod
    def examine(
        self, model: nn.Module, point: Point, history: Sequence[Mapping[str, float]], device: torch.device, seed: int
    ) -> dict[str, float]:
        """Return the metrics of ``model`` at ``point``, :attr:`metric` among them.

        ``history`` has what the points before gave, so that a metric may be a mean over the points so far.
        """


class CompressionWorkload(PostWorkload):
    """A trained model that must become smaller. ``blocks`` is the pattern of its blocks' names, in forward order."""

    slots = COMPRESSION_SLOTS
    blocks: ClassVar[str]

    @abstractmethod
    def calibration(self, seed: int, device: torch.device) -> Sequence[Batch]:
        """Return the batches of training data for ``seed``; those of different seeds share nothing."""


class MergingWorkload(PostWorkload):
    """Several trained models that must become one.

    ``has_pretrained``: they were trained from one start; ``axes``: which permutations leave what a model computes as it
    is. Parameters of role ``classifier`` belong to their own task and are never merged.
    """

    slots = MERGING_SLOTS
    has_pretrained: ClassVar[bool] = True
    axes: ClassVar[Axes] = {}

    @property
    def offers(self) -> frozenset[str]:
        """``pretrained``: a common start; ``axes``: permutations."""
        return super().offers | {
            name for name, has in (("pretrained", self.has_pretrained), ("axes", bool(self.axes))) if has
        }

    @abstractmethod
    def experts(self, seed: int, device: torch.device, count: int) -> Experts:
        """Return the first ``count`` models of ``seed``, in the order in which they are handed over."""

    @abstractmethod
    def calibration(self, seed: int, device: torch.device, count: int) -> Sequence[Sequence[Batch]]:
        """Return batches of training data for each of the ``count`` models."""
