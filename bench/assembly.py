"""Fill the slots of a training run: the algorithm under test first, then ``--with``, then the workload's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.algorithm import TRAINING_SLOTS, Algorithm, Batch, Freezer, Learner, Schedule, Selector, slots
from bench.context import Run, adapted_roles, autocast
from bench.errors import BenchError, SlotFault, SlotMismatch
from bench.guards import draws, settings
from bench.guards.fence import FENCE
from bench.guards.opaque import Opaque
from bench.guards.threads import thread_count
from bench.guards.watch import Watch
from bench.roles import assign_roles
from bench.workload import TrainingWorkload, Workload

DRAWS_NOTHING = frozenset({"freezer", "schedule", "optimizer"})
"""What runs no forward pass, and so has no business with the global random generators."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the slots returned, ready for the loop.

    ``base_rates`` are the groups' learning rates before scheduling; ``owners`` names the algorithm behind each slot;
    ``base_buffers`` are the identities of the buffers that the model had before it was adapted, ``None`` where nothing
    adapted it; ``watch`` looks over the process at every evaluation.
    """

    run: Run
    model: nn.Module
    optimizer: Optimizer
    base_rates: Sequence[float]
    schedule: Schedule
    select: Selector | None
    freeze: Freezer | None
    learn: Learner | None
    finish: Callable[[nn.Module], nn.Module] | None
    closure: bool
    generators: Mapping[str, Mapping[str, torch.Generator]]
    owners: Mapping[str, str]
    base_buffers: frozenset[int] | None
    watch: Watch

    def call(self, slot: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what ``slot`` returned; whatever it raises becomes a fault that names algorithm and slot."""
        owner = self.owners.get(slot, "default")
        if slot not in DRAWS_NOTHING or (slot == "optimizer" and self.closure):
            return guarded(owner, slot, function, *arguments)
        before = draws.read(self.run.device)
        result = guarded(owner, slot, function, *arguments)
        draws.check(before, self.run.device, self.label(slot))
        return result

    @cached_property
    def owner(self) -> str:
        """The algorithms that take part, the one under test first."""
        return " with ".join(self.generators)

    @cached_property
    def in_passes(self) -> str:
        """Who answers for what happens in a forward or backward pass, where hooks and layers of algorithms run."""
        return f"{self.owner}, in forward or backward,"

    def label(self, slot: str) -> str:
        """Return who answers for a call of ``slot``."""
        return f"{self.owners.get(slot, 'default')}.{slot}"

    def stateful(self) -> dict[str, Any]:
        """Return those parts, besides model and optimizer, that carry a state of their own."""
        parts = {"schedule": self.schedule, "select": self.select, "freeze": self.freeze, "learn": self.learn}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def fill(algorithms: Sequence[Algorithm], wanted: Sequence[str] = TRAINING_SLOTS) -> dict[str, Algorithm]:
    """Return which algorithm fills each of the ``wanted`` slots: the first one that overrides it."""
    return {
        slot: next(algorithm for algorithm in algorithms if slot in slots(algorithm))
        for slot in wanted
        if any(slot in slots(algorithm) for algorithm in algorithms)
    }


def check_fit(algorithms: Sequence[Algorithm], workload: Workload) -> None:
    """Raise :class:`~bench.errors.SlotMismatch` unless the first of ``algorithms`` can run on ``workload``."""
    first = algorithms[0]
    if not set(slots(first)) & set(workload.slots):
        raise SlotMismatch(
            f"{first.name!r} fills {', '.join(slots(first))}; {workload.name!r} has {', '.join(workload.slots)}"
        )
    for algorithm in algorithms:
        lacking = set(algorithm.needs) - workload.offers
        if lacking:
            raise SlotMismatch(
                f"{algorithm.name!r} needs {', '.join(sorted(lacking))}, which tier {workload.tier_name!r} of "
                f"{workload.name!r} does not offer",
                hint=_where(workload, frozenset(algorithm.needs)),
            )


def _where(workload: Workload, needs: frozenset[str]) -> str:
    """Return which other tiers of the workload offer ``needs``; empty if none does."""
    some = [name for name in workload.tiers if needs <= replace(workload, tier_name=name).offers]
    return f"--tier {' or '.join(some[:3])} offers it" if some else ""


