"""CoLM and its control: sources, slopes, features, coresets, and what a training step sees of them.

Parity with the authors' code is not tested: it is no package, its greedy step needs submodlib built from source, and
its probing a patched model of one version of transformers. Instead the whole rule is written naively below, with B x D
features and two passes per difference, and the selector is compared with it over several steps.
"""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import Registry, Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.data_selection import _probe
from bench.plugins.data_selection._facility_location import TIE, greedy, similarities, value
from bench.plugins.data_selection._probe import example_losses, slopes
from bench.plugins.data_selection._source_selector import rows, source_budgets
from bench.plugins.data_selection.colm import CoLM, CoLMSelector
from bench.plugins.data_selection.colm_random import CoLMRandom, RandomSelector
from bench.workloads._llama import Llama, LlamaConfig, token_losses

pytestmark = pytest.mark.paper

PROBED = "layers.1.attention.v.weight"
ROLES = {"layers.0.attention.v.weight": Role.ATTENTION_V, PROBED: Role.ATTENTION_V, "lm_head.weight": Role.LM_HEAD}


def decoder(dtype=torch.float64):
    """Two layers; D = 16 x 16 = 256 elements are probed."""
    config = LlamaConfig(vocabulary_size=32, hidden=16, ffn=24, layers=2, heads=2, initial_std=0.2)
    return Llama(config, torch.Generator().manual_seed(5)).to(dtype)


