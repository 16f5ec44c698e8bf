"""Honest bundles of this project's own measurements, and the tools of a forger who knows the format as we do."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import record
from bench.bundle import pack, table_child
from bench.bundle.packing import zip_of
from bench.registry import Registry
from bench.store import Store
from bench.trial import Trial

RESULTS = Path(__file__).parents[2] / "results"
TABLES = {"trials.parquet": record.TRIALS, "curves.parquet": record.CURVES}

Edit = Callable[[dict[str, Any]], None]


@dataclass
class Forgery:
    """The files of a bundle, open for changes; :meth:`write` makes a bundle of them whose manifest is right."""

    files: dict[str, bytes]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.files["manifest.json"])

    def set_manifest(self, **changes: Any) -> None:
        self.files["manifest.json"] = json.dumps(self.manifest | changes).encode()

    def ids(self, algorithm: str | None = None, **facts: Any) -> list[str]:
        """Return the folders of the trials of an algorithm with these facts, by study, point and seed."""
        found = [name.split("/")[1] for name in self.files if name.endswith("/trial.json")]
        trials = {trial_id: self.trial(trial_id) for trial_id in found}
        chosen = [
            trial_id
            for trial_id, trial in trials.items()
            if algorithm in {None, trial["algorithm"]["name"]} and all(trial[k] == v for k, v in facts.items())
        ]
        return sorted(chosen, key=lambda i: (trials[i]["study"], trials[i]["point"], trials[i]["seed"]))

    def trial(self, trial_id: str) -> dict[str, Any]:
        return json.loads(self.files[f"runs/{trial_id}/trial.json"])

    def events(self, trial_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[f"runs/{trial_id}/events.jsonl"].splitlines()]

    def set_events(self, trial_id: str, events: list[dict[str, Any]]) -> None:
        lines = [json.dumps(event) + "\n" for event in events]
        self.files[f"runs/{trial_id}/events.jsonl"] = "".join(lines).encode()

    def edit_events(self, trial_id: str, edit: Edit, kind: str | None = None) -> None:
        events = self.events(trial_id)
        for event in events:
            if kind in {None, event["event"]}:
                edit(event)
        self.set_events(trial_id, events)

    def edit_costs(self, trial_id: str, edit: Edit) -> None:
        """Edit the costs of every event that has some."""
        self.edit_events(trial_id, lambda event: edit(event["cost"]) if event.get("cost") else None)

    def edit_trial(self, trial_id: str, edit: Edit) -> str:
        """Edit what was asked of a trial, and give it the identity that follows; return that."""
        raw, log = self.trial(trial_id), self.files[f"runs/{trial_id}/events.jsonl"]
        self.drop(trial_id)
        edit(raw)
        trial = Trial.model_validate(raw)
        self.files[f"runs/{trial.trial_id}/trial.json"] = trial.text().encode()
        self.files[f"runs/{trial.trial_id}/events.jsonl"] = log
        return trial.trial_id

    def drop(self, trial_id: str) -> None:
        for name in ("trial.json", "events.jsonl"):
            del self.files[f"runs/{trial_id}/{name}"]

    def derive(self) -> Forgery:
        """Make both tables anew from the logs."""
        trials, curves = [], []
        for trial_id in sorted(self.ids()):
            trial = Trial.model_validate(self.trial(trial_id))
            trials.append(record.trial_row(trial, self.events(trial_id)))
            curves += record.curve_rows(trial, self.events(trial_id))
        self.set_table("trials.parquet", trials)
        self.set_table("curves.parquet", curves)
        return self

    def table(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(io.BytesIO(self.files[name])).to_pylist()

    def set_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[name]), buffer)
        self.files[name] = buffer.getvalue()

    def seal(self) -> bytes:
        """Return the archive, with a manifest that has the right hashes."""
        others = {name: content for name, content in sorted(self.files.items()) if name != "manifest.json"}
        listed = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in others.items()
        }
        self.set_manifest(files=listed)
        return zip_of({"manifest.json": self.files["manifest.json"], **others})

    def write(self, path: Path) -> Path:
        path.write_bytes(self.seal())
        return path


def opened(path: Path) -> Forgery:
    with zipfile.ZipFile(path) as archive:
        return Forgery({name: archive.read(name) for name in archive.namelist()})


@pytest.fixture(scope="session")
def honest(tmp_path_factory, registry: Registry) -> dict[str, Path]:
    """Bundles of sgd on llama-c4 tiny: five seeds under ``default``, a search under ``external``."""
    folder = tmp_path_factory.mktemp("honest")
    found = {}
    for protocol, results in (("default", "cpu-2"), ("external", "cpu-1")):
        found[protocol] = folder / f"{protocol}.zip"
        pack(Store(RESULTS / results), "sgd", found[protocol], protocol=protocol, registry=registry)
    return found


@pytest.fixture
def forge(honest) -> Callable[..., Forgery]:
    """Return ``protocol -> Forgery`` of an honest bundle."""
    contents = {}

    def take(protocol: str = "default") -> Forgery:
        if protocol not in contents:
            contents[protocol] = opened(honest[protocol])
        return Forgery(dict(contents[protocol].files))

    return take


@pytest.fixture
def tables_read_here(monkeypatch):
    """Read tables in this process by the code of the child: for bundles that are wrong, and not dangerous."""

    class Here:
        @staticmethod
        def run(command, **options):
            stream = io.BytesIO(options["input"])
            order = json.loads(stream.readline())
            both = zip(order["sizes"], order["kinds"], strict=True)
            lines = [json.dumps(table_child._table(stream.read(size), kinds, order)) for size, kinds in both]
            return subprocess.CompletedProcess(command, 0, "\n".join(lines).encode())

        TimeoutExpired = subprocess.TimeoutExpired

    monkeypatch.setattr("bench.bundle.foreign_tables.subprocess", Here)
