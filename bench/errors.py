"""Errors that a user can act on.

BenchError            base: printed as one message, exit code 2
├── UnknownName       a plugin, workload, tier or hyperparameter that nobody registered
├── BadValue          a value outside its domain (also a ``ValueError``)
├── BadData           a data set that is missing, corrupt or out of reach
├── BadStore          a results folder that is foreign, unreadable or of a newer schema
│   └── CannotWrite   one that cannot be written now: no space, read-only, no permission, gone
├── BadBundle         a bundle that cannot be made, or a file that is none or is not safe to read
├── BrokenPlugin      a plugin that does not import, or whose entry is wrong
├── SlotMismatch      a plugin that fills no slot that this workload has
├── SlotFault         a slot that raised, or returned the wrong thing; the trial's outcome is ``error``
├── GuardTripped      code of an algorithm that changed or reached for what it must not; outcome ``error`` as well
└── TrialBusy         another process runs this very trial at the moment

Every message says what was wrong with its value and type and what is allowed; the hint says what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Base of every error that the command line prints without a traceback.

    ``message`` says what was wrong, ``hint`` what to do about it (empty: nothing to add).
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nHint: {self.hint}" if self.hint else self.message


class UnknownName(BenchError):
    """A name that nobody registered; suggests the nearest one that exists."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
        super().__init__(f"no {kind} named {name!r}", hint=hint)


class BadValue(BenchError, ValueError):
    """A value outside its domain."""


class BadData(BenchError):
    """A data set that is missing, corrupt or out of reach."""


class BadStore(BenchError):
    """A results folder that is foreign, unreadable or written by a newer schema."""


class CannotWrite(BadStore):
    """A results folder that cannot be written at the moment: no space left, read-only, no permission, or gone."""


class BadBundle(BenchError):
    """A bundle that cannot be made, or a file that is no bundle or is not safe to read."""


class BrokenPlugin(BenchError):
    """A plugin that does not import, or whose entry names something else than it provides."""


class SlotMismatch(BenchError):
    """A plugin that fills no slot that this workload has, or needs what the workload does not offer."""


class SlotFault(BenchError):
    """A slot that raised or returned the wrong thing; ends its trial with the outcome ``error``."""


class GuardTripped(BenchError):
    """Code of an algorithm changed or reached for what it must not; ends its trial with the outcome ``error``."""


class TrialBusy(BenchError):
    """Another process holds the lock of this trial's directory."""
