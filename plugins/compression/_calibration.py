"""The one streamed pass over calibration data: second moments of what each linear reads, and what is made of them.

C = mean over the tokens of x xᵀ, of shape (n, n), for the inputs x of each linear. Batches are read one after another
and only sums are kept. Linears that read the same tensor (query, key and value; gate and up) share one sum, and what is
derived from it. Sums are in float64 on a CPU and in float32 elsewhere, whatever the dtype of the model.

Two modes of propagation, which are part of the name of a result:

``parallel``    all statistics come from one pass over the dense model;
``sequential``  block by block: the statistics of a block are those of its dense weights on what the blocks before it,
                already replaced, give; then the block with its replacements makes the inputs of the next.

A batch is called as ``model(batch["tokens"])``, or ``model(batch["inputs"])`` where it has no tokens; positions where
``batch["mask"]`` is false, padding, enter no statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import BadValue

from ._linears import hidden_linears, with_replaced

if TYPE_CHECKING:
    from bench import Batch, Run

Propagation = Literal["parallel", "sequential"]
Statistic = TypeVar("Statistic")


@dataclass(frozen=True)
class Call:
    """One call of a module on one batch, and which of its positions count (``None``: all)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> Call:
        """Return the call of the whole model on ``batch``."""
        key = "tokens" if "tokens" in batch else "inputs"
        if key not in batch:
            raise BadValue(f"a calibration batch has the keys {sorted(batch)}", hint="it needs 'tokens' or 'inputs'")
        return cls((batch[key],), mask=batch.get("mask"))

    def run(self, module: nn.Module) -> Any:
        """Return what ``module`` returns."""
        return module(*self.args, **self.kwargs)

    def after(self, block: nn.Module) -> Call:
        """Return the call of the next block: as this one, on what ``block`` makes of its first argument."""
        output = self.run(block)
        return replace(self, args=(output[0] if isinstance(output, tuple) else output, *self.args[1:]))


