"""The report: its numbers are the boards', its bytes depend on nothing else, and what strangers wrote stays text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from html import unescape
from html.parser import HTMLParser
from itertools import groupby, pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from scipy.stats import ttest_ind_from_stats

from bench import Registry
from bench.board import boards
from bench.entry import Entry
from bench.errors import BadStore, BadValue
from bench.protocol import protocols
from bench.record import CURVES, SCHEMA_VERSION, TRIALS
from bench.report import build, gather, html, markdown, write_report
from bench.report.document import Code, Notes, Page, Piece, Section, Tabular, Text, pieces, source
from bench.report.matrix import compare_all
from bench.report.prose import prose
from bench.report.table import Column, Row, cell, table
from bench.report.text import Anchors, clean, common_scale, interval, number, places, probability, quantity, values_text

HOSTILE = (
    '<script>alert(1)</script>"><img src=x onerror=alert(2)>|`${7*7}`\n# [x](javascript:alert(3)) *b* $a_b$ \u202e'
)
MARK = "alert("

DEFAULTS = {
    "schema_version": SCHEMA_VERSION,
    "algorithm": "adamw",
    "algorithm_version": "1",
    "algorithm_source_sha256": "a" * 64,
    "fillers": "[]",
    "workload": "llama-c4",
    "workload_version": "1.1.0",
    "tier": "tiny",
    "precision": "fp32",
    "data_source": "embedded",
    "data_sha256": "d" * 64,
    "data_label": "documents",
    "protocol": "default",
    "protocol_version": "1.0",
    "protocol_sha256": protocols()["default"].sha256,
    "phase": "measure",
    "study": 0,
    "point": 0,
    "seed": 0,
    "reference": "adamw",
    "is_reference": False,
    "device_class": "cpu-2",
    "device_listed": True,
    "outcome": "missed",
    "outcome_reason": "",
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "quality": 1.1,
    "best_quality": 1.1,
    "budget_steps": 300,
    "steps": 300,
    "time_s": 100.0,
    "gradient_s": 90.0,
    "step_s": 9.0,
    "rss_peak_bytes": 700_000_000,
    "optimizer_state_bytes": 6_000_000,
    "trainable_parameters": 850_000,
    "calibration_readings": 9,
    "calibration_matmul_spread": 1.01,
    "contended": False,
    "trust_tier": "self-reported",
    "started_at": "2026-01-02T03:04:05+00:00",
    "finished_at": "2026-01-02T03:06:05+00:00",
    "command_line": "bench run --plugin lion --workload llama-c4",
    "git_sha": "c" * 40,
    "git_dirty": False,
    "bench_version": "0.1.0",
    "cpu_model": "a processor",
    "cores": 2,
}


def trial(algorithm="adamw", seed=0, steps=None, lr=0.1, **changes):
    """Return one row of ``trials``; ``steps`` are those to the target (default: a miss)."""
    row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"algorithm": algorithm, "seed": seed}
    row |= {"is_reference": algorithm == "adamw", "hyperparameters": json.dumps({"lr": lr})}
    if steps is not None:
        row |= {"outcome": "reached", "quality": 0.9 + seed / 100, "best_quality": 0.9, "evaluations_to_target": 3}
        row |= {"steps_to_target": math.ceil(steps), "steps_to_target_interpolated": float(steps)}
        row |= {"time_to_target_s": steps / 3.0, "time_to_target_interpolated_s": steps / 3.0}
    row |= changes
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items(), key=lambda item: item[0])).encode()).hexdigest()[:20]
    return row


def curve(row):
    """Return the evaluations of a trial: the loss falls from 3 to the trial's own."""
    steps = range(0, 301, 30)
    return [
        dict.fromkeys(CURVES.names)
        | {
            "schema_version": SCHEMA_VERSION,
            "trial_id": row["trial_id"],
            "step": step,
            "time_s": step / 3.0,
            "wall_s": step / 2.0,
            "quality": 3.0 - (3.0 - row["quality"]) * step / 300,
            "metrics": [],
        }
        for step in steps
    ]


def usual():
    """Return the trials of a small comparison: a reference, one that is faster, one that misses, one that fails."""
    noise = (0, 4, -3, 6, -5)
    rows = [trial("adamw", seed, 230 + 2 * noise[seed]) for seed in range(5)]
    rows += [trial("lion", seed, 180 + noise[seed], optimizer_state_bytes=3_000_000) for seed in range(5)]
    rows += [trial("sgd", seed) for seed in range(5)]
    rows.append(trial("sgd", 7, outcome="error", outcome_reason="RuntimeError: out of order"))
    rows += [trial("adamw", seed, 200 + seed, tier="60m", workload_version="1.0.0") for seed in range(2)]
    rows += [trial("adamw", 0, data_source="local", data_sha256="e" * 64, target=None, outcome="completed")]
    return rows


