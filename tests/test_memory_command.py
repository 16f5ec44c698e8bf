"""``bench memory`` with several algorithms: one that does not fit a tier is named and stops no other."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bench.commands.memory import command
from bench.errors import SlotMismatch


def test_an_algorithm_that_does_not_fit_is_left_out_and_named():
    words = ["--plugin", "adamw,galore", "--workload", "resnet-cifar10", "--tier", "tiny", "--format", "json"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert {row["plugin"] for row in json.loads(result.stdout)} == {"adamw"}
    assert "left out: tiny, galore: galore found no matrix" in result.stderr


def test_alone_it_is_refused():
    words = ["--plugin", "galore", "--workload", "resnet-cifar10", "--tier", "tiny"]
    with pytest.raises(SlotMismatch, match="galore found no matrix"):
        CliRunner().invoke(command, words, catch_exceptions=False)