class _Sums:
    """Running sums of x xᵀ, one for all linears that read the same tensor."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._owners: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._last: tuple[str, Tensor] | None = None  # the tensor is held, so that no other can take its identity

    def read(self, name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Take note that the linear ``name`` reads ``args[0]``; a forward pre-hook."""
        x = args[0]
        again = self._last is not None and self._last[1] is x
        reader = self._last[0] if again and self._last is not None else name
        owner = self._owners.setdefault(name, reader)
        if owner != reader:
            raise BadValue(
                f"the linear {name!r} reads now what {reader!r} reads, and what {owner!r} reads in another call",
                hint="statistics of a linear that changes its source between calls are not supported",
            )
        if not again:
            self._last = (name, x)
            self._add(name, x)

    def _add(self, name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        if self.mask is not None:
            if self.mask.numel() != len(rows):
                raise BadValue(
                    f"the mask of a batch has {self.mask.numel()} positions, but {name!r} reads {len(rows)} vectors",
                    hint="a mask has one truth value for each token",
                )
            rows = rows[self.mask.flatten().bool()]
        rows = rows.to(torch.float64 if rows.device.type == "cpu" else torch.float32)
        gram = rows.mT @ rows
        self._sums[name] = self._sums[name].add_(gram) if name in self._sums else gram
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def means(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return C for each of ``names``: the same object for those that share it."""
        owners = {name: self._owners.get(name) for name in names}
        missing = [name for name, owner in owners.items() if owner is None or not self._counts[owner]]
        if missing:
            raise BadValue(
                f"no calibration token reached {', '.join(missing)}",
                hint="give batches that use all compressed linears",
            )
        means = {owner: self._sums[owner] / self._counts[owner] for owner in owners.values() if owner is not None}
        for name, mean in means.items():
            if not bool(mean.isfinite().all()):
                raise BadValue(f"the calibration inputs of {name!r} are not all finite")
        return {name: means[owner] for name, owner in owners.items() if owner is not None}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of ``module`` into evaluation mode, and back into its own afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def second_moments(module: nn.Module, linears: Mapping[str, nn.Linear], calls: Iterable[Call]) -> dict[str, Tensor]:
    """Return C for each of the ``linears`` inside ``module`` over the ``calls`` of it; see the module's text.

    Raises :class:`~bench.errors.BadValue` where no token reaches a linear and where inputs are not finite.
    """
    sums = _Sums()
    hooks = [linear.register_forward_pre_hook(partial(sums.read, name)) for name, linear in linears.items()]
    try:
        with evaluating(module):
            for call in calls:
                sums.mask = call.mask
                call.run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return sums.means(linears)


class _Caught(Exception):
    """No error: it ends a forward pass that has told enough."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = (args, kwargs)


@torch.no_grad()
def block_calls(model: nn.Module, block: str, batches: Iterable[Batch]) -> list[Call]:
    """Return how ``model`` calls its module ``block`` on each of ``batches``, without running what comes after it."""

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A cache of keys and values would grow at each replay of the call.
        raise _Caught(args, {key: None if key.startswith("past_key_value") else kwargs[key] for key in kwargs})

    calls = []
    hook = model.get_submodule(block).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(model):
            for call in map(Call.of, batches):
                try:
                    call.run(model)
                except _Caught as caught:
                    calls.append(Call(*caught.call, mask=call.mask))
    finally:
        hook.remove()
    if not calls or not calls[0].args:
        raise BadValue(f"the model did not call its block {block!r} with hidden states as the first argument")
    return calls


@dataclass(frozen=True)
class Calibrated:
    """Replace the linears of ``model`` by what ``replacement`` makes of them and of a statistic of their inputs.

    ``statistic`` turns C into what the replacement needs, once for all linears that share C; ``replacement`` gets the
    name, the dense linear and the statistic. ``target`` is the model whose modules of the same names are replaced:
    ``model`` itself, or one made of it. Neither is changed.
    """

    model: nn.Module
    target: nn.Module
    linears: Mapping[str, nn.Linear]
    statistic: Callable[[Tensor], Any]
    replacement: Callable[[str, nn.Linear, Any], nn.Module]

    def parallel(self, batches: Iterable[Batch]) -> nn.Module:
        """Return the copy of the target, all statistics from one pass over the dense model."""
        moments = second_moments(self.model, self.linears, map(Call.of, batches))
        return with_replaced(self.target, self._replaced(moments))

    @torch.no_grad()
    def sequential(self, batches: Iterable[Batch], blocks: Sequence[str]) -> nn.Module:
        """Return the copy of the target, the inputs of each of its ``blocks`` from the replaced ones before it."""
        inside = {block: {n: m for n, m in self.linears.items() if n.startswith(f"{block}.")} for block in blocks}
        outside = set(self.linears) - {name for names in inside.values() for name in names}
        if outside:
            raise BadValue(
                f"the linears {sorted(outside)} are in none of the blocks {list(blocks)}",
                hint="sequential propagation goes block by block: name the blocks, or use propagation = 'parallel'",
            )
        calls = block_calls(self.model, blocks[0], batches)
        replaced: dict[nn.Module, nn.Module] = {}
        for block in blocks:
            moments = second_moments(self.model.get_submodule(block), inside[block], calls)
            replaced |= self._replaced(moments)
            new = with_replaced(self.target.get_submodule(block), replaced)
            with evaluating(new):
                calls = [call.after(new) for call in calls]
        return with_replaced(self.target, replaced)

    def _replaced(self, moments: Mapping[str, Tensor]) -> dict[nn.Module, nn.Module]:
        replaced: dict[nn.Module, nn.Module] = {}
        shared: tuple[Tensor, Any] | None = None
        for name, moment in moments.items():  # those that share C follow each other
            if shared is None or shared[0] is not moment:
                shared = (moment, self.statistic(moment))
            replaced[self.target.get_submodule(name)] = self.replacement(name, self.linears[name], shared[1])
        return replaced


def calibrated(
    model: nn.Module,
    calibration: Sequence[Batch],
    run: Run,
    propagation: Propagation,
    statistic: Callable[[Tensor], Statistic],
    replacement: Callable[[str, nn.Linear, Statistic], nn.Module],
    target: nn.Module | None = None,
) -> nn.Module:
    """Return a copy of ``target`` (by default ``model``) with its hidden linears replaced; see :class:`Calibrated`."""
    linears = hidden_linears(model, run.roles)
    work = Calibrated(model, model if target is None else target, linears, statistic, replacement)
    return work.parallel(calibration) if propagation == "parallel" else work.sequential(calibration, run.blocks)
