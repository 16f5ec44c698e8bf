"""OwLore against its paper and galore-torch.

No package has it: its code is a fork of a training framework. With all blocks trained it is GaLore, which galore-torch
has; its sampling is proved by its probabilities, and by LISA, its limit of uniform draws at full rank.
The published probabilities of LLaMA2-7B are not recomputed: that takes its weights and 128 sequences of C4. Instead the
score is proved on weights and features whose outliers are known.
"""

from __future__ import annotations

import doctest
import io
import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from scipy import stats
from torch import nn

from bench import Role, Run, checkpoint
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import owlore as module
from bench.plugins.optimizers._outliers import outlier_score, outlier_scores
from bench.plugins.optimizers.galore import svd_basis
from bench.plugins.optimizers.owlore import BlockSampler, OwLore, OwLoreAdamW, blocks_of, probabilities

pytestmark = pytest.mark.paper

BLOCKS, WIDTH, TOKENS = 4, 8, 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(self.drop(torch.tanh(self.up(self.norm(x)))))


class Toy(nn.Module):
    """Embedding, blocks, final norm, head: every place of the rule."""

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        for block in self.blocks:
            block.drop.p = dropout

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


ROLES = {
    "embedding.weight": Role.EMBEDDING,
    "head.weight": Role.LM_HEAD,
    "norm.weight": Role.NORM,
    "norm.bias": Role.BIAS,
} | {
    f"blocks.{i}.{name}": role
    for i in range(BLOCKS)
    for name, role in {
        "norm.weight": Role.NORM,
        "norm.bias": Role.BIAS,
        "up.weight": Role.MLP,
        "up.bias": Role.BIAS,
        "down.weight": Role.MLP,
    }.items()
}


def a_run(steps=12, seed=0):
    return Run(seed=seed, steps=steps, roles=ROLES, algorithm="owlore")


def gradients(model, step):
    tokens = (torch.arange(TOKENS) + step) % TOKENS
    model.zero_grad()
    nn.functional.cross_entropy(model(tokens), (tokens * 5 + step) % TOKENS).backward()


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(algorithm, steps=12, basis=None, model=None, watch=lambda *_: None):
    """Train a toy by freezer and optimizer as the loop does; return it with both."""
    model, run = model or Toy(), a_run(steps)
    sampler = algorithm.freezer(model, run)
    optimizer = algorithm.optimizer(list(model.named_parameters()), run)
    optimizer.basis = basis or optimizer.basis
    for step in range(steps):
        before = values(model)
        sampler(step)
        gradients(model, step)
        optimizer.step()
        watch(step, sampler, before, values(model))
    return model, sampler, optimizer


def assert_close(model, other, tolerance):
    for (name, left), (_, right) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert float((left - right).detach().abs().max()) < tolerance, name


# -- the rule ------------------------------------------------------------------------------------------------------
def test_parity_with_galore_torch_where_all_blocks_are_trained(package):
    galore = package("galore_torch.adamw", "galore-torch")
    algorithm = OwLore(active=BLOCKS, interval=3, rank=2, update_gap=5, lr=1e-2)
    ours, *_ = trained(algorithm, basis=svd_basis)
    theirs = Toy()
    matrices = [p for name, p in theirs.named_parameters() if ROLES[name] is Role.MLP]
    rest = [p for name, p in theirs.named_parameters() if ROLES[name] is not Role.MLP]
    projected = {"params": matrices, "rank": 2, "update_proj_gap": 5, "scale": 1.0, "proj_type": "std"}
    optimizer = galore.AdamW([projected, {"params": rest}], lr=1e-2, no_deprecation_warning=True)
    for step in range(12):
        gradients(theirs, step)
        optimizer.step()
    assert_close(ours, theirs, 2e-5)


def test_all_blocks_at_full_rank_are_adamw():
    ours, *_ = trained(OwLore(active=BLOCKS, full_rank=True, eps=1e-12, lr=1e-3))
    theirs = Toy()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=1e-12, weight_decay=0.0)
    for step in range(12):
        gradients(theirs, step)
        optimizer.step()
    assert_close(ours, theirs, 2e-6)


