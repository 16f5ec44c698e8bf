"""Performance profiles, scores, the held-out gate and the bootstrap; AlgoPerf's published scores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_series_equal

from bench.errors import BadValue
from bench.profiles import (
    bootstrap_profile_scores,
    held_out_gate,
    median_over_studies,
    performance_profile,
    profile_score,
    profile_score_trapezoid,
    ratios_to_best,
)

INF = np.inf
FEW = settings(max_examples=30)

FLIP = pd.DataFrame({"one": [200.0, 320.0, 100.0], "two": [170.0, 100.0, INF]}, index=["a", "b", "c"])
"""Made for these tests: c is the best on one workload, and whether it takes part decides between a and b."""


@st.composite
def cost_frames(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    cost = st.integers(1, 60).map(float) | st.just(INF)
    values = draw(st.lists(st.lists(cost, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    return pd.DataFrame(values, index=list("abcde"[:rows]), columns=list("wxyz"[:columns]))


def shuffled(frame, random):
    rows, columns = list(frame.index), list(frame.columns)
    random.shuffle(rows)
    random.shuffle(columns)
    return frame.loc[rows, columns]


# -- profile and score -----------------------------------------------------------------------------------------------


def test_ratios_profile_and_score_by_hand():
    # Ratios a: 2, 1.7; b: 3.2, 1; c: 1, missed. Scores are means of (4 - r) / 3.
    ratios = ratios_to_best(FLIP)
    assert ratios.to_numpy() == pytest.approx(np.array([[2.0, 1.7], [3.2, 1.0], [1.0, INF]]))
    profile = performance_profile(FLIP, [1, 2, 3.5, INF])
    assert profile.loc[:, "a"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert profile.loc[:, "b"].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert profile.loc[:, "c"].tolist() == [0.5, 0.5, 0.5, 0.5]
    scores = profile_score(FLIP)
    assert scores.to_dict() == pytest.approx({"a": (2 + 2.3) / 6, "b": (0.8 + 3) / 6, "c": 0.5})


def test_leaving_out_the_last_one_flips_the_first_two():
    """A score relative to the group says who is first only together with who took part."""
    everybody, without = profile_score(FLIP), profile_score(FLIP.drop(index="c"))
    assert everybody.idxmax() == "a"
    assert everybody.idxmin() == "c"
    assert without.to_dict() == pytest.approx({"a": (3 + 2.3) / 6, "b": (2.4 + 3) / 6})
    assert without.idxmax() == "b"


@FEW
@given(cost_frames(), st.floats(1.5, 8))
def test_the_score_is_the_integral_of_the_profile(costs, limit):
    """A step function is integrated exactly by its values between its steps."""
    ratios = ratios_to_best(costs).to_numpy()
    edges = np.unique(np.concatenate([[1.0, limit], ratios[ratios < limit]]))
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    area = (performance_profile(costs, middles).to_numpy() * widths[:, np.newaxis]).sum(axis=0) / (limit - 1)
    assert profile_score(costs, limit).to_numpy() == pytest.approx(area)


@FEW
@given(cost_frames())
def test_the_trapezoid_is_within_half_a_piece_of_the_score(costs):
    exact, trapezoid = profile_score(costs), profile_score_trapezoid(costs)
    assert (exact - trapezoid).abs().max() <= 0.5 / 99 + 1e-12
    fine = profile_score_trapezoid(costs, points=10_001)
    assert (exact - fine).abs().max() <= 0.5 / 10_000 + 1e-12


@FEW
@given(cost_frames(), st.randoms())
def test_scores_lie_in_the_unit_interval_and_know_no_order(costs, random):
    other = shuffled(costs, random)
    for score in (profile_score, profile_score_trapezoid):
        assert score(costs).between(0, 1).all()
        assert_series_equal(score(other), score(costs), check_exact=True)
    assert_frame_equal(ratios_to_best(other), ratios_to_best(costs), check_exact=True)
    taus = [1.0, 1.5, 2.0, 4.0]
    profile = performance_profile(costs, taus)
    assert_frame_equal(performance_profile(other, taus), profile, check_exact=True)
    assert (np.diff(profile, axis=0) >= 0).all()


@FEW
@given(cost_frames(), st.floats(0.01, 100))
def test_the_unit_of_a_workload_does_not_matter(costs, factor):
    scaled = costs.assign(w=costs["w"] * factor)
    assert profile_score(scaled).to_numpy() == pytest.approx(profile_score(costs).to_numpy())


def test_a_workload_that_everybody_missed_scores_nobody():
    costs = pd.DataFrame({"one": [1.0, 2.0], "two": [INF, INF]}, index=["a", "b"])
    assert ratios_to_best(costs)["two"].tolist() == [INF, INF]
    assert profile_score(costs).tolist() == pytest.approx([0.5, 1 / 3])


def test_nothing_to_score():
    nothing = pd.DataFrame(index=["a", "b"], dtype=float)
    assert profile_score(nothing).isna().all()
    assert performance_profile(nothing, [1.0, 2.0]).isna().all(axis=None)
    nobody = pd.DataFrame(columns=["one"], dtype=float)
    assert profile_score(nobody).empty
    assert performance_profile(nobody, [1.0]).shape == (1, 0)


@pytest.mark.parametrize("wrong", [np.nan, 0.0, -1.0])
def test_what_is_no_cost_is_refused(wrong):
    costs = FLIP.copy()
    costs.loc["b", "two"] = wrong
    for call in (ratios_to_best, profile_score, profile_score_trapezoid, lambda frame: held_out_gate(frame, FLIP)):
        with pytest.raises(BadValue, match=f"a cost of {wrong}"):
            call(costs)


def test_labels_limits_and_taus_that_mean_nothing_are_refused():
    with pytest.raises(BadValue, match="'a' twice"):
        profile_score(pd.concat([FLIP, FLIP.loc[["a"]]]))
    for limit in (1.0, 0.5, INF, np.nan):
        with pytest.raises(BadValue, match="limit = "):
            profile_score(FLIP, limit)
    for taus in ([0.5, 2.0], [np.nan]):
        with pytest.raises(BadValue, match="taus holds"):
            performance_profile(FLIP, taus)
    with pytest.raises(BadValue, match="points = 1"):
        profile_score_trapezoid(FLIP, points=1)


# -- held-out gate ---------------------------------------------------------------------------------------------------


def test_the_gate_follows_its_rules_in_their_order():
    names = ["fast", "slow", "no base", "no held-out", "far held-out"]
    base = pd.DataFrame({"one": [10.0, 41.0, INF, 20.0, 30.0], "two": [1.0, 4.0, 4.1, INF, 1.0]}, index=names)
    # "no base" has by far the smallest held-out cost, but rule 1 takes it away before rule 2 looks for the smallest.
    held_out = pd.DataFrame({"one": [8.0, 8.0, 1.0, INF, 33.0]}, index=names)
    expected = pd.DataFrame(
        {
            "one": [10.0, INF, INF, INF, INF],  # slow: 41 > 4 x 10; far held-out: 33 > 4 x 8
            "two": [1.0, 4.0, INF, INF, 1.0],  # no variant: only what is above 4 x 1 is gone
        },
        index=names,
    )
    assert_frame_equal(held_out_gate(base, held_out), expected.sort_index())


def test_an_algorithm_without_held_out_trials_missed_and_one_without_base_trials_counts_for_nobody():
    base = pd.DataFrame({"one": [10.0, 20.0]}, index=["a", "b"])
    held_out = pd.DataFrame({"one": [30.0, 1.0]}, index=["a", "stranger"])
    assert held_out_gate(base, held_out)["one"].tolist() == [10.0, INF]


def test_no_held_out_workload_changes_no_score():
    gated = held_out_gate(FLIP, pd.DataFrame(index=FLIP.index))
    assert_series_equal(profile_score(gated), profile_score(FLIP))


def test_a_held_out_workload_without_a_base_is_refused():
    with pytest.raises(BadValue, match="'three' that base lacks"):
        held_out_gate(FLIP, FLIP.rename(columns={"two": "three"}))


@FEW
@given(cost_frames(), cost_frames(), st.randoms())
def test_the_gate_only_takes_away_and_knows_no_order(base, held_out, random):
    held_out = held_out[held_out.columns.intersection(base.columns)]
    gated = held_out_gate(base, held_out)
    assert ((gated == base) | (gated == INF)).all(axis=None)
    assert_frame_equal(held_out_gate(shuffled(base, random), shuffled(held_out, random)), gated, check_exact=True)


# -- studies and the bootstrap ---------------------------------------------------------------------------------------


def long(cells):
    rows = [(*cell, study, cost) for cell, costs in cells.items() for study, cost in enumerate(costs)]
    return pd.DataFrame(rows, columns=["algorithm", "workload", "study", "cost"])


def test_the_median_counts_missing_studies_and_nan_as_misses():
    studies = long(
        {
            ("a", "one"): [3.0, 1.0, 2.0],
            ("b", "one"): [3.0, np.nan, 2.0],
            ("c", "one"): [1.0],
            ("a", "two"): [5.0, INF, 4.0],
        }
    )
    costs = median_over_studies(studies, 3)
    assert costs["one"].to_dict() == {"a": 2.0, "b": 3.0, "c": INF}
    assert costs["two"].to_dict() == {"a": 5.0, "b": INF, "c": INF}
    # Over four, a has one miss on the first workload: the middle is (2 + 3) / 2; two misses of four are a miss.
    assert median_over_studies(studies, 4).loc["a"].to_dict() == {"one": 2.5, "two": INF}


def test_studies_that_are_too_many_or_there_twice_are_refused():
    studies = long({("a", "one"): [1.0, 2.0]})
    with pytest.raises(BadValue, match="study 1 of a on one is one of more than 1"):
        median_over_studies(studies, 1)
    with pytest.raises(BadValue, match="study 0 of a on one is there twice"):
        median_over_studies(pd.concat([studies, studies.iloc[[0]]]), 5)
    with pytest.raises(BadValue, match="n_studies = 0"):
        median_over_studies(studies, 0)
    with pytest.raises(BadValue, match=r"a cost of 0\.0"):
        median_over_studies(long({("a", "one"): [0.0]}), 1)


def noisy(seed, sd, algorithms=4, workloads=3, studies=5):
    generator = np.random.default_rng(seed)
    cells = {
        (f"a{a}", f"w{w}"): np.exp(generator.normal(5 + 0.2 * a, sd, studies))
        for a in range(algorithms)
        for w in range(workloads)
    }
    return long(cells)


def test_the_bootstrap_s_score_is_that_of_the_medians_behind_the_gate():
    base, held_out = noisy(1, 0.5), noisy(2, 0.5, workloads=2)
    found = bootstrap_profile_scores(base, held_out, studies=5, resamples=50)
    costs = held_out_gate(median_over_studies(base, 5), median_over_studies(held_out, 5))
    assert found["algorithm"].tolist() == list(costs.index)
    assert found["score"].tolist() == profile_score(costs).tolist()
    assert list(found.columns) == ["algorithm", "score", "low", "high"]


def test_the_bootstrap_s_interval_holds_its_score_and_narrows_with_the_noise():
    widths = []
    for sd in (0.3, 0.03):
        found = bootstrap_profile_scores(noisy(3, sd), None, studies=5, resamples=400)
        assert ((found["low"] <= found["score"]) & (found["score"] <= found["high"])).all()
        assert found[["low", "high"]].ge(0).all(axis=None)
        assert found[["low", "high"]].le(1).all(axis=None)
        widths.append((found["high"] - found["low"]).mean())
    assert widths[1] < widths[0] / 3


def test_without_noise_the_bootstrap_s_interval_has_no_width():
    found = bootstrap_profile_scores(noisy(3, 0.0), noisy(4, 0.0), studies=5, resamples=20)
    assert found["low"].tolist() == found["score"].tolist() == found["high"].tolist()


def test_the_bootstrap_is_that_of_one_cell_worked_by_enumeration():
    """Two studies on one side of a pair: of four resamples one is (1, 1), one (4, 4) and two have the median 2.5."""
    studies = long({("a", "one"): [1.0, 4.0], ("b", "one"): [4.0, 4.0]})
    found = bootstrap_profile_scores(studies, None, studies=2, resamples=4000, confidence=0.4).set_index("algorithm")
    # b's score is 0 (r = 4), 0.8 (r = 1.6) or 1, at 1/4, 1/2 and 1/4: its 0.3 and 0.7 quantiles are both 0.8.
    assert found.loc["b"].tolist() == pytest.approx([0.8, 0.8, 0.8])
    wide = bootstrap_profile_scores(studies, None, studies=2, resamples=4000, confidence=0.6).set_index("algorithm")
    assert wide.loc["b", ["low", "high"]].tolist() == pytest.approx([0.0, 1.0])


def test_the_bootstrap_resamples_missing_studies_as_misses():
    """Three of five studies hit, so a resample misses when it draws at least three of the two misses: 31.7%."""
    studies = long({("a", "one"): [1.0, 1.0, 1.0]})
    outer = bootstrap_profile_scores(studies, None, studies=5, resamples=2000, confidence=0.5)
    inner = bootstrap_profile_scores(studies, None, studies=5, resamples=2000, confidence=0.2)
    assert outer[["score", "low", "high"]].to_numpy().tolist() == [[1.0, 0.0, 1.0]]
    assert inner[["score", "low", "high"]].to_numpy().tolist() == [[1.0, 1.0, 1.0]]


@FEW
@given(st.randoms())
def test_the_bootstrap_knows_no_row_order_and_obeys_its_seed(random):
    base, held_out = noisy(5, 0.5), noisy(6, 0.5)
    found = bootstrap_profile_scores(base, held_out, studies=5, resamples=40)
    orders = [random.sample(range(len(frame)), len(frame)) for frame in (base, held_out)]
    other = bootstrap_profile_scores(base.iloc[orders[0]], held_out.iloc[orders[1]], studies=5, resamples=40)
    assert_frame_equal(other, found, check_exact=True)
    assert not bootstrap_profile_scores(base, held_out, studies=5, resamples=40, seed=1).equals(found)


def test_a_bootstrap_in_batches_draws_the_same(monkeypatch):
    base = noisy(5, 0.5)
    whole = bootstrap_profile_scores(base, None, studies=5, resamples=300)
    monkeypatch.setattr("bench.profiles.BATCH_ELEMENTS", 7 * 60)
    assert_frame_equal(bootstrap_profile_scores(base, None, studies=5, resamples=300), whole, check_exact=True)


def test_a_bootstrap_of_nothing_and_of_what_does_not_fit():
    empty = long({})
    assert bootstrap_profile_scores(empty, None, studies=5).empty
    assert bootstrap_profile_scores(empty, empty, studies=5).empty
    with pytest.raises(BadValue, match="'w2' that base lacks"):
        bootstrap_profile_scores(noisy(1, 0.1, workloads=2), noisy(1, 0.1), studies=5)
    with pytest.raises(BadValue, match="resamples = 0"):
        bootstrap_profile_scores(noisy(1, 0.1), None, studies=5, resamples=0)


# -- AlgoPerf --------------------------------------------------------------------------------------------------------

BASE = [
    "criteo1tb",
    "fastmri",
    "imagenet_resnet",
    "imagenet_vit",
    "librispeech_conformer",
    "librispeech_deepspeech",
    "ogbg",
    "wmt",
]
HELD_OUT = ["criteo1tb", "fastmri", "imagenet_resnet", "librispeech_conformer", "ogbg", "wmt"]

SELF_TUNING = {
    "adamg": ([INF] * 8, [INF] * 6, 0.0),
    "baseline": (
        [5794, 1976, INF, 73981, 57674, 36051, 8423, 40361],
        [503, 4549, INF, 56241, 12748, 28607],
        0.8194,
    ),
    "nadamw_sequential": (
        [22791, 2381, INF, 122357, INF, 80703, 10109, 113506],
        [4410, 3903, INF, 70640, 17793, 75697],
        0.3308,
    ),
    "schedule_free_adamw": (
        [5764, 1321, INF, 52381, 58997, 49010, 5994, 45376],
        [1925, 5114, INF, 37413, 10292, 10148],
        0.8542,
    ),
    "sinv6": ([INF, 4310, INF, INF, INF, 136882, 25004, 111823], [INF, 7680, INF, 111005, INF, 21952], 0.0903),
    "sinv6_75": ([INF, 3991, INF, INF, INF, 122484, 27643, 87459], [INF, 7116, INF, 155643, INF, 21111], 0.1420),
}
"""AlgoPerf v0.5, self-tuning ruleset: seconds to target, medians over five studies (public logs, mlcommons/
submissions_algorithms, Apache-2.0), on the base workloads and on their held-out variants, and the published score."""


def test_the_published_self_tuning_scores_follow_from_the_medians():
    base, held_out = (
        pd.DataFrame.from_dict({name: row[part] for name, row in SELF_TUNING.items()}, orient="index", columns=columns)
        for part, columns in ((0, BASE), (1, HELD_OUT))
    )
    scores = profile_score_trapezoid(held_out_gate(base, held_out))
    assert scores.round(4).to_dict() == {name: row[2] for name, row in SELF_TUNING.items()}


@pytest.fixture(scope="module")
def algoperf():
    """The outcome of every scored trial, and the published scores."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BENCH_SHARED_DATA", default)) / "algoperf-v05"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {folder.parent} (BENCH_SHARED_DATA names another folder)")
    trials = pd.read_csv(folder / "trials.csv").merge(pd.read_csv(folder / "workloads.csv"), on="workload")
    published = pd.read_csv(folder / "published_scores.csv").set_index(["ruleset", "submission"])["score"]
    return trials.rename(columns={"submission": "algorithm", "time_to_target_s": "cost"}), published


