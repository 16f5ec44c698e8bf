"""Bundles: archives that nobody should unpack, and sound ones whose members are not what they say."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench import record
from bench.bundle import foreign_tables, pack, verify
from bench.errors import BadBundle
from bench.plan import make_plan
from bench.registry import Registry
from bench.request import Request
from bench.store import Store
from bench.trial import Trial
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples, zips
from fuzzing.targets.tables import _changed, _file

TABLES = ("trials.parquet", "curves.parquet")
MEASURED = Path(__file__).parents[4] / "results" / "cpu-2"
VERDICTS = {"lion.zip": {"reject"}, "sgd.zip": {"accept", "needs reproduction"}}
"""Two bundles: a small one whose records were made up here, and one of what this project measured."""


class Bundles:
    """Verifies one file; reading it is the first part of that."""

    def __init__(self, home: Path) -> None:
        self._registry = Registry()
        store = Store(home / "results", create=True)
        plan = make_plan(self._registry, Request(plugins=["lion"], workload="llama-c4", command_line="bench run"))
        store.keep(plan.protocol)
        for number, trial in enumerate(plan.trials):
            (store.folder(trial) / "events.jsonl").write_text(samples.log(samples.events(number)), encoding="utf-8")
            store.finalise(trial)
        pack(store, "lion", home / "lion.zip", registry=self._registry)
        pack(Store(MEASURED), "sgd", home / "sgd.zip", protocol="default", registry=self._registry)
        _remember_tables()
        self._bundles = []
        for path in (home / "lion.zip", home / "sgd.zip"):
            if verify(path, self._registry).verdict not in VERDICTS[path.name]:
                raise AssertionError(f"{path.name} is not judged as it was, so inputs would not come as far")
            with zipfile.ZipFile(path) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
            self._bundles.append((path.read_bytes(), files))

    def make(self, random: Random) -> Case:
        content, known = random.choice(self._bundles)
        files = dict(known)
        kind = random.random()
        if kind < 0.2:
            start = random.choice((0, 0, len(content) - 22, len(content) - 600))
            return {"file": mutate.data(random, content, start=start)}
        if kind < 0.45:
            return {"file": zips.hostile_archive(random, files)}
        for name in random.sample(list(files), random.choice((1, 1, 2))):
            files[name] = self._member(random, name, files[name])
        if random.random() < 0.3:
            _derive(files)
        if random.random() < 0.95:
            _stamp(files)
        members = [zips.Member(name.encode(), content, 8) for name, content in files.items()]
        return {"file": zips.archive(members)}

    def _member(self, random: Random, name: str, content: bytes) -> bytes:
        """Return another content of a member."""
        kind = random.random()
        if kind < 0.15:
            return mutate.data(random, content)
        if name.endswith(".jsonl"):
            events = [json.loads(line) for line in content.splitlines()]
            number = random.randrange(len(events))
            events[number] = mutate.structure(random, events[number])
            return b"".join(mutate.as_json(random, event).replace(b"\n", b"") + b"\n" for event in events)
        if name.endswith(".json"):
            return mutate.as_json(random, mutate.structure(random, json.loads(content)))
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            return (
                _file(_changed(random, table)) if kind < 0.6 else mutate.data(random, content, start=len(content) // 2)
            )
        return content + random.choice((b"\nimport fuzz_canary\n", b"\0", b"\xff", b"def (:\n", bytes(100_000)))

    def run(self, case: Case, folder: Path) -> None:
        path = folder / "lion.zip"
        path.write_bytes(case["file"])
        found = verify(path, self._registry)
        told = json.dumps(found.record())
        if found.verdict != "accept" and not found.reasons:
            raise AssertionError(f"{found.verdict} without a reason")
        if found.verdict == "reject":
            raise BadBundle(found.reasons[0])
        if hostile.CANARY in told:
            raise AssertionError(f"a bundle of foreign text is no reject: {found.verdict}")


def _stamp(files: dict[str, bytes]) -> None:
    """Make the manifest say what the members are, as one who forges would."""
    try:
        manifest = json.loads(files["manifest.json"])
        facts = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
        del facts["manifest.json"]
        manifest["files"] = facts
        files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    except (ValueError, TypeError, RecursionError):
        return


def _derive(files: dict[str, bytes]) -> None:
    """Make tables and folders of what trials and logs say now, as one who forges would."""
    rows: list[Any] = []
    curves: list[Any] = []
    renamed = dict(files)
    try:
        for name in [name for name in files if name.endswith("trial.json")]:
            trial = Trial.model_validate_json(files[name])
            log = name.replace("trial.json", "events.jsonl")
            events = [json.loads(line) for line in files[log].splitlines()]
            rows.append(record.trial_row(trial, events))
            curves += record.curve_rows(trial, events)
            for old in (name, log):
                renamed[f"runs/{trial.trial_id}/{old.rpartition('/')[2]}"] = renamed.pop(old)
        tables = [pa.Table.from_pylist(rows, schema=record.TRIALS), pa.Table.from_pylist(curves, schema=record.CURVES)]
    except Exception:  # noqa: BLE001 - what cannot be derived stays as it is
        return
    files.clear()
    files.update(renamed)
    files.update({name: _file(table) for name, table in zip(TABLES, tables, strict=True)})


def _remember_tables() -> None:
    """Ask the process that reads tables once for each pair of them: most inputs leave the tables alone."""
    ask, known = foreign_tables._answers, {}

    def answers(contents: Any, schemas: Any) -> list[bytes]:
        key = hashlib.sha256(b"\n".join(contents[name] for name in schemas)).digest()
        if len(known) < len(VERDICTS):
            known[key] = ask(contents, schemas)
        return known[key] if key in known else ask(contents, schemas)

    foreign_tables._answers = answers