def store(folder, rows, files=1):
    """Write ``rows`` with their curves as a results folder, in so many files a table."""
    for name in ("trials", "curves"):
        (folder / name).mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION}))
    curves = [line for row in rows if row["outcome"] != "error" for line in curve(row)]
    for name, lines, schema in (("trials", rows, TRIALS), ("curves", curves, CURVES)):
        for number_, part in enumerate(np.array_split(np.arange(len(lines)), files)):
            content = pa.Table.from_pylist([lines[place] for place in part], schema=schema)
            pq.write_table(content, folder / name / f"{number_}.parquet")
    return folder


class Reader(HTMLParser):
    """Reads a page: every element with its attributes and text; ``faults`` lists what is not well-formed."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img", "hr", "input"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.faults, self.declarations = [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"{element.tag} stays open" for element in self.open]

    def handle_decl(self, decl):
        self.declarations.append(decl)

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            self.faults.append(f"{tag} has an attribute twice")
        element = SimpleNamespace(tag=tag, attrs=dict(attrs), text="", inside=[each.tag for each in self.open])
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1].tag != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1].tag if self.open else 'nothing'}")
        else:
            self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, *tags):
        return [element for element in self.elements if element.tag in tags]

    def by_id(self, name):
        return next(element for element in self.elements if element.attrs.get("id") == name)


def rows_of(text, anchor):
    """Return the rows of a table of the page: by column, its text and what it sorts by."""
    body = re.search(rf'<table id="{anchor}".*?</table>', text, re.DOTALL)[0]
    heads = [unescape(re.sub("<[^>]*>", "", head)) for head in re.findall(r"<th scope=\"col\".*?</th>", body)]
    found = []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body.partition("<tbody>")[2], re.DOTALL):
        cells_ = re.findall(r"<(?:td|th)((?:\s[^>]*)?)>(.*?)</(?:td|th)>", row, re.DOTALL)
        values = [re.search(r'data-value="([^"]*)"', attrs) for attrs, _ in cells_]
        texts = [unescape(re.sub("<[^>]*>", " ", content)).strip() for _, content in cells_]
        found.append(dict(zip(heads, zip(texts, [v and v[1] for v in values], strict=True), strict=True)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return store(tmp_path_factory.mktemp("usual") / "results", usual())


@pytest.fixture(scope="module")
def evidence(folder):
    return gather([folder], Registry())


@pytest.fixture(scope="module")
def page(evidence):
    return build(evidence)


@pytest.fixture(scope="module")
def text(page):
    return html(page)


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


@pytest.fixture(scope="module")
def board(evidence):
    return next(b for b in evidence.boards if b.shared["tier"] == "tiny" and b.shared["target"] is not None)


RESULT = "board-llama-c4-1-1-tiny-default-cpu-2-embedded-fp32"


# -- what it says ------------------------------------------------------------------------------------------------------
def test_the_result_table_has_the_numbers_of_the_board(text, board):
    shown = rows_of(text, f"{RESULT}-result")
    assert len(shown) == len(board.rows) == 3
    for mine, row in zip(shown, board.records(), strict=True):
        assert mine["Algorithm"][0].startswith(row["algorithm"])
        assert mine["Reached"][0].startswith(f"{row['hits']}/{row['replicates']}")
        if row["hits"]:
            assert float(mine["Steps to target"][1]) == row["steps_to_target"]
            assert number(row["steps_to_target_low"], 4) in mine["Steps to target"][0]
            assert float(mine["Time to target"][1]) == row["time_to_target_s"]
        else:
            assert (mine["Steps to target"][0], mine["Steps to target"][1]) == ("–", None)
        assert float(mine["Peak memory"][1]) == pytest.approx(row["memory_bytes"])


def test_the_comparison_table_has_the_ratios_and_marks_the_reference(text, board):
    shown = {row["Algorithm"][0].split()[0]: row for row in rows_of(text, f"{RESULT}-compared")}
    lion = next(row for row in board.records() if row["algorithm"] == "lion")
    assert float(shown["lion"]["Steps"][1]) == lion["steps_ratio"] < 1
    assert f"p {probability(lion['steps_ratio_p'])}" in shown["lion"]["Steps"][0]
    assert "reference" in shown["adamw"]["Algorithm"][0]
    assert "reference" not in shown["lion"]["Algorithm"][0]


def test_what_does_not_compare_is_named_with_its_reason(read):
    notes = " ".join(read.by_id(RESULT).text.split())
    assert "Not comparable with" in notes
    assert "llama-c4 60m" in notes
    assert "another version of the workload and another tier" in notes
    assert "other data" in notes


def test_an_installed_algorithm_shows_its_card(read):
    card = " ".join(read.by_id("algorithm-lion").text.split())
    for part in ("arXiv:2302.06675", "step by the sign", "W ← W - η sign(β₁ M + (1-β₁) G)", "float > 0", "log 1e-05"):
        assert part.lower() in card.lower()
    assert "Optimizer state" in card


def test_an_algorithm_that_is_not_installed_shows_its_records_and_says_so(tmp_path):
    rows = [trial("adamw", seed, 230 + seed) for seed in range(3)]
    rows += [trial("stranger", seed, 200 + seed, lr=0.1 * (1 + seed), origin="elsewhere 1") for seed in range(3)]
    page = html(build(gather([store(tmp_path / "r", rows)], Registry([]))))
    card = Reader(page).by_id("algorithm-stranger").text
    assert "Not installed here" in card
    assert "elsewhere 1" in card
    assert "0.30000000000000004" in card
    assert "The workload is not installed here" in page


def test_a_search_shows_its_cost_what_it_selected_and_how_sensitive_it_was(tmp_path):
    rules = protocols()["external"]
    searched = {"protocol": "external", "protocol_sha256": rules.sha256, "protocol_version": rules.version}
    rows = []
    for name, best in (("adamw", 230), ("lion", 180)):
        for study in range(3):
            changes = {**searched, "study": study}
            steps = [best + 40 * abs(point - 2) + study for point in range(5)]
            rows += [
                trial(name, 0, steps[point], lr=10.0 ** (point - 4), phase="tune", point=point, **changes)
                for point in range(5)
            ]
            rows.append(trial(name, 1, best + 5 + study, lr=0.01, phase="rerun", point=2, **changes))
    evidence = gather([store(tmp_path / "r", rows)], Registry())
    page = build(evidence)
    (view,) = evidence.views
    shown = {row["Algorithm"][0].split()[0]: row for row in rows_of(html(page), f"{view.anchor}-cost")}
    assert shown["lion"]["Tuning trials"][0] == "15"
    assert float(shown["lion"]["Steps, as selected"][1]) == pytest.approx((180 * 181 * 182) ** (1 / 3))
    assert shown["lion"]["Basis"][0] == "confirmed"
    drawn = [picture for picture in page.pictures() if "sensitivity" in picture.name]
    assert [picture.title for picture in drawn] == [f"lr on {view.label}"] * 2
    assert all("lr" in picture.alternative for picture in drawn)


def test_refuted_claims_are_on_the_page(tmp_path):
    rows = [trial("adamw", seed, 230 + seed) for seed in range(5)]
    rows += [trial("lion", seed, 200 + seed, optimizer_state_bytes=6_000_000) for seed in range(5)]
    text = html(build(gather([store(tmp_path / "r", rows)], Registry())))
    (row,) = (row for row in rows_of(text, "claims-tested") if row["Algorithm"][0] == "lion")
    assert row["Verdict"][0] == "refuted"
    assert row["Claim"][0]
    assert float(row["Measured here"][1]) == 1.0


def test_provenance_names_failures_machines_rules_and_commands(read, folder):
    told = " ".join(read.by_id("provenance").text.split())
    for part in ("RuntimeError: out of order", "a processor", "bench run --plugin lion", "5 seeds", str(folder)):
        assert part in told
    assert protocols()["default"].sha256[:12] in told
    assert "cccccccccccc" in told


def test_every_trial_failed_is_a_page_too(tmp_path):
    rows = [trial("adamw", seed, outcome="error", outcome_reason="broken", quality=None) for seed in range(2)]
    text = html(build(gather([store(tmp_path / "r", rows)], Registry())))
    assert Reader(text).faults == []
    assert "broken" in text


def test_a_busy_machine_orders_by_steps_and_marks_the_times(tmp_path):
    rows = [trial(name, seed, 200 + seed, contended=True) for name in ("adamw", "lion") for seed in range(5)]
    evidence = gather([store(tmp_path / "r", rows)], Registry())
    assert [board.shared["by"] for board in evidence.boards] == ["steps"]
    (anchor,) = (view.anchor for view in evidence.views)
    text = html(build(evidence))
    assert all(row["Time to target"][0].partition(" s")[2].startswith("*") for row in rows_of(text, f"{anchor}-result"))
    assert all(row["Group"][0] == "1" for row in rows_of(text, f"{anchor}-result"))


def test_a_trial_in_two_folders_counts_once_whichever_comes_first(tmp_path):
    rows = [trial("adamw", seed, 230 + seed) for seed in range(3)]
    later = [row | {"finished_at": "2026-02-02T00:00:00+00:00", "quality": 0.5} for row in rows[:2]]
    one, two = store(tmp_path / "one", rows), store(tmp_path / "two", later)
    first, second = gather([one, two], Registry()), gather([two, one], Registry())
    assert first.repeated == 2
    pd.testing.assert_frame_equal(first.trials, second.trials)
    assert first.trials["quality"].min() > 0.8
    assert len(first.curves) == 3 * 11
    assert html(build(first)) == html(build(second))


# -- the matrix --------------------------------------------------------------------------------------------------------
def test_the_matrix_agrees_with_the_ratio_to_the_reference(evidence, board):
    view = next(view for view in evidence.views if view.board is board)
    pairs = compare_all(board, view.trials, "steps")
    names = list(board.rows["algorithm"])
    lion, adamw = names.index("lion"), names.index("adamw")
    assert pairs.value[lion, adamw] == pytest.approx(board.rows["steps_ratio"][lion])
    assert pairs.low[lion, adamw] == pytest.approx(board.rows["steps_ratio_low"][lion])
    assert pairs.high[lion, adamw] == pytest.approx(board.rows["steps_ratio_high"][lion])
    assert pairs.value[adamw, lion] == pytest.approx(1 / pairs.value[lion, adamw])
    assert pairs.low[adamw, lion] == pytest.approx(1 / pairs.high[lion, adamw])


def test_the_matrix_corrects_over_every_pair_once(evidence, board):
    view = next(view for view in evidence.views if view.board is board)
    p = compare_all(board, view.trials, "steps").p
    hits = view.trials[view.trials["outcome"] != "error"]
    logs = [
        np.log(hits["steps_to_target_interpolated"].fillna(300)[hits["algorithm"] == name])
        for name in board.rows["algorithm"]
    ]
    one, other = np.triu_indices(3, 1)
    facts = [(log.mean(), log.std(), len(log)) for log in logs]
    raw = [ttest_ind_from_stats(*facts[i], *facts[j], equal_var=False).pvalue for i, j in zip(one, other, strict=True)]
    assert np.array_equal(p, p.T, equal_nan=True)
    assert p[one, other] == pytest.approx(multipletests(raw))


def multipletests(raw):
    """Return p-values adjusted by Holm's method, written out."""
    order = np.argsort(raw)
    adjusted, highest = np.empty(len(raw)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, (len(raw) - rank) * raw[place])
        adjusted[place] = min(1.0, highest)
    return adjusted