def studies_of(trials, ruleset, first):
    """Return base and held-out studies; of each study the trial that is the first in the order of ``first``."""
    trials = trials[trials["ruleset"] == ruleset].sort_values(first, na_position="last", kind="stable")
    trials = trials.drop_duplicates(["algorithm", "workload", "study"])
    parts = [trials[trials["role"] == role].assign(workload=lambda part: part["base"]) for role in ("base", "held-out")]
    return [part[["algorithm", "workload", "study", "cost"]] for part in parts]


def costs_of(trials, ruleset, first=("target_eval_index", "cost")):
    return held_out_gate(*(median_over_studies(part, 5) for part in studies_of(trials, ruleset, list(first))))


@pytest.mark.parametrize(
    "first",
    [
        ("target_eval_index", "cost"),
        ("target_eval_index", "steps_to_target"),
        ("target_eval_index", "trial"),
        ("target_eval_index",),
    ],
    ids="-".join,
)
def test_all_seventeen_published_algoperf_scores(algoperf, first):
    """By the smallest evaluation index; how ties are broken moves no score in its fourth digit."""
    trials, published = algoperf
    found = pd.concat(
        {name: profile_score_trapezoid(costs_of(trials, name, first)) for name in ("external_tuning", "self_tuning")}
    )
    assert len(published) == 17
    assert found.round(4).to_dict() == published.to_dict()


