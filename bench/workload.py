"""What is held fixed: a model, its data, its loss, its target, its budget and its reference algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.algorithm import TRAINING_SLOTS
from bench.errors import BadData, UnknownName
from bench.roles import Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bench.algorithm import Batch

Precision = Literal["fp32", "amp-bf16", "bf16"]
"""``amp-bf16``: fp32 weights and states, bf16 autocast; ``bf16``: weights, gradients and states in bf16."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The quality to reach, and how it was set."""

    value: float
    how: str


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One size of a workload.

    ``steps`` and ``budget_s`` bound a trial, ``timeout_s`` bounds its process; ``evaluate_every`` is in steps;
    ``batch_size`` and ``micro_batch_size`` are in sequences or examples; ``patience_steps`` is how long training goes
    on after the target (``None``: to the end of the budget, so that the quality at budget is known); ``reference`` maps
    the algorithms that fill the slots which the one under test leaves empty to their tuned values; ``tuning`` says how
    they were tuned; ``device_class`` is the hardware on which target, ``predicted_cv`` (of steps-to-target over seeds)
    and ``expected_s`` were measured; ``source`` is the data that is used unless another is named; ``default_on`` lists
    the kinds of device (``cpu``, ``cuda``) on which this tier is the default.
    """

    steps: int
    evaluate_every: int
    batch_size: int
    micro_batch_size: int
    precision: Precision
    reference: Mapping[str, Mapping[str, Any]]
    tuning: str
    source: str
    device_class: str
    target: Target | None = None
    budget_s: float | None = None
    timeout_s: float = 24 * 3600.0
    patience_steps: int | None = None
    predicted_cv: float | None = None
    expected_s: float | None = None
    default_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The data that a user asked for; ``source`` ``None`` means the tier's own, ``models`` are folders of weights."""

    source: str | None = None
    directory: Path | None = None
    tokenizer: str | None = None
    models: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """What the data is: its ``source``, the SHA-256 of its content and preparation, and a line for people."""

    source: str
    sha256: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a protocol changes of every tier: its budget by a factor, and whether a trial ends at its target."""

    budget_factor: float = 1.0
    stop_at_target: bool = False

    def apply(self, tier: Tier) -> Tier:
        """Return ``tier`` under these limits."""
        budget_s = None if tier.budget_s is None else tier.budget_s * self.budget_factor
        patience = 0 if self.stop_at_target else tier.patience_steps
        return replace(tier, steps=round(tier.steps * self.budget_factor), budget_s=budget_s, patience_steps=patience)


@dataclass(frozen=True)
class Workload(ABC):
    """One tier of a fixed problem, bound to its data and to the limits of a protocol; base of all kinds of workloads.

    A subclass sets the class facts and implements the methods. ``version`` is raised by any change that can change a
    result; records compare only within the same major.minor. ``roles`` maps patterns of parameter names to roles.
    ``slots`` are those that this kind of workload calls; ``unit`` is what its progress is counted in; ``takes_models``
    says how many folders of weights a user may name (``None``: any number).
    """

    slots: ClassVar[tuple[str, ...]]
    unit: ClassVar[str] = "step"
    takes_models: ClassVar[int | None] = 0
    name: ClassVar[str]
    version: ClassVar[str]
    metric: ClassVar[str]
    direction: ClassVar[Literal["min", "max"]]
    tiers: ClassVar[Mapping[str, Tier]]
    sources: ClassVar[tuple[str, ...]]
    roles: ClassVar[Mapping[str, Role]]

    tier_name: str
    request: DataRequest = field(default_factory=DataRequest)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse a tier or a source that this workload does not have."""
        if self.tier_name not in self.tiers:
            raise UnknownName(f"tier of {self.name}", self.tier_name, self.tiers)
        if self.source not in self.sources:
            raise UnknownName(f"data source of {self.name}", self.source, self.sources)
        if (self.source == "local") != (self.request.directory is not None):
            raise BadData("local data and a data directory belong together", hint="use --data-dir DIR alone")
        given = len(self.request.models)
        if self.takes_models is not None and given > self.takes_models:
            takes = f"at most {self.takes_models}" if self.takes_models else "none"
            raise BadData(f"--model-dir was given {given} times; {self.name} takes {takes}", hint="leave it out")

    @property
    def tier(self) -> Tier:
        """The tier's definition, under the limits of the protocol."""
        return self.limits.apply(self.tiers[self.tier_name])

    @property
    def source(self) -> str:
        """The data source that this workload reads."""
        if self.request.source is not None:
            return self.request.source
        return "local" if self.request.directory is not None else self.tier.source

    @property
    def target(self) -> Target | None:
        """The target: that of the tier on its own data, none on other data or weights, for which it was not set."""
        return self.tier.target if self.source == self.tier.source and not self.request.models else None

    @property
    def offers(self) -> frozenset[str]:
        """What this tier has that an algorithm may need (:attr:`~bench.algorithm.Algorithm.needs`)."""
        return frozenset()

    @property
    def judged_from_step(self) -> int:
        """The first step whose evaluation counts against the target."""
        return 0

    def at(self, step: int) -> str:  # noqa: ARG002 - a subclass may need it
        """Return what is special about an evaluation, in words; empty where they are all alike."""
        return ""

    def base_sha256(self, seed: int) -> str | None:  # noqa: ARG002 - a subclass may need it
        """Return the hash of the trained weights that everything starts from; ``None`` where it starts from none."""
        return None

    @abstractmethod
    def data(self) -> DataIdentity:
        """Return the identity of the data; raises :class:`~bench.errors.BadData` where it is missing or corrupt."""

    @abstractmethod
    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the fp32 model that everything starts from; the same seed gives the same weights."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar training loss of a micro-batch; honours ``batch["weights"]`` (B,) where present."""


class TrainingWorkload(Workload):
    """A workload that is trained: step by step, evaluated now and then, until its target or its budget."""

    slots = TRAINING_SLOTS

    @property
    def offers(self) -> frozenset[str]:
        """``single-micro-batch``: a step is one forward and one backward pass."""
        return frozenset({"single-micro-batch"} if self.tier.batch_size <= self.tier.micro_batch_size else ())

    @abstractmethod
    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield the endless training batches, beginning with number ``start``; the seed sets their order."""

    @abstractmethod
    def example(self, device: torch.device) -> Batch:
        """Return a smallest batch with the right keys, dtypes and ranks; its content means nothing (estimates)."""

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return the metrics on the fixed validation set, :attr:`metric` among them."""