def test_a_miss_tells_apart_only_in_the_direction_of_its_bound(tmp_path):
    rows = [trial("adamw", seed, 200 + seed) for seed in range(5)]
    rows += [trial("sgd", seed) for seed in range(5)]  # 300 steps were not enough
    evidence = gather([store(tmp_path / "r", rows)], Registry())
    text = html(build(evidence))
    (view,) = evidence.views
    shown = {row["Row ÷ column"][0]: row for row in rows_of(text, f"{view.anchor}-matrix")}
    assert shown["sgd"]["adamw"][0].startswith("≥ 1.4")
    assert "●" in shown["sgd"]["adamw"][0]
    assert shown["adamw"]["sgd"][0].startswith("≤ 0.6")

    early = [row | {"time_s": 1.0, "steps": 3, "budget_steps": None} for row in rows if row["algorithm"] == "sgd"]
    rows = [row for row in rows if row["algorithm"] != "sgd"] + early
    evidence = gather([store(tmp_path / "early", rows)], Registry())
    (view,) = evidence.views
    shown = {row["Row ÷ column"][0]: row for row in rows_of(html(build(evidence)), f"{view.anchor}-matrix")}
    assert "○" in shown["sgd"]["adamw"][0], "a run that stopped early is not cheaper"


def test_trials_that_disagree_on_the_target_are_not_compared(tmp_path):
    rows = [trial("adamw", seed, 200 + seed) for seed in range(3)]
    rows += [trial("lion", seed, 200 + seed, target=2.0) for seed in range(3)]
    text = html(build(gather([store(tmp_path / "r", rows)], Registry())))
    assert "disagree on target" in text
    assert "Row ÷ column" not in text
    assert "Against the reference" not in text


