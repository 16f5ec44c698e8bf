"""Parameters by name, shape and role, gradients by hand: what any training loop may hand to an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.conformance.check import Subject
from bench.context import Run
from bench.roles import Role

STEPS = 12
"""The budget of a run here; small, so that what is renewed now and then is renewed."""

Shapes = Mapping[str, tuple[Role, tuple[int, ...]]]

SHAPES: Shapes = {
    "embedding": (Role.EMBEDDING, (16, 8)),
    "square": (Role.ATTENTION_Q, (8, 8)),
    "tall": (Role.MLP, (24, 8)),
    "wide": (Role.MLP, (8, 24)),
    "large": (Role.ATTENTION_O, (32, 512)),  # large enough for states that are compressed by blocks
    "convolution": (Role.CONV, (4, 3, 3, 3)),
    "norm": (Role.NORM, (8,)),
    "scalar": (Role.BIAS, (1,)),
    "head": (Role.LM_HEAD, (16, 8)),
}

DTYPES = (torch.float32, torch.bfloat16)


def drawn(key: str, number: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return the tensor of N(0, 1) that belongs to ``key`` and ``number``, whatever was drawn before."""
    seed = int.from_bytes(key.encode()[:6], "big") + number
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


class Scene:
    """Some parameters, an algorithm's optimizer over them, and gradients that depend on name and step alone."""

    def __init__(
        self,
        subject: Subject,
        shapes: Shapes = SHAPES,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: str = "cpu",
        scale: float = 1e-3,
    ) -> None:
        self.algorithm = subject.algorithm()
        self.shapes = shapes
        self.parameters = {
            key: nn.Parameter((scale * drawn(key, 0, shape)).to(device, dtype)) for key, (_, shape) in shapes.items()
        }
        roles = {key: role for key, (role, _) in shapes.items()}
        self.run = Run(seed=seed, steps=STEPS, device=torch.device(device), roles=roles, algorithm=subject.name)
        self.optimizer = self.algorithm.optimizer(list(self.parameters.items()), self.run)
        switch = getattr(self.optimizer, "train", None)
        if callable(switch):
            switch()

    def gradients(self, number: int, scale: float = 1.0, without: Collection[str] = ()) -> None:
        """Put the gradients of step ``number`` in place."""
        for key, parameter in self.parameters.items():
            gradient = (scale * drawn(key, number, self.shapes[key][1])).to(parameter.device, parameter.dtype)
            parameter.grad = None if key in without else gradient

    def step(self, number: int = 1, **changes: Any) -> None:
        """Do step ``number``, by a closure where the algorithm wants one."""
        if self.algorithm.closure:

            def closure() -> float:
                self.gradients(number, **changes)
                return 1.0

            self.optimizer.step(closure)
        else:
            self.gradients(number, **changes)
            self.optimizer.step()

    def steps(self, first: int, last: int) -> dict[str, Tensor]:
        """Do the steps ``first`` to ``last`` and return the values after them."""
        for number in range(first, last + 1):
            self.step(number)
        return self.values()

    def values(self) -> dict[str, Tensor]:
        """Return a copy of every parameter."""
        return {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def take_over(self, other: Scene, state: dict[str, Any]) -> None:
        """Go on where ``other`` stands, with ``state`` as the optimizer's."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(other.parameters[key])
        self.optimizer.load_state_dict(state)
        for purpose, generator in other.run.generators.items():
            self.run.rng(purpose).set_state(generator.get_state())

    def state_tensors(self) -> list[Tensor]:
        """Return the tensors that the optimizer keeps for its parameters."""
        held = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value for value in held if isinstance(value, Tensor)]

    def infinite(self) -> str:
        """Return in words what is not finite; empty if all parameters and states are."""
        for key, parameter in self.parameters.items():
            count = int((~parameter.isfinite()).sum())
            if count:
                return f"{count} of {parameter.numel()} values of {key!r} are not finite"
        states = self.state_tensors()
        count = sum(not bool(value.isfinite().all()) for value in states)
        return f"{count} of {len(states)} state tensors hold values that are not finite" if count else ""

    def stepping(self, closure: Callable[[], Any]) -> Any:
        """Step by ``closure`` and return what the optimizer returned."""
        return cast("Callable[..., Any]", self.optimizer.step)(closure)
