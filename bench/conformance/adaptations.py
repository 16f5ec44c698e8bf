"""The slot ``adapt``: a network whose parameters have every role that adaptations look for is adapted."""

from __future__ import annotations

import io
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.conformance.check import CheckSkipped, Kind, Subject, difference, expect, expect_equal
from bench.conformance.optimizer_scene import DTYPES, STEPS, drawn
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import expect_seed_matters, no_global_draws, seeded
from bench.context import Run, adapted_roles
from bench.roles import Role

adapt = Kind("adapt", lambda subject: subject.fills("adapt"))


class Block(nn.Module):
    """A network with one parameter of each role that adaptations look for; its inputs are (B, 32)."""

    roles: ClassVar = {
        "q.weight": Role.ATTENTION_Q,
        "v.weight": Role.ATTENTION_V,
        "up.weight": Role.MLP,
        "down.weight": Role.MLP,
        "norm.weight": Role.NORM,
        "norm.bias": Role.BIAS,
        "up.bias": Role.BIAS,
        "head.weight": Role.CLASSIFIER,
        "head.bias": Role.BIAS,
    }

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 4)."""
        x = x + self.v(torch.tanh(self.q(x)))
        output: Tensor = self.head(x + self.down(torch.relu(self.up(self.norm(x)))))
        return output


def base(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Block:
    """Return the network, always with the same weights, and the global generators as they were."""
    state = torch.get_rng_state()
    torch.manual_seed(1)
    with torch.device(device):
        model = Block().to(dtype)
    torch.set_rng_state(state)
    return model


def adapted(
    subject: Subject, seed: int = 0, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[nn.Module, Run]:
    """Return the adapted network and the run."""
    run = Run(seed=seed, steps=STEPS, device=torch.device(device), roles=Block.roles, algorithm=subject.name)
    return subject.algorithm().adapt(base(device, dtype), run), run


def _features(dtype: torch.dtype = torch.float32) -> Tensor:
    return drawn("features", 0, (6, 32)).to(dtype)


@adapt
def same_seed_same_bits(subject: Subject) -> None:
    """Adapting the same network twice with the same seed gives the same bits."""
    states = []
    for _ in range(2):
        seeded()
        states.append(adapted(subject)[0].state_dict())
    expect_equal(states[1], states[0], "the adapted networks")


@adapt
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves, and a seed matters if and only if it draws."""
    with no_global_draws():
        (one, run), (other, _) = adapted(subject, 0), adapted(subject, 1)
    expect_seed_matters(run, difference(other.state_dict(), one.state_dict()))


@adapt
def new_parameters_claimed(subject: Subject) -> None:
    """adapter_roles claims every new parameter exactly once, and the others keep their roles."""
    model = base()
    before = list(model.named_parameters())
    run = Run(seed=0, steps=STEPS, roles=Block.roles, algorithm=subject.name)
    algorithm = subject.algorithm()
    result = algorithm.adapt(model, run)
    roles = adapted_roles(before, Block.roles, result, algorithm.adapter_roles)
    lacking = dict(result.named_parameters()).keys() - roles.keys()
    expect(not lacking, f"the parameters {sorted(lacking)} have no role")


@adapt
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, before and after it adapted a network."""
    algorithm = subject.algorithm()
    algorithm.adapt(base(), Run(seed=0, steps=STEPS, roles=Block.roles, algorithm=subject.name))
    expect_only_hyperparameters(algorithm)


@adapt
def dtype_and_gradients(subject: Subject) -> None:
    """An adapted network computes in its dtype, and exactly what is trainable gets a finite gradient."""
    for dtype in DTYPES:
        model, _ = adapted(subject, dtype=dtype)
        output = model(_features(dtype))
        expect(output.dtype == dtype, f"a network in {dtype} gives outputs in {output.dtype}")
        output.square().mean().backward()
        trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
        expect(trainable, f"{dtype}: no parameter is trainable")
        for key, parameter in trainable.items():
            expect(parameter.grad is not None, f"{dtype}: {key} is trainable and gets no gradient")
            finite = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            expect(finite, f"{dtype}: the gradient of {key} is not finite")
        frozen = [key for key, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        expect(not frozen, f"{dtype}: {frozen} require no gradient and get one")


@adapt
def state_carries_the_model(subject: Subject) -> None:
    """A saved state_dict makes an adapted network of another seed the same function."""
    (model, _), (other, _) = adapted(subject, 0), adapted(subject, 1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(0.1 * drawn(key, 1, parameter.shape))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expect_equal({"outputs": other(_features())}, {"outputs": model(_features())}, "after loading")


@adapt
def adapts_without_storage(subject: Subject) -> None:
    """A network on the meta device is adapted to the names, shapes and dtypes of the real one, and runs there."""
    meta, real = adapted(subject, device="meta")[0], adapted(subject)[0]
    facts = [
        {key: (tuple(v.shape), v.dtype, v.requires_grad) for key, v in model.state_dict(keep_vars=True).items()}
        for model in (meta, real)
    ]
    unlike = sorted(key for key in facts[0].keys() | facts[1].keys() if facts[0].get(key) != facts[1].get(key))
    expect(not unlike, f"shape, dtype or requires_grad of {unlike[:3]} are not those of the real network")
    elsewhere = [key for key, tensor in meta.state_dict().items() if tensor.device.type != "meta"]
    expect(not elsewhere, f"{elsewhere[:3]} of a network without storage were made on another device")
    meta(_features().to("meta")).sum().backward()


@adapt
def starts_from_the_base(subject: Subject) -> None:
    """An algorithm of the track peft starts at the pretrained model: at first its outputs are those of the base."""
    if subject.entry.track != "peft":
        raise CheckSkipped(f"the track {subject.entry.track} does not start from a pretrained model")
    with torch.no_grad():
        wanted, found = base()(_features()), adapted(subject)[0](_features())
    gap = float((found - wanted).abs().max())
    expect(torch.allclose(found, wanted, rtol=1e-5, atol=1e-5), f"outputs differ from the base by up to {gap:.3g}")
