"""What our optimizers share: the closure, exact resume, and the pieces in which many tensors are processed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

T = TypeVar("T")
Group = dict[str, Any]


class BaseOptimizer(torch.optim.Optimizer):
    """Base of our optimizers: a subclass writes :meth:`_update`, which steps some parameters of one group.

    State of a parameter holds tensors on the parameter's device and a Python integer ``step``, nothing else, so that
    ``state_dict`` can be saved and loaded with ``weights_only=True``.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step with the gradients at hand and return the loss of ``closure``, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group, with_gradient(group))
        return loss

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        """Step ``parameters`` of ``group``; each has a gradient."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``, keeping the dtype of every state tensor.

        torch casts the state of a floating-point parameter to the parameter's dtype: fp32 moments of a bf16 parameter
        would be rounded, 8-bit codes turned into floats, and a resumed run would differ from an undisturbed one.
        """
        saved: dict[Any, Any] = {}

        def take(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            saved.update(state=loaded["state"], groups=loaded["param_groups"])
            return {**loaded, "state": {}}

        def put(_: torch.optim.Optimizer) -> None:
            numbers = (number for group in saved["groups"] for number in group["params"])
            parameters = dict(zip(numbers, all_parameters(self), strict=True))
            for number, state in saved["state"].items():
                parameter = parameters[number]
                self.state[parameter] = {key: _copied(value, parameter.device) for key, value in state.items()}

        # Last of the pre-hooks and first of the post-hooks: those of the user see what they would see in torch.
        hooks = (
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(put, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()


def _copied(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def all_parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of ``optimizer`` in the order of its groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def with_gradient(group: Group) -> list[Tensor]:
    """Return the parameters of ``group`` that have elements and a gradient; a sparse one raises ``RuntimeError``."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None and parameter.numel()]
    for parameter, gradient in zip(parameters, gradients_of(parameters), strict=True):
        if gradient.is_sparse:
            raise RuntimeError(
                f"the gradient of {parameter_name(group, parameter)} is sparse; this optimizer takes dense gradients "
                "only: build the embedding with sparse=False"
            )
    return parameters


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of ``parameters``, each of which has one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def parameter_name(group: Mapping[str, Any], parameter: Tensor) -> str:
    """Return what to call ``parameter`` of ``group`` in a message: its name where one was given, and its shape."""
    shape = f"of shape {tuple(parameter.shape)}"
    names = group.get("param_names")
    index = next(i for i, other in enumerate(group["params"]) if other is parameter)
    return f"{names[index]!r} {shape}" if names else f"parameter {index} {shape}"


def bucketed(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return ``items`` in lists of equal ``key``, in the order of first appearance."""
    buckets: dict[Hashable, list[T]] = {}
    for item in items:
        buckets.setdefault(key(item), []).append(item)
    return list(buckets.values())


def piece_elements(device: torch.device) -> int:
    """Return how many elements a batched or foreach operation takes at once, a single larger tensor aside.

    Small tensors, where the cost is in starting an operation, go together, and the temporaries of a step stay small
    whatever the size of the model. On the CPU a piece fits the cache: with 2**22 elements Lion took 1.5 times as long.
    """
    return 2**18 if device.type == "cpu" else 2**24


def cut(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield parallel ``lists`` of tensors of one device again, each time at most :func:`piece_elements` elements.

    Larger contiguous tensors come as flat views of that size. For operations that work element by element: five of
    them, one after the other on the embedding of a LLaMA, took a third of the time when each piece stayed in the cache.
    """
    limit = piece_elements(lists[0][0].device) if lists[0] else 1
    waiting: list[tuple[Tensor, ...]] = []
    elements = 0
    for tensors in zip(*lists, strict=True):
        for part in _split(tensors, limit):
            if waiting and elements + part[0].numel() > limit:
                yield _columns(waiting)
                waiting, elements = [], 0
            waiting.append(part)
            elements += part[0].numel()
    if waiting:
        yield _columns(waiting)


def _split(tensors: tuple[Tensor, ...], limit: int) -> Iterable[tuple[Tensor, ...]]:
    if tensors[0].numel() <= limit or not all(tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return zip(*(torch.split(tensor.view(-1), limit) for tensor in tensors), strict=True)


def _columns(rows: list[tuple[Tensor, ...]]) -> tuple[list[Tensor], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield ``tensors`` of one device in consecutive lists of at most :func:`piece_elements` elements."""
    piece: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if piece and elements + tensor.numel() > piece_elements(tensor.device):
            yield piece
            piece, elements = [], 0
        piece.append(tensor)
        elements += tensor.numel()
    if piece:
        yield piece
