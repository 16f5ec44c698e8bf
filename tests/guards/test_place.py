"""The private folder of a trial goes with it, also when its process is killed; relative names mean the same in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.guards.place import PREFIX, private_place, sweep

HOLDS = """
import sys, time
from bench.guards.place import private_place
with private_place() as folder:
    (folder / "kept").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    tempfile.tempdir = None


def test_folder_is_private_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "run", "--workload", "secret"])
    monkeypatch.setenv("BENCH_CACHE", "relative")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with private_place() as folder:
        assert Path.cwd() == folder
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == os.environ["PWD"] == str(folder)
        assert sys.argv == sys.orig_argv == ["bench", "worker"]
        assert os.environ["BENCH_CACHE"] == str(tmp_path / "work" / "relative"), "it means what it meant"
        assert os.environ["TRITON_CACHE_DIR"].startswith(str(folder))
        os.environ["LEFT"] = "behind"
    assert not folder.exists()
    assert Path.cwd() == tmp_path / "work"
    assert sys.argv[1:] == ["run", "--workload", "secret"]
    assert "LEFT" not in os.environ
    assert list(tmp_path.glob(f"*{PREFIX}*")) == []


def test_command_started_from_a_folder_that_is_gone_still_works(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with private_place() as folder:
        assert Path.cwd() == folder
    monkeypatch.chdir(tmp_path)


def test_folder_of_a_killed_process_is_removed_by_the_next_one_and_one_in_use_is_not(tmp_path):
    with subprocess.Popen([sys.executable, "-P", "-c", HOLDS], stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        sweep()
        assert (folder / "kept").exists(), "it is in use"
        process.kill()
    assert (folder / "kept").exists(), "nobody could clean up"
    (tmp_path / f"{PREFIX}foreign").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with private_place():
        assert not folder.exists()
    assert (tmp_path / "elsewhere").exists(), "a link is not followed"
