"""An algorithm: a frozen record of checked hyperparameters, and the slots that it overrides."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated

import pytest
from annotated_types import Gt

from bench import Algorithm, hyper
from bench.algorithm import SLOTS, TRAINING_SLOTS, slots
from bench.errors import BadValue, UnknownName


@dataclass(frozen=True, kw_only=True)
class Scheduled(Algorithm):
    name = "scheduled"

    lr: Annotated[float, Gt(0)] = hyper(0.1, help="learning rate")
    steps: int = hyper(5, help="steps")

    def schedule(self, run):
        return lambda step: self.lr * step

    def adapt(self, model, run):
        return model


@dataclass(frozen=True, kw_only=True)
class Child(Scheduled):
    name = "child"

    lr: Annotated[float, Gt(0)] = hyper(0.2, help="another default")

    def finish(self, model, run):
        return model


def test_hyperparameters_come_in_the_order_of_the_fields():
    assert list(Scheduled(steps=7).hyperparameters().items()) == [("lr", 0.1), ("steps", 7)]


def test_a_record_cannot_be_changed_and_takes_keywords_only():
    with pytest.raises(FrozenInstanceError):
        Scheduled().lr = 1.0
    with pytest.raises(TypeError):
        Scheduled(0.1)


def test_building_refuses_values_outside_their_domains():
    with pytest.raises(BadValue, match=r"scheduled: lr = -1\.0 \(float\) is not allowed"):
        Scheduled(lr=-1.0)


def test_loose_values_can_be_checked_without_building():
    Scheduled.check(lr=1.0)
    with pytest.raises(BadValue, match="child: steps = 'many'"):
        Child.check(steps="many")
    with pytest.raises(UnknownName, match="no hyperparameter of scheduled named 'stepps'"):
        Scheduled.check(stepps=1)


def test_a_class_without_a_name_is_called_by_its_own():
    @dataclass(frozen=True, kw_only=True)
    class Nameless(Algorithm):
        rank: int = hyper(1, help="rank")

    with pytest.raises(BadValue, match="Nameless: rank"):
        Nameless(rank="one")


def test_slots_are_those_overridden_here_or_in_a_base_in_the_order_of_calls():
    assert slots(Scheduled) == ("adapt", "schedule")
    assert slots(Child()) == ("adapt", "schedule", "finish")
    assert slots(Algorithm) == ()


def test_training_slots_are_the_ones_before_compression():
    assert (*TRAINING_SLOTS, "compress", "compensate", "merge") == SLOTS


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_is_a_documented_method_of_the_base_that_does_nothing(slot):
    method = getattr(Algorithm, slot)
    assert inspect.getdoc(method)
    assert list(inspect.signature(method).parameters)[-1] == "run"
    with pytest.raises(NotImplementedError):
        method(*[None] * len(inspect.signature(method).parameters))


def test_equal_settings_are_equal():
    assert Scheduled(lr=1.0) == Scheduled(lr=1.0) != Scheduled(lr=2.0)


def test_one_setting_has_one_identity_however_its_number_is_written():
    @dataclass(frozen=True, kw_only=True)
    class Numbers(Algorithm):
        name = "numbers"
        rate: Annotated[float, Gt(0)] = hyper(1.0, help="a rate")

    assert Numbers(rate=2) == Numbers(rate=2.0)
    assert isinstance(Numbers(rate=2).hyperparameters()["rate"], float)