def batch_of(sources, seed=0, length=9, pads=True):
    """Tokens of random lengths; a label of -100 marks padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 32, (len(sources), length), generator=generator)
    labels = ids.clone()
    if pads:
        ends = torch.randint(3, length + 1, (len(sources),), generator=generator)
        labels[torch.arange(length) >= ends[:, None]] = -100
    return {"input_ids": ids, "labels": labels, "source": torch.tensor(sources)}


def drawn_sources(count, seed):
    """Sources 0 and 1 are large, 2 and 3 small."""
    weights = torch.tensor([0.5, 0.35, 0.1, 0.05])
    return torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(seed)).tolist()


def selector(**settings):
    return CoLMSelector(PROBED, seed=11, **{"mask_size": 40, **settings})


def directions(count, dtype=torch.float64):
    return torch.randn(count, 16, 16, generator=torch.Generator().manual_seed(3), dtype=dtype)


def places(selected, batch):
    """Return which rows of ``batch`` were selected; its sequences are all different."""
    return [int((batch["input_ids"] == row).all(dim=1).nonzero()) for row in selected["input_ids"]]


# -- sources and budgets ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "total", "budgets"),
    [
        ([10, 10], 10, [5, 5]),
        ([14, 8], 6, [3, 3]),  # floor 3.8 and 2.2: 3 and 2, and one more for the 2
        ([20, 3, 3], 10, [7, 2, 1]),  # floor 7.7, 1.2, 1.2: of the two that got 1 the first one
        ([50, 30, 1], 40, [24, 15, 1]),  # floor 24.7, 14.8, 0.5: first the 0, then the 14
        ([7], 3, [3]),
        ([2, 5], 7, [2, 5]),
    ],
)
def test_budgets_are_the_floors_filled_up_from_the_smallest(sizes, total, budgets):
    assert source_budgets(sizes, total) == budgets


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.floats(0, 1))
def test_budgets_sum_up_and_exceed_no_source(sizes, part):
    total = int(part * sum(sizes))
    budgets = source_budgets(sizes, total)
    assert sum(budgets) == total
    assert all(0 <= budget <= size for budget, size in zip(budgets, sizes, strict=True))
    assert all(abs(budget - size * total / sum(sizes)) < 1 for budget, size in zip(budgets, sizes, strict=True))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.floats(0.1, 1.0), st.integers(0, 3))
def test_all_of_the_small_sources_are_kept_and_b_examples_in_all(sources, ratio, seed):
    batch = {"source": torch.tensor(sources), "place": torch.arange(len(sources))}
    choose = RandomSelector(torch.Generator().manual_seed(seed), ratio=ratio)
    taken = choose(batch, torch.nn.Identity())["place"].tolist()
    wanted = max(1, int(ratio * len(sources)))
    assert len(taken) == wanted
    assert taken == sorted(set(taken))
    counts = [sources.count(source) for source in sources]
    small = [place for place, count in enumerate(counts) if count * len(set(sources)) < len(sources)]
    if wanted < len(sources):
        assert set(small[:wanted]) <= set(taken)
        assert len(small) < wanted or taken == small[:wanted]


def test_small_sources_are_those_below_the_average_of_all_that_was_seen():
    choose = RandomSelector(torch.Generator())
    for sources in ([0, 0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 2, 2, 2]):
        choose({"source": torch.tensor(sources)}, torch.nn.Identity())
    assert choose.seen == {0: 5, 1: 6, 2: 5}
    assert choose.small_sources() == {0, 2}  # fewer than 16 / 3
    choose.small_share = 6 / 16
    assert choose.small_sources() == {0, 2}
    choose.small_share = 0.0
    assert choose.small_sources() == frozenset()


def test_equal_sources_are_all_large_and_without_sources_there_is_one():
    equal = {"source": torch.tensor([0, 1, 2, 3] * 4), "place": torch.arange(16)}
    choose = RandomSelector(torch.Generator().manual_seed(0))
    found = choose(equal, torch.nn.Identity())
    assert choose.small_sources() == frozenset()
    assert found["source"].bincount().tolist() == [2, 2, 2, 2]
    choose = RandomSelector(torch.Generator().manual_seed(0))
    assert len(choose({"place": torch.arange(16)}, torch.nn.Identity())["place"]) == 8
    assert choose.seen == {0: 16}


# -- facility location -----------------------------------------------------------------------------------------------
def features(count, seed, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["l1", "euclidean", "cosine"])
def test_one_element_is_the_best_one_of_all(metric):
    for seed in range(20):
        similarity = similarities(features(12, seed), metric)
        best = max(range(12), key=lambda place: value(similarity, [place]))
        assert greedy(similarity, 1) == [best]


@pytest.mark.parametrize("metric", ["l1", "euclidean"])
def test_greedy_value_is_within_1_minus_1_over_e_of_the_optimum(metric):
    for seed in range(10):
        similarity = similarities(features(10, seed), metric)
        optimum = max(value(similarity, list(chosen)) for chosen in itertools.combinations(range(10), 3))
        found = greedy(similarity, 3)
        assert len(set(found)) == 3
        assert (1 - 1 / math.e) * optimum <= value(similarity, found) <= optimum + 1e-9


def test_a_larger_constant_in_place_of_the_largest_distance_changes_no_choice():
    for seed in range(10):
        points = torch.randint(0, 50, (14, 5), generator=torch.Generator().manual_seed(seed)).double()
        similarity = similarities(points, "l1")
        for constant in (1.0, 1e3, 1e6):
            assert greedy(similarity + constant, 6) == greedy(similarity, 6)


def test_every_step_of_greedy_gains_most_and_ties_go_to_the_first():
    similarity = similarities(features(15, 1), "l1")
    found = greedy(similarity, 7)
    for size in range(7):
        gains = {place: value(similarity, [*found[:size], place]) for place in range(15) if place not in found[:size]}
        assert gains[found[size]] >= max(gains.values()) - TIE * 15 * float(similarity.max())
    assert greedy(torch.ones(5, 5), 3) == [0, 1, 2]
    line = similarities(torch.tensor([[3.0], [1.0], [2.0], [4.0]]) + 1e-7 * features(4, 0, width=1), "l1")
    assert greedy(line, 1) == [0]  # 3 and 2 are central alike


def test_similarity_is_the_largest_distance_minus_the_distance_and_exact_for_close_rows():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1e-4]])
    assert similarities(points, "l1")[0].tolist() == pytest.approx([7.0, 0.0, 7.0 - 1e-4], rel=1e-6)
    assert similarities(points, "euclidean")[0].tolist() == pytest.approx([5.0, 0.0, 5.0 - 1e-4], rel=1e-6)
    assert similarities(points, "cosine")[1].tolist() == pytest.approx([0.0, 1.0, 0.8], rel=1e-6)
    assert float(similarities(1e3 + points * 1e-1, "euclidean")[0, 2]) == pytest.approx(0.5, rel=1e-3)


# -- slopes ----------------------------------------------------------------------------------------------------------
def true_slopes(model, name, batch, z):
    """<grad L_i, z_k> by autograd, one example at a time."""
    found = []
    for place in range(len(batch["input_ids"])):
        one = rows(batch, [place])
        loss = example_losses(model(one["input_ids"]), one["labels"]).sum()
        (gradient,) = torch.autograd.grad(loss, model.get_parameter(name))
        found.append((gradient * z).flatten(1).sum(dim=1))
    return torch.stack(found)


@pytest.mark.parametrize("count", [1, 3])
def test_slopes_are_the_inner_products_with_the_gradient_to_second_order(count):
    model, batch, z = decoder(), batch_of([0] * 6), directions(count)
    exact = true_slopes(model, PROBED, batch, z)
    errors = [float((slopes(model, PROBED, batch, z, eps) - exact).abs().max()) for eps in (1e-2, 1e-3)]
    assert errors[1] < 1e-4 * float(exact.abs().max())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("name", [PROBED, "layers.0.attention.v.weight", "layers.1.mlp.down.weight"])
def test_the_shared_trunk_gives_what_whole_passes_give(monkeypatch, name):
    model, batch = decoder(), batch_of([0] * 5)
    z = torch.randn(2, *model.get_parameter(name).shape, dtype=torch.float64)
    fast = slopes(model, name, batch, z, 1e-2)
    monkeypatch.setattr(_probe, "_place", lambda *_: None)
    torch.testing.assert_close(fast, slopes(model, name, batch, z, 1e-2), rtol=1e-9, atol=1e-11)


def test_what_lies_before_the_block_runs_once_and_the_block_on_all_copies():
    model, batch, sizes = decoder(), batch_of([0] * 5), {}
    for place, block in enumerate(model.layers):
        block.register_forward_hook(lambda _, __, output, place=place: sizes.setdefault(place, []).append(len(output)))
    slopes(model, PROBED, batch, directions(3), 1e-3)
    assert sizes == {0: [5], 1: [30]}


@pytest.mark.parametrize("name", ["lm_head.weight", "norm.weight", "layers.1.mlp_norm.weight"])
def test_any_parameter_can_be_probed(name):
    model, batch = decoder(), batch_of([0] * 3)
    z = torch.randn(1, *model.get_parameter(name).shape, dtype=torch.float64)
    torch.testing.assert_close(
        slopes(model, name, batch, z, 1e-4), true_slopes(model, name, batch, z), rtol=1e-5, atol=1e-9
    )


def test_an_examples_loss_is_the_mean_over_its_own_tokens():
    model, batch = decoder(torch.float32), batch_of([0] * 6)
    padded = {key: torch.nn.functional.pad(batch[key], (0, 4), value=-100 if key == "labels" else 0) for key in batch}
    with torch.no_grad():
        losses = example_losses(model(batch["input_ids"]), batch["labels"])
        wider = example_losses(model(padded["input_ids"]), padded["labels"])
        each = [token_losses(model(batch["input_ids"][i : i + 1]), batch["labels"][i : i + 1]).mean() for i in range(6)]
    torch.testing.assert_close(losses, wider)
    torch.testing.assert_close(losses, torch.stack(each))
    empty = example_losses(torch.zeros(1, 4, 32), torch.full((1, 4), -100))
    assert empty.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_bit_for_bit_as_it_was(dtype):
    model, batch = decoder(dtype), batch_of([0] * 4)
    model.train()
    model.layers[0].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    pointer, random = model.get_parameter(PROBED).data_ptr(), torch.get_rng_state()
    slopes(model, PROBED, batch, directions(2, torch.float32), 1e-3)
    with pytest.raises(IndexError):
        slopes(model, PROBED, {**batch, "input_ids": batch["input_ids"] + 99}, directions(1, torch.float32), 1e-3)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.get_parameter(PROBED).data_ptr() == pointer
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_last_block_runs_in_fp32_whatever_the_precision_and_the_difference_survives(dtype):
    model, batch = decoder(dtype), batch_of([0] * 8)
    z = directions(1, torch.float32)
    exact = slopes(copy.deepcopy(model).double(), PROBED, batch, z, 1e-3)
    torch.testing.assert_close(slopes(model, PROBED, batch, z, 1e-3).double(), exact, rtol=1e-2, atol=1e-3)
    mixed = slopes(model, PROBED, batch, z, 1e-3, mixed=True).double()
    assert not torch.equal(mixed, slopes(model, PROBED, batch, z, 1e-3).double()), "the trunk ran in bf16"
    assert float(torch.corrcoef(torch.cat((mixed, exact), 1).T)[0, 1]) > 0.99


# -- features --------------------------------------------------------------------------------------------------------
def probed_features(batch, **settings):
    choose = selector(**settings)
    choose.step = 1
    slope = choose.probe(batch, decoder())
    return choose, slope


@pytest.mark.parametrize("count", [1, 5])
def test_estimated_gradients_have_as_many_dimensions_as_directions(count):
    choose, slope = probed_features(batch_of([0] * 12), image="sgd", num_directions=count)
    gradients = choose.gradient(slope).double()
    values = torch.linalg.svdvals(gradients)
    assert int((values > 1e-5 * values[0]).sum()) == count
    torch.testing.assert_close(choose.image(slope).double(), gradients)


def test_at_the_first_step_adams_image_is_a_sign():
    choose, slope = probed_features(batch_of([0] * 12))
    image = choose.image(slope)
    torch.testing.assert_close(image, slope.sign() * choose.directions(decoder()).flatten().sign(), rtol=1e-2, atol=0)


def test_many_directions_estimate_the_gradient_itself():
    choose, slope = probed_features(batch_of([0] * 3), image="sgd", num_directions=4000)
    model, batch = decoder(), batch_of([0] * 3)
    for place in range(3):
        (exact,) = torch.autograd.grad(
            example_losses(model(batch["input_ids"]), batch["labels"])[place], model.get_parameter(PROBED)
        )
        cosine = torch.cosine_similarity(choose.gradient(slope)[place].double(), exact.flatten(), dim=0)
        assert float(cosine) > 0.95


def naive(batch, model, state, rule, z):
    """The rule of the card, step by step: B x D features, a copy of the model for each side, plain loops."""
    state["t"] += 1
    sources = batch["source"].tolist()
    for source in sources:
        state["seen"][source] = state["seen"].get(source, 0) + 1
    total = sum(state["seen"].values())
    small = {source for source, count in state["seen"].items() if count * len(state["seen"]) < total}
    budget = len(sources) // 2
    kept = [i for i, source in enumerate(sources) if source in small]
    large = [i for i, source in enumerate(sources) if source not in small]
    budget -= len(kept)
    slope = []
    for direction in z:
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            moved.get_parameter(PROBED).data += sign * rule.epsilon * direction
            losses.append(example_losses(moved(batch["input_ids"]), batch["labels"]).detach())
        slope.append((losses[0] - losses[1]) / (2 * rule.epsilon))
    gradients = sum(a[large, None] * direction.flatten() for a, direction in zip(slope, z, strict=True)) / len(z)
    m = rule.beta1 * state["m"] + (1 - rule.beta1) * gradients
    v = rule.beta2 * state["v"] + (1 - rule.beta2) * gradients**2
    image = m / (1 - rule.beta1 ** state["t"]) / ((v / (1 - rule.beta2 ** state["t"])).sqrt() + rule.adam_epsilon)
    groups = [[i for i, place in enumerate(large) if sources[place] == s] for s in sorted({sources[p] for p in large})]
    shares = [len(group) * budget // len(large) for group in groups]
    for place in sorted(range(len(groups)), key=lambda g: shares[g])[: budget - sum(shares)]:
        shares[place] += 1
    chosen = []
    for group, share in zip(groups, shares, strict=True):
        own = image[group]
        own = own[:, own.mean(0).abs().argsort(descending=True)[: rule.mask_size]]
        distance = (own[:, None] - own[None]).abs().sum(-1)
        similarity = distance.max() - distance
        taken = []
        while len(taken) < share:
            rest = [j for j in range(len(group)) if j not in taken]
            values = {j: value(similarity, [*taken, j]) for j in rest}
            least = max(values.values()) - TIE * len(group) * float(distance.max())
            taken.append(next(j for j in rest if values[j] >= least))
        chosen += [group[j] for j in taken]
    state["m"], state["v"] = m[chosen].mean(0), v[chosen].mean(0)
    return sorted(kept + [large[j] for j in chosen])


@pytest.mark.parametrize(("count", "mask_size"), [(1, 64), (3, 64), (3, 10_000)])
def test_the_selector_follows_the_naive_rule_over_several_steps(count, mask_size):
    choose, model = selector(mask_size=mask_size, num_directions=count), decoder()
    z = choose.directions(model).double()
    state = {"t": 0, "seen": {}, "m": torch.zeros(256).double(), "v": torch.zeros(256).double()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(5):
        batch = batch_of(drawn_sources(24, step), seed=step)
        expected = naive(batch, model, state, choose.rule, z)
        found = choose(batch, model)
        if step == 0:  # all features are ±1 and ties decide on the mask: go on from the same history
            state["m"], state["v"] = choose.first.double(), choose.second.double()
        else:
            assert places(found, batch) == expected
            torch.testing.assert_close(choose.first.double(), state["m"], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(choose.second.double(), state["v"], rtol=1e-4, atol=1e-9)
        optimizer.zero_grad()
        example_losses(model(found["input_ids"]), found["labels"]).mean().backward()
        optimizer.step()


def test_without_strategies_by_source_the_large_ones_are_one():
    batch = batch_of([0] * 10 + [1] * 10)
    model, together, apart = decoder(), selector(strategy="none", image="sgd"), selector(image="sgd")
    found = greedy(similarities(_masked(together, batch, model), "l1"), 10)
    assert places(together(batch, model), batch) == sorted(found)
    assert apart(batch, model)["source"].bincount().tolist() == [5, 5]


def _masked(choose, batch, model):
    probe = copy.deepcopy(choose)
    probe.step = 1
    return probe.features(probe.probe(batch, model))


# -- training --------------------------------------------------------------------------------------------------------
def test_with_b_equal_to_all_a_training_step_is_that_of_plain_training():
    plain, selected = decoder(torch.float32), decoder(torch.float32)
    choose = selector(ratio=1.0)
    for model, select in ((plain, lambda batch, _: batch), (selected, choose)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            batch = select(batch_of(drawn_sources(12, step), seed=step), model)
            optimizer.zero_grad()
            token_losses(model(batch["input_ids"]), batch["labels"]).mean().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), selected.parameters(), strict=True))


def test_gradients_are_those_of_the_selected_examples_alone():
    model, batch = decoder(), batch_of(drawn_sources(16, 1))
    found = selector()(batch, model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(tensor.requires_grad for tensor in found.values())
    alone = rows(batch, places(found, batch))
    gradients = []
    for part in (found, alone):
        model.zero_grad()
        example_losses(model(part["input_ids"]), part["labels"]).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert {key: len(tensor) for key, tensor in found.items()} == {"input_ids": 8, "labels": 8, "source": 8}


def test_the_control_takes_as_many_of_each_source_and_others():
    model, batch = decoder(), batch_of(drawn_sources(24, 2), seed=2)
    coreset, control = selector(), RandomSelector(torch.Generator().manual_seed(1))
    found = [places(choose(batch, model), batch) for choose in (coreset, control)]
    counts = [[batch["source"][place].item() for place in sorted(taken)] for taken in found]
    assert sorted(counts[0]) == sorted(counts[1])
    assert found[0] != found[1]
    seeded = [RandomSelector(torch.Generator().manual_seed(s))(batch, model)["input_ids"] for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_probing_in_parts_changes_nothing():
    model, batch = decoder(), batch_of([0, 1] * 8)
    whole, parted = selector(), selector(parts=3)
    parted.parts = 3
    assert places(whole(batch, model), batch) == places(parted(batch, model), batch)
    torch.testing.assert_close(whole.first, parted.first)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_saved_selector_goes_on_with_the_same_choices(steps):
    model, whole, resumed = decoder(), selector(), CoLMSelector(PROBED, seed=99, mask_size=40)
    for step in range(steps):
        whole(batch_of(drawn_sources(20, step), seed=step), model)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(steps, steps + 3):
        batch = batch_of(drawn_sources(20, step), seed=step)
        assert torch.equal(whole(batch, model)["input_ids"], resumed(batch, model)["input_ids"])


def test_its_state_is_two_moments_of_the_probed_matrix_a_seed_and_counters():
    choose = selector()
    choose(batch_of([0] * 8), decoder())
    state = choose.state_dict()
    assert sum(v.numel() * v.element_size() for v in state.values() if torch.is_tensor(v)) == 2 * 256 * 4
    assert state["step"] == 1
    assert state["seen"] == {0: 8}
    assert state["seed"] == 11


# -- the plugins -----------------------------------------------------------------------------------------------------
def test_the_last_value_projection_is_probed_with_directions_of_the_runs_seed():
    def build(seed):
        return CoLM().selector(Run(seed=seed, steps=9, roles=ROLES, algorithm="colm", micro_batches=2))

    first, again, other = build(0), build(0), build(1)
    assert (first.probed, first.parts, first.mixed) == (PROBED, 2, False)
    assert first.seed == again.seed != other.seed
    assert torch.equal(first.directions(decoder()), again.directions(decoder()))
    with pytest.raises(SlotMismatch, match="attention_v"):
        CoLM().selector(Run(seed=0, steps=9, roles={"head": Role.LM_HEAD}))


def test_both_fill_the_selector_and_nothing_else():
    from bench.algorithm import slots

    registry = Registry()
    for name in ("colm", "colm-random"):
        assert slots(registry.algorithm_class(name)) == ("selector",)
        assert registry.algorithms[name].track == "data-selection"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ratio", 0.0),
        ("ratio", 1.5),
        ("small_share", -0.1),
        ("mask_size", 0),
        ("epsilon", 0.0),
        ("num_directions", 0),
        ("metric", "l3"),
        ("strategy", "balanced"),
        ("image", "adamw"),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("adam_epsilon", 0.0),
    ],
)
def test_a_setting_outside_its_domain_is_refused_inside_and_outside_the_suite(name, bad):
    with pytest.raises(BadValue, match=f"{name} = "):
        CoLM(**{name: bad})
    with pytest.raises(BadValue, match=f"{name} = "):
        selector(**{name: bad})
    if name in {"ratio", "small_share"}:
        with pytest.raises(BadValue, match=f"{name} = "):
            RandomSelector(torch.Generator(), **{name: bad})
        with pytest.raises(BadValue, match=f"{name} = "):
            CoLMRandom(**{name: bad})


def test_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(BadValue, match=r"layers\.7"):
        CoLMSelector("layers.7.attention.v.weight", seed=0)(batch_of([0] * 8), decoder())
