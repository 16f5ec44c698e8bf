"""Tuning protocols: versioned data, and a stamp that changes with their rules."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import pytest

from bench.errors import UnknownName
from bench.protocol import Protocol, protocol, protocols


def test_every_file_is_a_protocol_that_carries_the_file_s_name():
    files = {file.name.removesuffix(".toml") for file in resources.files("bench.protocols").iterdir()}
    assert set(protocols()) == {name for name in files if not name.startswith("_")}
    assert list(protocols()) == sorted(protocols())


def test_quick_is_one_seed_and_never_ranked():
    quick = protocol("quick")
    assert (quick.seeds, quick.ranked) == (1, False)
    assert "never ranked" in quick.summary


def test_default_is_five_seeds_and_ranked():
    default = protocol("default")
    assert (default.seeds, default.ranked) == (5, True)


def test_an_unknown_protocol_suggests_a_known_one():
    with pytest.raises(UnknownName, match="no protocol named 'quik'") as caught:
        protocol("quik")
    assert caught.value.hint == "did you mean 'quick'?"


@pytest.mark.parametrize("name", sorted(protocols()))
def test_a_stamp_carries_name_version_and_hash_of_the_rules(name):
    one = protocol(name)
    stamp = one.stamp()
    assert (stamp.name, stamp.version) == (name, one.version)
    assert stamp == protocol(name).stamp()
    assert len(stamp.sha256) == 64


@pytest.mark.parametrize("change", [{"seeds": 7}, {"ranked": True}, {"version": "9.9"}, {"name": "other"}])
def test_other_rules_have_another_stamp(change):
    quick = protocol("quick")
    assert replace(quick, **change).stamp().sha256 != quick.stamp().sha256


def test_stamps_never_change_without_a_new_version():
    pinned = Protocol(name="pinned", version="1.0", summary="fixed", seeds=3, ranked=True)
    assert pinned.stamp().sha256[:16] == "990eeff62d16f9cc"
