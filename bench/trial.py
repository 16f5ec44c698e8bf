"""A trial: one run of one algorithm on one workload tier with one hyperparameter point and one seed.

``trial.json`` is everything that a worker needs; its identity is everything that can change the result.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from bench import strict_json
from bench.errors import BadStore
from bench.files import plain

OUTCOMES = (
    "reached",
    "missed",
    "completed",
    "diverged",
    "out_of_memory",
    "timeout",
    "error",
    "interrupted",
)
"""How a trial can end. ``completed``: the whole budget was used where no target is set."""

MEASURED = frozenset({"reached", "missed", "completed", "diverged", "timeout"})
"""The outcomes that are measurements: a repeated command skips them, and tries the others again."""

FAILED = frozenset({"out_of_memory", "timeout", "error", "interrupted"})
"""The outcomes after which a command ends with exit code 1."""

Phase = Literal["measure", "tune", "rerun"]
"""What a trial is for: the setting that a protocol fixes, one point of a study's search, or the repetition of the point
that a study selected."""

Outcome = Literal["reached", "missed", "completed", "diverged", "out_of_memory", "timeout", "error", "interrupted"]


Number = Annotated[int, Ge(0), Lt(2**63)]
"""What a column of the tables holds."""


class Strict(BaseModel):
    """Base of what is read from a file: unknown keys are errors, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(Strict):
    """One algorithm with all its hyperparameters; ``slots`` are those that it fills in this trial."""

    name: str
    version: str
    source_sha256: str
    slots: tuple[str, ...]
    values: dict[str, Any]


class Data(Strict):
    """The data of a trial: how to open it, and what it must turn out to be."""

    source: str
    directory: str | None
    tokenizer: str | None
    sha256: str
    label: str
    models: tuple[str, ...] = ()


class Protocol(Strict):
    """The tuning protocol that a trial belongs to."""

    name: str
    version: str
    sha256: str


class Trial(Strict):
    """Everything that a worker needs to run one trial, as stored in ``trial.json``.

    ``reference`` names the algorithm that this one is compared with, and ``is_reference`` says that this is a trial of
    that algorithm as the workload or the protocol tunes it. The limits come from the protocol, whose hash is in the
    identity. ``reproduces`` is the SHA-256 of the bundle whose records this trial was run to check, and agreed with.
    """

    algorithm: Part
    fillers: tuple[Part, ...]
    workload: str
    workload_version: str
    tier: str
    precision: str
    data: Data
    protocol: Protocol
    study: Number
    point: Number
    seed: Number
    device: str
    device_class: str
    threads: int | None
    timeout_s: FiniteFloat
    checkpoint_every_s: FiniteFloat
    command_line: str
    phase: Phase = "measure"
    reference: str | None = None
    is_reference: bool | None = None
    budget_factor: FiniteFloat = 1.0
    stop_at_target: bool = False
    reproduces: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return what can change the result, and nothing else."""
        parts = {"algorithm", "fillers", "workload", "workload_version", "tier", "precision", "study", "point", "seed"}
        identity = self.model_dump(mode="json", include=parts | {"device_class", "protocol"})
        return identity | {"data": {"source": self.data.source, "sha256": self.data.sha256}}

    @property
    def trial_id(self) -> str:
        """The first 20 hexadecimal digits of the SHA-256 of the identity."""
        return digest(self.identity())[:20]

    def text(self) -> str:
        """Return the content of ``trial.json``."""
        return self.model_dump_json(indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write ``trial.json``."""
        path.write_text(self.text(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Trial:
        """Read ``trial.json``; a missing, foreign or broken one raises :class:`~bench.errors.BadStore`."""
        try:
            content = plain(path).read_bytes()
            trial = cls.model_validate_json(content.decode("utf-8"))
            strict_json.loads(content)
        except OSError as error:
            raise BadStore(f"cannot read {path}: {error.strerror}", hint="give the path of a trial.json") from None
        except ValueError as error:  # of JSON, of Unicode or of pydantic
            raise BadStore(f"{path} is not a trial of this version of bench: {_first_line(error)}") from None
        return trial


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return str(error).splitlines()[0][:200]


def digest(value: Any) -> str:
    """Return the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