def assemble(
    algorithms: Sequence[Algorithm],
    workload: TrainingWorkload,
    run: Run,
    model: nn.Module,
    watch: Watch | None = None,
) -> Parts:
    """Call the slots, once each, and check what they return. Clock and ``watch`` are the caller's."""
    filled = fill(algorithms, workload.slots)
    taking_part = {algorithm.name for algorithm in filled.values()}
    generators: dict[str, dict[str, torch.Generator]] = {one.name: {} for one in algorithms if one.name in taking_part}

    def own(algorithm: Algorithm) -> Run:
        return replace(run, algorithm=algorithm.name, generators=generators[algorithm.name], loss=loss)

    def of_batch(trained: nn.Module, batch: Batch) -> Tensor:
        with autocast(run):
            return workload.loss(trained, batch)

    loss = Opaque(of_batch)

    def call(slot: str, kind: type | None, *arguments: Any) -> Any:
        if slot not in filled:
            return None
        return call_slot(filled[slot], slot, kind, *arguments, own(filled[slot]))

    before, buffers = list(model.named_parameters()), frozenset(map(id, model.buffers()))
    run = replace(run, roles=assign_roles((name for name, _ in before), workload.roles))
    if "adapt" in filled:
        model = call("adapt", nn.Module, model)
        run = replace(run, roles=adapted_roles(before, run.roles, model, filled["adapt"].adapter_roles))
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    freeze = call("freezer", None, model)
    optimizer = call("optimizer", Optimizer, trainable)
    if optimizer is None:
        raise SlotMismatch(f"nothing fills the optimizer slot of {workload.name!r}")
    _check_claims(filled["optimizer"], optimizer, trainable)
    schedule = call("schedule", None)
    finisher = filled.get("finish")
    return Parts(
        run=run,
        model=model,
        optimizer=optimizer,
        base_rates=[float(group["lr"]) for group in optimizer.param_groups],
        schedule=schedule or (lambda _: 1.0),
        select=call("selector", None),
        freeze=freeze,
        learn=call("learner", None, model, optimizer, loss),
        finish=(lambda trained: call_slot(finisher, "finish", nn.Module, trained, own(finisher))) if finisher else None,
        closure=filled["optimizer"].closure,
        generators=generators,
        owners={slot: algorithm.name for slot, algorithm in filled.items()},
        base_buffers=buffers if "adapt" in filled else None,
        watch=watch or Watch(),
    )


def guarded(owner: str, slot: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function``; whatever it raises becomes a fault that names the algorithm and its slot.

    What torch is set to must be the same afterwards, and nothing out of bounds may have been reached for.
    """
    before, outside, alive = settings.read(), FENCE.who, thread_count()
    FENCE.who = who = f"{owner}.{slot}"
    try:
        result = function(*arguments)
    except (Exception, SystemExit) as error:
        if isinstance(error, BenchError) or is_out_of_memory(error):
            raise
        raise SlotFault(f"{who} raised {type(error).__name__}: {error}") from error
    finally:
        FENCE.who = outside
    FENCE.check()
    settings.check(before, who)
    if thread_count() > alive:  # an evaluation finds out whether it lives on
        FENCE.started.append(who)
    return result


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory is used up; torch's CPU allocator has no type of its own for that."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error):
        return True
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def call_slot(algorithm: Algorithm, slot: str, kind: type | None, *arguments: Any) -> Any:
    """Call one slot; whatever it raises or wrongly returns becomes a fault that names algorithm and slot."""
    result = guarded(algorithm.name, slot, getattr(algorithm, slot), *arguments)
    right = callable(result) if kind is None else isinstance(result, kind)
    if not right:
        wanted = "something callable" if kind is None else f"a {kind.__module__}.{kind.__name__}"
        raise SlotFault(
            f"{algorithm.name}.{slot} returned {result!r:.80} ({type(result).__name__}); it must return {wanted}"
        )
    return result


def _check_claims(algorithm: Algorithm, optimizer: Optimizer, trainable: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Every trainable parameter must be in exactly one group (torch refuses duplicates), each group with a rate."""
    if not all("lr" in group for group in optimizer.param_groups):
        raise SlotFault(f"{algorithm.name}.optimizer has a parameter group without 'lr', which schedules multiply")
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    forgotten = [name for name, parameter in trainable if id(parameter) not in owned]
    foreign = len(owned - {id(parameter) for _, parameter in trainable})
    if forgotten or foreign:
        raise SlotFault(
            f"{algorithm.name}.optimizer must hold each trainable parameter once: it forgets {forgotten[:4] or 'none'} "
            f"and holds {foreign} that are not trainable parameters of the model"
        )
