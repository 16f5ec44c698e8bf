"""Which trials run again, and what their agreement says."""

from __future__ import annotations

import math

import pytest

from bench.bundle import read
from bench.bundle.agreement import needed, overall, quality, steps, steps_ratio, time_ratio
from bench.bundle.cases import cases
from bench.bundle.choice import choose
from bench.bundle.foreign_plugin import write_site
from bench.bundle.isolation import environment, without_network
from bench.errors import BadBundle


def rows(values, **facts):
    shared = {"outcome": "reached", "budget_steps": 300, "contended": False, "device_listed": True, "quality": 1.0}
    return [
        shared | {"steps_to_target_interpolated": value, "time_to_target_interpolated_s": 0.1 * value} | facts
        for value in values
    ]


THEIRS = rows([100.0, 110.0, 90.0])


def test_equal_steps_are_reproduced_and_others_are_not():
    assert steps("steps", THEIRS, rows([100.0, 110.0, 90.0])).decision == "reproduced"
    assert steps("steps", THEIRS, rows([101.0, 109.0, 91.0])).decision == "reproduced"
    found = steps("steps", THEIRS, rows([150.0, 165.0, 134.0]))
    assert found.decision == "not reproduced"
    assert found.compared[1] > 1.1
    assert (round(found.theirs[0], 2), round(found.ours[0], 2)) == (99.67, 149.13)


def test_scattered_seeds_leave_it_open_and_say_how_many_would_decide():
    found = steps("steps", THEIRS, rows([100.0, 140.0, 75.0]))
    assert found.decision == "undecided"
    assert found.seeds_needed is not None
    assert found.seeds_needed > 3
    assert "3 seeds leave open" in found.why


def test_the_estimate_of_seeds_is_the_least_number_whose_interval_fits():
    from scipy import stats

    n = needed(0.02, 0.1, math.log(1.1))
    half = [stats.t.isf(0.025, k - 1) * 0.1 / math.sqrt(k) for k in (n - 1, n)]
    room = math.log(1.1) - 0.02
    assert half[0] > room >= half[1]
    assert needed(math.log(1.1), 0.1, math.log(1.1)) is None


def test_a_miss_counts_as_its_budget():
    missed = rows([300.0] * 3, outcome="missed", steps_to_target_interpolated=None)
    assert steps("steps", THEIRS, missed).decision == "not reproduced"


def test_a_slower_machine_is_reproduced_since_only_ratios_of_times_are_compared():
    theirs = list(zip(THEIRS, rows([80.0, 88.0, 72.0]), strict=True))
    slow = [
        tuple(row | {"time_to_target_interpolated_s": 7 * row["time_to_target_interpolated_s"]} for row in pair)
        for pair in theirs
    ]
    assert time_ratio("time", theirs, slow).decision == "reproduced"
    assert steps_ratio("ratio", theirs, slow).decision == "reproduced"
    contended = [(a | {"contended": True}, b) for a, b in slow]
    assert time_ratio("time", theirs, contended).decision == "not judged"
    unlisted = [(a, b | {"device_listed": False}) for a, b in theirs]
    assert time_ratio("time", unlisted, slow).decision == "not judged"


def test_qualities_are_held_against_what_their_seeds_predict():
    every = [row | {"quality": value} for row, value in zip(THEIRS, (1.0, 1.1, 0.9), strict=True)]
    assert quality("quality", every, [row | {"quality": 1.2} for row in THEIRS]).decision == "reproduced"
    assert quality("quality", every, [row | {"quality": 3.0} for row in THEIRS]).decision == "not reproduced"
    assert quality("quality", every[:1], every).decision == "undecided"


def test_one_contradiction_decides_and_a_time_that_says_nothing_does_not():
    same, other = steps("steps", THEIRS, THEIRS), steps("steps", THEIRS, rows([200.0, 220.0, 180.0]))
    open_ = steps("steps", THEIRS, rows([100.0, 140.0, 75.0]))
    pairs = list(zip(THEIRS, THEIRS, strict=True))
    scattered = list(zip(rows([100.0, 200.0, 60.0]), THEIRS, strict=True))
    time = time_ratio("time", pairs, scattered)
    assert time.decision == "undecided"
    assert overall([same]) == "reproduced"
    assert overall([same, time]) == "reproduced"
    assert overall([same, open_]) == "undecided"
    assert overall([same, other]) == "not reproduced"
    assert overall([]) == overall([time]) == "undecided"


def test_seeds_follow_from_bundle_and_salt_and_each_has_its_reference(honest, registry):
    bundle = read(honest["default"])
    every = cases(bundle, registry)
    first = choose(bundle, every)
    assert first.seeds == choose(bundle, every).seeds
    assert len(set(first.seeds)) == 3
    others = {tuple(choose(bundle, every, salt=str(number)).seeds) for number in range(20)}
    assert len(others) > 5
    for run, reference in first.pairs:
        assert run.trial.seed == reference.trial.seed
        assert (run.trial.algorithm.name, reference.trial.algorithm.name) == ("sgd", "adamw")
    assert choose(bundle, every, seeds=[4, 1]).seeds == [4, 1]
    with pytest.raises(BadBundle, match="no seed 9"):
        choose(bundle, every, seeds=[9])
    with pytest.raises(BadBundle, match="no trials"):
        choose(bundle, [])


def test_of_a_search_what_was_selected_runs_again(honest, registry):
    bundle = read(honest["external"])
    assert {run.trial.phase for run in choose(bundle, cases(bundle, registry)).runs} == {"rerun"}


def test_the_environment_of_a_worker_has_no_secrets(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "BENCH_CACHE"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PYTHONPATH", "here")
    found = environment(tmp_path, tmp_path / "site", ["micro", "entry"])
    assert "secret" not in found.values()
    assert all(found[name].startswith(str(tmp_path)) for name in ("HOME", "TMPDIR", "BENCH_CACHE"))
    assert found["PYTHONPATH"].split(":")[0] == str(tmp_path / "site")
    assert found["BENCH_PLUGINS"] == "micro,entry"


def test_there_is_no_network_where_the_system_lets_us_say_so():
    import subprocess
    import sys

    words = without_network()
    if not words:
        pytest.skip("this system lets an ordinary user have no network namespace of his own")
    script = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    done = subprocess.run([*words, sys.executable, "-c", script], capture_output=True, check=False, encoding="utf-8")
    assert "unreachable" in done.stderr


def test_a_source_may_not_take_the_place_of_what_is_no_plugin(tmp_path, honest, forge):
    with pytest.raises(BadBundle, match="part of bench itself"):
        write_site(read(honest["default"]), ["sgd"], [], tmp_path / "site")
    for module in ("torch", "json", "pytest"):
        bundle = forge()
        for name in [name for name in bundle.files if name.startswith("sources/sgd/")]:
            del bundle.files[name]
        bundle.files[f"sources/sgd/{module}.py"] = b"raise SystemExit\n"
        read_back = read(bundle.write(tmp_path / f"{module}.zip"))
        with pytest.raises(BadBundle, match=f"replace the installed package '{module}'"):
            write_site(read_back, ["sgd"], [], tmp_path / "site")
    assert not (tmp_path / "site").exists()
    bundle.files["sources/sgd/the_workload.py"] = bundle.files.pop("sources/sgd/pytest.py")
    with pytest.raises(BadBundle, match="what it is measured by"):
        write_site(read(bundle.write(tmp_path / "w.zip")), ["sgd"], ["the_workload.problem"], tmp_path / "site")
