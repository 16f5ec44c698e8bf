"""Every check of :mod:`bench.conformance` on every listed algorithm, ours and strangers'."""

from __future__ import annotations

import pytest

from bench import Registry
from bench.conformance import checks

REGISTRY = Registry()
CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name in sorted(REGISTRY.algorithms)
    for check in checks(name, REGISTRY)
]


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check):
    check()
