"""What is packed is everything, in equal bytes, or the reason why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.bundle import pack, read
from bench.errors import BadBundle
from bench.event_log import read_events
from bench.store import Store
from bench.trial import Trial

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the trials of sgd and adamw of one store, open for changes."""
    root = tmp_path / "copy"
    shutil.copytree(RESULTS / "cpu-2", root, ignore=shutil.ignore_patterns("leaderboards"))
    for path in (root / "runs").glob("*/trial.json"):
        if Trial.read(path).algorithm.name not in {"sgd", "adamw"}:
            shutil.rmtree(path.parent)
    return root


def refused(root, out, registry, plugin="sgd", **chosen):
    with pytest.raises(BadBundle) as raised:
        pack(Store(root), plugin, out, registry=registry, **chosen)
    assert not out.exists()
    return str(raised.value)


def test_every_trial_is_in_it_with_its_log_and_its_rows(honest):
    bundle = read(honest["external"])
    assert len(bundle.runs) == len(bundle.trials) == 2 * 18
    for run in bundle.runs:
        events = read_events(RESULTS / "cpu-1" / "runs" / run.folder)
        assert list(run.events) == events
    assert {run.trial.phase for run in bundle.runs} == {"tune", "rerun"}
    assert [protocol.name for protocol in bundle.protocols] == ["external"]
    assert set(bundle.sources) == set(bundle.manifest.algorithms) == {"sgd", "adamw", "warmup-linear"}
    source = Path(RESULTS.parent / "plugins" / "baselines" / "sgd.py").read_bytes()
    assert bundle.sources["sgd"]["bench.plugins.baselines.sgd"] == source


def test_equal_records_make_equal_bytes(tmp_path, honest, registry):
    again = tmp_path / "again.zip"
    pack(Store(RESULTS / "cpu-2"), "sgd", again, protocol="default", registry=registry)
    assert again.read_bytes() == honest["default"].read_bytes()


def test_what_cannot_be_packed_is_said(tmp_path, copy, registry):
    out = tmp_path / "out.zip"
    assert "holds no trials of 'nobody'" in refused(copy, out, registry, "nobody")
    assert "there are trials of adamw, sgd" in refused(copy, out, registry, "nobody")
    assert "--tier 60m" in refused(copy, out, registry, tier="60m")
    assert "changed since 5 of these trials" in refused(RESULTS / "cpu-2", out, registry, "galore")


def test_unfinished_trials_are_refused(tmp_path, copy, registry):
    log = next(
        path
        for path in sorted((copy / "runs").glob("*/events.jsonl"))
        if b'"sgd"' in path.with_name("trial.json").read_bytes()
    )
    log.write_bytes(b"\n".join(log.read_bytes().splitlines()[:-1]) + b"\n")
    assert "1 of 10 trials are unfinished: sgd seed" in refused(copy, tmp_path / "out.zip", registry)


def test_imported_results_are_refused(tmp_path, copy, registry):
    (copy / "store.json").write_text(json.dumps({"bench": "results", "schema_version": 3, "origin": "elsewhere"}))
    assert "imported from elsewhere" in refused(copy, tmp_path / "out.zip", registry)


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path, registry):
    with pytest.raises(BadBundle, match="cannot write"):
        pack(Store(RESULTS / "cpu-2"), "sgd", tmp_path / "none" / "out.zip", registry=registry)


def test_that_somebody_was_reproduced_is_not_packed(tmp_path, copy, registry):
    store = Store(copy)
    for path in sorted((copy / "runs").glob("*/trial.json")):
        trial = Trial.read(path).model_copy(update={"reproduces": "f" * 64})
        path.write_text(trial.text())
        assert store.finalise(trial)["trust_tier"] == "reproduced"
    bundle = pack(store, "sgd", tmp_path / "out.zip", registry=registry)
    assert {row["trust_tier"] for row in bundle.trials} == {"self-reported"}
    assert {run.trial.reproduces for run in bundle.runs} == {None}
