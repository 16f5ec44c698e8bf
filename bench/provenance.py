"""Where a record comes from: code, versions, hardware, time.

No host name, no user name, no path of the installation.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import bench
from bench.nvml import Driver, NvmlUnavailable

_CODE = ("bench", "plugins", "workloads", "pyproject.toml")
"""What of the checkout can change a result; results and notes do not make a checkout dirty."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The facts of one process. Field names are record columns; null means that there is no such thing here."""

    git_sha: str | None
    git_dirty: bool | None
    python_version: str
    torch_version: str | None
    numpy_version: str | None
    pandas_version: str | None
    pyarrow_version: str | None
    bench_version: str | None
    platform: str
    cpu_model: str
    cores: int
    gpu_name: str | None
    gpu_uuid: str | None
    gpu_driver: str | None
    cuda_version: str | None
    started_at: str


def collect(device: str = "cpu") -> Provenance:
    """Gather the facts; those of the GPU only for a trial on one (``"cuda:N"``), where CUDA is started if it is not."""
    sha, dirty = checkout_state(Path(bench.__file__).parent)
    return Provenance(
        git_sha=sha,
        git_dirty=dirty,
        python_version=platform.python_version(),
        torch_version=_version("torch"),
        numpy_version=_version("numpy"),
        pandas_version=_version("pandas"),
        pyarrow_version=_version("pyarrow"),
        bench_version=_version("bench-training"),
        platform=platform.platform(),
        cpu_model=cpu_model(),
        cores=os.cpu_count() or 1,
        started_at=now(),
        **_gpu(device),
    )


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line(argv: Sequence[str] | None = None) -> str:
    """Return a command as it can be given again: ``bench`` for the program, arguments as typed.

    Bytes of a path that are no text become backslash escapes, since a record holds texts.
    """
    typed = shlex.join(["bench", *(sys.argv if argv is None else argv)[1:]])
    return typed.encode("utf-8", "backslashreplace").decode("utf-8")


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture where the system gives it no name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def checkout_state(package: Path) -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the checkout that the package is imported from; nulls where it is installed.

    A package installed somewhere inside another repository is not that repository's code: the checkout's top level must
    be the folder that holds the package.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.resolve().parent:
        return None, None
    sha = _git(package.parent, "rev-parse", "HEAD")
    if sha is None:
        return None, None
    present = [name for name in _CODE if (package.parent / name).exists()]
    changes = _git(package.parent, "status", "--porcelain", "--", *present)
    return sha, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where there is no git, no repository or no answer."""
    git = shutil.which("git")
    if git is None:
        return None
    # git would otherwise refresh the index, and take a lock that the user's own command may need
    command = [git, "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu(device: str) -> dict[str, str | None]:
    if not device.startswith("cuda"):
        return {"gpu_name": None, "gpu_uuid": None, "gpu_driver": None, "cuda_version": None}
    import torch

    properties = torch.cuda.get_device_properties(device)
    try:
        driver = Driver.load().version()
    except NvmlUnavailable:
        driver = None
    return {
        "gpu_name": properties.name,
        "gpu_uuid": str(properties.uuid),
        "gpu_driver": driver,
        "cuda_version": torch.version.cuda,
    }
