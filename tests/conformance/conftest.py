"""A registry of algorithms that do one thing wrong each."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import Registry

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="session")
def wrong():
    """The registry; what it lists lies under tests/support/bench_wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SUPPORT), *sys.path])
        points = [EntryPoint(module, module, "bench") for module in ("bench_wrong", "bench_wrong.heavy")]
        registry = Registry(points)
        assert registry.broken == []
        yield registry
