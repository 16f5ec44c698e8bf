"""How many CPU cores this process may really use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores of this process's affinity mask, limited by its cgroup's quota (rounded down, at least 1)."""
    # POSIX without affinity (macOS) and Windows offer the machine's cores only
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU cores that control groups grant (versions 1 and 2), None where nothing limits them.

    The tightest limit counts, from the process's own group up to the root. A container may see its own group mounted at
    the root under another path than /proc tells, so folders that are missing are passed over.
    """
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quotas += [quota for quota in (_version_2(folder), _version_1(folder)) if quota is not None]
            if folder == mount:
                break
    return min(quotas, default=None)


def _version_2(folder: Path) -> float | None:
    """Read ``cpu.max``: quota (or ``max``) and period, microseconds."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _version_1(folder: Path) -> float | None:
    """Read ``cpu.cfs_quota_us`` (-1: no limit) and ``cpu.cfs_period_us``."""
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
