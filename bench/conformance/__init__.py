"""The conformance battery: what every algorithm has to prove, as functions that anybody can run on a plugin.

In the tests of a package that provides the algorithm ``my-name``:

    import pytest
    from bench.conformance import checks

    @pytest.mark.parametrize("check", checks("my-name"), ids=str)
    def test_conformance(check):
        check()

``bench check my-name`` runs the same from the command line; ``docs/check.md`` lists every check.
"""

from __future__ import annotations

from bench.conformance.battery import checks, properties
from bench.conformance.check import Check, CheckFailed, CheckSkipped, Property

__all__ = ["Check", "CheckFailed", "CheckSkipped", "Property", "checks", "properties"]
