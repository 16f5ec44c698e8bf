"""The training loop: what one step does with batch, schedule, gradients and slots."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002, ARG005
from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from bench import Algorithm
from bench.clock import Clock
from bench.context import derive_seed
from bench.errors import SlotFault
from bench.loop import parameter_counts, split, take_step


class Kind:
    """Make an instance of an algorithm called ``toy`` with these slots and class facts."""

    def __new__(cls, **members):
        kind = type("Toy", (Algorithm,), {"name": "toy", "__annotations__": {}} | members)
        return dataclass(frozen=True, kw_only=True)(kind)()


def steps_of(micro, workload, parts, number, start=0):
    """Do ``number`` steps and return their losses."""
    clock = Clock(micro.cpu)
    batches = workload.batches(parts.run.seed, start, micro.cpu)
    clock.resume("data")
    losses = [float(take_step(parts, workload, clock, batches, step)) for step in range(start, start + number)]
    clock.pause()
    return losses


def without_dropout(parts):
    """Dropout draws one mask per micro-batch, which would hide whether the arithmetic agrees."""
    parts.model.dropout.p = 0.0
    return parts


# -- one step --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [3, 2, 1, 4, 5])
def test_micro_batches_add_up_to_the_full_batch(micro, size):
    whole, pieces = micro.workload(), micro.workload(micro_batch_size=size)
    one, other = without_dropout(micro.parts(workload=whole)), without_dropout(micro.parts(workload=pieces))
    assert steps_of(micro, whole, one, 5) == pytest.approx(steps_of(micro, pieces, other, 5), rel=1e-5)
    for left, right in zip(micro.weights(one).values(), micro.weights(other).values(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_batch_is_split_in_order_into_parts_of_at_most_so_many_rows():
    batch = {"x": torch.arange(10).view(5, 2), "y": torch.arange(5)}
    assert split(batch, 5) == [batch]
    assert split(batch, 8) == [batch]
    parts = split(batch, 2)
    assert [part["y"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])


def test_the_schedule_multiplies_the_base_rate_of_every_group(micro):
    seen = []

    def optimizer(self, named_parameters, run):
        pairs = list(named_parameters)
        groups = [{"params": [pairs[0][1]], "lr": 1.0}, {"params": [p for _, p in pairs[1:]]}]
        found = torch.optim.SGD(groups, lr=0.25)
        found.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in found.param_groups]))
        return found

    parts = micro.parts(Kind(optimizer=optimizer, schedule=lambda self, run: lambda step: 1.0 / (step + 1)))
    steps_of(micro, micro.workload(), parts, 3)
    assert seen == [[1.0, 0.25], [0.5, 0.125], [1.0 / 3, 0.25 / 3]]


def test_the_learning_rate_is_reported_as_the_last_step_used_it(micro):
    parts = micro.parts(Kind(schedule=lambda self, run: float))
    evaluations = micro.train(parts, micro.workload())
    assert [e.learning_rate for e in evaluations] == pytest.approx([0.0, 0.2, 0.5, 0.8, 1.1])


def test_the_training_loss_is_the_mean_since_the_evaluation_before(micro):
    workload = micro.workload()
    losses = steps_of(micro, workload, micro.parts(workload=workload), 12)
    evaluations = micro.train(micro.parts(workload=workload), workload)
    assert evaluations[0].train_loss is None
    means = [sum(losses[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert [e.train_loss for e in evaluations[1:]] == pytest.approx(means)


def test_gradients_do_not_pile_up_over_steps(micro):
    workload = micro.workload()
    parts = without_dropout(micro.parts(workload=workload))
    steps_of(micro, workload, parts, 1)
    batch = next(workload.batches(0, 1, micro.cpu))
    fresh = copy.deepcopy(parts.model)
    fresh.zero_grad()
    workload.loss(fresh, batch).backward()
    steps_of(micro, workload, parts, 1, start=1)
    for left, right in zip(parts.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


class Twice(torch.optim.SGD):
    """Sharpness-aware in form: a gradient, a step uphill, another gradient, a step downhill."""

    def step(self, closure=None):
        assert closure is not None
        first = closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad, alpha=0.01)
        closure()
        super().step()
        return first


def twice(self, named_parameters, run):
    return Twice([p for _, p in named_parameters], lr=0.1)


def test_a_closure_optimizer_calls_for_gradients_itself(micro):
    calls = []
    workload = micro.workload()
    parts = without_dropout(micro.parts(Kind(optimizer=twice, closure=True, passes=2), workload=workload))
    parts.model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    before = copy.deepcopy(parts.model)
    (loss,) = steps_of(micro, workload, parts, 1)
    assert calls == [True, True]
    batch = next(workload.batches(0, 0, micro.cpu))
    assert loss == pytest.approx(workload.loss(before, batch).item())
    workload.loss(before, batch).backward()
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(parameter.grad, alpha=0.01)
    uphill = copy.deepcopy(before)
    uphill.zero_grad()
    workload.loss(uphill, batch).backward()
    for parameter, start, end in zip(before.parameters(), uphill.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(end, parameter - 0.1 * start.grad)


def test_torch_s_own_closure_optimizer_takes_the_steps_of_a_plain_loop(micro):
    def lbfgs(parameters):
        return torch.optim.LBFGS(list(parameters), lr=0.1, max_iter=4)

    algorithm = Kind(optimizer=lambda self, pairs, run: lbfgs(p for _, p in pairs), closure=True)
    workload = micro.workload()
    parts = without_dropout(micro.parts(algorithm, workload=workload))
    model = copy.deepcopy(parts.model)
    optimizer = lbfgs(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        return loss.detach()

    batches = workload.batches(0, 0, micro.cpu)
    for _ in range(5):
        batch = next(batches)
        optimizer.step(closure)
    steps_of(micro, workload, parts, 5)
    assert micro.equal(micro.weights(parts), model.state_dict())


def test_a_closure_optimizer_whose_step_returns_no_loss_is_a_fault(micro):
    class Silent(Twice):
        def step(self, closure=None):
            super().step(closure)

    parts = micro.parts(Kind(optimizer=lambda self, pairs, run: Silent([p for _, p in pairs], lr=0.1), closure=True))
    with pytest.raises(SlotFault, match=r"toy\.optimizer: its step returned NoneType; it must return the loss"):
        micro.train(parts, micro.workload())


@pytest.mark.parametrize("value", [2.5, 2, torch.tensor(2.5, requires_grad=True), torch.tensor([2.5])])
def test_a_learner_replaces_backward_and_step(micro, value):
    workload, seen = micro.workload(), []

    def learner(self, model, optimizer, loss, run):
        def learn(batch):
            seen.append((loss(model, batch).item(), optimizer.param_groups[0]["lr"]))
            with torch.no_grad():
                model.head.bias.add_(1.0)
            return value

        return learn

    parts = micro.parts(Kind(learner=learner, schedule=lambda self, run: lambda step: 0.5), workload=workload)
    before = micro.weights(parts)
    evaluations = micro.train(parts, workload)
    assert len(seen) == 12
    assert seen[0][1] == 0.05
    assert evaluations[-1].train_loss == pytest.approx(torch.as_tensor(value).item())
    before["head.bias"] += 12
    assert micro.equal(micro.weights(parts), before)


@pytest.mark.parametrize("value", [None, "2.5", torch.ones(2)])
def test_a_learner_that_returns_no_loss_is_a_fault(micro, value):
    parts = micro.parts(Kind(learner=lambda self, model, optimizer, loss, run: lambda batch: value))
    with pytest.raises(
        SlotFault, match=rf"toy\.learner: its step returned {type(value).__name__}; it must return the loss"
    ):
        micro.train(parts, micro.workload())


def test_a_learner_s_loss_has_the_precision_of_the_run(micro):
    kinds = []

    def learner(self, model, optimizer, loss, run):
        model.hidden.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
        return lambda batch: loss(model, batch).item()

    workload = micro.workload(precision="amp-bf16")
    steps_of(micro, workload, micro.parts(Kind(learner=learner), workload=workload), 1)
    assert kinds == [torch.bfloat16]


def test_a_freezer_is_called_before_every_step_and_what_it_freezes_stays(micro):
    steps = []

    def freezer(self, model, run):
        def freeze(step):
            steps.append(step)
            model.hidden.requires_grad_(step >= 6)

        return freeze

    workload = micro.workload()
    parts = micro.parts(Kind(freezer=freezer), workload=workload)
    start = micro.weights(parts)
    micro.train(parts, workload, stop_at=6)
    half = micro.weights(parts)
    assert torch.equal(half["hidden.weight"], start["hidden.weight"])
    assert not torch.equal(half["head.weight"], start["head.weight"])
    micro.train(parts, workload, start=6)
    assert not torch.equal(micro.weights(parts)["hidden.weight"], start["hidden.weight"])
    assert steps == list(range(12))


def test_a_selector_sees_batch_and_model_and_its_weights_count(micro):
    seen = []

    def selector(self, run):
        def select(batch, model):
            seen.append(type(model).__name__)
            return {**batch, "weights": torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])}

        return select

    def first_two(self, run):
        return lambda batch, model: {key: value[:2] for key, value in batch.items()}

    workload = micro.workload()
    weighted = without_dropout(micro.parts(Kind(selector=selector), workload=workload))
    chosen = without_dropout(micro.parts(Kind(selector=first_two), workload=workload))
    assert steps_of(micro, workload, weighted, 4) == pytest.approx(steps_of(micro, workload, chosen, 4))
    for left, right in zip(micro.weights(weighted).values(), micro.weights(chosen).values(), strict=True):
        torch.testing.assert_close(left, right)
    assert seen == ["Net"] * 4


# -- faults ----------------------------------------------------------------------------------------------------------
def failing(error):
    def fail(*_):
        raise error

    return fail


class Failing(torch.optim.SGD):
    error: ClassVar[BaseException]

    def step(self, closure=None):
        raise self.error


@pytest.mark.parametrize("slot", ["freezer", "schedule", "selector", "learner", "optimizer"])
@pytest.mark.parametrize("error", [RuntimeError("no luck"), SystemExit("no luck")])
def test_whatever_a_slot_s_result_raises_is_a_fault_that_names_algorithm_and_slot(micro, slot, error):
    failing_optimizer = type("Failing", (Failing,), {"error": error})

    def fill(self, *arguments):
        if slot == "optimizer":
            return failing_optimizer([p for _, p in arguments[0]], lr=0.1)
        return failing(error)

    workload = micro.workload()
    parts = micro.parts(Kind(**{slot: fill}), workload=workload)
    with pytest.raises(SlotFault, match=rf"toy\.{slot} raised {type(error).__name__}: no luck") as caught:
        steps_of(micro, workload, parts, 1)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    ],
)
def test_lack_of_memory_is_not_called_a_fault(micro, error):
    workload = micro.workload()
    parts = micro.parts(Kind(freezer=lambda self, model, run: failing(error)), workload=workload)
    with pytest.raises(type(error)) as caught:
        steps_of(micro, workload, parts, 1)
    assert caught.value is error


def test_a_selector_that_returns_no_batch_is_a_fault(micro):
    workload = micro.workload()
    parts = micro.parts(Kind(selector=lambda self, run: lambda batch, model: batch["x"]), workload=workload)
    with pytest.raises(SlotFault, match=r"toy\.selector returned Tensor, which is no batch"):
        steps_of(micro, workload, parts, 1)


# -- precision -------------------------------------------------------------------------------------------------------
def test_mixed_precision_keeps_weights_in_fp32_and_multiplies_in_bf16(micro):
    workload, kinds = micro.workload(precision="amp-bf16"), set()
    parts = micro.parts(workload=workload)
    parts.model.hidden.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    micro.train(parts, workload)
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in parts.model.parameters()} == {p.grad.dtype for p in parts.model.parameters()}
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}


def test_full_precision_multiplies_in_fp32(micro):
    workload, kinds = micro.workload(), set()
    parts = micro.parts(workload=workload)
    parts.model.hidden.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    micro.train(parts, workload)
    assert kinds == {torch.float32}


# -- seeds -----------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(micro):
    workload = micro.workload()

    def trained(seed):
        parts = micro.parts(workload=workload, seed=seed)
        micro.train(parts, workload)
        return micro.weights(parts)

    assert micro.equal(trained(0), trained(0))
    assert not micro.equal(trained(0), trained(1))


def test_the_data_order_comes_from_the_seed_alone(micro):
    workload = micro.workload()
    generator = torch.Generator().manual_seed(derive_seed(3, "data", "7"))
    batch = next(workload.batches(3, 7, micro.cpu))
    assert torch.equal(batch["x"], torch.randn(6, 5, generator=generator))


def test_parameters_are_counted_with_their_bytes_and_what_is_trainable(micro):
    model = micro.Net()
    assert parameter_counts(model) == {"parameters": 91, "trainable_parameters": 91, "parameter_bytes": 364}
    model.hidden.requires_grad_(requires_grad=False)
    counts = parameter_counts(model.to(torch.bfloat16))
    assert counts == {"parameters": 91, "trainable_parameters": 43, "parameter_bytes": 182}


def test_parts_cannot_be_changed_by_accident(micro):
    parts = micro.parts()
    assert replace(parts, closure=True).closure
    with pytest.raises(AttributeError):
        parts.closure = True
