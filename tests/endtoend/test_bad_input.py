"""Whatever is wrong with a command: exit code 2, one message that names the value, no traceback, nothing written."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.record import SCHEMA_VERSION, TRIALS
from bench.store import Store

RUN = ("run", "--workload", "micro", "--plugin", "adamw")

CASES = {
    "unknown command": (("rnu",), "no command named 'rnu'", "did you mean 'run'?"),
    "unknown option": ((*RUN, "--teir", "tiny"), "'--teir'", "--tier"),
    "unknown option of the group": (("--verbos",), "'--verbos'", "bench --help"),
    "option without its value": (("run", "--plugin"), "'--plugin'", "requires an argument"),
    "missing option": (("run", "--plugin", "adamw"), "'--workload'", "bench run --help"),
    "unknown choice": (("list", "plugin"), "'plugin'", "'plugins'"),
    "unknown format": (("list", "--format", "xml"), "'xml'", "'json'"),
    "unknown track": (("list", "--track", "optimiser"), "no track named 'optimiser'", "did you mean 'optimizer'?"),
    "unknown plugin": (
        ("run", "--workload", "micro", "--plugin", "adamv"),
        "no plugin named 'adamv'",
        "did you mean 'adamw'?",
    ),
    "unknown plugin of many": (
        ("run", "--workload", "micro", "--plugin", "adamw,lyon"),
        "no plugin named 'lyon'",
        "did you mean 'lion'?",
    ),
    "unknown plugin after --with": (
        (*RUN, "--with", "wonders"),
        "no plugin named 'wonders'",
        "did you mean 'wanders'?",
    ),
    "unknown workload": (
        ("run", "--workload", "mirco", "--plugin", "adamw"),
        "no workload named 'mirco'",
        "did you mean 'micro'?",
    ),
    "unknown tier": ((*RUN, "--tier", "tinny"), "no tier of micro named 'tinny'", "did you mean 'tiny'?"),
    "unknown protocol": ((*RUN, "--protocol", "quik"), "no protocol named 'quik'", "did you mean 'quick'?"),
    "unknown name to show": (("show", "gallore"), "no plugin or workload named 'gallore'", "did you mean 'galore'?"),
    "unknown hyperparameter": (
        ("run", "--workload", "micro", "--plugin", "sgd", "--set", "momentun=0.8"),
        "no hyperparameter of sgd named 'momentun'",
        "did you mean 'momentum'?",
    ),
    "no plugin at all": (("run", "--workload", "micro", "--plugin", ""), "--plugin ''", "bench list"),
    "only commas": (("run", "--workload", "micro", "--plugin", " , "), "--plugin ' , '", "bench list"),
    "a plugin twice": (("run", "--workload", "micro", "--plugin", "sgd,sgd"), "--plugin 'sgd,sgd'", "twice"),
    "ill-typed value": ((*RUN, "--set", "lr=fast"), "adamw: lr = 'fast' (str)", "lr is float > 0"),
    "empty value": ((*RUN, "--set", "lr="), "adamw: lr = '' (str)", "lr is float > 0"),
    "no value": ((*RUN, "--set", "lr=none"), "adamw: lr = 'none'", "lr is float > 0"),
    "value out of range": ((*RUN, "--set", "lr=-0.1"), "adamw: lr = '-0.1'", "lr is float > 0"),
    "value at an open bound": ((*RUN, "--set", "beta1=1"), "adamw: beta1 = '1'", "beta1 is float >= 0 and < 1"),
    "value that is no number": ((*RUN, "--set", "lr=nan"), "adamw: lr = 'nan'", "lr is float > 0"),
    "infinite value": ((*RUN, "--set", "adamw.lr=inf"), "adamw: lr = 'inf'", "lr is float > 0"),
    "setting without =": ((*RUN, "--set", "lr"), "--set 'lr'", "name=value"),
    "setting without a name": ((*RUN, "--set", "=0.1"), "--set '=0.1'", "name=value"),
    "setting of a plugin not in the run": (
        (*RUN, "--set", "lion.lr=0.1"),
        "no plugin of this run named 'lion'",
        "known: adamw",
    ),
    "unqualified setting of two plugins": (
        ("run", "--workload", "micro", "--plugin", "adamw,sgd", "--set", "lr=0.1"),
        "--set 'lr=0.1'",
        "--set adamw.lr=0.1",
    ),
    "--with what would do nothing": ((*RUN, "--with", "sgd"), "--with sgd would do nothing", "leave it out"),
    "seed and seeds": ((*RUN, "--seed", "1", "--seeds", "2"), "--seed and --seeds exclude each other"),
    "no seeds": ((*RUN, "--seeds", "0"), "'--seeds'", "0 is not in the range"),
    "negative seed": ((*RUN, "--seed", "-1"), "'--seed'", "-1 is not in the range"),
    "seed that is no number": ((*RUN, "--seed", "one"), "'--seed'", "'one'"),
    "data and data folder": (
        (*RUN, "--data", "embedded", "--data-dir", "."),
        "--data and --data-dir exclude each other",
    ),
    "unknown data": ((*RUN, "--data", "embeded"), "named 'embeded'", "did you mean 'embedded'?"),
    "data folder for a workload without": ((*RUN, "--data-dir", "."), "no data source of micro named 'local'"),
    "local data without a folder": (
        ("run", "--workload", "llama-c4", "--plugin", "adamw", "--data", "local"),
        "local data",
        "--data-dir",
    ),
    "missing data folder": (
        ("run", "--workload", "llama-c4", "--plugin", "adamw", "--data-dir", "not/here"),
        "not/here",
    ),
    "unknown device": ((*RUN, "--device", "gpu"), "device is 'gpu' (str)", "did you mean 'cuda'?"),
    "other unknown device": ((*RUN, "--device", "tpu"), "device is 'tpu' (str)", "cpu, cuda or cuda:N"),
    "device number that is none": ((*RUN, "--device", "cuda:first"), "'cuda:first'", "cuda:N"),
    "algorithm that does not fit": (
        ("run", "--workload", "micro", "--plugin", "lacks-micro-batches"),
        "'lacks-micro-batches' needs single-micro-batch",
        "'tiny'",
    ),
    "tier of an estimate": (
        ("memory", "--plugin", "adamw", "--workload", "micro", "--tier", "big"),
        "named 'big'",
        "tiny",
    ),
    "no results to go on with": (("resume",), "no results in 'results'", "--results"),
    "no results to rank": (("leaderboard", "--results", "elsewhere"), "no results in 'elsewhere'", "--results"),
    "no trial to work on": (("worker", "not/here.json"), "not/here.json", "trial.json"),
}


def refused(answer, *words: str) -> None:
    """Fail unless ``answer`` is a refusal in one message that holds all ``words``."""
    assert answer.code == 2, answer
    assert answer.err.startswith("Error: "), answer.err
    assert len(re.findall("^Error:", answer.err, re.MULTILINE)) == 1, answer.err
    assert "Traceback" not in answer.out + answer.err
    for word in words:
        assert word in answer.err, answer.err


@pytest.mark.parametrize(("arguments", "words"), [(case[0], case[1:]) for case in CASES.values()], ids=list(CASES))
def test_bad_command_is_refused_in_one_message(bench_here, arguments, words):
    answer = bench_here(*arguments)
    refused(answer, *words)
    assert answer.out == ""
    assert not Path("results").exists(), "a command that is refused leaves nothing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(bench_here):
    refused(bench_here(*RUN, "--device", "cuda:0"), "device is 'cuda:0'", "use --device cpu")


@pytest.mark.gpu
def test_cuda_device_that_is_not_there_is_refused(bench_here):
    refused(bench_here(*RUN, "--device", "cuda:99"), "device is 'cuda:99'")


# -- data --------------------------------------------------------------------------------------------------------------
SHARD = "".join(json.dumps({"text": f"document {n} " * 40, "timestamp": "", "url": ""}) + "\n" for n in range(50))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of two good shards in C4's format."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("c4-train.00000-of-00001.json.gz", "c4-validation.00000-of-00001.json.gz"):
        (folder / name).write_bytes(gzip.compress(SHARD.encode()))
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_shard_is_refused(bench_here, shards, split):
    (shard,) = shards.glob(f"c4-{split}*")
    shard.unlink()
    refused(bench_here("run", "--workload", "llama-c4", "--plugin", "adamw", "--data-dir", shards), str(shards), split)
    assert not Path("results").exists()


def test_shard_that_was_cut_is_an_outcome_with_its_name(bench_here, shards):
    """Whole shards are read only when training comes to them, so this is found in the trial and kept in its record."""
    (shard,) = shards.glob("c4-train*")
    shard.write_bytes(shard.read_bytes()[:60])
    answer = bench_here("run", "--workload", "llama-c4", "--plugin", "adamw", "--data-dir", shards)
    assert (answer.code, answer.err) == (1, "")
    assert "Traceback" not in answer.out
    row = pd.read_parquet("results/trials").iloc[0]
    assert row.outcome == "error"
    assert row.outcome_reason.startswith(f"data shard '{shard.name}' is truncated")
    assert f"error: {row.outcome_reason}" in answer.out


# -- results -----------------------------------------------------------------------------------------------------------
def mark(text: str):
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "store.json").write_text(text)

    return write


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("chapter one")


STORES = {
    "file": (lambda folder: folder.write_text("a file"), "is a file"),
    "foreign folder": (foreign, "--results"),
    "newer schema": (
        mark(json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION + 1})),
        f"schema version {SCHEMA_VERSION + 1}",
        "newer bench",
    ),
    "marker of something else": (mark('{"bench": "cache", "schema_version": 1}'), "'cache'"),
    "marker that is no JSON": (mark("results"), "not the marker"),
    "marker without a version": (mark('{"bench": "results"}'), "not the marker"),
    "marker that is a list": (mark("[1]"), "not the marker"),
    "marker that is no text": (
        lambda folder: (folder.mkdir(), (folder / "store.json").write_bytes(b"\xff\xfe\x00")),
        "not",
    ),
    "marker that is a folder": (lambda folder: (folder / "store.json").mkdir(parents=True), "cannot be used"),
}


@pytest.mark.parametrize(
    "command", [RUN, ("leaderboard",), ("resume",), ("plan", *RUN[1:])], ids=lambda words: words[0]
)
@pytest.mark.parametrize(("make", "words"), [(case[0], case[1:]) for case in STORES.values()], ids=list(STORES))
def test_results_folder_that_is_none_of_ours_is_refused_and_left_alone(bench_here, tmp_path, make, words, command):
    make(tmp_path / "out")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    if command[0] == "plan" and not (tmp_path / "out" / "store.json").exists():
        assert bench_here(*command, "--results", "out").code == 0, "what is no store yet: every trial is to do"
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
        return
    refused(bench_here(*command, "--results", "out"), "out", *words)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_results_below_a_file_are_refused(bench_here, tmp_path):
    (tmp_path / "file").write_text("")
    refused(bench_here(*RUN, "--results", "file/results"), "file/results", "--results DIR")


@pytest.mark.parametrize("command", ["leaderboard", "plan"])
def test_broken_table_is_named(bench_here, tmp_path, command):
    Store(tmp_path / "results", create=True)
    (tmp_path / "results" / "trials").mkdir()
    (tmp_path / "results" / "trials" / "0123.parquet").write_bytes(b"PAR1 and nothing more")
    arguments = (command,) if command == "leaderboard" else (command, *RUN[1:])
    refused(bench_here(*arguments), "0123.parquet", "cannot be read")


def test_foreign_table_is_named(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    (tmp_path / "results" / "trials").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "results" / "trials" / "x.parquet")
    refused(bench_here("leaderboard"), "x.parquet", "not a table of bench")


def test_table_of_a_newer_schema_is_named(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    (tmp_path / "results" / "trials").mkdir()
    newer = TRIALS.with_metadata({"bench_schema_version": str(SCHEMA_VERSION + 1)})
    pq.write_table(newer.empty_table(), tmp_path / "results" / "trials" / "x.parquet")
    refused(bench_here("leaderboard"), "x.parquet", f"schema version {SCHEMA_VERSION + 1}")


def test_unknown_workload_or_tier_of_the_results_is_refused(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    refused(bench_here("leaderboard", "--workload", "micro"), "no workload in results named 'micro'")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seed": 1}', "\x00"])
def test_trial_that_is_none_is_refused(bench_here, tmp_path, content):
    (tmp_path / "trial.json").write_text(content)
    refused(bench_here("worker", "trial.json"), "trial.json", "is not a trial of this version of bench")


# -- plugins -----------------------------------------------------------------------------------------------------------
BROKEN = {
    "raises": ("RuntimeError: this plugin wants a compiler that is not here", "pip uninstall bench-broken"),
    "exits": ("SystemExit: this plugin does not run on this day of the week",),
    "no-module": ("ModuleNotFoundError", "there_is_no_such_module"),
    "no-target": ("there is no module 'bench_broken.absent'",),
    "raises-late": ("plugin 'raises-late': bench_broken.raises:Anything cannot be imported", "wants a compiler"),
    "misnamed": ("plugin 'misnamed'", "calls itself 'fine'"),
    "idle": ("plugin 'idle'", "overrides no slot"),
    "no-class": ("plugin 'no-class'", "must be a subclass of bench.Algorithm"),
    "no-attribute": ("plugin 'no-attribute': bench_broken.late:Nothing cannot be imported", "AttributeError"),
}


@pytest.mark.parametrize(("name", "words"), BROKEN.items(), ids=list(BROKEN))
def test_broken_plugin_that_is_used_is_refused_with_its_reason(bench_here, monkeypatch, broken_site, name, words):
    monkeypatch.syspath_prepend(str(broken_site))
    refused(bench_here("run", "--workload", "micro", "--plugin", name), *words)
    refused(bench_here("show", name), *words)
