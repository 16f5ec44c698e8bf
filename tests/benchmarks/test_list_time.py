"""How long ``bench list`` takes, against the least that any command of this kind takes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

BOUND = 2.5
PAIRS = 20


@pytest.mark.parametrize("what", ["plugins", "workloads"])
def test_list_takes_little_more_than_its_two_imports(side_by_side, tmp_path, what):
    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-P", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start

    ratio = side_by_side(
        lambda: seconds("-m", "bench", "list", what),
        lambda: seconds("-c", "import click, pluggy"),
        PAIRS,
        f"bench list {what} over python -c 'import click, pluggy'",
    )
    assert ratio.median <= BOUND