def lisa(run, steps, interval, active, lr, eps=1e-6, *, keep):
    """LISA, written out: Adam in uniformly drawn blocks, epsilon at the uncorrected root."""
    model, generator, state = Toy(), run.rng("blocks"), {}
    for step in range(steps):
        if step % interval == 0:
            drawn = set(
                torch.multinomial(torch.ones(BLOCKS, dtype=torch.float64), active, generator=generator).tolist()
            )
        gradients(model, step)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.startswith("blocks.") and int(name.split(".")[1]) not in drawn:
                    if not keep:
                        state.pop(name, None)
                    continue
                m, v, k = state.get(name, (torch.zeros_like(p), torch.zeros_like(p), 0))
                m, v, k = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2, k + 1
                p.sub_(lr * math.sqrt(1 - 0.999**k) / (1 - 0.9**k) * m / (v.sqrt() + eps))
                state[name] = m, v, k
    return model


@pytest.mark.parametrize("keep", [False, True])
def test_uniform_sampling_at_full_rank_is_lisa(keep):
    algorithm = OwLore(sampling="uniform", full_rank=True, active=2, interval=3, lr=1e-2, keep_states=keep)
    ours, *_ = trained(algorithm, steps=18)
    expected = lisa(a_run(18), 18, 3, 2, 1e-2, keep=keep)
    assert_close(ours, expected, 2e-6)
    assert any(
        float((a - b).detach().abs().max()) > 1e-3
        for a, b in zip(ours.parameters(), lisa(a_run(18), 18, 3, 2, 1e-2, keep=not keep).parameters(), strict=True)
    )


def test_frozen_blocks_keep_their_bits_and_everything_outside_blocks_changes_every_step():
    drawn_sets = set()

    def watch(step, sampler, before, after):
        drawn_sets.add(tuple(sorted(sampler.drawn)))
        assert len(set(sampler.drawn)) == 2
        for name in before:
            frozen = name.startswith("blocks.") and int(name.split(".")[1]) not in sampler.drawn
            assert torch.equal(before[name], after[name]) == frozen, (step, name)

    trained(OwLore(active=2, interval=4, rank=2), steps=24, watch=watch)
    assert len(drawn_sets) > 1


def test_first_draw_is_made_before_the_graph_of_the_first_step():
    model = Toy()
    sampler = OwLore(active=1).freezer(model, a_run())
    sampler(0)
    assert sampler.drawn == []
    gradients(model, 0)
    (drawn,) = sampler.drawn
    assert all((p.grad is not None) == (i == drawn) for i, b in enumerate(model.blocks) for p in b.parameters())


def test_measuring_leaves_modes_and_random_state_as_they_were():
    model, plain = Toy(dropout=0.3), Toy(dropout=0.3)
    model.blocks[1].eval()
    plain.blocks[1].eval()
    sampler = OwLore(active=1).freezer(model, a_run())
    sampler(0)
    torch.manual_seed(5)
    with torch.no_grad():
        measured = model(torch.arange(TOKENS))
    torch.manual_seed(5)
    with torch.no_grad():
        assert torch.equal(measured, plain(torch.arange(TOKENS)))
    assert sampler.scores is not None
    assert [m.training for m in model.modules()] == [m.training for m in plain.modules()]


# -- the sampler ---------------------------------------------------------------------------------------------------
def draws(weights, active, number):
    blocks = [nn.Linear(1, 1) for _ in weights]
    generator = torch.Generator().manual_seed(3)
    sampler = BlockSampler(nn.ModuleList(blocks), blocks, active=active, interval=1, generator=generator)
    sampler.scores = torch.tensor(weights, dtype=torch.float64)
    found = []
    for step in range(number):
        sampler(step)
        assert [block.weight.requires_grad for block in blocks] == [i in sampler.drawn for i in range(len(blocks))]
        found.append(tuple(sampler.drawn))
    return found


WEIGHTS = [0.1225, 0.1351, 0.0583, 0.0377, 0.6464]
"""Some of the published probabilities, and the rest of the mass."""


def test_single_draws_have_the_probabilities_of_the_scores():
    found = draws(WEIGHTS, 1, 10_000)
    counts = [sum(one == (i,) for one in found) for i in range(5)]
    assert stats.chisquare(counts, [10_000 * p for p in WEIGHTS]).pvalue > 0.01


