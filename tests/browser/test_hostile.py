"""Whatever strangers wrote, in plugins or in records, is shown as text: on the page, in Markdown, on a terminal.

A results folder on disk and an installed package hold the strings of an attacker wherever a string can be, and the
report is written from both as ``bench report`` writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from bench import parquet
from bench.cli import main
from bench.record import CURVES, SCHEMA_VERSION, TRIALS
from bench.registry import Registry
from bench.report import write_report
from bench.report.text import clean
from bench.store import Store

CALL = "window.broken=(window.broken||'')+"
STRINGS = {
    "script": f"<script>{CALL}'script'</script>",
    "image": f'"><img src=x onerror="{CALL}1"><img src=http://outside.invalid/pixel.png>',
    "quote": f"' onmouseover='{CALL}2' autofocus onfocus='{CALL}3' x='",
    "style": f"</style></title></textarea></noscript></svg><script>{CALL}'style'</script>",
    "comment": f"--><script>{CALL}'comment'</script><!-- ]]> <![CDATA[ </script><script>{CALL}4</script>",
    "drawing": f"<svg onload={CALL}5><animate onbegin={CALL}6 attributeName=x><use href=data:x,y></svg><math><mi>",
    "link": f"[x](javascript:{CALL}7) javascript:{CALL}8 ![y](http://outside.invalid/y.png) <http://outside.invalid/z>",
    "frame": "<iframe srcdoc='<script>parent.broken=9</script>'></iframe><base href=//outside.invalid>",
    "head": "<meta http-equiv=refresh content='0;url=//outside.invalid'><link rel=stylesheet href=//outside.invalid>",
    "sheet": '}*{display:none!important;background:url(//outside.invalid/a)}";color:red;x:url(//outside.invalid/b)"',
    "direction": "invoice\u202egnp.exe\u2066 \u200b\u200fabc\u2069",
    "template": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %> {% for x in ().__class__.__bases__ %}{{x}}{% endfor %} %(a)s {0}",
    "formula": "$\\frac{1}{x}$ $x^{$ \\input{/etc/passwd} $$ `code` **bold** | pipe \\| _low_ # head",
    "control": "nul\x00 bell\x07 escape\x1b[31m\x1b]0;owned\x07 back\x08\x08 csi\x9b2J del\x7f line\u2028 cr\r end\x85",
    "lines": "one\n\n# two\n\n<script>window.broken='lines'</script>\n\n```\nthree\n    four\n",
    "long": "long " + "x" * 5_000,
}
"""What an attacker writes, each kind in trials of its own."""

PRINTABLE = {key: value for key, value in STRINGS.items() if value.isprintable()}
BOARDS = ("image", "formula", "long")
"""The strings that name boards too: workload, tier, metric, protocol, data and class of device."""

CHOSEN = {"schema_version", "metric_direction", "outcome", "phase", "started_at", "finished_at", "fillers"}
"""The columns that the suite itself reads as more than a text."""

KNOWN = {
    "workload": "llama-c4",
    "workload_version": "1.1.0",
    "tier": "tiny",
    "precision": "fp32",
    "data_source": "embedded",
    "data_sha256": "d" * 64,
    "protocol": "default",
    "protocol_version": "1.0",
    "protocol_sha256": "p" * 64,
    "device_class": "cpu-2",
    "metric": "loss",
    "reference": "adamw",
}
"""What makes a board: in most trials as it should be, so that one board has all the names, in others hostile too."""


def trial(algorithm, seed, text, *, own_board=False, **changes):
    """Return a row of ``trials`` in which every text that may be anything is ``text``."""
    texts = {field.name: text for field in TRIALS if pa.types.is_string(field.type) and field.name not in CHOSEN}
    row = dict.fromkeys(TRIALS.names) | texts | ({} if own_board else KNOWN)
    row |= {"schema_version": SCHEMA_VERSION, "algorithm": algorithm, "seed": seed, "study": 0, "point": 0}
    row |= {"phase": "measure", "is_reference": algorithm == "adamw", "device_listed": True, "fillers": "[]"}
    row |= {"metric_direction": "min", "outcome": "reached", "target": 1.0, "quality": 0.9, "best_quality": 0.9}
    steps = 150 + 7 * seed + len(algorithm) % 13
    row |= {"steps_to_target": steps, "steps_to_target_interpolated": float(steps), "evaluations_to_target": 3}
    row |= {"time_to_target_s": steps / 3, "time_to_target_interpolated_s": steps / 3, "time_s": 100.0}
    row |= {"steps": 300, "budget_steps": 300, "rss_peak_bytes": 7 * 10**8, "optimizer_state_bytes": 6 * 10**6}
    row |= {"trainable_parameters": 850_000, "contended": False, "calibration_readings": 9, "gradient_s": 90.0}
    row |= {"calibration_matmul_spread": 1.01, "hyperparameters": json.dumps({text: text, "lr": 0.1}), "step_s": 9.0}
    row |= {"started_at": "2026-01-02T03:04:05+00:00", "finished_at": "2026-01-02T03:06:05+00:00", "origin": None}
    row |= {"information": None, "base_sha256": None} | changes
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items(), key=lambda item: item[0])).encode()).hexdigest()[:20]
    return row


def curve(row):
    metrics = [(row["metric"], row["quality"]), (STRINGS["script"], 1.0), (STRINGS["direction"], 2.0)]
    return [
        dict.fromkeys(CURVES.names)
        | {"schema_version": SCHEMA_VERSION, "trial_id": row["trial_id"], "step": step, "time_s": step / 3.0}
        | {"wall_s": step / 2.0, "quality": 3.0 - (3.0 - row["quality"]) * step / 300, "metrics": metrics}
        for step in range(0, 301, 60)
    ]


def records(folder):
    """Write a results folder in which the strings are everywhere."""
    rows = [trial("adamw", seed, "as it should be") for seed in range(3)]
    for key, text in STRINGS.items():
        rows += [trial(text, seed, text) for seed in range(3)]
        rows.append(trial(text, 7, text, outcome="error", outcome_reason=text, quality=None, steps_to_target=None))
        if key in BOARDS:
            rows.append(trial(text, 0, text, own_board=True))
        rows.append(trial("adamw", 5, text, origin=text))
    curves = [line for row in rows if row["quality"] is not None for line in curve(row)]
    store = Store(folder, create=True)
    for name, lines in (("trials", rows), ("curves", curves)):
        parquet.write(store.root / name / "0.parquet", lines, name)
    return folder


PLUGIN = """
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt

