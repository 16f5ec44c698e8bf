"""The pages belong together: each is reached from the first, and what they say of the code is what the code says."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from bench import spec
from bench.algorithm import INFORMATION, SLOTS, Algorithm
from bench.protocol import Protocol, protocols

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOOKS = [name for name in vars(spec) if name.startswith("bench_")]
GENERATED = "generated/"
"""Pages with this prefix are written when the site is built; test_generated_pages proves that they are."""


def text(name):
    return (DOCS / name).read_text(encoding="utf-8")


def tree(page):
    """Yield the entries of the tables of contents of a page, globs resolved."""
    for block in re.findall(r"```\{toctree\}\n(.*?)```", text(page), re.DOTALL):
        for entry in (line for line in block.splitlines() if line.strip() and not line.startswith(":")):
            line = re.sub(r"^.* <(.+)>$", r"\1", entry)
            found = sorted(DOCS.glob(f"{line}.md")) if "*" in line else [DOCS / f"{line}.md"]
            yield from (path.relative_to(DOCS).as_posix().removesuffix(".md") for path in found)


def test_every_page_is_in_a_table_of_contents_once_and_every_entry_is_a_page():
    entries = [*tree("index.md"), *tree("decisions.md")]
    written = {path.relative_to(DOCS).as_posix().removesuffix(".md") for path in DOCS.rglob("*.md")} - {"index"}
    own = {name for name in written if not name.startswith(GENERATED)}
    assert sorted(name for name in entries if not name.startswith(GENERATED)) == sorted(own)


def test_every_section_that_a_link_names_is_a_heading_of_that_page():
    links = [
        (page, target, section)
        for page in DOCS.rglob("*.md")
        for target, section in re.findall(r"\]\(([^):#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    for page, target, section in links:
        other = (page.parent / target) if target else page
        assert section in headings(other.read_text(encoding="utf-8")), f"{page.name}: {target}#{section}"


def headings(page):
    bare = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", line.replace("`", "").lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", bare, re.MULTILINE)
    }


# -- slots and hooks -------------------------------------------------------------------------------------------------
def documented():
    """Return the signatures on the page, by name, as Python's own parser reads them."""
    blocks = re.findall(r"^### (\w+)\n\n```py\n(.*?)\n```", text("slots.md"), re.DOTALL | re.MULTILINE)
    return {name: ast.unparse(ast.parse(f"{code}: ...").body[0]) for name, code in blocks}


def real(function):
    """Return the signature of a function in its source, without body and decorators."""
    node = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    node.body, node.decorator_list = ast.parse("...").body, []
    return ast.unparse(node)


def test_the_page_of_slots_and_hooks_has_each_of_them_with_the_signature_of_the_code():
    functions = {name: getattr(Algorithm, name) for name in SLOTS} | {name: getattr(spec, name) for name in HOOKS}
    assert documented() == {name: real(function) for name, function in functions.items()}


def test_slots_and_hooks_stand_in_the_order_in_which_they_are_called():
    assert list(documented()) == [*SLOTS, *HOOKS]


# -- protocols -------------------------------------------------------------------------------------------------------
def rows(page, head):
    """Return the cells of the table whose head begins with ``head``, row by row."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\| -.*\n((?:\|.*\n)+)", text(page), re.MULTILINE)
    assert table is not None, head
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_the_protocol_reference_has_every_field_with_its_default():
    found = {cells[0]: cells[2].strip("`") for cells in rows("protocols.md", "key | what it says | left out")}
    words = {"": "empty", "()": "none", "True": "true", "False": "false"}
    wanted = {
        f"`{field.name}`": "required"
        if field.default is dataclasses.MISSING
        else words.get(str(field.default), str(field.default))
        for field in dataclasses.fields(Protocol)
    }
    assert found == wanted


def test_the_protocol_reference_says_what_each_file_sets():
    names = list(protocols())
    found = {
        (cells[0].strip("`"), name): cell
        for cells in rows("protocols.md", "key | `default`")
        for name, cell in zip(names, cells[1:], strict=True)
    }
    said = {"name", "summary", "generator"}
    wanted = {(key, name): shown(value) for name in names for key, value in rules(name).items() if key not in said}
    assert {key: cell for key, cell in found.items() if cell} == wanted


def rules(name):
    return protocols()[name].rules()


def shown(value):
    if isinstance(value, tuple):
        return f"{len(value)} x {len(value[0])} x {len(value[0][0])}"
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("search", ["published", "space", "learning-rate", "imported"])
def test_the_protocol_reference_names_every_search(search):
    assert f"`{search}`" in text("protocols.md")


# -- what measuring says ---------------------------------------------------------------------------------------------
def test_the_page_on_measuring_names_every_section_of_the_clock_and_every_source():
    from bench import calibration, energy, nvml_probe
    from bench.clock import ASIDE, SECTIONS

    page = text("measuring.md")
    assert [name for name in SECTIONS if f"`{name}_s`" not in page or f"| `{name}` |" not in page] == []
    assert [name for name in ASIDE if f"`{name}_s`" not in page] == []
    assert f"`{nvml_probe.PROCESS_TREE}`" in page
    assert f"`{nvml_probe.DEVICE_MINUS_BASELINE}`" in page
    assert f"{calibration.CONTENDED_ABOVE:.2f}" in page
    assert f"{energy.SHORTEST_WINDOW_S:g} s" in page


@pytest.mark.parametrize("kind", INFORMATION)
def test_the_interface_names_what_an_algorithm_may_look_at(kind):
    assert f"`{kind}`" in text("interface.md")