def test_pairs_are_drawn_one_after_the_other_without_replacement():
    number = 10_000
    found = draws(WEIGHTS, 2, number)
    assert all(len(set(pair)) == 2 for pair in found)
    for i, p in enumerate(WEIGHTS):
        expected = p * (1 + sum(q / (1 - q) for k, q in enumerate(WEIGHTS) if k != i))
        share = sum(i in pair for pair in found) / number
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / number)
    assert abs(sum(4 in pair for pair in found) / number - min(1.0, 2 * WEIGHTS[4])) > 0.05, "not two p"


def test_no_block_is_without_a_chance():
    assert probabilities(torch.tensor([4.0, 0.0, 4.0]))[1] == pytest.approx(0.01 * (8 / 3) / 8, rel=0.02)
    assert torch.equal(probabilities(torch.zeros(4)), torch.full((4,), 0.25))
    published = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert torch.equal(probabilities(published), published / published.sum()), "the floor does not touch these"


# -- the score -----------------------------------------------------------------------------------------------------
def weight_and_sizes(seed=0, rows=32, columns=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator), torch.rand(columns, generator=generator) ** 6


def test_score_ignores_scale_and_the_order_of_rows():
    weight, sizes = weight_and_sizes()
    score = outlier_score([(weight, sizes)], 5.0)
    assert score > 0
    assert outlier_score([(8.0 * weight, sizes)], 5.0) == outlier_score([(weight, 0.5 * sizes)], 5.0) == score
    assert outlier_score([(weight[torch.randperm(32)], sizes)], 5.0) == score


def test_score_is_the_share_above_the_mean_of_the_whole_block():
    pairs = [weight_and_sizes(0), weight_and_sizes(1, 16, 48)]
    metrics = torch.cat([(weight.abs().double() * sizes.double()).flatten() for weight, sizes in pairs])
    expected = 100 * float((metrics > 4.0 * metrics.mean()).double().mean())
    assert float(outlier_score(pairs, 4.0)) == pytest.approx(expected, rel=1e-12)


def test_a_planted_feature_raises_the_score_by_the_share_of_its_weights():
    block = nn.Linear(64, 16, bias=False)
    other = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        block.weight.fill_(-0.1)
        other.weight.fill_(0.2)
    features = torch.ones(10, 64)
    planted = features.clone()
    planted[:, 7] = 100.0
    assert outlier_scores([block, other], 13.0, lambda: (block(features), other(features))).tolist() == [0.0, 0.0]
    scores = outlier_scores([block, other], 13.0, lambda: (block(planted), other(features)))
    assert scores.tolist() == [100 / 64, 0.0]


def test_a_layer_that_is_not_reached_does_not_count():
    block = nn.ModuleList([nn.Linear(64, 16, bias=False), nn.Linear(3, 3)])
    nn.init.ones_(block[0].weight)
    planted = torch.ones(2, 5, 64)
    planted[..., 0] = 100.0
    assert outlier_scores([block, nn.Linear(3, 3)], 13.0, lambda: block[0](planted)).tolist() == [100 / 64, 0.0]
    assert not block[0]._forward_pre_hooks


# -- the state -----------------------------------------------------------------------------------------------------
def elements(optimizer):
    return sum(t.numel() for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("keep", [False, True])
def test_state_is_that_of_the_trained_blocks_and_of_what_lies_outside(keep):
    rank, per_step, seen = 2, [], set()

    def watch(step, sampler, before, after):
        seen.update(sampler.drawn)
        per_step.append(len(seen))

    algorithm = OwLore(active=1, interval=2, rank=rank, keep_states=keep)
    model, _, optimizer = trained(algorithm, steps=12, watch=watch)
    assert per_step[-1] > 1
    s, l = WIDTH, 3 * WIDTH  # noqa: E741 - the card's symbols
    block = 2 * (s * rank + 2 * rank * l) + 2 * (3 * WIDTH + 2 * WIDTH)
    outside = 2 * sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    assert elements(optimizer) == outside + (per_step[-1] if keep else 1) * block


def test_a_run_goes_on_bit_for_bit_from_its_checkpoint(micro, tmp_path):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
            self.drop = nn.Dropout(0.2)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            for layer in self.layers:
                x = x + self.drop(torch.tanh(layer(x)))
            return self.head(x)

    class Stacked(micro.Micro):
        roles: ClassVar = {
            r"layers\.\d\.weight": Role.MLP,
            r".*\.bias": Role.BIAS,
            r"head\.weight": Role.CLASSIFIER,
        }

        def model(self, seed, device):  # noqa: ARG002 - the contract's arguments
            torch.manual_seed(seed)
            return Stack()

    workload = Stacked("small")
    build = lambda: micro.parts(OwLore(active=2, interval=2, rank=2, lr=1e-2), workload=workload)  # noqa: E731
    whole = build()
    micro.train(whole, workload)
    half = build()
    micro.train(half, workload, stop_at=3)
    checkpoint.save(tmp_path / "checkpoint.pt", half, {})
    resumed = build()
    checkpoint.restore(checkpoint.read(tmp_path / "checkpoint.pt"), resumed)
    assert resumed.freeze.drawn == half.freeze.drawn
    micro.train(resumed, workload, start=3)
    assert micro.equal(micro.weights(whole), micro.weights(resumed))


def test_sampler_state_freezes_a_fresh_model_accordingly():
    model, sampler, _ = trained(OwLore(active=2, interval=3, rank=2), steps=5)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other = Toy()
    again = OwLore(active=2, interval=3, rank=2).freezer(other, a_run())
    again.load_state_dict(torch.load(file, weights_only=True))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in other.parameters()] == flags
    assert torch.equal(again.scores, sampler.scores)


