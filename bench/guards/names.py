"""Functions and classes that everybody shares: has one been replaced, or been given other code?"""

from __future__ import annotations

import builtins
import contextlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import GuardTripped
from bench.guards.hook import listen

_PYTHON = ("builtins", "gc", "json", "math", "os", "random", "signal", "sys", "threading", "time")
_TORCH = (
    *(
        "torch",
        "torch.nn",
        "torch.nn.functional",
        "torch.nn.init",
        "torch.nn.parameter",
        "torch.linalg",
        "torch.random",
    ),
    *("torch.autograd", "torch.autograd.function", "torch.autograd.graph", "torch.autograd.grad_mode", "torch.cuda"),
    *("torch.optim", "torch.optim.optimizer", "torch.optim.lr_scheduler", "torch.nn.utils", "torch.nn.modules.module"),
)
_NUMPY = ("numpy", "numpy.random", "numpy.linalg")
_HOOKS = frozenset({"excepthook", "displayhook", "unraisablehook", "breakpointhook", "last_exc"})
"""What a display, a debugger or a test may set; nothing of a measurement runs through it."""
_IDLE = frozenset({"__class__", "__signature__", "__loader__", "__build_class__", "_"})
_MEMBERS = (property, staticmethod, classmethod)
_CONSTANTS = (bool, int, float, str, tuple, frozenset, Path)
_OURS, _NOT_OURS = "bench", ("bench.plugins", "bench.workloads")
_BODY = frozenset({"__code__", "__defaults__", "__kwdefaults__"})
_REWRITTEN: list[tuple[int, str]] = []
"""Functions whose body was exchanged in place, as Python's audit hook told it: reading all bodies takes too long."""


@dataclass
class _Space:
    """A module or a class: what its names stood for, and which functions are among them.

    ``behind`` is where a name is looked up that is not there, builtins or base classes: a new name may hide another.
    """

    label: str
    owner: Any
    namespace: Mapping[str, Any]
    behind: Sequence[Mapping[str, Any]]
    members: dict[str, Any] = field(default_factory=dict)
    functions: dict[int, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def take(self, *, constants: bool) -> _Space:
        """Note everything that can be called, and constants where asked."""
        self.known = set(self.namespace)
        for name, value in list(self.namespace.items()):
            if name in _HOOKS:
                continue
            if callable(value) or isinstance(value, _MEMBERS) or (constants and isinstance(value, _CONSTANTS)):
                self.members[name] = value
            function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            if isinstance(function, types.FunctionType):
                self.functions[id(function)] = name  # alive as long as its member is
        return self

    def put_back(self) -> None:
        """Let every name stand for what it stood for, as far as it can be told."""
        for name, old in self.members.items():
            if self.namespace.get(name) is not old:
                setattr(self.owner, name, old)

    def change(self) -> str:
        """Return in words the first name that stands for something else now, empty if none does."""
        namespace = self.namespace
        for name, old in self.members.items():
            new = namespace.get(name)
            if new is not old:
                if name in namespace and _is_torch_wrapping(old, new):
                    self.members[name] = new
                    continue
                return f"{self.label}.{name} from {_shown(old)} to {_shown(new) if name in namespace else 'nothing'}"
        for name in namespace.keys() - self.known:
            self.known.add(name)
            hidden = next((space[name] for space in self.behind if name in space), None)
            if (callable(hidden) or isinstance(hidden, _MEMBERS)) and name not in _IDLE:
                new = namespace.get(name)
                if not _is_torch_wrapping(hidden, new):
                    return f"{self.label}.{name} from {_shown(hidden)} to {_shown(new)}"
                self.members[name] = new
        for function, what in _REWRITTEN:
            if function in self.functions:
                return f"{what} of {self.label}.{self.functions[function]}"
        return ""


class Names:
    """The names of this process as they stood; new ones are nobody's concern."""

    def __init__(self, foreign: Sequence[str] = (*_PYTHON, *_TORCH, *_NUMPY)) -> None:
        self._foreign = foreign
        _REWRITTEN.clear()
        self._spaces: dict[str, _Space] = {}
        self.grow()

    def grow(self) -> None:
        """Note the modules of this package that were loaded since, and the classes in them."""
        for name in (*self._foreign, *_loaded()):
            module = sys.modules.get(name)
            if module is not None and name not in self._spaces:
                self.add(module)

    def add(self, module: types.ModuleType) -> None:
        """Note a module and the classes that are defined in its package."""
        label, ours = module.__name__, module.__name__.split(".")[0] == _OURS
        self._spaces[label] = _Space(label, module, vars(module), (vars(builtins),)).take(constants=ours)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__.split(".")[0] == label.split(".")[0]:
                self.add_class(value, constants=ours)

    def add_class(self, cls: type, *, constants: bool = True) -> None:
        """Note the members of a class."""
        label = f"{cls.__module__}.{cls.__qualname__}"
        if label not in self._spaces:
            bases = tuple(vars(base) for base in cls.__mro__[1:])
            self._spaces[label] = _Space(label, cls, vars(cls), bases).take(constants=constants)

    def check(self, who: str) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if a name stands for something else now; then note new modules."""
        for space in self._spaces.values():
            if what := space.change():
                raise GuardTripped(f"{who} changed {what}")
        self.grow()

    def put_back(self) -> None:
        """Undo what was done to the names since."""
        for space in self._spaces.values():
            space.put_back()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Undo what the body, which imports plugins, does to Python and this package.

    For a process that goes on to serve other trials: the worker of each trial finds out and says so.
    """
    names = Names(_PYTHON)
    try:
        yield
    finally:
        names.put_back()


def _loaded() -> Iterator[str]:
    for name in list(sys.modules):
        if name.split(".")[0] == _OURS and not name.startswith(_NOT_OURS):
            yield name


def _on_set(function: Any = None, name: str = "", *_: Any) -> None:
    if name in _BODY and isinstance(function, types.FunctionType):
        _REWRITTEN.append((id(function), name))


def _is_torch_wrapping(old: Any, new: Any) -> bool:
    """Whether torch itself put a wrapper around ``old``, as it does to the step of each class of optimizers."""
    for _ in range(8):
        code, torch = getattr(new, "__code__", None), sys.modules.get("torch")
        if code is None or torch is None or not code.co_filename.startswith(str(Path(str(torch.__file__)).parent)):
            return False
        new = getattr(new, "_torchdynamo_orig_callable", None) or getattr(new, "__wrapped__", None)
        if new is old:
            return True
    return False


def _shown(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if name and module else f"{value!r:.60}"


listen("object.__setattr__", _on_set)