# -- the same bytes ----------------------------------------------------------------------------------------------------
def test_the_same_input_gives_the_same_bytes(folder, text, page):
    again = build(gather([folder], Registry()))
    assert html(again) == text
    assert markdown(again) == markdown(page)


def test_neither_the_order_of_rows_nor_the_files_show(tmp_path, folder, text, monkeypatch):
    rows = usual()
    np.random.default_rng(3).shuffle(rows)
    store(tmp_path / "results", rows, files=4)
    monkeypatch.chdir(folder.parent)
    straight = html(build(gather([folder.relative_to(folder.parent)], Registry())))
    monkeypatch.chdir(tmp_path)
    assert html(build(gather([folder.relative_to(folder.parent)], Registry()))) == straight


# -- the page ----------------------------------------------------------------------------------------------------------
def test_the_page_is_well_formed(read):
    assert read.declarations == ["DOCTYPE html"]
    assert read.faults == []
    assert read.all("html")[0].attrs["lang"] == "en"


def test_the_page_loads_nothing(read, text):
    for element in read.elements:
        for name in ("src", "srcset", "data", "action", "poster", "background", "ping"):
            assert name not in element.attrs, element
        if "href" in element.attrs or "xlink:href" in element.attrs:
            target = element.attrs.get("href") or element.attrs["xlink:href"]
            allowed = r"#|https://(arxiv\.org|doi\.org)/" if element.tag == "a" else r"#|data:,$"
            assert re.match(allowed, target), element
    styles = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in styles
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    policy = next(e for e in read.all("meta") if e.attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.attrs["content"].startswith("default-src 'none';")


def test_the_policy_allows_exactly_the_script_of_the_page(read, text):
    import base64

    (script,) = read.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_identifiers_are_unique_and_every_reference_meets_one(read):
    names = [element.attrs["id"] for element in read.elements if "id" in element.attrs]
    assert len(names) == len(set(names))
    wanted = [e.attrs["href"][1:] for e in read.all("a", "use") if e.attrs.get("href", "").startswith("#")]
    for attribute in ("aria-labelledby", "aria-describedby"):
        wanted += [name for e in read.elements for name in e.attrs.get(attribute, "").split()]
    assert set(wanted) - set(names) == set()


def test_headings_go_down_one_level_at_a_time(read):
    levels = [int(element.tag[1]) for element in read.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_there_are_landmarks_and_a_way_past_the_contents(read):
    for tag in ("header", "nav", "main"):
        assert len(read.all(tag)) == 1
    assert read.all("nav")[0].attrs["aria-label"]
    first = read.all("a")[0]
    assert first.attrs["href"] == f"#{read.all('main')[0].attrs['id']}"


def test_every_figure_has_an_alternative_and_a_caption(read, page):
    figures = read.all("figure")
    assert len(figures) == len(page.pictures()) >= 6
    assert len(read.all("figcaption")) == len(figures)
    drawings = read.all("svg")
    assert len(drawings) == len(figures)
    for svg in drawings:
        assert svg.attrs["role"] == "img"
        assert len(read.by_id(svg.attrs["aria-labelledby"].split()[0]).text) > 5
        assert len(read.by_id(svg.attrs["aria-describedby"]).text) > 20


def test_every_table_has_a_caption_headings_and_named_rows(read):
    tables = read.all("table")
    assert len(tables) > 10
    assert len(read.all("caption")) == len(tables)
    scopes = [element.attrs.get("scope") for element in read.all("th")]
    assert set(scopes) == {"col", "row"}
    assert scopes.count("row") >= len(tables)
    assert all("table" in element.inside for element in read.all("caption"))


def test_the_contents_list_every_section(read, page):
    listed = {element.attrs["href"][1:] for element in read.all("a") if "nav" in element.inside}
    assert listed == {s.anchor for top in page.sections for s in (top, *top.sections)}


def colours():
    """Return the custom properties of the style sheet, for light and for dark."""
    from bench.report.render import _resource

    found = re.findall(r":root \{(.*?)\}", _resource("style.css"), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in found[:2])
    return {"light": light, "dark": light | dark}


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", ["page", "panel", "band", "mark"])
@pytest.mark.parametrize("ink", ["ink", "soft", "accent", "good", "bad", "open"])
def test_every_text_has_enough_contrast(scheme, ground, ink):
    bright, dim = sorted((luminance(colours()[scheme][name]) for name in (ground, ink)), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 4.5


# -- what strangers wrote ----------------------------------------------------------------------------------------------
def hostile_rows():
    rows = [trial("adamw", seed, 230 + seed) for seed in range(5)]
    rows += [
        trial(
            HOSTILE,
            seed,
            200 + seed,
            hyperparameters=json.dumps({HOSTILE: HOSTILE}),
            algorithm_version=HOSTILE,
            data_label=HOSTILE,
            command_line=HOSTILE,
            cpu_model=HOSTILE,
            trust_tier=HOSTILE,
            origin=HOSTILE,
        )
        for seed in range(5)
    ]
    rows += [trial(HOSTILE, 9, outcome="error", outcome_reason=HOSTILE)]
    rows += [
        trial("adamw", seed, 200 + seed, **dict.fromkeys(("workload", "tier", "metric", "protocol"), HOSTILE))
        for seed in range(2)
    ]
    return rows


class HostileRegistry(Registry):
    """The installed plugins, and one whose entry and class are all markup."""

    def __init__(self):
        super().__init__()
        self.algorithms[HOSTILE] = Entry(name=HOSTILE, target="x:y", track="optimizer", paper=HOSTILE, summary=HOSTILE)
        self.packages[HOSTILE] = HOSTILE

    def algorithm_class(self, name):
        if name != HOSTILE:
            return super().algorithm_class(name)
        from bench.plugins.optimizers.lion import Lion

        return dataclasses.make_dataclass(
            "Hostile",
            [("lr", float, dataclasses.field(default=0.1, metadata={"help": HOSTILE, "search": HOSTILE}))],
            bases=(Lion,),
            frozen=True,
            kw_only=True,
            namespace={
                "name": HOSTILE,
                "deviations": (HOSTILE,),
                "needs": (HOSTILE,),
                "__doc__": HOSTILE,
                "__module__": Lion.__module__,
            },
        )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    name = "".join(HOSTILE.splitlines()).replace("/", "")
    folder = store(tmp_path_factory.mktemp("hostile") / name, hostile_rows())
    return build(gather([folder], HostileRegistry()))


def test_hostile_strings_are_text_in_html(hostile, read):
    found = Reader(html(hostile))
    assert found.faults == []
    assert len(found.all("script")) == 1
    assert found.all("img", "iframe", "object", "embed", "form", "base") == []
    assert {element.tag for element in found.elements} <= {element.tag for element in read.elements} | {"a"}
    for element in found.elements:
        assert [name for name in element.attrs if name.startswith("on")] == []
        assert not element.attrs.get("href", "").lower().startswith("javascript")
    assert MARK in found.by_id("content").text, "the strings are shown"
    assert "\u202e" not in html(hostile)


def test_hostile_strings_are_text_in_markdown(hostile, tmp_path):
    text = markdown(hostile, "figures")
    tokens = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(text)
    flat = list(tokens) + [child for token in tokens for child in token.children or ()]
    assert [token for token in flat if token.type in {"html_block", "html_inline"}] == []
    assert [t.attrGet("href") for t in flat if t.type == "link_open" and "alert" in str(t.attrGet("href"))] == []
    images = [token.attrGet("src") for token in flat if token.type == "image"]
    assert all(re.fullmatch(r"figures/[a-z0-9-]+\.svg", image) for image in images)
    assert len(images) == len(hostile.pictures())
    assert any(MARK in token.content for token in flat if token.type == "text"), "the strings are shown"


def test_tables_of_the_markdown_have_as_many_cells_in_every_row(hostile):
    lines = markdown(hostile).splitlines()
    blocks = [list(group) for is_table, group in groupby(lines, lambda line: line.startswith("| ")) if is_table]
    assert len(blocks) > 10
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1, block[0]
        assert re.fullmatch(r"\|( -+:? \|)+", block[1])


AWKWARD = ["a_b", "_a_", "*a*", "# a", "- a", "1. a", "a|b", "`a`", "``", "[a](b)", "<b>", "&lt;", "a\nb", "$x$", "~a~"]
AWKWARD += ["\\", "+ a", "> a", "===", "\\|", "![a](b)", "1) a", ":--", "a  b"]


@pytest.mark.parametrize("name", AWKWARD)
def test_any_text_means_itself_in_markdown(name):
    columns = [Column(key="a", head="A", header=True), Column(key="b", head="B")]
    rows = [Row(cells={"a": cell(name), "b": cell(name, code=True)})]
    blocks = [
        Text(pieces=pieces(name)),
        Notes(title="T", items=[pieces(name)]),
        Tabular(table=table("t", name, columns, rows)),
    ]
    text = markdown(Page(title="P", subtitle="S", sections=[Section(anchor="s", title="X", blocks=blocks)]))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    shown = [
        "".join(
            child.content if child.type in {"text", "code_inline"} else f"<{child.type}>" for child in token.children
        )
        for token in tokens
        if token.type == "inline"
    ]
    line = " ".join(name.split())
    expected = ["P", "S", "X", line, "T:", line, f"<strong_open>{line}<strong_close>", "A", "B", line]
    assert shown[:10] == expected
    assert shown[10] == line


# -- Markdown and files ------------------------------------------------------------------------------------------------
def test_markdown_has_every_section_table_and_number(page, board):
    text = markdown(page)
    assert [line for line in text.splitlines() if re.match("## ", line)] == [f"## {s.title}" for s in page.sections]
    lion = next(row for row in board.records() if row["algorithm"] == "lion")
    assert number(lion["steps_to_target"], 4) in text
    assert number(lion["steps_ratio"]) in text
    assert "(reference)" in text
    assert "![" not in text


def test_figures_are_written_and_linked(tmp_path, folder):
    write_report(tmp_path / "report.md", [folder], figures=tmp_path / "drawn" / "here")
    text = (tmp_path / "report.md").read_text("utf-8")
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(links) == len(set(links)) >= 6
    for link in links:
        assert (tmp_path / link).read_text("utf-8").lstrip().startswith("<?xml")
        assert (tmp_path / link).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "drawn" / "here").iterdir())) == 2 * len(links)


