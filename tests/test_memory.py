"""Estimates of memory: what the published sizes need, from tensors without storage."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG005
from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bench import Algorithm, Role
from bench.commands.memory import command
from bench.errors import SlotFault
from bench.memory import PRECISIONS, estimate
from bench.probes import rss_peak_bytes
from bench.request import Request, open_workload, stacks

GIGA = 1e9

# tier, rank, AdamW's and GaLore's weights and states, GaLore's states alone; GB of bf16, from first principles
PUBLISHED = [
    ("60m", 128, 0.348, 0.280, 0.164),
    ("130m", 256, 0.805, 0.611, 0.343),
    ("350m", 256, 2.208, 1.389, 0.653),
    ("1b", 512, 8.034, 4.763, 2.085),
    ("1b", 1024, 8.034, 6.323, None),
    ("7b", 1024, 40.43, 22.88, None),
]


def of(registry, plugin, tier, precision="bf16", **settings):
    texts = [f"{name}={value}" for name, value in settings.items()]
    workload = open_workload(registry, "llama-c4", tier)
    request = Request(plugins=[plugin], workload="llama-c4", settings=texts, reference=False)
    (stack,) = stacks(registry, request, workload).values()
    return estimate(stack, workload, precision)


@pytest.mark.parametrize(("tier", "rank", "adamw", "galore", "states"), PUBLISHED)
def test_the_table_from_first_principles_is_reproduced(registry, tier, rank, adamw, galore, states):
    found = of(registry, "adamw", tier)
    assert found.weights_and_states_bytes / GIGA == pytest.approx(adamw, rel=0.01)
    found = of(registry, "galore", tier, rank=rank)
    assert found.weights_and_states_bytes / GIGA == pytest.approx(galore, rel=0.01)
    if states is not None:
        assert found.states_bytes / GIGA == pytest.approx(states, rel=0.01)


def test_seven_billion_parameters_are_counted_without_allocating_them(registry):
    before = rss_peak_bytes()
    found = of(registry, "galore", "7b", rank=1024)
    assert found.parameters == 6_738_415_616
    assert found.weights_bytes == 2 * found.parameters
    if before is not None:
        assert rss_peak_bytes() - before < 0.02 * found.weights_bytes


def test_the_parts_add_up(registry):
    found = of(registry, "adamw", "60m")
    assert found.total_bytes == found.weights_bytes + found.gradients_bytes + found.states_bytes
    assert found.weights_and_states_bytes == found.weights_bytes + found.states_bytes
    assert found.trainable_parameters == found.parameters == 58_073_600
    assert found.gradients_bytes == found.weights_bytes == 2 * 58_073_600


def test_full_precision_takes_twice_the_weights_and_gradients(registry):
    half, full = (of(registry, "lion", "60m", precision) for precision, _ in PRECISIONS)
    assert full.weights_bytes == 2 * half.weights_bytes
    assert full.gradients_bytes == 2 * half.gradients_bytes
    assert full.states_bytes == 2 * half.states_bytes == full.weights_bytes


def test_updates_inside_the_backward_pass_keep_one_gradient_alive(registry):
    whole, layered = of(registry, "galore", "60m"), of(registry, "galore-per-layer", "60m")
    assert layered.states_bytes == whole.states_bytes
    assert layered.gradients_bytes == 32_000 * 512 * 2
    assert whole.gradients_bytes == whole.weights_bytes


def test_one_command_estimates_every_listed_optimizer_in_both_precisions(registry):
    names = [name for name, entry in registry.algorithms.items() if entry.track == "optimizer"]
    options = ["--plugin", ",".join(names), "--workload", "llama-c4", "--tier", "tiny", "--format", "json"]
    done = CliRunner().invoke(command, options, catch_exceptions=False)
    rows = json.loads(done.stdout)
    assert [(row["precision"], row["plugin"]) for row in rows] == list(
        product([label for _, label in PRECISIONS], names)
    )
    for row in rows:
        assert row["parameters"] >= 857_216
        assert row["total_bytes"] == row["weights_bytes"] + row["gradients_bytes"] + row["states_bytes"]


def toy(**members):
    cls = type("Toy", (Algorithm,), {"name": "toy", "__annotations__": {}} | members)
    return dataclass(frozen=True, kw_only=True)(cls)()


class Careless(torch.optim.SGD):
    """Looks at a value in its step, as a stranger's optimizer may."""

    look = staticmethod(torch.Tensor.item)

    def step(self, closure=None):
        self.look(self.param_groups[0]["params"][0].grad.sum())
        return super().step(closure)


def refuse(_):
    raise NotImplementedError


@pytest.mark.parametrize(
    "look",
    [torch.Tensor.item, torch.Tensor.tolist, bool, float, torch.Tensor.numpy, torch.linalg.matrix_rank, refuse],
    ids=lambda look: look.__name__,
)
def test_a_step_that_needs_values_is_one_clear_error(micro, look):
    careless = type("Careless", (Careless,), {"look": staticmethod(look)})
    algorithm = toy(optimizer=lambda self, pairs, run: careless([p for _, p in pairs], lr=0.1))
    with pytest.raises(SlotFault, match="'toy' cannot be estimated without data: ") as caught:
        estimate([algorithm], micro.workload(), "fp32")
    assert "no .item()" in caught.value.hint


def test_frozen_weights_have_no_gradient_and_no_state(micro):
    def adapt(self, model, run):
        model.hidden.requires_grad_(requires_grad=False)
        return model

    def optimizer(self, named_parameters, run):
        return torch.optim.Adam([p for _, p in named_parameters], lr=0.1, foreach=False)

    found = estimate([toy(adapt=adapt, optimizer=optimizer)], micro.workload(), "fp32")
    assert (found.parameters, found.trainable_parameters) == (91, 43)
    assert found.gradients_bytes == 4 * 43
    assert 8 * 43 <= found.states_bytes <= 8 * 43 + 4 * 4  # two moments, and a counter of each tensor


def test_a_closure_optimizer_is_estimated_with_the_gradients_at_hand(micro):
    def optimizer(self, named_parameters, run):
        class Needy(torch.optim.SGD):
            def step(self, closure=None):
                assert closure is not None
                return super().step(closure)

        return Needy([p for _, p in named_parameters], lr=0.1, momentum=0.9)

    found = estimate([toy(optimizer=optimizer, closure=True)], micro.workload(), "fp32")
    assert found.states_bytes == found.gradients_bytes == found.weights_bytes == 4 * 91


def test_adapters_are_part_of_the_model_that_is_counted(micro):
    def adapt(self, model, run):
        with torch.device("meta"):
            model.adapter = nn.Linear(5, 3, bias=False)
        model.register_forward_hook(lambda module, inputs, output: output + module.adapter(inputs[0]))
        return model

    algorithm = toy(adapt=adapt, adapter_roles={r"adapter\.weight": Role.ADAPTER})
    found = estimate([algorithm, micro.Plain()], micro.workload(), "fp32")
    assert found.parameters == 91 + 15
