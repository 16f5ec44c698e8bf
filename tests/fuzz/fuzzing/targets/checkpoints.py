"""Checkpoints: zip archives of tensors, loaded without unpickling anything else."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch

from bench import checkpoint
from fuzzing import mutate
from fuzzing.case import Case
from fuzzing.hostile import CANARY


class Runs:
    """Runs foreign code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, (f"import {CANARY}",))


class Checkpoints:
    """Reads one checkpoint."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        model = torch.nn.Linear(4, 3)
        torch.nn.init.ones_(model.weight)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        content = {
            "progress": {"step": 3, "hit_step": None, "wall_s": 1.5, "clock": {"time_s": 1.0}},
            "model": model.state_dict(),
            "trainable": ["weight", "bias"],
            "optimizer": optimizer.state_dict(),
            "parts": {},
            "generators": {"run": {"data": torch.Generator().manual_seed(1).get_state()[:64]}},
        }
        file = io.BytesIO()
        torch.save(content, file)
        old = io.BytesIO()
        torch.save(content, old, _use_new_zipfile_serialization=False)
        self._files = [file.getvalue(), file.getvalue(), file.getvalue(), old.getvalue()]

    def make(self, random: Random) -> Case:
        kind = random.random()
        if kind < 0.75:
            return {"file": mutate.data(random, random.choice(self._files))}
        if kind < 0.78:
            return {"file": pickle.dumps(Runs(), protocol=random.randrange(5))}
        return {"file": _member(random, self._files[0])}

    def run(self, case: Case, folder: Path) -> None:
        path = folder / "checkpoint.pt"
        path.write_bytes(case["file"])
        checkpoint.read(path)


def _member(random: Random, content: bytes) -> bytes:
    """Return the archive with one member changed, its checksum right."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(found, "w") as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            raw = old.read(name)
            if name == chosen:
                raw = pickle.dumps(Runs(), 2) if random.random() < 0.2 else mutate.data(random, raw)
            new.writestr(zipfile.ZipInfo(name), raw)
    return found.getvalue()
