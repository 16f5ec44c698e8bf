"""What an algorithm is given leads nowhere near the workload, its name, its metric or its validation data."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002, ARG005, PLW0108
from __future__ import annotations

import copy
import gc
import itertools
import pickle
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import (
    Algorithm,
    CompressionWorkload,
    DataIdentity,
    Experts,
    MergingWorkload,
    Point,
    PostTier,
    Role,
    Run,
)
from bench.after_training import PostWorkload
from bench.assembly import assemble
from bench.clock import Clock
from bench.loop import take_step
from bench.post import Post
from bench.workload import Workload

CPU = torch.device("cpu")
NAME, METRIC = "a-name-to-hide", "a-metric-to-hide"
NOT_FOLLOWED = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)


def leads_to(value: object) -> list[object]:
    """Return what a Python object refers to; of a function not the module that it was written in."""
    if isinstance(value, NOT_FOLLOWED):
        return []
    if isinstance(value, types.FunctionType):
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
    found = gc.get_referents(value)
    if isinstance(value, Tensor):
        found += [value._base, value.grad, vars(value)]
    return found


def reachable(*roots: object) -> list[object]:
    seen, waiting = {}, list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            waiting += leads_to(value)
    return list(seen.values())


def storages(values: Iterator[object] | list[object]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in values if isinstance(one, Tensor) and one.numel()}


def assert_hidden(given: list[object], workload: Workload, held_out: list[object]) -> None:
    """``held_out`` is alive, so nothing else can lie where it does."""
    found = reachable(given)
    assert len(found) > 50, "the walk went somewhere"
    assert [one for one in found if isinstance(one, Workload)] == []
    assert [one for one in found if isinstance(one, str) and one in {workload.name, METRIC}] == []
    assert storages(found) & storages(held_out) == set()
    assert {id(one) for one in found} & {id(one) for one in held_out if not isinstance(one, int | str)} == set()


def test_walk_finds_what_closures_methods_and_attributes_hide():
    """The test below can fail."""
    secret = DataIdentity(source="drawn", sha256="0", label="secret")

    class Holder:
        def method(self) -> None:
            pass

    holder = Holder()
    holder.secret = secret
    views = torch.arange(10)
    for root in (lambda: secret, holder, holder.method, [{"a": (secret,)}], nn.ParameterList(), [views[2:4]]):
        if isinstance(root, nn.Module):
            root.held = secret
        found = reachable(root)
        assert any(one is secret for one in found) or storages(found) == storages([views])


# -- training ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Spy(Algorithm):
    """Fills every slot and keeps everything that it is given."""

    name = "spy"
    given: ClassVar[list[object]] = []

    def adapt(self, model, run):
        self.given.append((self, model, run))
        return model

    def freezer(self, model, run):
        self.given.append((model, run))
        return lambda step: self.given.append(step)

    def optimizer(self, named_parameters, run):
        self.given.append((named_parameters, run))
        given = self.given

        class Keeping(torch.optim.SGD):
            def step(self, closure=None):
                given.append(closure)
                return super().step(closure)

        return Keeping(list(named_parameters), lr=0.1)

    def schedule(self, run):
        self.given.append(run)
        return lambda step: 1.0

    def selector(self, run):
        self.given.append(run)
        return lambda batch, model: self.given.append((batch, model)) or batch

    def finish(self, model, run):
        self.given.append((model, run))
        return model


@dataclass(frozen=True, kw_only=True)
class ClosureSpy(Spy):
    name = "closure-spy"
    closure = True


@dataclass(frozen=True, kw_only=True)
class LearnerSpy(Spy):
    name = "learner-spy"

    def learner(self, model, optimizer, loss, run):
        self.given.append((model, optimizer, loss, run))

        def learn(batch):
            self.given.append(batch)
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            return value

        return learn


@pytest.fixture(autouse=True)
def _forget():
    Spy.given.clear()
    yield
    Spy.given.clear()


SPIES = [Spy(), ClosureSpy(), LearnerSpy()]


def steps(spy: Spy, workload: Any, number: int = 2) -> list[object]:
    """Take some steps with the spy in every slot; return what it was given."""
    run = Run(seed=0, steps=workload.tier.steps)
    parts = assemble([spy], workload, run, workload.model(0, CPU))
    clock, batches = Clock(CPU), workload.batches(0, 0, CPU)
    clock.resume("data")
    for step in range(number):
        take_step(parts, workload, clock, batches, step)
    clock.pause()
    parts.finish(parts.model)
    return [spy, *Spy.given]


@pytest.mark.parametrize("spy", SPIES, ids=lambda spy: spy.name)
def test_slots_of_training_lead_to_no_workload(micro, spy):
    workload = type("Hidden", (micro.Micro,), {"name": NAME, "metric": METRIC})("small")
    assert_hidden(steps(spy, workload), workload, [])


@pytest.mark.parametrize("spy", SPIES, ids=lambda spy: spy.name)
def test_slots_of_language_modelling_lead_to_no_validation_data(registry, spy):
    cls = registry.workload_class("llama-c4")
    tier = cls.tiers["tiny"]
    small = replace(tier, batch_size=2, micro_batch_size=2, validation_tokens=1024)
    workload = type("Small", (cls,), {"tiers": {"tiny": small}})("tiny")
    batches = list(workload.validation)
    held_out = [one for one in reachable(workload.validation, batches) if isinstance(one, Tensor | np.ndarray | list)]
    assert storages(held_out)
    assert_hidden(steps(spy, workload, 1), workload, held_out)


# -- after training ----------------------------------------------------------------------------------------------------
FACTS = {"reference": {}, "tuning": "none", "source": "drawn", "device_class": "none"}


class Common(PostWorkload):
    name = NAME
    metric = METRIC
    version = "1.0.0"
    direction = "max"
    sources = ("drawn",)
    roles: ClassVar = {r"0\.weight": Role.MLP, r"0\.bias": Role.BIAS}
    held_out = torch.randn(3, 4)

    def data(self):
        return DataIdentity(source="drawn", sha256="d" * 64, label="drawn")

    def model(self, seed, device):
        return nn.Sequential(nn.Linear(4, 4))

    def loss(self, model, batch):
        return model(batch["inputs"]).square().mean()

    def examine(self, model, point, history, device, seed):
        return {METRIC: float(model(self.held_out).sum())}


class Squeeze(Common, CompressionWorkload):
    tiers: ClassVar = {"one": PostTier(points=(Point(kept_ratio=0.5, rank=1),), **FACTS)}
    blocks = "0"

    def calibration(self, seed, device):
        return [{"inputs": torch.randn(2, 4)}]


class Join(Common, MergingWorkload):
    tiers: ClassVar = {"one": PostTier(points=(Point(count=2),), **FACTS)}

    def experts(self, seed, device, count):
        return Experts(count, lambda number: self.model(number, device), lambda: self.model(9, device))

    def calibration(self, seed, device, count):
        return [[{"inputs": torch.randn(2, 4)}]] * count


@dataclass(frozen=True, kw_only=True)
class PostSpy(Algorithm):
    name = "post-spy"
    information = "labels"

    def compress(self, model, calibration, run):
        Spy.given.append((self, model, calibration, run))
        assert run.loss(model, calibration[0]) > 0
        return model

    def compensate(self, model, compressed, calibration, run):
        Spy.given.append((self, model, compressed, calibration, run))
        return compressed

    def merge(self, models, calibration, run):
        Spy.given.append((self, models, list(models), models[1:], models.pretrained, calibration, run))
        assert len(models) == 2
        return models[0]


@pytest.mark.parametrize("kind", [Squeeze, Join])
def test_slots_after_training_lead_to_no_workload(kind):
    workload = kind("one")
    Post([PostSpy()], workload, Run(seed=0, steps=1), Clock(CPU)).work(lambda evaluation: False)
    assert Spy.given
    assert_hidden(Spy.given, workload, [Common.held_out])


# -- the function that hides -------------------------------------------------------------------------------------------
def test_hidden_function_calls_and_tells_nothing(micro):
    workload = micro.workload()
    parts = micro.parts(LearnerSpy(), workload=workload)
    (loss,) = {id(run.loss): run.loss for run in [one for one in reachable(Spy.given) if isinstance(one, Run)]}.values()
    batch = next(workload.batches(0, 0, CPU))
    parts.model.eval()
    assert torch.equal(loss(parts.model, batch), workload.loss(parts.model, batch))
    for name in ("__closure__", "__self__", "__wrapped__", "__globals__", "__dict__", "func", "__func__"):
        assert not hasattr(loss, name), name
    assert copy.copy(loss) is loss
    assert copy.deepcopy(loss) is loss
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(loss)
    hidden = [one for one in itertools.chain(vars(type(loss)).values()) if isinstance(one, types.FunctionType)]
    for function in hidden:
        assert not any(isinstance(one, Workload) for one in reachable(dict(function.__globals__)))


def test_hidden_function_passes_on_what_it_raises():
    from bench.guards.opaque import Opaque

    def fail(value: int) -> None:
        raise KeyError(value)

    with pytest.raises(KeyError, match="3"):
        Opaque(fail)(3)


def test_hidden_function_lets_go_of_what_it_hides():
    import weakref

    from bench.guards.opaque import Opaque

    class Held:
        def __call__(self):
            return 7

    held = Held()
    gone, opaque = weakref.ref(held), Opaque(held)
    del held
    assert opaque() == 7
    del opaque
    gc.collect()
    assert gone() is None
