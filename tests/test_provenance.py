"""Where a record comes from, and what it must not tell."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench
from bench.provenance import checkout_state, collect, command_line, cpu_model, now

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package ``bench`` at its top and one commit; ``git`` runs in it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / "bench").mkdir(parents=True)
    (root / "bench" / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return SimpleNamespace(root=root, package=root / "bench", git=git)


@needs_git
def test_a_clean_checkout_gives_its_commit(checkout):
    assert checkout_state(checkout.package) == (checkout.git("rev-parse", "HEAD"), False)


@needs_git
def test_changed_and_new_code_make_it_dirty(checkout):
    (checkout.package / "__init__.py").write_text("changed = True\n")
    assert checkout_state(checkout.package)[1] is True
    checkout.git("checkout", "--quiet", ".")
    assert checkout_state(checkout.package)[1] is False
    (checkout.root / "plugins").mkdir()
    (checkout.root / "plugins" / "new.py").write_text("")
    assert checkout_state(checkout.package)[1] is True


@needs_git
def test_results_and_notes_do_not_make_it_dirty(checkout):
    (checkout.root / "results").mkdir()
    (checkout.root / "results" / "row.parquet").write_text("")
    (checkout.root / "NOTES.md").write_text("")
    assert checkout_state(checkout.package)[1] is False


@needs_git
def test_looking_takes_no_lock_and_writes_nothing(checkout):
    index = checkout.root / ".git" / "index"
    os.utime(checkout.package / "__init__.py", (1, 1))
    before = (index.read_bytes(), index.stat().st_mtime_ns)
    checkout_state(checkout.package)
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before


@needs_git
def test_a_package_installed_inside_another_repository_is_not_its_code(checkout):
    installed = checkout.root / "venv" / "site-packages" / "bench"
    installed.mkdir(parents=True)
    assert checkout_state(installed) == (None, None)


@needs_git
def test_a_repository_without_a_commit_gives_nulls(tmp_path):
    (tmp_path / "bench").mkdir()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert checkout_state(tmp_path / "bench") == (None, None)


def test_without_a_repository_or_without_git_there_are_nulls(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    assert checkout_state(tmp_path / "bench") == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout_state(Path(bench.__file__).parent) == (None, None)


def test_the_facts_of_this_process():
    facts = collect("cpu")
    assert facts.python_version == platform.python_version()
    assert facts.torch_version == torch.__version__
    assert facts.cores == os.cpu_count()
    assert facts.cpu_model
    for name in ("numpy", "pandas", "pyarrow", "bench"):
        assert getattr(facts, f"{name}_version")[0].isdigit()


def test_a_trial_on_the_cpu_has_no_gpu_facts():
    facts = collect("cpu")
    assert {facts.gpu_name, facts.gpu_uuid, facts.gpu_driver, facts.cuda_version} == {None}


def test_a_trial_on_a_gpu_names_it(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H200", uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("bench.provenance.Driver.load", lambda: SimpleNamespace(version=lambda: "580.1"))
    facts = collect("cuda:0")
    assert (facts.gpu_name, facts.gpu_uuid) == ("NVIDIA H200", "1234-abcd")
    assert (facts.gpu_driver, facts.cuda_version) == ("580.1", "13.0")


def test_a_gpu_without_a_driver_library_still_has_its_name(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H200", uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr("pynvml.nvmlInit", lambda: (_ for _ in ()).throw(pynvml_error()))
    facts = collect("cuda:0")
    assert (facts.gpu_name, facts.gpu_driver) == ("NVIDIA H200", None)


def pynvml_error():
    import pynvml

    return pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def test_neither_host_nor_user_nor_installation_is_told(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    facts = collect("cpu")
    told = " ".join(str(value) for value in vars(facts).values())
    assert platform.uname().node not in told.split()
    assert "secret-host" not in told
    assert str(Path(bench.__file__).parent) not in told
    assert str(Path.home()) not in told
    assert sys.prefix not in told
    assert f"/{getpass.getuser()}/" not in told


def test_the_time_is_utc_to_the_second():
    told = datetime.fromisoformat(now())
    assert told.utcoffset() == timedelta(0)
    assert told.microsecond == 0
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)
    assert datetime.fromisoformat(collect("cpu").started_at).utcoffset() == timedelta(0)


def test_the_command_can_be_given_again_and_hides_where_the_program_is():
    argv = ["/opt/somewhere/bin/bench", "run", "--plugin", "a", "--data-dir", "/data/my shards", "--set", "lr=1e-3"]
    assert command_line(argv) == "bench run --plugin a --data-dir '/data/my shards' --set lr=1e-3"


def test_the_processors_name_is_read_where_the_system_tells_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\n")
    assert cpu_model(cpuinfo) == "AMD EPYC 9R14"


def test_a_processor_without_a_name_is_its_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpuinfo = tmp_path / "cpuinfo"
    assert cpu_model(cpuinfo) == "aarch64"
    cpuinfo.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert cpu_model(cpuinfo) == "aarch64"
