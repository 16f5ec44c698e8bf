"""Filling the slots: order, exactly one call each, and what a slot may return."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002, ARG005
from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench import Algorithm, BenchError, Role, hyper
from bench.algorithm import TRAINING_SLOTS
from bench.assembly import check_fit, fill
from bench.errors import BadValue, SlotFault, SlotMismatch


def algorithm(**members):
    """Return an instance of an algorithm called ``toy`` with these slots and class facts."""
    cls = type("Toy", (Algorithm,), {"name": "toy", "__annotations__": {}} | members)
    return dataclass(frozen=True, kw_only=True)(cls)()


def sgd(self, named_parameters, run):
    return torch.optim.SGD(list(named_parameters), lr=0.5)


# -- who fills what --------------------------------------------------------------------------------------------------
def test_the_first_algorithm_that_overrides_a_slot_fills_it():
    first = algorithm(schedule=lambda self, run: float)
    second = algorithm(schedule=lambda self, run: float, optimizer=sgd)
    third = algorithm(optimizer=sgd, freezer=lambda self, model, run: float)
    assert fill([first, second, third]) == {"freezer": third, "optimizer": second, "schedule": first}
    assert fill([third, second, first])["optimizer"] is third


def test_only_training_slots_are_filled_unless_others_are_wanted():
    compressor = algorithm(compress=lambda self, model, calibration, run: model)
    assert fill([compressor]) == {}
    assert fill([compressor], ("compress",)) == {"compress": compressor}


class Everything:
    """Slots that count their calls."""

    calls: ClassVar[list[str]] = []

    def adapt(self, model, run):
        self.calls.append("adapt")
        return model

    def freezer(self, model, run):
        self.calls.append("freezer")
        return lambda step: None

    def optimizer(self, named_parameters, run):
        self.calls.append("optimizer")
        return sgd(self, named_parameters, run)

    def schedule(self, run):
        self.calls.append("schedule")
        return lambda step: 1.0

    def selector(self, run):
        self.calls.append("selector")
        return lambda batch, model: batch

    def learner(self, model, optimizer, loss, run):
        self.calls.append("learner")

        def learn(batch):
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            return value

        return learn

    def finish(self, model, run):
        self.calls.append("finish")
        return copy.deepcopy(model)


def test_every_slot_is_called_once_and_in_order_and_finish_at_evaluations(micro):
    Everything.calls.clear()
    cls = type("All", (Everything, Algorithm), {"name": "all", "__annotations__": {}})
    workload = micro.workload()
    parts = micro.parts(dataclass(frozen=True, kw_only=True)(cls)(), workload=workload)
    assert Everything.calls == list(TRAINING_SLOTS[:6])
    evaluations = micro.train(parts, workload)
    assert Everything.calls == [*TRAINING_SLOTS[:6], *["finish"] * len(evaluations)]


def test_empty_slots_leave_the_loop_plain(micro):
    parts = micro.parts()
    assert (parts.select, parts.freeze, parts.learn, parts.finish) == (None, None, None, None)
    assert parts.schedule(0) == parts.schedule(10**9) == 1.0
    assert parts.base_rates == [0.1]
    assert parts.stateful() == {}


def test_nothing_in_the_optimizer_slot_is_a_mismatch(micro, monkeypatch):
    monkeypatch.setattr(micro.Plain, "optimizer", Algorithm.optimizer)
    with pytest.raises(SlotMismatch, match="nothing fills the optimizer slot of 'micro'"):
        micro.parts(algorithm(schedule=lambda self, run: float))


# -- what slots get --------------------------------------------------------------------------------------------------
def test_slots_get_roles_budget_and_random_streams_of_their_own(micro):
    seen = {}

    def optimizer(self, named_parameters, run):
        seen["optimizer"] = run
        run.rng("noise")
        return sgd(self, named_parameters, run)

    def schedule(self, run):
        seen["schedule"] = run
        return float

    other = algorithm(name="other", schedule=schedule)
    parts = micro.parts(algorithm(optimizer=optimizer), other)
    assert (seen["optimizer"].algorithm, seen["schedule"].algorithm) == ("toy", "other")
    assert seen["optimizer"].steps == 12
    assert seen["optimizer"].role("hidden.weight") is Role.MLP
    assert list(parts.generators["toy"]) == ["noise"]
    assert seen["schedule"].rng("noise") is not parts.generators["toy"]["noise"]


def test_slots_of_one_algorithm_share_their_random_streams(micro):
    def optimizer(self, named_parameters, run):
        run.rng("noise")
        return sgd(self, named_parameters, run)

    def finish(self, model, run):
        assert run.rng("noise") is parts.generators["toy"]["noise"]
        run.rng("average")
        return model

    parts = micro.parts(algorithm(optimizer=optimizer, finish=finish))
    parts.finish(parts.model)
    assert list(parts.generators["toy"]) == ["noise", "average"]


def test_the_optimizer_gets_names_and_only_what_is_trainable(micro):
    names = []

    def adapt(self, model, run):
        model.hidden.requires_grad_(requires_grad=False)
        return model

    def optimizer(self, named_parameters, run):
        pairs = list(named_parameters)
        names.extend(name for name, _ in pairs)
        return sgd(self, pairs, run)

    micro.parts(algorithm(adapt=adapt, optimizer=optimizer))
    assert names == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_what_a_freezer_freezes_at_first_is_still_given_to_the_optimizer(micro):
    def freezer(self, model, run):
        model.hidden.requires_grad_(requires_grad=False)
        return lambda step: model.hidden.requires_grad_(step > 0)

    parts = micro.parts(algorithm(freezer=freezer))
    owned = {id(p) for group in parts.optimizer.param_groups for p in group["params"]}
    assert id(parts.model.hidden.weight) in owned


class LowRank(nn.Module):
    """A frozen linear map with a low-rank pair beside it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.requires_grad_(requires_grad=False)
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, x):
        return self.inner(x) + self.up(self.down(x))


