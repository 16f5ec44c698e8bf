"""The training loop: what one step does, and that evaluating leaves no trace in the trajectory."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from bench import Algorithm, hyper
from bench.clock import Clock
from bench.errors import SlotFault
from bench.loop import parameter_counts, split, take_step, train
from bench.run import derive_seed


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
    parts = micro.parts(Kind(schedule=lambda self, run: lambda step: float(step)))
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
    with pytest.raises(SlotFault, match=r"optimizer\.step\(closure\) returned NoneType; it must return the loss"):
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
    with pytest.raises(SlotFault, match=f"learner returned {type(value).__name__}; it must return the loss"):
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


# -- evaluations -----------------------------------------------------------------------------------------------------
def test_evaluations_come_at_zero_at_the_spacing_and_at_the_end(micro):
    workload = micro.workload(steps=8)
    evaluations = micro.train(micro.parts(workload=workload), workload)
    assert [e.step for e in evaluations] == [0, 3, 6, 8]
    assert evaluations[0].metrics["rows"] == 6.0


def test_the_observer_can_stop_at_any_evaluation(micro):
    workload = micro.workload()
    for stop in (0, 3, 9):
        parts = micro.parts(workload=workload)
        assert [e.step for e in micro.train(parts, workload, stop_at=stop)] == list(range(0, stop + 1, 3))


def test_going_on_from_a_step_evaluates_only_what_comes_after(micro):
    workload = micro.workload()
    parts = micro.parts(workload=workload)
    micro.train(parts, workload, stop_at=6)
    assert [e.step for e in micro.train(parts, workload, start=6)] == [9, 12]


@dataclass(frozen=True, kw_only=True)
class Restless(Algorithm):
    """Draws from every global generator and from its own in each step, and keeps one layer in evaluation mode."""

    name = "restless"
    scale: float = hyper(0.01, help="size of the noise")

    def adapt(self, model, run):
        model.dropout.eval()
        return model

    def freezer(self, model, run):
        def disturb(step):
            noise = torch.rand(3) + torch.rand(3, generator=run.rng("noise"))
            with torch.no_grad():
                model.head.bias.add_(noise, alpha=self.scale * (random.random() + np.random.rand()))  # noqa: NPY002

        return disturb

    def finish(self, model, run):
        return copy.deepcopy(model)


@pytest.mark.parametrize("algorithm", [(), (Restless(),)], ids=["plain", "restless"])
def test_how_often_one_evaluates_changes_no_bit_of_the_weights(micro, algorithm):
    found = []
    for every in (1, 5, 12):
        workload = micro.workload(evaluate_every=every)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global generator is the point
        parts = micro.parts(*algorithm, workload=workload)
        micro.train(parts, workload)
        found.append(micro.weights(parts))
    assert micro.equal(found[0], found[1])
    assert micro.equal(found[0], found[2])


def test_an_evaluation_restores_every_generator_and_the_mode_of_every_module(micro):
    workload = micro.workload()
    parts = micro.parts(workload=workload)
    parts.model.norm.eval()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    micro.train(parts, workload, stop_at=0)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [parts.model.training, parts.model.norm.training, parts.model.hidden.training] == [True, False, True]


def test_finish_is_evaluated_and_training_goes_on_with_the_model_itself(micro):
    def finish(self, model, run):
        finished = copy.deepcopy(model)
        with torch.no_grad():
            finished.head.weight.zero_()
            finished.head.bias.zero_()
        return finished

    workload = micro.workload()
    parts = micro.parts(Kind(finish=finish), workload=workload)
    evaluations = micro.train(parts, workload)
    assert [e.metrics["loss"] for e in evaluations] == pytest.approx([float(np.log(3))] * 5)
    plain = micro.parts(workload=workload)
    micro.train(plain, workload)
    assert micro.equal(micro.weights(parts), micro.weights(plain))


class ScheduleFree(torch.optim.SGD):
    """Keeps one point to train and another to evaluate, and says which is in place."""

    log: ClassVar[list[str]] = []

    def train(self):
        self.log.append("train")

    def eval(self):
        self.log.append("eval")

    def step(self, closure=None):
        self.log.append("step")
        return super().step(closure)


def test_optimizers_with_two_modes_are_switched_around_every_evaluation(micro):
    ScheduleFree.log.clear()
    workload = micro.workload(steps=2, evaluate_every=1)
    parts = micro.parts(
        Kind(optimizer=lambda self, pairs, run: ScheduleFree([p for _, p in pairs], lr=0.1)), workload=workload
    )
    micro.train(parts, workload)
    assert ScheduleFree.log == [*["eval", "train", "step"] * 2, "eval", "train"]


def test_the_clock_runs_in_training_and_stands_still_in_evaluations(micro):
    workload, clock, running = micro.workload(), Clock(micro.cpu), []
    parts = micro.parts(workload=workload)
    parts.model.register_forward_hook(lambda *_: running.append(clock.running))
    train(parts, workload, clock, lambda evaluation: bool(running.append(clock.running)))
    assert running == [False, False, *[True, True, True, False, False] * 4]
    assert not clock.running
    assert all(clock.seconds[name] > 0 for name in ("data", "gradient", "step", "finish"))
    assert clock.aside["evaluation"] > 0
    assert clock.seconds["setup"] == 0


def test_the_clock_stops_when_a_step_raises(micro):
    def freezer(self, model, run):
        def freeze(step):
            if step == 4:
                raise OSError("no luck")

        return freeze

    workload, clock = micro.workload(), Clock(micro.cpu)
    with pytest.raises(OSError, match="no luck"):
        train(micro.parts(Kind(freezer=freezer), workload=workload), workload, clock, lambda _: False)
    assert not clock.running


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
