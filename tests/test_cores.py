"""Usable cores: the affinity mask, limited by control groups of both versions."""

from __future__ import annotations

import os

import pytest

from bench.cores import cgroup_quota, usable_cores


@pytest.fixture
def machine(tmp_path):
    """A root folder; ``machine(membership, {file: text})`` fills it."""

    def fill(membership, files):
        for name, text in {"proc/self/cgroup": membership, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return fill


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4.0),
        (
            "0::/a/b\n",
            {"sys/fs/cgroup/a/b/cpu.max": "200000 100000\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n"},
            2.0,
        ),
        # a container sees its own group at the mount's root, under another path than /proc tells
        ("0::/docker/1234\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            "9:memory:/x\n4:cpu,cpuacct:/x\n",
            {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "800000\n", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"},
            8.0,
        ),
        (
            "1:cpu:/\n0::/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("5:cpuset:/\n", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_quota_from_the_own_group_to_the_root_counts(machine, membership, files, quota):
    assert cgroup_quota(machine(membership, files)) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [("250000", 2), ("50000", 1), ("9900000", 6), ("max", 6)])
def test_a_quota_limits_the_mask_and_is_rounded_down_to_at_least_one(machine, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores(machine("0::/\n", {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})) == cores


def test_without_affinity_the_machines_cores_count(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores(machine("", {})) == 5