def test_the_form_follows_from_the_ending_unless_it_is_given(tmp_path, folder, text):
    write_report(tmp_path / "report.html", [folder])
    write_report(tmp_path / "report.txt", [folder], form="md")
    assert (tmp_path / "report.html").read_text("utf-8") == text
    assert (tmp_path / "report.txt").read_text("utf-8").startswith("# ")


def test_an_ending_that_tells_no_form_is_refused(tmp_path, folder):
    with pytest.raises(BadValue, match=r"\.pdf") as error:
        write_report(tmp_path / "report.pdf", [folder])
    assert ".html" in error.value.hint


@pytest.mark.parametrize("out", ["missing/report.html", "."])
def test_a_place_that_cannot_be_written_is_refused_with_a_hint(tmp_path, folder, out):
    with pytest.raises(BadValue, match="--out") as error:
        write_report(tmp_path / out, [folder], form="html")
    assert error.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path, folder):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BadValue, match="permission"):
        write_report(tmp_path / "locked" / "report.html", [folder])


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path, folder, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("the one before")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(BadValue, match="No space left"):
        write_report(out, [folder])
    assert out.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_figures_where_a_file_stands_are_refused(tmp_path, folder):
    (tmp_path / "figures").write_text("")
    with pytest.raises(BadValue, match="--figures"):
        write_report(tmp_path / "report.html", [folder], figures=tmp_path / "figures")


