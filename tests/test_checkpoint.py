"""Checkpoints: a run that goes on from one ends in the same bits as a run that was never stopped."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench import Algorithm, hyper
from bench.checkpoint import random_state, read, restore, save, seed_random_state, set_random_state
from bench.errors import CannotWrite


class Cycle:
    """A selector with a state of its own: it drops one row after the other."""

    def __init__(self):
        self.next = 0

    def __call__(self, batch, model):
        keep = [row for row in range(len(batch["y"])) if row != self.next % len(batch["y"])]
        self.next += 1
        with torch.no_grad():  # a selector may draw from the global generators
            model.head.bias.add_(torch.rand(3), alpha=0.01 * (random.random() + np.random.rand()))  # noqa: NPY002
        return {key: value[keep] for key, value in batch.items()}

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


@dataclass(frozen=True, kw_only=True)
class Stateful(Algorithm):
    """Uses whatever a checkpoint must carry: moments, own and global generators, frozen layers, a selector's state."""

    name = "stateful"
    scale: float = hyper(0.01, help="size of the noise")

    def optimizer(self, named_parameters, run):
        return torch.optim.Adam(list(named_parameters), lr=0.01)

    def freezer(self, model, run):
        def freeze(step):
            with torch.no_grad():
                model.head.bias.add_(torch.rand(3, generator=run.rng("noise")), alpha=self.scale)
            if step % 5 == 0:  # stays frozen across checkpoints
                model.hidden.requires_grad_(step % 2 == 1)

        return freeze

    def selector(self, run):
        return Cycle()


@dataclass(frozen=True, kw_only=True)
class Averaged(Algorithm):
    """Fills the finish slot alone and draws from its generator there."""

    name = "averaged"

    def finish(self, model, run):
        torch.rand(1, generator=run.rng("average"))
        return model


def load(path, parts, _):
    content = read(path)
    restore(content, parts)
    return content["progress"]


def seeded():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is the point


def algorithms():
    return Stateful(), Averaged()


def test_a_resumed_run_ends_in_the_bits_of_an_undisturbed_one(micro, tmp_path):
    workload = micro.workload()
    seeded()
    whole = micro.parts(*algorithms(), workload=workload)
    evaluations = micro.train(whole, workload)
    seeded()
    first = micro.parts(*algorithms(), workload=workload)
    micro.train(first, workload, stop_at=6)
    save(tmp_path / "checkpoint.pt", first, {"step": 6, "note": "half"})
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002 - what a fresh process has
    torch.manual_seed(99)
    second = micro.parts(*algorithms(), workload=workload)
    progress = load(tmp_path / "checkpoint.pt", second, micro.cpu)
    assert progress == {"step": 6, "note": "half"}
    resumed = micro.train(second, workload, start=progress["step"])
    assert resumed == evaluations[3:]
    assert micro.equal(micro.weights(second), micro.weights(whole))
    assert second.select.next == whole.select.next == 12
    for owner, purpose in (("stateful", "noise"), ("averaged", "average")):
        left, right = whole.generators[owner][purpose], second.generators[owner][purpose]
        assert torch.equal(left.get_state(), right.get_state())


def test_what_was_frozen_is_frozen_again(micro, tmp_path):
    workload = micro.workload()
    seeded()
    parts = micro.parts(*algorithms(), workload=workload)
    micro.train(parts, workload, stop_at=3)
    assert not parts.model.hidden.weight.requires_grad
    save(tmp_path / "checkpoint.pt", parts, {})
    fresh = micro.parts(*algorithms(), workload=workload)
    assert fresh.model.hidden.weight.requires_grad
    load(tmp_path / "checkpoint.pt", fresh, micro.cpu)
    trainable = {name for name, parameter in fresh.model.named_parameters() if parameter.requires_grad}
    assert trainable == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_a_checkpoint_holds_nothing_that_a_safe_loader_refuses(micro, tmp_path):
    parts = micro.parts(*algorithms())
    micro.train(parts, micro.workload())
    save(tmp_path / "checkpoint.pt", parts, {"step": 12})
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {"model", "optimizer", "parts", "generators", "random", "trainable", "progress"} == set(content)
    assert content["parts"] == {"select": {"next": 12}}


def test_saving_is_atomic_and_replaces_the_checkpoint_before(micro, tmp_path, monkeypatch):
    parts, path = micro.parts(), tmp_path / "checkpoint.pt"
    save(path, parts, {"step": 3})
    before = path.read_bytes()

    def cut(content, file):
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(CannotWrite, match="no space"):
            save(path, parts, {"step": 6})
    assert path.read_bytes() == before
    save(path, parts, {"step": 9})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load(path, micro.parts(), micro.cpu) == {"step": 9}


def test_global_generators_go_back_to_where_they_were():
    state = random_state()
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(), np.random.randn()  # noqa: NPY002
    middle = random_state()
    set_random_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(), np.random.randn()) == drawn  # noqa: NPY002
    later = random.gauss(), np.random.randn()  # noqa: NPY002 - both keep the second of a pair of draws
    set_random_state(middle)
    assert (random.gauss(), np.random.randn()) == later  # noqa: NPY002


def test_every_global_generator_is_seeded_and_by_the_seed_alone():
    def drawn(seed):
        seed_random_state(seed)
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    first, other = drawn(2**62 + 5), drawn(2**62 + 6)
    assert drawn(2**62 + 5) == first
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_moments_of_the_optimizer_are_those_that_were_saved(micro, tmp_path):
    workload = micro.workload()
    parts = micro.parts(Stateful(), workload=workload)
    micro.train(parts, workload, stop_at=3)
    save(tmp_path / "checkpoint.pt", parts, {})
    fresh = micro.parts(Stateful(), workload=workload)
    load(tmp_path / "checkpoint.pt", fresh, micro.cpu)
    states = zip(parts.optimizer.state.values(), fresh.optimizer.state.values(), strict=True)
    for left, right in states:
        assert all(torch.equal(left[key], right[key]) for key in ("exp_avg", "exp_avg_sq", "step"))
    assert fresh.base_rates == parts.base_rates == [0.01]
