"""The site is built without a warning and loads nothing from anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|link|iframe|source|video|audio|embed|object|use)\b[^>]*?(?:src|href|data)=\"([^\"]+)\""
)
IMPORTED = re.compile(r"@import\s+(?:url\()?[\"']?([^\"');]+)|url\(\s*[\"']?([^\"')]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a copy of the sources, so that nothing is written into them; everything around is linked."""
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="the site needs the extra docs: pip install '.[docs]'")
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("generated", "_build", "__pycache__"))
    for name in ("tests", "results", "plugins", "bench", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (root / name).symlink_to(ROOT / name)
    out = root / "site"
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", root / "trees"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    built = subprocess.run(
        [*command, root / "docs", out], capture_output=True, text=True, check=False, env=environment, cwd=root
    )
    assert built.returncode == 0, built.stderr[-6000:]
    assert not (root / "docs" / "generated").exists(), "what was generated is removed after the build"
    return out


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_page(site, registry):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    written = {page for page in written if page.parts[0] not in {"generated", "_build"}}
    written |= {Path("generated", "algorithms", f"{name}.html") for name in registry.algorithms}
    written |= {Path("generated", "workloads", f"{name}.html") for name in registry.workloads}
    assert sorted(str(page) for page in written if not (site / page).is_file()) == []


@pytest.mark.slow
def test_no_page_loads_anything_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        loaded = LOADED.findall(page.read_text(encoding="utf-8"))
        assert loaded, page
        assert [address for address in loaded if re.match(r"(?:[a-z]+:)?//", address)] == [], page
    for style in sorted(site.rglob("*.css")):
        found = ["".join(match) for match in IMPORTED.findall(style.read_text(encoding="utf-8"))]
        assert [address for address in found if re.match(r"(?:https?:)?//", address)] == [], style


@pytest.mark.slow
def test_every_link_and_every_loaded_file_of_the_site_is_there(site):
    pages = sorted(site.rglob("*.html"))
    identifiers = {page: set(re.findall(r"\bid=\"([^\"]+)\"", page.read_text(encoding="utf-8"))) for page in pages}
    for page in pages:
        if page.name in {"genindex.html", "search.html"}:
            continue
        addresses = re.findall(r"<a [^>]*?href=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
        addresses += LOADED.findall(page.read_text(encoding="utf-8"))
        for address in {found for found in addresses if not re.match(r"[a-z]+:", found)}:
            path, _, section = address.partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            assert target.exists(), f"{page.relative_to(site)}: {address}"
            known = not section or target not in identifiers or section in identifiers[target]
            assert known, f"{page.relative_to(site)}: {address}"