# -- bad input ---------------------------------------------------------------------------------------------------------
def test_an_empty_store_says_that_nothing_is_recorded(tmp_path):
    with pytest.raises(BadStore, match="nothing is recorded in") as error:
        write_report(tmp_path / "report.html", [store(tmp_path / "empty", [])])
    assert "bench run" in error.value.hint
    assert not (tmp_path / "report.html").exists()


def test_a_store_of_a_newer_schema_is_refused(tmp_path, folder):
    newer = store(tmp_path / "newer", usual()[:2])
    (newer / "store.json").write_text(json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(BadStore, match="schema version"):
        write_report(tmp_path / "report.html", [folder, newer])


def test_a_file_that_is_cut_off_is_named(tmp_path):
    broken = store(tmp_path / "broken", usual()[:2])
    file = broken / "trials" / "0.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(BadStore, match=re.escape(str(file))):
        write_report(tmp_path / "report.html", [broken])


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(BadStore):
        write_report(tmp_path / "report.html", [tmp_path / "nowhere"])


def test_qualities_that_are_not_numbers_do_not_stop_the_page(tmp_path):
    rows = [trial("adamw", seed, 200 + seed) for seed in range(3)]
    rows += [trial("lion", seed, outcome="diverged", quality=math.nan, best_quality=None) for seed in range(3)]
    assert Reader(html(build(gather([store(tmp_path / "r", rows)], Registry())))).faults == []


def test_a_store_of_schema_1_is_read_and_says_that_it_knows_no_reference(tmp_path):
    rows = [
        trial(name, seed, 200 + seed, reference=None, is_reference=None) for name in ("a", "b") for seed in range(5)
    ]
    text = html(build(gather([store(tmp_path / "r", rows)], Registry())))
    assert "names no reference" in text
    assert "Against the reference" not in text


# -- parts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (181.66, 4, "181.7"),
        (0.7943, 3, "0.794"),
        (1.0, 3, "1.00"),
        (12_345.6, 3, "12,346"),
        (0.0, 3, "0"),
        (-0.25, 2, "−0.25"),
        (1.2e9, 3, "1.20e+09"),
        (3.2e-5, 2, "3.2e−05"),
        (math.inf, 3, "∞"),
        (math.nan, 3, "–"),
        (None, 3, "–"),
        (np.int64(7), 3, "7.00"),
        (np.float64(0.5), 2, "0.50"),
        (True, 3, "–"),
    ],
)
def test_numbers_read_as_people_write_them(value, digits, shown):
    assert number(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (69.7, "s", "69.7 s"),
        (7200, "s", "2.00 h"),
        (600, "s", "10.0 min"),
        (0.0023, "s", "2.30 ms"),
        (7.3e8, "bytes", "730 MB"),
        (12, "bytes", "12.0 B"),
        (5e3, "j", "5.00 kJ"),
        (0, "s", "0 s"),
        (math.inf, "s", "∞"),
    ],
)
def test_quantities_have_the_unit_in_which_they_read_best(value, kind, shown):
    assert quantity(value, kind) == shown


