"""The whole way of somebody else's algorithm: from `bench new-plugin` to a bundle that is verified. No network."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import pytest


def do(*command: object, **options: object) -> str:
    """Run a command of the packaging tools and return what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_plugin_is_created_built_installed_tested_checked_run_packed_and_verified(bench):
    """One seed after another of it and of the reference, under a protocol that ranks, on a workload of milliseconds."""
    made = bench("new-plugin", "sign-descent", "--track", "optimizer", "--author", "Somebody Else")
    assert (made.returncode, made.stderr) == (0, "")
    package = bench.folder / "bench-sign-descent"

    do(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", bench.folder / "dist", package)
    (wheel,) = (bench.folder / "dist").glob("*.whl")
    site = bench.folder / "site"
    do(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    bench.sites.append(site)
    (listed,) = [row for row in json.loads(bench("list", "--format", "json").stdout) if row["name"] == "sign-descent"]
    assert (listed["track"], listed["package"]) == ("optimizer", "bench-sign-descent")

    tests = do(
        *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", package),
        cwd=bench.folder,
        env=bench.environment(),
    )
    assert "passed" in tests
    checked = bench("check", "sign-descent")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    run = ("run", "--plugin", "sign-descent", "--workload", "micro", "--protocol", "self-tuning")
    ran = bench(*run)
    assert (ran.returncode, ran.stderr) == (0, "")
    trials = pd.read_parquet(bench.folder / "results" / "trials")
    assert sorted(trials["algorithm"]) == ["adamw"] * 3 + ["sign-descent"] * 3
    assert set(trials[trials["algorithm"] == "sign-descent"]["algorithm_version"]) == {"0.1.0"}
    assert set(trials["outcome"]) <= {"reached", "missed"}

    packed = bench("pack", "--plugin", "sign-descent", "--out", "sign-descent.zip")
    assert (packed.returncode, packed.stderr) == (0, "")
    bench.sites.remove(site)  # what a reviewer has: the bundle alone
    verified = bench("verify", "sign-descent.zip", "--format", "json")
    verdict = json.loads(verified.stdout)
    assert (verified.returncode, verdict["verdict"], verdict["reasons"]) == (0, "accept", [])
