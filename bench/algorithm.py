"""What an algorithm is: a frozen record of hyperparameters that fills one or more slots.

A slot is a method that the framework calls once per run. Configuration is the dataclass; state lives in what the slot
returns (an optimizer, a module, an object with ``state_dict``), never on ``self``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.hyperparameter import check
from bench.roles import Role

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from bench.context import Run
    from bench.experts import Experts

Batch = Mapping[str, "Tensor"]
"""A batch of training data: tensors by key, the first axis of each being the examples."""
NamedParameters = Iterable[tuple[str, "nn.Parameter"]]
"""The trainable parameters with their names, as ``model.named_parameters()`` yields them."""
Schedule = Callable[[int], float]
"""What the slot ``schedule`` returns: from a step, counted from 0, to the factor of every learning rate."""
Selector = Callable[[Batch, "nn.Module"], Batch]
"""What the slot ``selector`` returns: from a batch and the model to the batch that is trained on."""
Freezer = Callable[[int], None]
"""What the slot ``freezer`` returns: called with each step before it is made."""
Loss = Callable[["nn.Module", Batch], "Tensor"]
"""The training loss of a model on a batch, a scalar tensor."""
Learner = Callable[[Batch], "Tensor"]
"""What the slot ``learner`` returns: makes a whole step with a batch and returns its loss."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Base of every algorithm. Override the slots that you fill and no others.

    Class facts: ``name`` (what ``--plugin`` takes), ``deviations`` (one sentence for each place where this differs
    from the paper or its code), ``needs`` (what a workload or a run must offer: ``"single-micro-batch"``),
    ``closure`` (the optimizer calls ``step(closure)`` itself), ``passes`` (forward-backward passes per step),
    ``adapter_roles`` (patterns that claim the parameters which :meth:`adapt` adds), ``information`` (what a slot after
    training looks at, one of :data:`INFORMATION`; it is given nothing else).
    """

    name: ClassVar[str] = ""
    deviations: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    closure: ClassVar[bool] = False
    passes: ClassVar[int] = 1
    adapter_roles: ClassVar[Mapping[str, Role]] = {}
    information: ClassVar[str] = "weights"

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their domains."""
        for name, value in check(type(self), self.name or type(self).__name__, self.hyperparameters()).items():
            object.__setattr__(self, name, value)  # 1 and 1.0 are one setting, and must have one identity

    @classmethod
    def check(cls, **values: Any) -> None:
        """Raise :class:`~bench.errors.BadValue` unless each of ``values`` is in the domain of its field."""
        check(cls, cls.name or cls.__name__, values)

    def hyperparameters(self) -> dict[str, Any]:
        """Return every hyperparameter with its value, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # -- training, in the order in which the loop calls them ------------------------------------------------------
    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the module to train: adapters added, parameters frozen or re-parameterised."""
        raise NotImplementedError

    def freezer(self, model: nn.Module, run: Run) -> Freezer:
        """Return ``step -> None``, called before each step, that toggles ``requires_grad`` or renews masks."""
        raise NotImplementedError

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> Optimizer:
        """Return the optimizer of the trainable parameters."""
        raise NotImplementedError

    def schedule(self, run: Run) -> Schedule:
        """Return ``step -> factor`` that multiplies the base learning rate of every group; step counts from 0."""
        raise NotImplementedError

    def selector(self, run: Run) -> Selector:
        """Return ``(batch, model) -> batch``; the result may carry ``weights`` of shape (B,)."""
        raise NotImplementedError

    def learner(self, model: nn.Module, optimizer: Optimizer, loss: Loss, run: Run) -> Learner:
        """Return ``batch -> loss`` that replaces back-propagation and the optimizer's step altogether."""
        raise NotImplementedError

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the module to evaluate; leaves ``model`` as it is, since training goes on with it."""
        raise NotImplementedError

    # -- after training -------------------------------------------------------------------------------------------
    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a module as small as ``run.point`` asks; ``calibration`` holds batches of training data."""
        raise NotImplementedError

    def compensate(self, model: nn.Module, compressed: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return ``compressed`` with branches of rank ``run.point.rank`` that repair what it lost of ``model``."""
        raise NotImplementedError

    def merge(self, models: Experts, calibration: Sequence[Sequence[Batch]], run: Run) -> nn.Module:
        """Return one module made of several; ``calibration[i]`` belongs to ``models[i]``."""
        raise NotImplementedError


TRAINING_SLOTS = ("adapt", "freezer", "optimizer", "schedule", "selector", "learner", "finish")
"""The slots of a training workload, in the order in which a run calls them."""

COMPRESSION_SLOTS = ("compress", "compensate")
"""The slots of a compression workload, in the order in which a run calls them."""

MERGING_SLOTS = ("merge",)
"""The slot of a merging workload."""

SLOTS = (*TRAINING_SLOTS, *COMPRESSION_SLOTS, *MERGING_SLOTS)
"""All slots."""

INFORMATION = ("weights", "optimizer-state", "inputs", "labels", "test-inputs")
"""What an algorithm may look at after training: the weights alone; the optimizers' states too; inputs of the training
data; labels of them, and so gradients of the loss; inputs of the test data. Rows of different kinds are never ranked
together."""


def slots(algorithm: type[Algorithm] | Algorithm) -> tuple[str, ...]:
    """Return the slots that ``algorithm`` overrides, in the order of :data:`SLOTS`."""
    cls = algorithm if isinstance(algorithm, type) else type(algorithm)
    return tuple(slot for slot in SLOTS if getattr(cls, slot) is not getattr(Algorithm, slot))
