"""The one audit hook of the process: Python tells it of files, sockets and frames before they are reached.

An audit hook cannot be removed, and nothing leads from Python code to it: that is why :mod:`bench.guards.opaque` keeps
behind it what algorithms must not see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[..., None]
_LISTEN = "bench.guards.listen"


def listen(event: str, handler: Handler) -> None:
    """Let ``handler`` hear of ``event`` from now on; the first that listens to an event is the only one."""
    sys.audit(_LISTEN, event, handler)


def _install() -> None:
    handlers: dict[str, Handler] = {}
    handlers[_LISTEN] = handlers.setdefault  # type: ignore[assignment]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        handler = handlers.get(event)
        if handler is not None:
            handler(*arguments)

    hook.__cantrace__ = True  # type: ignore[attr-defined]  # so that debuggers work inside a loss
    sys.addaudithook(hook)


_install()
