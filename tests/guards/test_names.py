"""Functions and classes that everybody shares: every way to exchange one is seen, and torch's own ways are not."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
import types

import pytest
import torch
from torch import nn

import bench.clock
import bench.worker
from bench.errors import GuardTripped
from bench.guards.names import Names, kept

CHANGES = {
    "a builtin": (time, "perf_counter", lambda: 0.0),
    "a function": (nn.functional, "mse_loss", lambda *_: None),
    "an initialisation": (nn.init, "normal_", lambda *_: None),
    "a method of tensors": (torch.Tensor, "backward", lambda *_: None),
    "a method of modules": (nn.Module, "__call__", lambda *_: None),
    "a layer": (nn.Conv2d, "forward", lambda *_: None),
    "an optimizer": (torch.optim.AdamW, "step", lambda *_: None),
    "the base of optimizers": (torch.optim.Optimizer, "zero_grad", lambda *_: None),
    "a class": (nn, "Linear", nn.Bilinear),
    "a parser": (json, "dumps", lambda *_: "{}"),
    "Python itself": (__import__("builtins"), "sum", lambda *_: 0),
    "the harness": (bench.clock.Clock, "total_s", property(lambda _: 0.0)),
    "a function of the harness": (bench.worker, "work", lambda _: {}),
    "a constant of the harness": (bench.worker, "WARMUP_STEPS", 100),
    "a method that a class inherits": (nn.Linear, "__call__", lambda *_: None),
    "another function of torch": (nn.functional, "cross_entropy", nn.functional.mse_loss),
}


@pytest.mark.parametrize(("owner", "name", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_exchange_is_seen_and_named(monkeypatch, owner, name, value):
    names = Names()
    names.check("somebody")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        with pytest.raises(GuardTripped, match=rf"^somebody changed [\w.]+\.{name} from "):
            names.check("somebody")
    names.check("somebody")


def test_name_that_is_gone_is_seen(monkeypatch):
    names = Names()
    with monkeypatch.context() as patch:
        patch.delattr(json, "loads")
        with pytest.raises(GuardTripped, match=r"json\.loads from json\.loads to nothing"):
            names.check("somebody")


@pytest.mark.parametrize("name", ["__code__", "__defaults__", "__kwdefaults__"])
def test_body_exchanged_in_place_is_seen(monkeypatch, name):
    function = nn.functional.cross_entropy
    value = {"__code__": nn.functional.nll_loss.__code__, "__defaults__": (1,) * 7, "__kwdefaults__": {"x": 1}}[name]
    names = Names()
    with monkeypatch.context() as patch:
        patch.setattr(function, name, value)
        with pytest.raises(GuardTripped, match=rf"somebody changed {name} of torch\.nn\.functional\.cross_entropy"):
            names.check("somebody")


def test_new_name_that_hides_a_builtin_is_seen(monkeypatch):
    names = Names()
    monkeypatch.setattr(bench.worker, "len", lambda _: 0, raising=False)
    with pytest.raises(GuardTripped, match=r"somebody changed bench\.worker\.len from builtins\.len to"):
        names.check("somebody")


def test_new_names_are_nobodys_concern(monkeypatch):
    names = Names()
    monkeypatch.setattr(nn.functional, "brand_new", lambda: None, raising=False)
    names.check("somebody")


def test_step_that_torch_itself_wraps_is_left_alone():
    """The first instance of each class of optimizers puts torch's hooks around its ``step``."""

    class Fresh(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    names = Names()
    names.add_class(Fresh)
    before = vars(Fresh)["step"]
    Fresh(nn.Linear(1, 1).parameters(), lr=0.1)
    assert vars(Fresh)["step"] is not before
    names.check("somebody")
    Fresh.step = functools.wraps(before)(lambda *_: None)  # a wrapper, but none of torch's
    with pytest.raises(GuardTripped, match=r"Fresh\.step from"):
        names.check("somebody")


def test_what_the_import_of_a_plugin_does_to_the_process_of_the_command_is_undone(monkeypatch):
    isfinite, columns = math.isfinite, bench.clock.Clock.columns
    monkeypatch.setattr(math, "isfinite", isfinite)  # whatever happens here, it is put back
    monkeypatch.setattr(bench.clock.Clock, "columns", columns)
    with contextlib.suppress(KeyError), kept():
        math.isfinite = lambda _: True
        bench.clock.Clock.columns = lambda _: {}
        raise KeyError
    assert math.isfinite is isfinite
    assert bench.clock.Clock.columns is columns


def test_modules_of_the_harness_that_are_loaded_later_are_noted_when_they_are_first_seen(monkeypatch):
    module = types.ModuleType("bench.made_for_a_test")
    module.judge = lambda: True
    names = Names()
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    names.check("somebody")
    module.judge = lambda: False
    with pytest.raises(GuardTripped, match=r"bench\.made_for_a_test\.judge"):
        names.check("somebody")
