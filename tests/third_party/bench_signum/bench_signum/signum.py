from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt

from bench import Algorithm, Log, hyper


class SignumOptimizer(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.lerp_(p.grad, 0.1).sign(), alpha=group["lr"])


@dataclass(frozen=True, kw_only=True)
class Signum(Algorithm):
    name = "signum"
    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-4, 1e-1), help="learning rate")

    def optimizer(self, named_parameters, run):  # noqa: ARG002 - a slot takes all of its arguments
        return SignumOptimizer(named_parameters, {"lr": self.lr})
