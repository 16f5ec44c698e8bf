"""A plugin of somebody else: built as a wheel, installed, listed, shown, run, uninstalled and gone. No network."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pandas as pd
import pytest

SOURCE = Path(__file__).parents[1] / "third_party" / "bench_signum"


def do(*command: object) -> str:
    """Run a command of the packaging tools and return what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The plugin's wheel, built from a copy of its source with what is installed here."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    do(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def environment(tmp_path) -> Path:
    """The Python of a fresh virtual environment that sees all packages of this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (own / "other.pth").write_text("\n".join(lines) + "\n")
    return tmp_path / "venv" / "bin" / "python"


def listed(bench) -> list[dict[str, str]]:
    answer = bench("list", "--format", "json")
    assert (answer.returncode, answer.stderr) == (0, "")
    return [row for row in json.loads(answer.stdout) if row["name"] == "signum"]


def test_the_plugin_is_short():
    texts = [path.read_text() for path in SOURCE.rglob("*") if path.suffix in {".py", ".toml"}]
    assert len(texts) == 3
    assert sum(len(text.splitlines()) for text in texts) <= 40


@pytest.mark.skipif(sys.platform == "win32", reason="the layout of a POSIX virtual environment")
def test_plugin_of_another_package_comes_runs_and_goes(bench, wheel, environment):
    bench.python = environment
    pip = (sys.executable, "-m", "pip", "--python", environment)
    assert listed(bench) == []

    do(*pip, "install", "--no-deps", "--no-index", wheel)
    (row,) = listed(bench)
    assert row == {
        "name": "signum",
        "track": "optimizer",
        "paper": "arXiv:1802.04434",
        "claims": 0,
        "package": "bench-signum",
        "summary": "step by the sign of the momentum",
    }
    shown = bench("show", "signum")
    assert shown.returncode == 0
    assert "package  bench-signum 0.3.0" in shown.stdout
    assert "float > 0" in shown.stdout

    done = bench("run", "--plugin", "signum", "--workload", "micro", "--no-reference", "--set", "lr=0.02")
    assert (done.returncode, done.stderr) == (0, "")
    record = pd.read_parquet(bench.folder / "results" / "trials").iloc[0]
    assert (record.algorithm, record.algorithm_version) == ("signum", "0.3.0")
    assert record.outcome in {"reached", "missed"}
    curve = pd.read_parquet(bench.folder / "results" / "curves")
    assert curve.quality.iloc[-1] < 0.7 * curve.quality.iloc[0]

    do(*pip, "uninstall", "--yes", "bench-signum")
    assert listed(bench) == []
    gone = bench("run", "--plugin", "signum", "--workload", "micro")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert "no plugin named 'signum'" in gone.stderr