def test_the_smallest_time_gives_the_published_scores_but_one(algoperf):
    trials, published = algoperf
    found = profile_score_trapezoid(costs_of(trials, "external_tuning", ("cost",))).round(4)
    assert found[found != published["external_tuning"].reindex(found.index)].to_dict() == {"lawa_ema": 0.3434}
    assert published["external_tuning", "lawa_ema"] == 0.3384


def test_the_closed_form_is_near_the_published_scores(algoperf):
    trials, published = algoperf
    for ruleset in ("external_tuning", "self_tuning"):
        exact = profile_score(costs_of(trials, ruleset))
        assert (exact - published[ruleset]).abs().max() < 0.0017


def test_leaving_out_the_eighth_flips_the_first_two_of_algoperf(algoperf):
    trials, published = algoperf
    order = published["external_tuning"].sort_values(ascending=False)
    assert order.index.get_loc("caspr_adaptive") == 7
    without = profile_score(costs_of(trials[trials["algorithm"] != "caspr_adaptive"], "external_tuning"))
    assert list(order.index[:2]) == ["shampoo_submission", "schedule_free_adamw"]
    assert list(without.sort_values(ascending=False).index[:2]) == ["schedule_free_adamw", "shampoo_submission"]
    assert without[["schedule_free_adamw", "shampoo_submission"]].tolist() == pytest.approx([0.81, 0.80], abs=0.005)


def test_the_intervals_of_the_first_two_of_algoperf_overlap(algoperf):
    trials, _ = algoperf
    found = bootstrap_profile_scores(
        *studies_of(trials, "external_tuning", ["target_eval_index", "cost"]), studies=5
    ).set_index("algorithm")
    assert len(found) == 11
    # MEASURING.md, section 1, from another implementation with other draws; the ends of 2000 are known to about 0.01.
    assert found.loc["shampoo_submission"].tolist() == pytest.approx([0.778, 0.643, 0.907], abs=0.015)
    assert found.loc["schedule_free_adamw"].tolist() == pytest.approx([0.708, 0.586, 0.777], abs=0.015)
    assert found.loc["schedule_free_adamw", "high"] > found.loc["shampoo_submission", "low"]
