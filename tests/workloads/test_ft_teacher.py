"""The workload ft-teacher: what each family of shifts can and cannot be, targets, metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.errors import UnknownName
from bench.workloads._markov_base import base_model
from bench.workloads.ft_teacher import FAMILIES, SHIFT, FtTeacher

CPU = torch.device("cpu")

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def rank_2():
    return FtTeacher("rank-2")


def matrices(family):
    """Yield W and D of every trainable matrix, in double precision."""
    teacher = dict(FtTeacher(family).teacher.named_parameters())
    for name, parameter in base_model(CPU).named_parameters():
        if parameter.requires_grad:
            weight = parameter.detach().double()
            yield weight, teacher[name].double() - weight


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-4))


# -- shifts --------------------------------------------------------------------------------------------------------
@every_family
def test_every_shift_has_the_same_relative_norm_and_moves_nothing_else(family):
    pairs = list(matrices(family))
    assert len(pairs) == 12
    for weight, shift in pairs:
        assert float(shift.norm() / weight.norm()) == pytest.approx(SHIFT, rel=1e-5)
    teacher, base = FtTeacher(family).teacher.state_dict(), base_model(CPU).state_dict()
    moved = {name for name, value in teacher.items() if not torch.equal(value, base[name])}
    assert moved == {name for name, parameter in base_model(CPU).named_parameters() if parameter.requires_grad}


def test_a_rank_2_shift_has_rank_2():
    assert {rank(shift) for _, shift in matrices("rank-2")} == {2}


def test_the_smallest_entries_move_and_no_others():
    for weight, shift in matrices("smallest"):
        moved = shift != 0
        assert int(moved.sum()) == round(0.1 * weight.numel())
        assert weight[moved].abs().max() <= weight[~moved].abs().min()


def test_singular_vectors_stay_where_only_singular_values_move():
    for weight, shift in matrices("singular-values"):
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        core = left.T @ shift @ right.T
        assert float((core - core.diag().diag()).norm() / shift.norm()) < 1e-4
        assert float((left @ core @ right - shift).norm() / shift.norm()) < 1e-4


def test_a_shard_repeats_along_the_input():
    for _, shift in matrices("shard"):
        blocks = shift.unflatten(1, (-1, 8))
        torch.testing.assert_close(blocks, blocks[:, :1].expand_as(blocks), rtol=0, atol=1e-6)
        assert rank(shift) == 8


def test_a_hadamard_shift_is_the_weight_times_a_rank_2_matrix():
    """In double precision, before W + D is rounded: the quotient says nothing where a tiny weight was rounded."""
    random = np.random.RandomState(0)
    weight = random.standard_normal((24, 16))
    shift = FAMILIES["hadamard"](weight, lambda *shape: random.standard_normal(shape))
    assert np.linalg.matrix_rank(shift / weight) == 2
    assert all(rank(shift) > 32 for _, shift in matrices("hadamard"))


def test_a_dense_shift_has_full_rank():
    assert all(rank(shift) == min(shift.shape) for _, shift in matrices("dense"))


def test_shifts_are_those_of_the_frozen_stream():
    """First entries of the shift of one matrix, so that another version of a library cannot change a tier unseen."""
    first = FtTeacher("dense").teacher.get_parameter("blocks.0.attention.q.weight")
    base = base_model(CPU).get_parameter("blocks.0.attention.q.weight")
    found = (first - base).detach()[0, :3].numpy()
    np.testing.assert_allclose(found, [-0.0250916, -0.0774062, 0.0506077], rtol=1e-4)


# -- data, loss and metric -----------------------------------------------------------------------------------------
def test_the_ratio_is_one_for_the_base_and_zero_for_the_teacher(rank_2):
    with torch.no_grad():
        base = rank_2.evaluate(rank_2.model(0, CPU).eval(), CPU)
        teacher = rank_2.evaluate(rank_2.teacher, CPU)
    assert base == {"kl": rank_2.base_kl, "kl_ratio": 1.0}
    assert base["kl"] > 0.1
    assert teacher["kl_ratio"] == pytest.approx(0.0, abs=1e-6)


def test_batches_carry_the_probabilities_of_the_teacher(rank_2):
    batch = next(rank_2.batches(0, 0, CPU))
    assert batch["tokens"].shape == (16, 32)
    with torch.no_grad():
        expected = rank_2.teacher(batch["tokens"]).log_softmax(-1)
    torch.testing.assert_close(batch["targets"], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch["targets"].exp().sum(-1), torch.ones(16, 32))


def test_the_loss_is_the_divergence_of_the_student_from_the_teacher(rank_2):
    model, batch = rank_2.model(0, CPU), next(rank_2.batches(0, 3, CPU))
    with torch.no_grad():
        student = model(batch["tokens"]).double().log_softmax(-1)
        teacher = batch["targets"].double()
        divergences = (teacher.exp() * (teacher - student)).sum(-1)
        assert float(rank_2.loss(model, batch)) == pytest.approx(float(divergences.mean()), rel=1e-5)
        chosen = torch.zeros(16)
        chosen[2:5] = 2.0
        weighted = float(rank_2.loss(model, {**batch, "weights": chosen}))
    assert weighted == pytest.approx(float(divergences[2:5].mean()), rel=1e-5)
    assert rank_2.example(CPU)["targets"].shape == (1, 32, 32)


def test_each_family_is_data_of_its_own():
    identities = {FtTeacher(family).data().sha256 for family in FAMILIES}
    assert len(identities) == len(FAMILIES) == len(FtTeacher.tiers)
    assert list(FtTeacher.tiers) == list(FAMILIES)
    with pytest.raises(UnknownName, match="tier of ft-teacher"):
        FtTeacher("block-affine")


def test_the_reference_is_built_from_listed_plugins(registry):
    for name, tier in FtTeacher.tiers.items():
        assert [registry.algorithm(plugin, **values).name for plugin, values in tier.reference.items()]
        assert registry.workload_class("ft-teacher")(name).tier == tier


def test_a_few_steps_bring_the_student_nearer(rank_2, registry, micro):
    workload = type("Short", (FtTeacher,), {"tiers": {"rank-2": replace(rank_2.tier, steps=10)}})("rank-2")
    filler = registry.algorithm("warmup-cosine", warmup_fraction=0.1, final_factor=0.0)
    seen = micro.train(micro.parts(registry.algorithm("full-finetuning", lr=3e-3), filler, workload=workload), workload)
    assert [evaluation.step for evaluation in seen] == [0, 10]
    assert seen[0].metrics["kl_ratio"] == 1.0
    assert seen[1].metrics["kl_ratio"] < 0.8
