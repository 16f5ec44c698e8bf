"""The page about bundles has every rule as it is, and the format as it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.bundle import RULES, limits
from bench.bundle.agreement import STEPS_MARGIN, TIME_MARGIN
from bench.commands import reproduce, verify

PAGE = (Path(__file__).parents[2] / "docs" / "bundles.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RULES)
def test_the_page_has_every_rule_with_its_effect_and_its_reason(name):
    rule = RULES[name]
    assert f"| `{name}` | {rule.demands} | {rule.effect} | {rule.reason} |" in PAGE


def test_the_page_has_no_other_rules():
    told = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `") and line.count(" | ") == 3]
    assert told == list(RULES)


def test_the_page_has_the_limits_and_margins_that_hold():
    sizes = (limits.FILE_BYTES, limits.TOTAL_BYTES, limits.MEMBER_BYTES)
    for size in sizes:
        assert f"{size // 2**20} MiB" in PAGE
    assert f"{limits.MEMBERS:,} members" in PAGE
    assert f"{limits.CHILD_MEMORY_BYTES // 2**30} GiB and {limits.CHILD_CPU_S} s of CPU" in PAGE
    assert f"| {STEPS_MARGIN:.0%} |" in PAGE
    assert f"| {TIME_MARGIN:.0%} |" in PAGE


@pytest.mark.parametrize("command", [verify, reproduce])
def test_exit_codes_are_on_the_page_and_in_the_help(command):
    told = command.command.help
    for name, code in command.EXITS.items():
        assert name is None or f"{code} {name}" in told
        assert name is None or name in PAGE


@pytest.mark.parametrize("option", ["--from-snapshot", "--salt", "--trials", "--seed", "--results", "--format json"])
def test_options_are_on_the_page(option):
    assert f"`{option}" in PAGE
