"""``store.json`` and what lies beside it: the marker of a results folder."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from bench.store import Store
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples

GOOD = {"bench": "results", "schema_version": 3, "origin": "somewhere"}
FOREIGN = ("file", "folder", "link out", "link in", "loop", "pipe", "dead link")


class Markers:
    """Opens a results folder whose marker, or one of whose parts, is something else."""

    def __init__(self, home: Path) -> None:
        (home / "outside").write_text("{}")
        self._outside = home / "outside"

    def make(self, random: Random) -> Case:
        raw = mutate.as_json(random, mutate.structure(random, GOOD))
        if random.random() < 0.3:
            raw = mutate.data(random, raw)
        if random.random() < 0.05:
            raw = hostile.text(random).encode("utf-8", errors="surrogatepass")
        places = ("store.json", "trials", "curves", "runs", "protocols", "runs/0123", "runs/0123/trial.json")
        parts = ("runs/0123/events.jsonl", "protocols/x.json", "trials/x.parquet", "curves/x.parquet")
        found: Case = {"marker": raw, "create": random.random() < 0.5}
        if random.random() < 0.5:
            found |= {"marker": b'{"bench": "results", "schema_version": 2}'}
            found |= {"place": random.choice(places + parts), "kind": random.choice(FOREIGN)}
        return found

    def run(self, case: Case, folder: Path) -> None:
        root = folder / "results"
        root.mkdir()
        (root / "store.json").write_bytes(case["marker"])
        if "place" in case:
            self._put(root / case["place"], case["kind"])
        store = Store(root, create=case["create"])
        store.protocols()
        store.trials()
        store.curves()
        store.unfinished()
        store.finished(samples.trial())

    def _put(self, path: Path, kind: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "file":
            path.write_text("{}\n")
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            ends = {"link out": self._outside, "link in": path.parent, "loop": path, "dead link": path / "not" / "here"}
            path.symlink_to(ends[kind])
