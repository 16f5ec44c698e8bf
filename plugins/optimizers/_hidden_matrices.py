r"""A rule for the hidden matrices of a model and AdamW for everything else: what Muon and its kin share.

A plugin derives its optimizer from :class:`HiddenMatrixOptimizer` and writes :meth:`~HiddenMatrixOptimizer._fresh`
and :meth:`~HiddenMatrixOptimizer._update_matrices`. Its dataclass has the fields ``adamw_lr``, ``adamw_beta1``,
``adamw_beta2``, ``adamw_eps`` and ``adamw_weight_decay``, whose defaults are those of an AdamW group, and one field for
each option of the optimizer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bench.errors import BadValue, SlotMismatch
from bench.roles import HIDDEN_MATRICES

from ._adam_state import adamw_step
from ._base import BaseOptimizer, Group, bucketed, parameter_name, pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench import Algorithm, NamedParameters, Run

NO_FIELDS = ("algorithm", "foreach")
"""Options of a group that are no hyperparameters."""


def matrices_and_rest(algorithm: Algorithm, named_parameters: NamedParameters, run: Run) -> list[Group]:
    """Return a group of the parameters with a hidden role and two or more dimensions, and an AdamW group of the others.

    Raises:
        SlotMismatch: no parameter is of the first kind.
    """
    matrices: list[tuple[str, Tensor]] = []
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in named_parameters:
        hidden = run.role(name) in HIDDEN_MATRICES and parameter.ndim >= 2
        (matrices if hidden else rest).append((name, parameter))
    if not matrices:
        raise SlotMismatch(
            f"{algorithm.name} found no parameter with a hidden role and two or more dimensions",
            hint="use adamw, or give the workload's matrices their roles",
        )
    adamw_group = {"params": rest, "algorithm": "adamw"} | _adamw_options(algorithm.hyperparameters())
    return [{"params": matrices}, adamw_group] if rest else [{"params": matrices}]


class HiddenMatrixOptimizer(BaseOptimizer):
    """Base of the optimizers that have a rule of their own for matrices and take AdamW steps with everything else."""

    algorithm: ClassVar[type[Algorithm]]
    """Where the domains of the options are written."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and the shapes of its parameters."""
        kind = param_group.get("algorithm", self.algorithm.name)
        if kind == "adamw":
            param_group = _adamw_options(self.algorithm().hyperparameters()) | param_group
            beta1, beta2 = param_group["betas"]
            values = {"beta1": beta1, "beta2": beta2} | {name: param_group[name] for name in ADAMW_NUMBERS}
            self.algorithm.check(**{f"adamw_{name}": value for name, value in values.items()})
        elif kind == self.algorithm.name:
            options = self.defaults | param_group
            self.algorithm.check(**{name: options[name] for name in self.defaults if name not in NO_FIELDS})
        else:
            raise BadValue(
                f"{self.algorithm.name}: algorithm = {kind!r} ({type(kind).__name__}) is not allowed in a group",
                hint=f"algorithm is one of {self.algorithm.name!r}, 'adamw'",
            )
        super().add_param_group(param_group)
        try:
            self._refuse_vectors(self.param_groups[-1])
        except BadValue:
            self.param_groups.pop()
            raise

    def _fresh(self, matrix: Tensor, group: Group) -> Group:
        """Return the state of ``matrix`` before its first step."""
        raise NotImplementedError

    def _update_matrices(self, group: Group, matrices: list[Tensor], scratch: Scratch) -> None:
        """Step ``matrices`` of one shape, dtype and device; one at a time where ``foreach`` is off.

        ``scratch`` is that of this step and may be used or not.
        """
        raise NotImplementedError

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        if group["algorithm"] == "adamw":
            self._update_adamw(group, parameters)
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = self._fresh(parameter, group)
        scratch = Scratch()
        for bucket in bucketed(parameters, lambda parameter: (parameter.device, parameter.dtype, parameter.shape)):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                self._update_matrices(group, piece, scratch)

    def _update_adamw(self, group: Group, parameters: list[Tensor]) -> None:
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0))):
            adamw_step(bucket, [self.state[parameter] for parameter in bucket], group)

    def _refuse_vectors(self, group: Group) -> None:
        for parameter in group["params"] if group["algorithm"] != "adamw" else ():
            if parameter.ndim < 2:
                raise BadValue(
                    f"{self.algorithm.name}: {parameter_name(group, parameter)} has fewer than two dimensions and is "
                    "no matrix",
                    hint='put it into a group with "algorithm": "adamw"',
                )


ADAMW_NUMBERS = ("lr", "eps", "weight_decay")


def _adamw_options(fields: Mapping[str, Any]) -> Group:
    options: Group = {name: fields[f"adamw_{name}"] for name in ADAMW_NUMBERS}
    return options | {"betas": (fields["adamw_beta1"], fields["adamw_beta2"])}


class Scratch:
    """Memory for the temporaries of one step, which its pieces use one after the other.

    It is for the CPU, where the first touch of a fresh page costs as much as the arithmetic: a step of AuON on the
    shapes of LLaMA 60M takes half the time with it. The allocator of an accelerator keeps its memory by itself.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def like(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return uninitialised tensors of the shapes of ``tensors``, of one dtype; earlier ones become invalid."""
        entries = sum(tensor.numel() for tensor in tensors)
        memory = self._memory
        if memory is None or memory.dtype != tensors[0].dtype or memory.numel() < entries:
            memory = self._memory = torch.empty(entries, dtype=tensors[0].dtype, device=tensors[0].device)
        parts, start = [], 0
        for tensor in tensors:
            end = start + tensor.numel()
            parts.append(memory[start:end].view(tensor.shape))
            start = end
        return parts


def aspect_factor(shape: torch.Size) -> float:
    """Return √max(1, m/n) for a parameter of ``shape``, seen as (m, n) = (out, everything else)."""
    return math.sqrt(max(1.0, shape[0] / math.prod(shape[1:])))


def nesterov_mix(
    gradients: list[Tensor], momenta: list[Tensor], momentum: float, *, nesterov: bool, scratch: Scratch | None = None
) -> list[Tensor]:
    """Advance M ← M + (1-μ)(G - M) in place; return (1-μ) G + μ M where ``nesterov``, otherwise M itself.

    Where a ``scratch`` is given the mixes may lie in it: they are valid until it is used again.
    """
    torch._foreach_lerp_(momenta, gradients, 1.0 - momentum)
    if not nesterov:
        return momenta
    if scratch is None or not gradients[0].is_cpu:
        return list(torch._foreach_lerp(gradients, momenta, momentum))  # noqa: SLF001 - as in torch
    tensors = zip(gradients, momenta, scratch.like(gradients), strict=True)
    return [torch.lerp(gradient, average, momentum, out=mixed) for gradient, average, mixed in tensors]


def stacked_matrices(tensors: list[Tensor]) -> Tensor:
    """Return ``tensors`` of one shape as one batch (k, out, everything else); a single one without a copy."""
    matrices = [tensor.flatten(1) for tensor in tensors]
    return matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(matrices)


def subtract(weights: list[Tensor], steps: Tensor, lr: float, weight_decay: float) -> None:
    """Do W ← W (1 - η λ), W ← W - η S with each of ``weights`` and its S in ``steps`` (k, out, everything else)."""
    if weight_decay:
        torch._foreach_mul_(weights, 1.0 - lr * weight_decay)
    shaped = [step.reshape(weights[0].shape) for step in steps.to(weights[0].dtype).unbind()]
    torch._foreach_add_(weights, shaped, alpha=-lr)