def test_a_column_has_one_unit():
    assert common_scale([90.0, 4000.0, 7300.0, math.nan, math.inf], "s") == (60.0, "min")


@pytest.mark.parametrize(
    ("low", "high", "decimals"), [(1.37, 1.43, 3), (0.12370, 0.12372, 6), (10, 400, 2), (1, 1, 4), (math.nan, 1, 4)]
)
def test_an_interval_sets_the_number_of_decimals(low, high, decimals):
    assert places(low, high) == decimals


def test_intervals_without_both_ends_are_left_out():
    assert interval(1.0, math.nan) == ""
    assert interval(1.0, 2.0) == "[1.00, 2.00]"
    assert values_text('{"lr": 0.001, "rank": null}') == "lr=0.001, rank=none"


def test_identifiers_stay_unique_whatever_the_names():
    anchors = Anchors()
    found = [
        anchors("a", "b"),
        anchors("a b"),
        anchors("a", "b-2"),
        anchors("a.b"),
        anchors("☃"),
        anchors("☃☃"),
        anchors(""),
    ]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[a-z0-9-]+", anchor) for anchor in found)


def test_characters_that_hide_or_reorder_are_replaced():
    assert clean("a\x00b\u202ec\ud800d\te") == "a\ufffdb\ufffdc\ufffdd\te"


