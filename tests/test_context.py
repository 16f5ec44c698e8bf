"""What an algorithm may know of its run, and its random generators."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.context import Run, derive_seed
from bench.errors import BadValue
from bench.roles import Role


def draw(generator):
    return torch.randn(4, generator=generator).tolist()


def run(**changes):
    return Run(**{"seed": 3, "steps": 10, "algorithm": "plain"} | changes)


def test_derived_seeds_never_change():
    assert derive_seed(0, "model") == 1774364661312384809
    assert derive_seed(7, "algorithm", "galore", "basis") == 4349014725824855958


@given(st.integers(0, 2**40), st.lists(st.text(), min_size=1, max_size=3))
def test_derived_seeds_fit_every_generator(seed, purpose):
    found = derive_seed(seed, *purpose)
    assert 0 <= found < 2**63
    assert found == derive_seed(seed, *purpose)


def test_the_parts_of_a_purpose_do_not_run_together():
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(1, "1") != derive_seed(11, "")


def test_the_same_purpose_gives_the_same_object():
    facts = run()
    assert facts.rng("noise") is facts.rng("noise")


def test_purposes_are_independent_of_each_other_and_of_the_order_of_use():
    one, other = run(), run()
    first = draw(one.rng("noise"))
    draw(other.rng("mask"))
    assert draw(other.rng("noise")) == first
    assert draw(other.rng("mask")) != first


@pytest.mark.parametrize("change", [{"seed": 4}, {"algorithm": "other"}])
def test_seed_and_algorithm_change_the_stream(change):
    assert draw(run(**change).rng("noise")) != draw(run().rng("noise"))


def test_two_runs_alike_draw_alike():
    assert draw(run().rng("noise")) == draw(run().rng("noise"))


def test_a_generator_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(run().rng("noise"))
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_kept_for_the_checkpoint_and_shared_by_copies_of_the_facts():
    facts = run()
    generator = replace(facts, roles={"a": Role.MLP}).rng("noise")
    assert facts.generators == {"noise": generator}


def test_a_run_on_the_meta_device_has_generators_too():
    assert run(device=torch.device("meta")).rng("noise").device.type == "cpu"


def test_a_role_is_found_by_name_and_an_unknown_name_is_refused():
    facts = run(roles={"hidden.weight": Role.MLP})
    assert facts.role("hidden.weight") is Role.MLP
    with pytest.raises(BadValue, match=r"no role is known for the parameter 'head\.weight'") as caught:
        facts.role("head.weight")
    assert "hidden.weight" in caught.value.hint


def test_facts_are_fixed_and_do_not_name_the_workload():
    with pytest.raises(FrozenInstanceError):
        run().seed = 1
    assert {field.name for field in fields(Run)} == {
        "seed",
        "steps",
        "device",
        "loss",
        "point",
        "blocks",
        "axes",
        "precision",
        "budget_s",
        "micro_batches",
        "roles",
        "algorithm",
        "generators",
    }