def test_what_was_frozen_before_stays_frozen():
    model = Toy()
    model.blocks[0].up.weight.requires_grad_(requires_grad=False)
    sampler = OwLore(active=BLOCKS).freezer(model, a_run())
    sampler(0)
    gradients(model, 0)
    assert not model.blocks[0].up.weight.requires_grad
    assert model.blocks[0].down.weight.requires_grad


# -- the plugin ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("blocks", "expected"), [(2, 1), (4, 1), (12, 2), (24, 4), (32, 5)])
def test_default_number_of_blocks_is_the_published_share(blocks, expected):
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(blocks)))
    run = Run(seed=0, steps=300, roles={f"{i}.weight": Role.MLP for i in range(blocks)})
    assert OwLore().freezer(model, run).active == expected


@pytest.mark.parametrize(("steps", "expected"), [(10_000, 50), (300, 50), (60, 10), (3, 1)])
def test_default_interval_is_the_published_one_or_a_sixth_of_a_short_run(steps, expected):
    assert OwLore().freezer(Toy(), a_run(steps)).interval == expected
    assert OwLore(interval=7).freezer(Toy(), a_run(steps)).interval == 7


def test_default_rank_is_a_thirty_second_of_the_short_side():
    shapes = {"q": (128, 128), "up": (344, 128), "down": (4096, 11008), "small": (6, 8), "embed": (50, 128)}
    roles = dict.fromkeys(shapes, Role.MLP) | {"embed": Role.EMBEDDING}
    named = [(name, nn.Parameter(torch.zeros(shape, device="meta"))) for name, shape in shapes.items()]
    optimizer = OwLore().optimizer(named, Run(seed=0, steps=300, roles=roles))
    ranks = {name: group["rank"] for group in optimizer.param_groups for name in group["param_names"]}
    assert ranks == {"q": 4, "up": 4, "down": 128, "small": 1, "embed": None}
    assert isinstance(optimizer, OwLoreAdamW)
    assert {(group["lr"], group["scale"], group["eps"]) for group in optimizer.param_groups} == {(3e-4, 1.0, 1e-6)}


def test_blocks_are_the_items_of_the_outermost_list_that_holds_hidden_matrices():
    model = Toy()
    assert blocks_of(model, a_run()) == list(model.blocks)
    run = Run(seed=0, steps=1, roles={"0.weight": Role.MLP, "0.bias": Role.BIAS})
    with pytest.raises(SlotMismatch, match="no list of blocks"):
        blocks_of(nn.Sequential(nn.Linear(2, 2)), run)


def test_more_trained_blocks_than_there_are_are_refused():
    with pytest.raises(BadValue, match=r"owlore: active = 5 \(int\)") as caught:
        OwLore(active=5).freezer(Toy(), a_run())
    assert "1 <= active <= 4" in str(caught.value)
    for wrong in ({"active": 0}, {"interval": 0}, {"threshold": 0.0}, {"sampling": "norms"}, {"rank": 0}):
        with pytest.raises(BadValue, match=rf"owlore: {next(iter(wrong))} = "):
            replace(OwLore(), **wrong)
    with pytest.raises(BadValue, match="owlore: scale"):
        OwLoreAdamW([nn.Parameter(torch.zeros(2, 2))], scale=0.0)


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