def test_papers_are_links_and_nothing_else_is():
    assert source("arXiv:2403.03507v2, Table 2") == (
        Piece(text="arXiv:2403.03507v2", url="https://arxiv.org/abs/2403.03507"),
        Piece(text=", Table 2"),
    )
    assert source("doi:10.1000/abc(1)")[0].url == "https://doi.org/10.1000/abc(1)"
    assert [piece.url for piece in source("javascript:alert(1) http://x arXiv:../..")] == [""]


def test_docstrings_become_paragraphs_and_equations():
    blocks = prose(
        """First line with ``code``
        and :class:`~bench.errors.BadValue`.

            W ← W - η G      η = ``lr``

            >>> never(shown)

        Last.
        """
    )
    assert [block.kind for block in blocks] == ["text", "code", "text"]
    assert blocks[0].pieces == (
        Piece(text="First line with "),
        Piece(text="code", code=True),
        Piece(text=" and "),
        Piece(text="BadValue", code=True),
        Piece(text="."),
    )
    assert blocks[1] == Code(lines=["W ← W - η G      η = lr"])


def test_columns_in_which_nothing_stands_are_left_out():
    columns = [Column(key="a", head="A", header=True), Column(key="b", head="B"), Column(key="c", head="C")]
    shown = table("t", "T", columns, [Row(cells={"a": cell("x"), "b": cell("–"), "c": cell("1", 1.0)})])
    assert [column.key for column in shown.columns] == ["a", "c"]


def test_boards_of_one_name_get_names_that_tell_them_apart(evidence):
    labels = [view.label for view in evidence.views]
    assert len(set(labels)) == len(labels) == len(boards(evidence.trials))
    assert len({view.anchor for view in evidence.views}) == len(labels)
