"""Published claims against boards: every verdict, with its reason, and nothing decided that the records do not say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board import Board, boards
from bench.claims import Claim
from bench.entry import Entry, WorkloadEntry
from bench.ledger import COLUMNS, ledger
from bench.protocol import Protocol, protocol
from bench.record import TRIALS
from bench.registry import Registry
from bench.statistics import log_t_interval, welch
from bench.verdicts import HELD, MIXED, NOT_TESTABLE, REFUTED, UNDECIDED, VERDICTS, evaluate

DEFAULT = Protocol(name="default", version="1", summary="five seeds", seeds=5, ranked=True)
QUICK = Protocol(name="quick", version="1", summary="one seed", seeds=1, ranked=False)
SHORT = Protocol(name="short", version="1", summary="stops early", seeds=5, ranked=True, stop_at_target=True)
SEARCHED = Protocol(
    name="external", version="1", summary="a search", seeds=1, ranked=True, search="space", studies=3,
    points=(((0.1,),), ((0.2,),), ((0.3,),)),
)  # fmt: skip
RULES = {protocol.sha256: protocol for protocol in (DEFAULT, QUICK, SHORT, SEARCHED)}

SHARED = {
    "workload": "micro",
    "workload_minor": "1.0",
    "tier": "small",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d",
    "device_class": "cpu-2",
    "target": 1.0,
    "metric": "loss",
    "metric_direction": "min",
    "confidence": 0.95,
    "by": "time",
}
FACTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "s",
    "hyperparameters": "{}",
    "fillers": "[]",
    "setting": "",
    "reference": None,
    "is_reference": False,
    "basis": "seeds",
    "replicates": 5,
    "hits": 5,
    "quality": 1.0,
    "quality_sd": 0.1,
    "memory_source": "nvml",
    "optimizer_state_bytes": 100.0,
    "contended": False,
    "outcomes": "5 reached",
}
COSTS = ("steps_to_target", "time_to_target_s", "memory_bytes", "energy_j")
PREFIXES = ("steps", "time", "memory", "energy")


def row(name, cost=100.0, sd=0.05, **changes):
    """Return a row whose four costs have the geometric mean ``cost`` and the deviation ``sd`` of logarithms."""
    found = dict(FACTS, algorithm=name, **changes)
    for column in COSTS:
        low, high = log_t_interval(math.log(cost), sd, found["replicates"])
        found |= {column: cost, f"{column}_low": float(low), f"{column}_high": float(high)}
    for column in (*(f"{prefix}_ratio" for prefix in PREFIXES), "quality_difference"):
        found |= dict.fromkeys((column, f"{column}_low", f"{column}_high"), math.nan)
    found |= {f"{prefix}_detectable_ratio": math.nan for prefix in PREFIXES}
    return found | {key: value for key, value in changes.items() if key in found}


def board(*rows, rules=DEFAULT, **changes):
    """Return a hand-made board of ``rows``."""
    shared = SHARED | {"protocol": rules.name, "protocol_sha256": rules.sha256} | changes
    return Board(shared=shared, rows=pd.DataFrame(list(rows)), notes=())


def claim(**changes):
    """Return the claim that ``new`` takes fewer steps than ``old``, published as 0.5 on the small tier."""
    facts = {
        "id": "fewer-steps",
        "statement": "New takes half of the steps.",
        "source": "a paper, Table 1",
        "algorithm": "new",
        "baseline": "old",
        "metric": "steps_to_target",
        "direction": "lower",
        "comparison": "ratio",
        "published_value": 0.5,
        "workload": "micro",
        "tier": "small",
        "smallest_tier": "small",
    }
    return Claim(**facts | changes)


QUALITY = {"metric": "quality", "comparison": "difference", "published_value": -0.5}
STATE = {"metric": "optimizer_state"}


@pytest.fixture(scope="module")
def names():
    """Two algorithms and a workload of three tiers."""
    found = Registry([])
    for name in ("new", "old", "third"):
        found.algorithms[name] = Entry(name=name, target="json:dumps", track="optimizer", paper="none", summary="none")
        found.packages[name] = "strangers"
    tiers = ("small", "medium", "large")
    found.workloads["micro"] = WorkloadEntry(name="micro", target="json:dumps", tiers=tiers, summary="none")
    return found


@pytest.fixture(scope="module")
def judge(names):
    """Return ``(claim, *boards) -> verdicts``."""
    return lambda one, *boards: evaluate([one], boards, names, RULES)


@pytest.fixture(scope="module")
def only(judge):
    """Return ``(claim, *boards) -> the one verdict``."""

    def of(one, *boards):
        (verdict,) = judge(one, *boards)
        return verdict

    return of


# -- decided by an interval ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", ["steps_to_target", "time_to_target", "memory", "energy"])
@pytest.mark.parametrize(
    ("direction", "cost", "expected"),
    [
        ("lower", 50.0, HELD),
        ("lower", 200.0, REFUTED),
        ("lower", 101.0, UNDECIDED),
        ("higher", 200.0, HELD),
        ("higher", 50.0, REFUTED),
        ("higher", 99.0, UNDECIDED),
    ],
)
def test_a_cost_is_decided_where_the_whole_interval_of_the_ratio_lies_on_one_side_of_one(
    only, metric, direction, cost, expected
):
    published = {"direction": direction, "published_value": 0.5 if direction == "lower" else 2.0}
    verdict = only(claim(metric=metric, **published), board(row("new", cost), row("old")))
    assert verdict.verdict == expected
    assert verdict.effect.value == pytest.approx(cost / 100)
    assert (verdict.effect.low < 1 < verdict.effect.high) == (expected == UNDECIDED)


@pytest.mark.parametrize(
    ("direction", "quality", "expected"),
    [("lower", 0.4, HELD), ("lower", 1.6, REFUTED), ("lower", 1.01, UNDECIDED), ("higher", 1.6, HELD)],
)
def test_a_quality_is_decided_where_the_whole_interval_of_the_difference_lies_on_one_side_of_zero(
    only, direction, quality, expected
):
    value = -0.5 if direction == "lower" else 0.5
    one = claim(**QUALITY | {"direction": direction, "published_value": value})
    verdict = only(one, board(row("new", quality=quality), row("old")))
    assert verdict.verdict == expected
    assert verdict.effect.value == pytest.approx(quality - 1.0)


def test_a_published_perplexity_is_compared_with_exp_of_the_difference_in_loss(only):
    one = claim(metric="quality", published_unit="perplexity", published_value=30.0, published_baseline_value=34.0)
    verdict = only(one, board(row("new", quality=2.0, quality_sd=0.01), row("old", quality=2.2, quality_sd=0.01)))
    assert verdict.verdict == HELD
    assert verdict.effect.value == pytest.approx(math.exp(-0.2))
    assert one.published_effect == pytest.approx(30 / 34)
    assert not verdict.published_inside


def test_perplexities_too_large_for_a_float_decide_nothing_and_break_nothing(only):
    one = claim(metric="quality", published_unit="perplexity", direction="higher", published_value=2.0)
    verdict = only(one, board(row("new", quality=1e4, quality_sd=1e4), row("old")))
    assert verdict.verdict == UNDECIDED
    assert verdict.effect.high == math.inf


def test_the_interval_is_that_of_welch_on_the_logarithms(only):
    verdict = only(claim(), board(row("new", 90.0, sd=0.1), row("old", 100.0, sd=0.03)))
    expected = welch(math.log(90), 0.1, 5, math.log(100), 0.03, 5).exp()
    assert (verdict.effect.value, verdict.effect.low, verdict.effect.high) == pytest.approx(
        (float(expected.value), float(expected.low), float(expected.high))
    )


def test_against_the_reference_of_a_board_its_own_comparison_is_taken(only):
    ratio = {"steps_ratio": 0.7, "steps_ratio_low": 0.6, "steps_ratio_high": 0.8, "steps_detectable_ratio": 1.3}
    verdict = only(claim(), board(row("new", reference="old", **ratio), row("old", reference="old", is_reference=True)))
    assert (verdict.effect.value, verdict.effect.low, verdict.effect.high) == (0.7, 0.6, 0.8)
    assert verdict.effect.detectable == 1.3


def test_against_another_algorithm_the_comparison_with_the_reference_is_not_taken(only):
    ratio = {"steps_ratio": 0.7, "steps_ratio_low": 0.6, "steps_ratio_high": 0.8}
    rows = [row(name, reference="third", **ratio) for name in ("new", "old")]
    verdict = only(claim(), board(*rows, row("third", reference="third", is_reference=True)))
    assert verdict.effect.value == pytest.approx(1.0)
    assert verdict.verdict == UNDECIDED


def test_the_reference_itself_may_be_the_algorithm_of_a_claim(only):
    ratio = dict.fromkeys(("steps_ratio", "steps_ratio_low", "steps_ratio_high"), 9.0)
    rows = [row("old", reference="new", **ratio), row("new", 50.0, reference="new", is_reference=True)]
    verdict = only(claim(), board(*rows))
    assert (verdict.verdict, verdict.effect.value) == (HELD, pytest.approx(0.5))


def test_a_reason_names_interval_seeds_and_what_could_have_been_seen(only):
    verdict = only(claim(), board(row("new", 101.0), row("old")))
    for part in ("1.01 [", "95%", "5 and 5 seeds", "holds 1", f"power 0.8 is {verdict.effect.detectable:.4g}"):
        assert part in verdict.reason
    assert verdict.effect.detectable > 1


def test_a_detectable_difference_of_a_quality_is_on_its_own_scale(only):
    verdict = only(claim(**QUALITY), board(row("new", quality_sd=0.2), row("old", quality_sd=0.2)))
    assert 0.3 < verdict.effect.detectable < 0.5  # about 2.4 standard errors of 0.2 √(2/5), read from t tables


def test_seeds_that_agree_to_the_last_digit_decide(only):
    assert only(claim(), board(row("new", 99.0, sd=0.0), row("old", sd=0.0))).verdict == HELD


def test_a_comparison_without_an_interval_is_undecided(only):
    verdict = only(claim(), board(row("new", 50.0, steps_to_target_low=math.nan), row("old")))
    assert verdict.verdict == UNDECIDED
    assert "no interval" in verdict.reason
    assert verdict.published_inside is None


# -- the published magnitude -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("published", "inside"), [(0.5, True), (0.7, False)])
def test_whether_the_published_effect_lies_in_our_interval_is_said_beside_the_verdict(only, published, inside):
    verdict = only(claim(published_value=published), board(row("new", 50.0), row("old")))
    assert verdict.verdict == HELD
    assert verdict.published_inside is inside
    assert f"published {published} (small): {'in' if inside else 'outside'} ours" in verdict.reason


def test_a_published_pair_of_values_is_turned_into_its_ratio_or_difference():
    assert claim(published_value=30.0, published_baseline_value=40.0).published_effect == 0.75
    assert claim(**QUALITY | {"published_value": 3.0, "published_baseline_value": 4.0}).published_effect == -1.0


# -- exact effects ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "direction", "expected"),
    [
        (50.0, "lower", HELD),
        (200.0, "lower", REFUTED),
        (100.0, "lower", REFUTED),
        (200.0, "higher", HELD),
        (100.0, "higher", REFUTED),
    ],
)
def test_bytes_of_state_compare_exactly_and_equality_refutes(only, size, direction, expected):
    published = {"direction": direction, "published_value": 0.5 if direction == "lower" else 2.0}
    rows = [row("new", optimizer_state_bytes=size, replicates=1, hits=0), row("old", replicates=1, hits=0)]
    verdict = only(claim(**STATE, **published), board(*rows))
    assert verdict.verdict == expected
    assert verdict.effect.low == verdict.effect.value == verdict.effect.high == size / 100


@pytest.mark.parametrize(("size", "inside"), [(50.0, True), (50.2, True), (51.0, False)])
def test_a_published_count_agrees_within_its_printed_digits(only, size, inside):
    verdict = only(claim(**STATE), board(row("new", optimizer_state_bytes=size), row("old")))
    assert verdict.published_inside is inside
    assert verdict.reason.endswith(": the same" if inside else ": not the same")


@pytest.mark.parametrize("size", [0.0, math.nan])
def test_no_state_makes_no_ratio(only, size):
    verdict = only(claim(**STATE), board(row("new"), row("old", optimizer_state_bytes=size)))
    assert verdict.verdict == NOT_TESTABLE
    assert "old has" in verdict.reason


# -- misses ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", ["steps_to_target", "time_to_target"])
@pytest.mark.parametrize(
    ("hits", "direction", "expected"),
    [((0, 5), "lower", REFUTED), ((0, 5), "higher", HELD), ((5, 0), "lower", HELD), ((5, 0), "higher", REFUTED)],
)
def test_who_always_misses_what_the_other_always_meets_is_the_dearer(only, metric, hits, direction, expected):
    published = {"direction": direction, "published_value": 0.5 if direction == "lower" else 2.0}
    rows = [
        row(name, math.nan if hit == 0 else 100.0, hits=hit) for name, hit in zip(("new", "old"), hits, strict=True)
    ]
    verdict = only(claim(metric=metric, **published), board(*rows))
    assert verdict.verdict == expected
    assert verdict.reason.startswith("by hit rates: ")
    assert f"new met the target in {hits[0]} of 5 seeds, old in {hits[1]} of 5" in verdict.reason
    assert "p = 0.0079" in verdict.reason
    assert verdict.effect is None


def test_a_few_misses_decide_nothing_however_cheap_the_hits_are(only):
    verdict = only(claim(), board(row("new", 10.0, hits=3), row("old")))
    assert verdict.verdict == UNDECIDED
    assert "3 of 5" in verdict.reason
    assert "Fisher" in verdict.reason


def test_where_neither_meets_the_target_nothing_can_be_tested(only):
    verdict = only(claim(), board(row("new", math.nan, hits=0), row("old", math.nan, hits=0)))
    assert verdict.verdict == NOT_TESTABLE
    assert verdict.reason.startswith("neither met the target")


def test_misses_say_nothing_of_memory(only):
    assert only(claim(metric="memory"), board(row("new", 50.0, hits=0), row("old"))).verdict == HELD


# -- not testable here -----------------------------------------------------------------------------------------------
def reason_of(verdict):
    assert verdict.verdict == NOT_TESTABLE
    return verdict.reason


def test_without_records_of_the_workload_the_claim_waits(only):
    assert reason_of(only(claim())) == "no records of micro; needs tier small or larger"
    other = board(row("new", 50.0), row("old"), workload="another")
    assert reason_of(only(claim(smallest_tier="large"), other)) == "no records of micro; needs tier large"


def test_a_smaller_tier_than_the_smallest_does_not_count_and_a_larger_one_does(only):
    one = claim(smallest_tier="medium")
    small, large = (board(row("new", 50.0), row("old"), tier=tier) for tier in ("small", "large"))
    assert reason_of(only(one, small)) == "needs tier medium or larger; recorded: small"
    assert only(one, large).verdict == HELD
    assert reason_of(only(claim(smallest_tier="large"), small)) == "needs tier large; recorded: small"
    gone = board(row("new", 50.0), row("old"), tier="gone")
    assert reason_of(only(one, gone, small)) == "needs tier medium or larger; recorded: small, gone"


def test_a_protocol_that_never_ranks_decides_nothing(only):
    found = board(row("new", 50.0), row("old"), rules=QUICK)
    assert reason_of(only(claim(), found)) == "needs a ranked protocol; recorded: quick"
    unknown = dataclasses.replace(found, shared=found.shared | {"protocol_sha256": "?"})
    assert "needs a ranked protocol" in reason_of(only(claim(), unknown))


def test_what_a_board_lacks_is_named(only):
    found = only(claim(), board(row("new", 50.0)), board(row("third"), tier="large"))
    assert reason_of(found) == (
        "needs new and old on one board; recorded: small (default, cpu-2) lacks old; "
        "large (default, cpu-2) lacks new and old"
    )


def test_a_claim_about_no_workload_of_ours_is_listed_as_such(only):
    one = claim(workload=None, tier=None, smallest_tier=None, published_on="ViT-B/16 on ImageNet")
    assert reason_of(only(one, board(row("new", 50.0), row("old")))) == "no workload here is ViT-B/16 on ImageNet"


def test_fewer_seeds_than_the_protocol_takes_decide_nothing(only):
    found = board(row("new", 50.0, replicates=3, hits=3), row("old"))
    assert reason_of(only(claim(), found)) == "new has 3 of the 5 seeds that this needs"


def test_the_best_of_a_search_decides_nothing_before_it_is_repeated(only):
    facts = {"replicates": 3, "hits": 3}
    selected, confirmed = (
        board(*(row(name, cost, basis=basis, **facts) for name, cost in (("new", 50.0), ("old", 100.0))),
              rules=SEARCHED)
        for basis in ("selected", "confirmed")
    )  # fmt: skip
    assert "biased" in reason_of(only(claim(), selected))
    verdict = only(claim(), confirmed)
    assert verdict.verdict == HELD
    assert "3 and 3 studies" in verdict.reason


@pytest.mark.parametrize(
    ("metric", "rows", "changes", "said"),
    [
        ("time_to_target", {"contended": True}, {}, "busy machine"),
        ("time_to_target", {}, {"device_class": "unlisted:cpu-3"}, "no listed device class"),
        ("steps_to_target", {}, {"target": None}, "no target"),
        ("quality", {}, {"rules": SHORT}, "stops at the target"),
        ("quality", {}, {"metric": None}, "disagree"),
        ("quality", {"quality": math.nan, "outcomes": "5 diverged"}, {}, "5 diverged"),
        ("memory", {"memory_source": "rss"}, {}, "do not compare"),
        ("energy", {"energy_j": math.nan}, {}, "no finite energy_j"),
        ("memory", {"memory_bytes": None}, {}, "no finite memory_bytes"),
    ],
)
def test_records_that_cannot_carry_a_comparison_say_why(only, metric, rows, changes, said):
    one = claim(**QUALITY) if metric == "quality" else claim(metric=metric)
    assert said in reason_of(only(one, board(row("new", 50.0, **rows), row("old"), **changes)))


@pytest.mark.parametrize(("rows", "changes"), [({"contended": True}, {}), ({}, {"device_class": "unlisted:cpu-3"})])
def test_steps_compare_where_times_do_not(only, rows, changes):
    assert only(claim(), board(row("new", 50.0, **rows), row("old"), **changes)).verdict == HELD


# -- which rows ------------------------------------------------------------------------------------------------------
def test_the_tuned_reference_is_the_baseline_and_its_other_settings_are_not(only):
    tuned = row("old", 100.0, is_reference=True, reference="old")
    untuned = row("old", 400.0, hyperparameters='{"lr": 1}', setting="lr=1")
    verdict = only(claim(direction="higher", published_value=2.0), board(row("new", 200.0), tuned, untuned))
    assert (verdict.verdict, verdict.baseline_setting) == (HELD, "")


def test_every_setting_of_the_algorithm_gets_its_verdict(judge):
    rows = [row("new", cost, setting=f"lr={cost}", hyperparameters=f"{cost}") for cost in (50.0, 200.0)]
    *found, overall = judge(claim(), board(*rows, row("old")))
    assert {verdict.setting: verdict.verdict for verdict in found} == {"lr=50.0": HELD, "lr=200.0": REFUTED}
    assert (overall.scope, overall.verdict) == ("overall", MIXED)


def test_rows_with_the_same_fillers_compare(only):
    rows = [row("new", 50.0, fillers="[1]"), row("old", 100.0, fillers="[1]"), row("old", 10.0, fillers="[2]")]
    assert only(claim(), board(*rows)).effect.value == pytest.approx(0.5)


def test_the_only_baseline_serves_for_other_fillers_and_one_of_many_does_not(only):
    new = row("new", 50.0, fillers="[1]")
    olds = [row("old", fillers=text) for text in ("[2]", "[3]")]
    assert only(claim(), board(new, olds[0])).verdict == HELD
    assert "different algorithms in the other slots" in reason_of(only(claim(), board(new, *olds)))


# -- several boards --------------------------------------------------------------------------------------------------
def test_each_board_gets_a_verdict_and_conflicts_stay_visible(judge):
    small = board(row("new", 50.0), row("old"))
    large = board(row("new", 200.0), row("old"), tier="large")
    first, second, overall = judge(claim(), large, small)
    assert [(one.shared["tier"], one.verdict) for one in (first, second)] == [("small", HELD), ("large", REFUTED)]
    assert (overall.verdict, overall.reason) == (MIXED, "of 2 comparisons: held in 1, refuted in 1")


def test_the_overall_line_follows_those_boards_that_can_test(judge):
    good = board(row("new", 200.0), row("old"))
    busy = board(row("new", 50.0, replicates=1), row("old"), device_class="gpu")
    *_, overall = judge(claim(), good, busy)
    assert (overall.verdict, overall.reason) == (REFUTED, "of 2 comparisons: refuted in 1, not testable here in 1")
    *_, overall = judge(claim(), busy, dataclasses.replace(busy, shared=busy.shared | {"tier": "large"}))
    assert overall.verdict == NOT_TESTABLE


COST = st.floats(20, 500)


@given(
    st.lists(st.tuples(COST, COST, st.integers(0, 5), st.sampled_from(["small", "large"])), max_size=5), st.randoms()
)
def test_the_order_of_claims_boards_and_rows_never_matters(names, cells, order):
    found = [
        board(row("new", a, hits=hits), row("old", b), row("third"), tier=tier, data_sha256=str(number))
        for number, (a, b, hits, tier) in enumerate(cells)
    ]
    claims = [claim(id=f"{text}-{b}", direction=text, baseline=b, published_value=v)
              for text, v in (("lower", 0.5), ("higher", 2.0)) for b in ("old", "third")]  # fmt: skip
    before = evaluate(claims, found, names, RULES)
    order.shuffle(claims)
    order.shuffle(found)
    shuffled = [
        dataclasses.replace(one, rows=one.rows.sample(frac=1, random_state=order.randrange(999))) for one in found
    ]
    assert repr(evaluate(claims, shuffled, names, RULES)) == repr(before)
    assert {verdict.verdict for verdict in before} <= set(VERDICTS)


@settings(max_examples=50)
@given(COST, COST, st.floats(0.001, 1.0))
def test_a_claim_and_its_opposite_are_never_both_held(names, new, old, sd):
    rows = board(row("new", new, sd=sd), row("old", old, sd=sd))
    lower, higher = claim(), claim(id="more-steps", direction="higher", published_value=2.0)
    found = {verdict.claim.id: verdict.verdict for verdict in evaluate([lower, higher], [rows], names, RULES)}
    opposite = {HELD: REFUTED, REFUTED: HELD, UNDECIDED: UNDECIDED}
    assert found["more-steps"] == opposite[found["fewer-steps"]]


# -- from stored trials ----------------------------------------------------------------------------------------------
def trials(reference):
    """Return the trials of ``new`` and ``old`` as a store has them, compared with ``reference``."""
    rules, rows = protocol("default"), []
    for name, cost in (("new", 50.0), ("old", 100.0)):
        for seed in range(rules.replicates):
            noise = 1 + 0.01 * seed * seed
            facts = {"trial_id": f"{name}{seed}", "algorithm": name, "seed": seed, "outcome": "reached"}
            facts |= {"steps_to_target_interpolated": cost * noise, "time_to_target_interpolated_s": cost * noise}
            facts |= {"quality": cost * noise, "rss_peak_bytes": int(1e6 * cost * noise), "energy_j": cost * noise}
            facts |= {"optimizer_state_bytes": int(cost), "contended": False, "device_listed": True, "phase": "measure"}
            facts |= {"protocol": rules.name, "protocol_sha256": rules.sha256, "target": 1.0, "metric": "loss"}
            facts |= {"reference": reference, "is_reference": None if reference is None else name == reference}
            facts |= {"workload": "micro", "workload_version": "1.0.0", "tier": "small", "metric_direction": "min"}
            facts |= {"device_class": "cpu-2", "hyperparameters": "{}", "fillers": "[]", "algorithm_version": "1"}
            facts |= {"algorithm_source_sha256": "s", "trust_tier": "self-reported"}
            rows.append(dict.fromkeys(TRIALS.names) | facts)
    return pa.Table.from_pylist(rows, schema=TRIALS).to_pandas()


@pytest.mark.parametrize("metric", ["steps_to_target", "time_to_target", "memory", "energy", "quality"])
def test_both_ways_to_an_interval_agree_on_stored_trials(names, metric):
    one = claim(**QUALITY) if metric == "quality" else claim(metric=metric)
    (compared,), (computed,) = (evaluate([one], boards(trials(reference)), names) for reference in ("old", None))
    assert compared.verdict == computed.verdict == HELD
    for name in ("value", "low", "high", "detectable"):
        assert getattr(compared.effect, name) == pytest.approx(getattr(computed.effect, name)), name
    expected = welch(*(part for cost in (50.0, 100.0) for part in _moments(cost, plain=metric == "quality")))
    found = expected if metric == "quality" else expected.exp()
    assert (compared.effect.low, compared.effect.high) == pytest.approx((float(found.low), float(found.high)))


def _moments(cost, *, plain):
    values = cost * (1 + 0.01 * np.arange(5) ** 2)
    values = values if plain else np.log(values)
    return values.mean(), values.std(ddof=1), 5


def test_bytes_of_stored_trials_compare_exactly(names):
    (verdict,) = evaluate([claim(**STATE)], boards(trials("old")), names)
    assert (verdict.verdict, verdict.effect.value, verdict.published_inside) == (HELD, 0.5, True)


# -- the ledger ------------------------------------------------------------------------------------------------------
def test_the_ledger_of_no_records_lists_every_claim_and_decides_none(registry):
    found = ledger([], registry)
    assert tuple(found.columns) == COLUMNS
    assert set(found["verdict"]) == {NOT_TESTABLE}
    assert np.isfinite(found["published_effect"]).all()


def test_the_ledger_shows_published_and_tested_tier_side_by_side(monkeypatch, names):
    monkeypatch.setattr("bench.ledger.load_claims", lambda _: [claim(tier="large")])
    (found,) = ledger([board(row("new", 50.0), row("old"))], names, RULES).to_dict("records")
    assert (found["published_at"], found["tested_at"]) == ("large", "small")
    assert (found["verdict"], found["effect"]) == (HELD, pytest.approx(0.5))
    assert found["effect_low"] < found["effect"] < found["effect_high"]
    assert (found["replicates"], found["baseline_replicates"], found["protocol"]) == (5, 5, "default")


def test_a_ledger_without_claims_has_its_columns(names):
    assert tuple(ledger([], names).columns) == COLUMNS