def adapt_hidden(self, model, run):
    model.hidden = LowRank(model.hidden)
    return model


def test_adapters_claim_their_parameters_and_the_rest_keeps_its_roles(micro):
    patterns = {r"hidden\.(down|up)\.weight": Role.ADAPTER}
    parts = micro.parts(algorithm(adapt=adapt_hidden, adapter_roles=patterns))
    assert parts.run.role("hidden.inner.weight") is Role.MLP
    assert parts.run.role("hidden.up.weight") is Role.ADAPTER
    assert parts.run.role("head.weight") is Role.CLASSIFIER
    assert micro.train(parts, micro.workload())[-1].step == 12


def test_adapters_that_claim_nothing_are_refused(micro):
    with pytest.raises(BadValue, match=r"'hidden\.down\.weight' is claimed by no role pattern"):
        micro.parts(algorithm(adapt=adapt_hidden))


# -- what slots may return -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("slot", "returned", "wanted"),
    [
        ("adapt", None, "a torch.nn.modules.module.Module"),
        ("freezer", 3, "something callable"),
        ("optimizer", [1], "a torch.optim.optimizer.Optimizer"),
        ("schedule", 0.5, "something callable"),
        ("selector", "all", "something callable"),
        ("learner", None, "something callable"),
    ],
)
def test_the_wrong_thing_is_a_fault_that_names_algorithm_slot_and_type(micro, slot, returned, wanted):
    with pytest.raises(SlotFault) as caught:
        micro.parts(algorithm(**{slot: lambda *_: returned}))
    kind = type(returned).__name__
    assert caught.value.message == f"toy.{slot} returned {returned!r} ({kind}); it must return {wanted}"


def test_finish_must_return_a_module(micro):
    parts = micro.parts(algorithm(finish=lambda self, model, run: model.state_dict()))
    with pytest.raises(SlotFault, match=r"toy\.finish returned OrderedDict.*must return a torch\.nn"):
        micro.train(parts, micro.workload())


