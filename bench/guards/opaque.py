"""Functions that algorithms may call and not look into.

A closure or a bound method leads to the workload: ``function.__closure__``, ``method.__self__``. What :class:`Opaque`
calls is kept behind the audit hook of the process, where no attribute, no module and no referent leads.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from bench.guards.fence import FENCE
from bench.guards.hook import listen

_KEEP, _DROP, _CALL = "bench.guards.keep", "bench.guards.drop", "bench.guards.call"
_numbers = itertools.count()


class Opaque:
    """Calls a function that cannot be reached from here; copies are the same object, and none can be pickled.

    Args:
        function: what is called.
        lifted: whether the function is the workload's alone, which may open its files though a slot asked for it.
    """

    __slots__ = ("__weakref__", "_lifted", "_number")

    def __init__(self, function: Callable[..., Any], *, lifted: bool = False) -> None:
        self._number = next(_numbers)
        self._lifted = lifted
        sys.audit(_KEEP, self._number, function)
        weakref.finalize(self, sys.audit, _DROP, self._number)

    def __call__(self, *arguments: Any) -> Any:
        """Call what is hidden."""
        answer: list[Any] = []
        if self._lifted:
            with FENCE.around(""):
                sys.audit(_CALL, self._number, arguments, answer)
        else:
            sys.audit(_CALL, self._number, arguments, answer)
        return answer[0]

    def __copy__(self) -> Opaque:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a function of the run belongs to its process and cannot be pickled")


def _install() -> None:
    functions: dict[int, Callable[..., Any]] = {}

    def call(number: int, arguments: tuple[Any, ...], answer: list[Any]) -> None:
        answer.append(functions[number](*arguments))

    listen(_KEEP, functions.__setitem__)
    listen(_DROP, lambda number: functions.pop(number, None))  # type: ignore[arg-type]
    listen(_CALL, call)


_install()