from bench import Algorithm, Choice, hyper

STRINGS = {strings!r}
DOCUMENTED = {documented!r}


def make(text, everything="\\n\\n".join(DOCUMENTED)):
    class Hostile(Algorithm):
        name = text
        deviations = tuple(DOCUMENTED)
        needs = (text,)
        lr: Annotated[float, Gt(0)] = hyper(0.1, search=Choice((0.1, 0.2)), help=everything)

        def optimizer(self, named_parameters, run):
            return torch.optim.SGD(named_parameters, lr=self.lr)

    markup = f"{{text}}\\n\\n    {{text}}\\n\\nSource: ``{{text}}``. Deviations: :class:`{{text}}`"
    Hostile.__doc__ = f"{{markup}}\\n\\n{{everything}}"
    return dataclass(frozen=True, kw_only=True)(Hostile)


for number, text in enumerate(STRINGS):
    globals()[f"Hostile{{number}}"] = make(text)
"""
ENTRIES = """
from bench import Entry, hookimpl

STRINGS = {strings!r}


@hookimpl
def bench_algorithms():
    return [
        Entry(name=text, target=f"bench_hostile.plugin:Hostile{{number}}", track="optimizer", paper=text, summary=text)
        for number, text in enumerate(STRINGS)
    ]
"""


def claims():
    """Return a claims file with the strings that a claim may hold: lines of printable text."""
    quoted = {key: json.dumps(text, ensure_ascii=False) for key, text in PRINTABLE.items() if key != "long"}
    return "\n".join(
        f"""
        [[claim]]
        id = "claim-{key}"
        algorithm = {text}
        statement = {text}
        source = {text}
        note = {text}
        published_on = {text}
        baseline = "adamw"
        metric = "optimizer_state"
        direction = "lower"
        comparison = "ratio"
        published_value = 0.5
        workload = "llama-c4"
        smallest_tier = "tiny"
        """
        for key, text in quoted.items()
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder of results, the registry with the hostile package, and the folder for what is written."""
    root = tmp_path_factory.mktemp("hostile")
    package = root / "site" / "bench_hostile"
    package.mkdir(parents=True)
    strings = list(PRINTABLE.values())  # listings refuse entries with others
    documented = list(STRINGS.values())
    (package / "__init__.py").write_text(ENTRIES.format(strings=strings), encoding="utf-8")
    (package / "plugin.py").write_text(PLUGIN.format(strings=strings, documented=documented), encoding="utf-8")
    (package / "plugin.claims.toml").write_text(textwrap.dedent(claims()), encoding="utf-8")
    (package / "torn.py").write_text(f"raise RuntimeError({'; '.join(documented)!r})", encoding="utf-8")
    points = [EntryPoint(name="hostile", value="bench_hostile", group="bench")]
    points += [EntryPoint(name=STRINGS["image"], value="bench_hostile.torn", group="bench")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "site"))
        registry = Registry([*entry_points(group="bench"), *points])
        assert set(strings) <= set(registry.algorithms), registry.broken
        assert len(registry.broken) == 1
        folder = records(root / STRINGS["quote"].replace("/", "") / 'results "><img src=x onerror=alert(1)>')
        yield SimpleNamespace(root=root, folder=folder, registry=registry)
        for name in [name for name in sys.modules if name.startswith("bench_hostile")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def pages(hostile):
    """The report of it as HTML, and as Markdown with figures beside it."""
    html, markdown, figures = (hostile.root / name for name in ("report.html", "report.md", "figures"))
    write_report(html, [hostile.folder], registry=hostile.registry)
    write_report(markdown, [hostile.folder], registry=hostile.registry, figures=figures)
    return SimpleNamespace(html=html, markdown=markdown, figures=figures)


def shown(text):
    """Return the words of ``text`` as a page or a test sees them: cleaned, all white space alike."""
    return " ".join(clean(text).split())


QUIET = """
const executed = [];
for (const element of document.querySelectorAll("*")) {
  for (const { name, value } of element.attributes) {
    if (name.startsWith("on") || /^\\s*(java|vb)script:/i.test(value)) executed.push(`${element.tagName} ${name}`);
  }
}
const frame = Object.assign(document.createElement("iframe"), {});
document.body.append(frame);
const usual = new Set(Object.getOwnPropertyNames(frame.contentWindow));
frame.remove();
const drivers = /^(\\d+|cdc_.*|ret_nodes)$/;
const own = Object.getOwnPropertyNames(window).filter((name) => !usual.has(name) && !drivers.test(name));
const forbidden = "img, iframe, object, embed, form, base, audio, video, meta[http-equiv=refresh], math, animate";
return {
  broken: window.broken ?? null,
  executed,
  own,
  scripts: document.scripts.length,
  forbidden: [...document.querySelectorAll(forbidden)].map((element) => element.tagName),
  links: [...document.querySelectorAll("[href]")].map((element) => element.getAttribute("href")),
  styles: [...document.querySelectorAll("style")].length,
};
"""


def asked(browser):
    """Return what the browser asked for since the page was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def dialogs(browser):
    """Return the text of the dialog that is open, if one is."""
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return [browser.switch_to.alert.text]
    except NoAlertPresentException:
        return []


# -- the page ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_page_executes_nothing_asks_nobody_and_shows_every_string(browser, pages, show):
    show(browser, pages.html)
    assert dialogs(browser) == []
    browser.execute_script(
        "document.querySelectorAll('details').forEach((each) => { each.open = true; });"
        "document.querySelectorAll('thead button').forEach((each) => { each.focus(); each.click(); each.click(); });"
        "for (const kind of ['mouseover', 'focus', 'load', 'error', 'begin'])"
        "  document.querySelectorAll('*').forEach((each) => each.dispatchEvent(new Event(kind)));"
    )
    found = browser.execute_script(QUIET)
    assert dialogs(browser) == []
    assert (found["broken"], found["executed"], found["own"], found["forbidden"]) == (None, [], [], [])
    assert (found["scripts"], found["styles"]) == (1, 1)
    assert [
        link for link in found["links"] if not re.match(r"#[a-z0-9-]+$|https://(arxiv|doi)\.org/|data:,$", link)
    ] == []
    assert {url for url in asked(browser) if not url.startswith(("data:", "about:"))} == {pages.html.as_uri()}
    assert browser.get_log("browser") == []
    text = shown(browser.execute_script("return document.body.textContent"))
    assert [key for key, string in STRINGS.items() if shown(string) not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_no_string_makes_the_page_wider_than_the_screen(browser, pages, show, width):
    show(browser, pages.html, width=width)
    inner, outer = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer <= width


@pytest.mark.slow
def test_markdown_that_somebody_renders_executes_nothing_either(browser, pages, show):
    """It is rendered with HTML let through, and opened without any policy."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(pages.markdown.read_text("utf-8"))
    file = pages.markdown.with_name("rendered.html")
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>x</title>{body}", encoding="utf-8")
    show(browser, file)
    found = browser.execute_script(QUIET)
    assert dialogs(browser) == []
    assert (found["broken"], found["executed"], found["own"], found["scripts"]) == (None, [], [], 0)
    assert set(found["forbidden"]) <= {"IMG"}  # our own figures
    assert [link for link in found["links"] if not re.match(r"https://(arxiv|doi)\.org/", link)] == []
    files = {path.as_uri() for path in pages.figures.glob("*.svg")}
    assert asked(browser) - {file.as_uri()} <= files


@pytest.mark.slow
def test_figures_as_files_execute_nothing(browser, pages, show):
    files = sorted(pages.figures.glob("*.svg"))
    assert files
    for file in files[:: max(1, len(files) // 6)]:
        show(browser, file)
        assert browser.execute_script("return window.broken === undefined && document.scripts.length === 0")
        assert asked(browser) == {file.as_uri()}


# -- without a browser -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_files_hold_no_control_characters_and_their_names_are_plain(pages):
    for file in (pages.html, pages.markdown):
        assert clean(file.read_text("utf-8")) == file.read_text("utf-8")
    for file in pages.figures.iterdir():
        assert re.fullmatch(r"[a-z0-9-]{1,120}\.(svg|png)", file.name), file.name


@pytest.mark.slow
def test_markdown_has_neither_html_nor_links_of_strangers(pages):
    tokens = (
        MarkdownIt("gfm-like", {"linkify": False, "html": True})
        .enable("table")
        .parse(pages.markdown.read_text("utf-8"))
    )
    flat = [*tokens, *(child for token in tokens for child in token.children or ())]
    assert [token.content for token in flat if token.type in {"html_block", "html_inline"}] == []
    links = {token.attrGet("href") for token in flat if token.type == "link_open"}
    assert {link for link in links if not re.match(r"https://(arxiv|doi)\.org/", link)} == set()
    images = {token.attrGet("src") for token in flat if token.type == "image"}
    assert {image for image in images if not re.fullmatch(r"figures/[a-z0-9-]+\.svg", image)} == set()
    text = shown(
        "".join(token.content for token in flat if token.type in {"text", "code_inline", "fence", "text_special"})
    )
    assert shown(STRINGS["script"]) in text


# -- the terminal ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["table", "md", "json"])
def test_a_terminal_is_told_nothing_by_strangers(hostile, form, capsys, monkeypatch):
    monkeypatch.setattr("bench.registry._installed", lambda: iter(POINTS))
    folder = str(hostile.folder)
    name = STRINGS["control"]
    commands = [
        ["list", "--format", form],
        ["leaderboard", "--results", folder, "--format", form],
        ["compare", name, "adamw", "--workload", "llama-c4", "--results", folder, "--format", form],
        ["leaderboard", "--results", folder, "--workload", name, "--format", form],
        ["leaderboard", "--results", folder, "--workload", f"no {name}"],
        *([["show", STRINGS["script"]], ["show", name], ["show", f"no {name}"]] if form == "table" else []),
    ]
    for command in commands:
        code = main(command)
        out, err = capsys.readouterr()
        assert code in {0, 2}, err
        told = {char for char in out + err if not char.isprintable()} - {"\n"}
        assert told == set(), (command, told)
    assert r"\x1b[31m" in err or form != "table"


POINTS = [
    *entry_points(group="bench"),
    EntryPoint(name="hostile", value="bench_hostile", group="bench"),
    EntryPoint(name=STRINGS["control"], value="bench_hostile.torn", group="bench"),
]
