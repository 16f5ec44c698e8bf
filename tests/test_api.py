"""The Python interface: what notebooks call, on this project's own measured results."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.api import Results, _command_line
from bench.errors import BadStore, BadValue, UnknownName
from bench.request import Request

CPU_2 = Path(__file__).parents[1] / "results" / "cpu-2"


@pytest.fixture(scope="module")
def results():
    return bench.load(CPU_2)


def test_load_gives_the_stored_tables_as_frames(results):
    assert isinstance(results, Results)
    assert len(results.trials) == len(pd.read_parquet(CPU_2 / "trials"))
    assert len(results.curves) == len(pd.read_parquet(CPU_2 / "curves"))
    assert set(results.trials["protocol_sha256"]) <= set(results.protocols)


def test_boards_are_those_of_the_command_line(results):
    (board,) = results.boards("steps")
    assert board.shared["protocol"] == "default"
    assert set(board.rows["algorithm"]) == {"adamw", "sgd", "lion", "muon", "galore"}
    assert (board.rows["replicates"] == 5).all()
    assert board.rows["ranked"].all()


def test_a_trial_in_two_folders_counts_once(results, tmp_path):
    copy = shutil.copytree(CPU_2, tmp_path / "copy")
    twice = bench.load(CPU_2, copy)
    assert len(twice.trials) == len(results.trials)
    assert len(twice.curves) == len(results.curves)


def test_several_folders_are_read_together(results):
    both = bench.load(CPU_2, CPU_2.parent / "wikitext")
    assert len(both.trials) > len(results.trials)
    assert len(both.boards("steps")) == 2


@pytest.mark.parametrize("what", ["curves", "hits", "pareto", "ratios"])
def test_every_drawing_returns_axes_with_something_on_them(results, what):
    axes = results.draw(what)
    assert axes.has_data()
    assert axes.get_xlabel()


def test_ratios_of_many_rows_stand_apart(results):
    (board,) = results.boards("steps")
    many = replace(board, rows=pd.concat([board.rows] * 6, ignore_index=True))
    axes = results.draw("ratios", many)
    axes.figure.draw_without_rendering()
    tops = [label.get_window_extent().y1 for label in axes.get_yticklabels()]
    bottoms = [label.get_window_extent().y0 for label in axes.get_yticklabels()]
    assert len(tops) == len(many.rows)
    assert all(bottom > top for bottom, top in zip(bottoms, tops[1:], strict=False))


def test_a_drawing_goes_into_the_axes_that_are_given(results):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert results.draw("curves", axes=axes) is axes


def test_a_drawing_of_several_boards_wants_one_named():
    both = bench.load(CPU_2, CPU_2.parent / "wikitext")
    with pytest.raises(BadValue, match="there are 2 boards"):
        both.draw("curves")
    assert both.draw("curves", both.boards("steps")[0]).has_data()


def test_an_unknown_drawing_is_named(results):
    with pytest.raises(UnknownName, match="no drawing named 'pie'"):
        results.draw("pie")


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(BadStore, match="there are no results"):
        bench.load(tmp_path / "nothing")


def test_run_refuses_what_the_command_line_refuses(tmp_path):
    with pytest.raises(BadValue, match="exclude each other"):
        bench.run("adamw", "llama-c4", data="embedded", data_dir=tmp_path)
    with pytest.raises(UnknownName):
        bench.run("adamw2", "llama-c4", results=tmp_path)


def test_a_record_of_a_notebook_names_the_command_that_does_the_same():
    request = Request(
        plugins=["lion", "muon"],
        workload="llama-c4",
        settings=["lion.lr=0.01"],
        with_plugins=["warmup-cosine"],
        seeds=range(3),
        reference=False,
    )
    assert _command_line(request, "my results") == (
        "bench run --plugin lion,muon --workload llama-c4 --protocol quick --device cpu --results 'my results' "
        "--set lion.lr=0.01 --with warmup-cosine --seeds 3 --no-reference"
    )
