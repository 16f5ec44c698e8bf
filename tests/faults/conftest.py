"""Stores with made-up trials, and files whose writing fails because the kernel says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.event_log import EventLog
from bench.store import Store
from bench.trial import Data, Part, Protocol, Trial

FACTS = {"metric": "loss", "metric_direction": "min", "target": 1.0, "budget_steps": 4, "started_at": "2026-01-01"}


@dataclass(frozen=True)
class Made:
    """A store, and what a worker would write into it."""

    store: Store

    @property
    def root(self) -> Path:
        return self.store.root

    def trial(self, seed: int = 0) -> Trial:
        part = Part(name="plain", version="1", source_sha256="a" * 64, slots=("optimizer",), values={"lr": 0.1})
        return Trial(
            algorithm=part,
            fillers=(),
            workload="micro",
            workload_version="1.2.3",
            tier="small",
            precision="fp32",
            data=Data(source="drawn", directory=None, tokenizer=None, sha256="d" * 64, label="drawn"),
            protocol=Protocol(name="quick", version="1.0", sha256="e" * 64),
            study=0,
            point=0,
            seed=seed,
            device="cpu",
            device_class="cpu-2",
            threads=2,
            timeout_s=60.0,
            checkpoint_every_s=10.0,
            command_line="bench run",
        )

    def log(self, seed: int = 0, outcome: str | None = "reached") -> EventLog:
        """Log a trial of three evaluations; without an ``outcome`` it has no end."""
        log = EventLog(self.store.folder(self.trial(seed)))
        log.write("started", resumed=False, step=0, facts=FACTS)
        for step, quality in enumerate((3.0, 2.0, 0.5)):
            self.evaluation(log, step, quality)
        if outcome:
            log.write("finished", outcome=outcome, reason="", at="2026-01-02", cost={"time_s": 3.0})
        return log

    def evaluation(self, log: EventLog, step: int, quality: float = 0.25, **changes: Any) -> None:
        """Log one evaluation, with ``changes`` of its fields."""
        values = {"quality": quality, "metrics": {"loss": quality}, "train_loss": None, "learning_rate": 0.1}
        log.write("evaluated", step=step, **values | {"cost": {"time_s": float(step), "wall_s": float(step)}} | changes)

    def run(self, seed: int = 0, outcome: str | None = "reached") -> dict[str, Any]:
        """Log a trial and derive its rows."""
        self.log(seed, outcome)
        return self.store.finalise(self.trial(seed))

    def folder(self, seed: int = 0) -> Path:
        return self.root / "runs" / self.trial(seed).trial_id

    def events(self, seed: int = 0) -> Path:
        return self.folder(seed) / "events.jsonl"

    def row(self, seed: int = 0, table: str = "trials") -> Path:
        return self.root / table / f"{self.trial(seed).trial_id}.parquet"

    def content(self) -> dict[str, bytes]:
        """Every file of the store with its bytes, but for the locks, which come and go."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.name not in {"lock", "claim"})
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

    def tables(self) -> str:
        """Both tables as texts that are equal where the rows are, NaN included."""
        store = Store(self.root)
        return repr([store.table(name).to_pylist() for name in ("trials", "curves")])


@pytest.fixture
def made(tmp_path) -> Made:
    """An empty store."""
    return Made(Store(tmp_path / "results", create=True))
