"""What every listed plugin, ours and strangers', says of itself; and every schedule."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest

from bench import Registry, Run
from bench.algorithm import slots
from bench.hyperparameter import Choice, Log, domain

REGISTRY = Registry()
NAMES = sorted(REGISTRY.algorithms)

every_plugin = pytest.mark.parametrize("name", NAMES)
every_schedule = pytest.mark.parametrize("name", [n for n in NAMES if "schedule" in slots(REGISTRY.algorithm_class(n))])


# -- what a plugin says of itself ------------------------------------------------------------------------------------
@every_plugin
def test_a_plugin_is_a_frozen_keyword_only_record_with_honest_class_facts(name):
    cls = REGISTRY.algorithm_class(name)
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert not [key for key, value in vars(cls).items() if isinstance(value, dataclasses.Field)], "lacks @dataclass"
    assert isinstance(cls.closure, bool)
    assert cls.passes >= 1
    for texts in (cls.deviations, cls.needs):
        assert isinstance(texts, tuple), "a tuple of texts: one text needs a comma behind it"
        assert all(isinstance(text, str) and text for text in texts)
    assert all(text.endswith(".") for text in cls.deviations)
    with pytest.raises(FrozenInstanceError):
        cls().anything = 1


@every_plugin
def test_a_plugin_has_a_docstring_that_names_its_source(name):
    cls = REGISTRY.algorithm_class(name)
    text = cls.__doc__ or ""
    assert not text.startswith(f"{cls.__name__}("), "this is the signature that dataclass puts in place of a docstring"
    assert "Source:" in text
    assert "Deviations:" in text or not cls.deviations


@every_plugin
def test_an_entry_says_in_one_line_what_it_is_and_where_it_comes_from(name):
    entry = REGISTRY.algorithms[name]
    for text in (entry.paper, entry.summary):
        assert text.strip() == text != ""
        assert "\n" not in text


@every_plugin
def test_every_hyperparameter_has_help_a_domain_and_a_default_inside_it(name):
    cls = REGISTRY.algorithm_class(name)
    cls()
    for field in dataclasses.fields(cls):
        words = domain(cls, field.name)
        assert field.metadata["help"], field.name
        assert words not in {"float", "int", "str"}, f"{field.name} has no bounds"
        if words.startswith("float"):
            assert isinstance(field.default, float) or field.default is None, (
                f"{field.name}: {field.default!r} is no float"
            )


@every_plugin
def test_search_ranges_lie_inside_the_domains_and_span_at_most_four_dimensions(name):
    cls = REGISTRY.algorithm_class(name)
    searched = {field.name: field.metadata["search"] for field in dataclasses.fields(cls)}
    searched = {key: search for key, search in searched.items() if search is not None}
    assert len(searched) <= 4, sorted(searched)
    for key, search in searched.items():
        values = search.values if isinstance(search, Choice) else (search.low, search.high)
        for value in values:
            cls.check(**{key: value})
        if isinstance(search, Choice):
            assert len(set(values)) == len(values) > 1
        else:
            assert search.low < search.high
            assert search.low > 0 or not isinstance(search, Log)


# -- schedules -------------------------------------------------------------------------------------------------------
@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 10, 300, 10_000])
def test_a_schedule_is_finite_in_zero_to_one_during_the_run_and_past_its_end(name, steps):
    factor = REGISTRY.algorithm(name).schedule(Run(seed=0, steps=steps))
    values = [factor(step) for step in [*range(steps + 1), steps + 1, 2 * steps, 10 * steps + 7]]
    assert all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values)
    assert max(values) > 0.0


@every_schedule
def test_a_schedule_rises_and_falls_in_few_pieces_and_reaches_its_peak(name):
    factor = REGISTRY.algorithm(name).schedule(Run(seed=0, steps=1000))
    values = [factor(step) for step in range(1001)]
    signs = [math.copysign(1, after - before) for before, after in pairwise(values) if after != before]
    assert sum(one != other for one, other in pairwise(signs)) <= 10
    assert max(values) == pytest.approx(1.0)
    assert values[0] <= 1.0
    assert values[-1] <= max(values)


@every_schedule
def test_a_schedule_depends_on_the_step_alone(name):
    run = Run(seed=0, steps=50)
    factor = REGISTRY.algorithm(name).schedule(run)
    forwards = [factor(step) for step in range(50)]
    again = REGISTRY.algorithm(name).schedule(run)
    assert [again(step) for step in reversed(range(50))] == forwards[::-1] or hasattr(factor, "state_dict")
    assert run.generators == {} or hasattr(factor, "state_dict")
