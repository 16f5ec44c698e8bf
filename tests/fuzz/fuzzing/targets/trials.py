"""``trial.json``: what a worker is started on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from bench import record
from bench.trial import Trial
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples


class Trials:
    """Reads one ``trial.json`` and asks for its identity."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._good = json.loads(samples.trial().text())

    def make(self, random: Random) -> Case:
        value = self._good if random.random() < 0.1 else mutate.structure(random, self._good)
        raw = mutate.as_json(random, value)
        if random.random() < 0.3:
            raw = mutate.data(random, raw)
        if random.random() < 0.02:
            raw = hostile.text(random).encode("utf-8", errors="surrogatepass")
        return {"file": raw}

    def run(self, case: Case, folder: Path) -> None:
        path = folder / "trial.json"
        path.write_bytes(case["file"])
        trial = Trial.read(path)
        identity = trial.trial_id
        record.identity_columns(trial)
        trial.write(path)
        if Trial.read(path).trial_id != identity:
            raise AssertionError(f"{identity} is another trial when it is read again")
