"""From a third party's trials to a bundle that a stranger, who has not even installed the algorithm, reproduces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench.bundle import read
from bench.bundle.cases import cases
from bench.bundle.choice import choose
from bench.registry import Registry
from bench.trial import Trial

SIGNUM = Path(__file__).parents[1] / "third_party" / "bench_signum" / "bench_signum"


@pytest.fixture(scope="module")
def signum_site(tmp_path_factory):
    """A folder of installed packages that holds the third party's algorithm."""
    folder = tmp_path_factory.mktemp("signum")
    shutil.copytree(SIGNUM, folder / "bench_signum", ignore=shutil.ignore_patterns("__pycache__"))
    facts = folder / "bench_signum-0.3.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-signum\nVersion: 0.3.0\n")
    (facts / "entry_points.txt").write_text("[bench]\nsignum = bench_signum\n")
    return folder


@pytest.fixture(scope="module")
def party(tmp_path_factory, bench_in, signum_site):
    """Who made the algorithm, with a bundle of what it does on ``micro``."""
    bench = bench_in(tmp_path_factory.mktemp("party"))
    bench.sites.append(signum_site)
    done = bench("run", "--plugin", "signum", "--workload", "micro", "--protocol", "self-tuning")
    assert done.returncode == 0, done.stderr
    done = bench("pack", "--plugin", "signum", "--out", "signum.zip")
    assert done.returncode == 0, done.stderr
    assert "3 trials of adamw" in done.stdout
    assert "source of signum: bench_signum.signum" in done.stdout
    return bench


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, bench_in):
    """Who has the workload, and not the algorithm."""
    return bench_in(tmp_path_factory.mktemp("stranger"))


def test_an_honest_bundle_is_accepted_by_who_has_not_installed_the_algorithm(party, stranger):
    said = stranger("verify", party.folder / "signum.zip")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "accept: nothing speaks against these records" in said.stdout
    assert "3 trials of signum, 3 of its reference" in said.stdout


def test_a_bundle_is_reproduced_from_the_source_in_it_and_only_if_that_is_asked_for(party, stranger):
    bundle = party.folder / "signum.zip"
    said = stranger("reproduce", bundle)
    assert said.returncode == 2
    assert "'signum' is not installed with the source that was measured" in said.stderr
    assert "--from-snapshot" in said.stderr
    said = stranger("reproduce", bundle, "--trials", 2, "--from-snapshot", "--format", "json")
    assert said.returncode == 0, said.stdout + said.stderr
    told = json.loads(said.stdout)
    assert (told["decision"], told["source"]) == ("reproduced", "bundle")
    steps = {one["name"]: one for one in told["quantities"]}
    assert steps["steps of signum"]["ours"][0] == pytest.approx(steps["steps of signum"]["theirs"][0], rel=0.1)
    trials = pd.read_parquet(stranger.folder / "reproduced" / "trials")
    assert sorted(trials["algorithm"]) == ["adamw", "adamw", "signum", "signum"]
    assert set(trials["trust_tier"]) == {"reproduced"}
    (record,) = (stranger.folder / "reproduced" / "reproductions").iterdir()
    assert json.loads(record.read_text())["bundle_sha256"] == told["bundle_sha256"]
    trial = json.loads(next((stranger.folder / "reproduced" / "runs").glob("*/trial.json")).read_text())
    assert trial["reproduces"] == told["bundle_sha256"]


def test_records_do_not_reproduce_themselves(party):
    said = party("reproduce", "signum.zip", "--results", "results")
    assert said.returncode == 2
    assert "holds the very trials of the bundle" in said.stderr
    assert set(pd.read_parquet(party.folder / "results" / "trials")["trust_tier"]) == {"self-reported"}


def slow_down(store, factor):
    """Make the records of a store those of a machine of another class that takes ``factor`` times as long."""
    for folder in sorted((store / "runs").iterdir()):
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        for event in events:
            seconds = event.get("cost", {})
            seconds |= {name: value * factor for name, value in seconds.items() if name.endswith("_s") and value}
            if event["event"] == "started":
                event["facts"]["device_listed"] = False
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        trial = Trial.read(folder / "trial.json").model_copy(update={"device_class": "unlisted:an old processor"})
        (folder / "trial.json").write_text(trial.text())
        folder.rename(folder.with_name(trial.trial_id))


def test_the_bundle_of_a_slower_machine_is_reproduced(party, stranger):
    slow = party.folder / "slow"
    shutil.copytree(party.folder / "results", slow)
    slow_down(slow, 3)
    done = party("pack", "--plugin", "signum", "--results", "slow", "--out", "slow.zip")
    assert done.returncode == 0, done.stderr
    seeds = [run.trial.seed for run, _ in _chosen(party.folder / "signum.zip")][:2]
    known = [word for seed in seeds for word in ("--seed", seed)]
    said = stranger("reproduce", party.folder / "slow.zip", *known, "--from-snapshot", "--format", "json")
    assert said.returncode == 0, said.stdout + said.stderr
    told = json.loads(said.stdout)
    assert (told["verified"], told["decision"]) == ("accept", "reproduced")
    assert told["theirs"]["device_class"] == "unlisted:an old processor"
    assert said.stderr.count("recorded already") in {0, 4}, "the trials of the test before serve here too"


def _chosen(path):
    """Return the pairs that ``bench reproduce`` runs without being told which."""
    bundle = read(path)
    return choose(bundle, cases(bundle, Registry([]))).pairs
