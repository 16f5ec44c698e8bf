"""Sound files of every kind, from which inputs are made by breaking them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.clock import ASIDE, SECTIONS
from bench.protocol import protocol
from bench.store import Store
from bench.trial import Data, Part, Protocol, Trial


def trial(algorithm: str = "adamw", seed: int = 0) -> Trial:
    """Return a trial as a plan names it."""
    rules = protocol("default")
    return Trial(
        algorithm=Part(
            name=algorithm,
            version="1",
            source_sha256="a" * 64,
            slots=("optimizer",),
            values={"lr": 0.001, "beta1": 0.9},
        ),
        fillers=(
            Part(name="cosine", version="1", source_sha256="b" * 64, slots=("schedule",), values={"warmup": 0.1}),
        ),
        workload="llama-c4",
        workload_version="1.0.0",
        tier="tiny",
        precision="fp32",
        data=Data(source="embedded", directory=None, tokenizer=None, sha256="d" * 64, label="embedded documents"),
        protocol=Protocol(name=rules.name, version=rules.version, sha256=rules.sha256),
        study=0,
        point=0,
        seed=seed,
        device="cpu",
        device_class="cpu-2",
        threads=2,
        timeout_s=600.0,
        checkpoint_every_s=10.0,
        command_line="bench run --plugin adamw --workload llama-c4",
        reference="adamw",
        is_reference=algorithm == "adamw",
    )


def events(seed: int = 0) -> list[dict[str, Any]]:
    """Return the events of a trial that was interrupted once, resumed, and met its target."""
    facts = {
        "metric": "loss",
        "metric_direction": "min",
        "target": 2.0,
        "budget_steps": 40,
        "budget_s": 600.0,
        "device_listed": True,
        "started_at": "2026-01-01T00:00:00Z",
        "bench_version": "0.1.0",
        "threads": 2,
        "judged_from_step": 0,
    }
    found: list[dict[str, Any]] = [{"event": "started", "resumed": False, "step": 0, "facts": facts}]
    for number, step in enumerate((0, 10, 20, 30, 40)):
        cost = dict.fromkeys([f"{section}_s" for section in (*SECTIONS, *ASIDE)], 0.1) | {
            "time_s": 1.5 * step + seed,
            "setup_s": 0.1,
            "step_s": 1.4 * step,
            "wall_s": 2.0 * step,
            "cpu_s": 1.3 * step,
            "rss_peak_bytes": 10**9 + step,
            "optimizer_state_bytes": 4096,
            "energy_j": None,
            "contended": False,
        }
        quality = 4.0 - 0.6 * number + 0.01 * seed
        found.append(
            {
                "event": "evaluated",
                "step": step,
                "quality": quality,
                "metrics": {"loss": quality, "perplexity": "inf" if step == 0 else 50.0, "forgetting": 0.1},
                "train_loss": None if step == 0 else quality + 0.1,
                "learning_rate": 0.001,
                "cost": cost,
            }
        )
        if step == 20:
            found.append({"event": "saved", "step": 20})
            found.append({"event": "started", "resumed": True, "step": 20, "facts": facts})
    cost = found[-1]["cost"] | {"nvml_source": "none", "energy_source": "unsupported"}
    found.append({"event": "finished", "outcome": "reached", "reason": "", "at": "2026-01-01T01:00:00Z", "cost": cost})
    return found


def log(values: list[dict[str, Any]]) -> str:
    """Return events as a log holds them."""
    return "".join(json.dumps(value) + "\n" for value in values)


def store(root: Path, algorithms: tuple[str, ...] = ("adamw", "lion"), seeds: int = 3) -> Store:
    """Make a results folder with ``seeds`` trials of each algorithm, tables and all."""
    found = Store(root, create=True)
    found.keep(protocol("default"))
    for name in algorithms:
        for seed in range(seeds):
            one = trial(name, seed)
            (found.folder(one) / "events.jsonl").write_text(log(events(seed)), encoding="utf-8")
            found.finalise(one)
    return found