def failing(error):
    def slot(*_):
        raise error

    return slot


@pytest.mark.parametrize("slot", TRAINING_SLOTS[:6])
@pytest.mark.parametrize("error", [RuntimeError("no luck"), SystemExit("no luck"), KeyError("no luck")])
def test_a_slot_that_raises_is_a_fault_that_names_algorithm_slot_and_reason(micro, slot, error):
    with pytest.raises(SlotFault, match=rf"toy\.{slot} raised {type(error).__name__}: '?no luck") as caught:
        micro.parts(algorithm(**{slot: failing(error)}))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [BadValue("rank is too large"), MemoryError(), KeyboardInterrupt()])
def test_user_errors_lack_of_memory_and_ctrl_c_pass_through_a_slot(micro, error):
    with pytest.raises(type(error)) as caught:
        micro.parts(algorithm(optimizer=failing(error)))
    assert caught.value is error


def test_an_optimizer_that_forgets_parameters_is_refused_with_their_names(micro):
    with pytest.raises(SlotFault, match=r"it forgets \['head\.bias'\] and holds 0"):
        micro.parts(algorithm(optimizer=lambda self, pairs, run: torch.optim.SGD(list(pairs)[:-1], lr=0.1)))


def test_an_optimizer_that_holds_foreign_parameters_is_refused(micro):
    def optimizer(self, named_parameters, run):
        return torch.optim.SGD([*(p for _, p in named_parameters), nn.Parameter(torch.zeros(2))], lr=0.1)

    with pytest.raises(SlotFault, match="it forgets none and holds 1 that are not trainable parameters"):
        micro.parts(algorithm(optimizer=optimizer))


def test_an_optimizer_of_frozen_parameters_is_refused(micro):
    def optimizer(self, named_parameters, run):
        pairs = list(named_parameters)
        pairs[0][1].requires_grad_(requires_grad=False)
        return torch.optim.SGD([p for _, p in pairs], lr=0.1)

    parts = micro.parts(algorithm(optimizer=optimizer))
    assert len(parts.optimizer.param_groups[0]["params"]) == 6  # it was trainable when it was handed out


def test_an_optimizer_whose_groups_have_no_learning_rate_is_refused(micro):
    class Rateless(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            return None

    with pytest.raises(SlotFault, match=r"toy\.optimizer.*'lr'"):
        micro.parts(algorithm(optimizer=lambda self, pairs, run: Rateless(list(pairs))))


# -- fit ---------------------------------------------------------------------------------------------------------------
def test_an_algorithm_without_a_training_slot_does_not_fit(micro):
    with pytest.raises(SlotMismatch, match="'toy' fills compress; 'micro' has adapt, freezer, optimizer"):
        check_fit([algorithm(compress=lambda self, model, calibration, run: model)], micro.workload())


def test_needs_are_met_by_the_tier_or_refused(micro):
    needy = algorithm(optimizer=sgd, needs=("single-micro-batch",))
    check_fit([needy], micro.workload())
    with pytest.raises(SlotMismatch, match="'toy' needs single-micro-batch, which tier 'small' of 'micro'"):
        check_fit([micro.Plain(), needy], micro.workload(micro_batch_size=3))
    with pytest.raises(SlotMismatch, match="needs a-miracle"):
        check_fit([algorithm(optimizer=sgd, needs=("a-miracle",))], micro.workload())


def test_state_cannot_be_kept_on_the_algorithm_itself(micro):
    @dataclass(frozen=True, kw_only=True)
    class Hoarder(Algorithm):
        name = "hoarder"
        lr: float = hyper(0.1, help="learning rate")

        def optimizer(self, named_parameters, run):
            self.step = 0

    with pytest.raises(SlotFault, match=r"hoarder\.optimizer raised FrozenInstanceError") as caught:
        micro.parts(Hoarder())
    assert isinstance(caught.value.__cause__, FrozenInstanceError)
    assert isinstance(caught.value, BenchError)
