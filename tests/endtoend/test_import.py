"""``bench import algoperf``, and what the competition's public logs then give: every published score, and the rest."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pandas as pd
import pytest

from bench.imports.algoperf import import_csv, workloads
from bench.standings import Standings, leave_one_out, standings
from bench.store import Store

EXCERPT = Path(__file__).parents[1] / "fixtures" / "algoperf_published.csv"


@pytest.fixture(scope="module")
def competition() -> Path:
    """The logs of the whole competition, which are served beside the repository."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("BENCH_SHARED_DATA", default)) / "algoperf-v05"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {folder.parent} (BENCH_SHARED_DATA names another folder)")
    return folder


@pytest.fixture(scope="module")
def store(competition, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("algoperf")
    import_csv(competition / "trials.csv", folder)
    return Store(folder)


@pytest.fixture(scope="module")
def tables(store) -> list[Standings]:
    return standings(store.trials(), "time", store.protocols())


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_says_what_it_imported_and_what_comes_next(bench_here, tmp_path):
    answer = bench_here("import", "algoperf", EXCERPT, "--results", "their-results")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "140 trials of 2 submissions on 14 workloads, 118 reached the target (84%)",
        "  algoperf-self: 140 trials of 2 submissions",
        "imported algoperf v0.5 into their-results",
        "next: bench leaderboard --results their-results, or bench report --results their-results --out report.html",
    ]
    assert len(Store(tmp_path / "their-results").trials()) == 140


def test_what_was_imported_can_be_listed_and_ranked(bench_here):
    bench_here("import", "algoperf", EXCERPT)
    answer = bench_here("leaderboard", "--workload", "fastmri", "--tier", "base", "--format", "csv")
    assert (answer.code, answer.err) == (0, "")
    lines = pd.read_csv(io.StringIO(answer.out))
    assert lines["algorithm"].tolist() == ["schedule_free_adamw", "baseline"]
    assert lines["hits"].tolist() == [5, 5]


def test_steps_of_another_kind_and_unscored_workloads_are_told(bench_here, tmp_path):
    head, *lines = EXCERPT.read_text(encoding="utf-8").splitlines()
    odd = "self_tuning,odd,jax,ogbg,0,1,900.5,10,3,4,0.3,900.5,10"
    left = "self_tuning,odd,jax,ogbg_gelu,0,1,,,,4,0.1,3.0,10"
    (tmp_path / "trials.csv").write_text("\n".join([head, *lines, odd, left, ""]), encoding="utf-8")
    answer = bench_here("import", "algoperf", "trials.csv")
    assert answer.code == 0
    assert "  not scored: 1 trials of ogbg_gelu" in answer.out.splitlines()
    assert (
        "  do not compare odd by steps: one takes 279 times as long as one of the reference" in answer.out.splitlines()
    )


def test_a_second_import_replaces_the_first_and_own_results_are_never_mixed_with_one(bench_here, tmp_path):
    assert bench_here("import", "algoperf", EXCERPT, "--results", "theirs").code == 0
    assert bench_here("import", "algoperf", EXCERPT, "--results", "theirs").code == 0
    assert len(Store(tmp_path / "theirs").trials()) == 140
    (Store(tmp_path / "own", create=True).root / "runs" / "a-trial").mkdir(parents=True)
    answer = bench_here("import", "algoperf", EXCERPT, "--results", "own")
    assert (answer.code, answer.out) == (2, "")
    assert "other results than those of algoperf v0.5" in answer.err
    assert Store(tmp_path / "own").trials().empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algoperf", "missing.csv"], "Error: cannot read missing.csv: No such file or directory"),
        (["algoperf"], "Error: Missing argument 'CSV'."),
        (["elsewhere", "x.csv"], "Error: No such command 'elsewhere'."),
        ([], "Error: no command"),
    ],
)
def test_a_wrong_command_is_a_user_error(bench_here, tmp_path, arguments, message):
    answer = bench_here("import", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(message)
    assert not (tmp_path / "results").exists()


# -- the competition ---------------------------------------------------------------------------------------------------
def test_all_seventeen_published_scores_come_out_to_four_decimals(tables, competition):
    published = pd.read_csv(competition / "published_scores.csv").set_index(["ruleset", "submission"])["score"]
    names = {"algoperf-external": "external_tuning", "algoperf-self": "self_tuning"}
    found = {
        (names[table.shared["protocol"]], row["algorithm"]): round(row["score_trapezoid"], 4)
        for table in tables
        for row in table.records()
    }
    assert len(found) == 17
    assert found == published.to_dict()


def test_the_exact_scores_order_the_entrants_as_published(tables, competition):
    published = pd.read_csv(competition / "published_scores.csv")
    external, own = tables
    for table, ruleset in ((external, "external_tuning"), (own, "self_tuning")):
        order = published[published["ruleset"] == ruleset]["submission"].tolist()
        assert table.rows["algorithm"].tolist() == order
        assert (table.rows["score"] - table.rows["score_trapezoid"]).abs().max() < 0.0017


def test_every_entrant_has_an_interval_and_the_two_best_cannot_be_told_apart(tables):
    external, own = tables
    for table in (external, own):
        rows = table.rows
        assert (rows["score_low"] <= rows["score"]).all()
        assert (rows["score"] <= rows["score_high"]).all()
        assert rows["score_low"][0] < rows["score_high"][1]
        assert rows["group"].tolist()[:3] == [1, 1, 2]
    first, second = external.records()[:2]
    assert (first["algorithm"], second["algorithm"]) == ("shampoo_submission", "schedule_free_adamw")
    assert [first["score_low"], first["score_high"]] == pytest.approx([0.643, 0.907], abs=0.01)
    assert [second["score_low"], second["score_high"]] == pytest.approx([0.586, 0.777], abs=0.01)


def test_leaving_the_eighth_out_flips_the_first_two_and_no_other_does(store):
    found = leave_one_out(store.trials(), "time", store.protocols())
    assert len(found) == 11 * 10 + 6 * 5
    without = found[found["left_out"] == "caspr_adaptive"].set_index("algorithm")
    assert without["score"].head(2).round(2).to_dict() == {"schedule_free_adamw": 0.81, "shampoo_submission": 0.80}
    assert without["flipped"].sum() == 2
    assert set(found["left_out"][found["flipped"]]) == {"caspr_adaptive"}


def test_the_notes_say_who_was_not_run_where_and_what_does_not_count(tables):
    external, _ = tables
    assert "4 boards of tier unscored do not count" in external.notes
    where = "criteo1tb, criteo1tb (held-out), wmt (held-out)"
    assert f"caspr_adaptive was not run on {where}: a miss there" in external.notes


def test_the_scored_workloads_are_those_of_the_published_table(competition):
    table = pd.read_csv(competition / "workloads.csv").rename(columns={"validation_target": "target"})
    assert table.set_index("workload").to_dict("index") == dict(workloads())
