"""The page in a browser: sorting, narrow and dark screens, no scripts, and no word to anybody outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.registry import Registry
from bench.report import html, write_report
from bench.report.document import Code, Facts, Gallery, Notes, Page, Picture, Piece, Section, Tabular, pieces, text
from bench.report.table import Cell, Column, Row, cell, name_cell, table

pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

RESULTS = Path(__file__).parents[2] / "results" / "cpu-2"

pytestmark = pytest.mark.slow

HOSTILE = '<script>window.broken = 1</script>"><img src=x onerror="window.broken = 2"><svg onload=window.broken=3>'
VALUES = ["9.5", "–", "10", "∞", "−2", "0.001"]
NUMBERS = [9.5, None, 10.0, float("inf"), -2.0, 0.001]
UPWARD = ["−2", "0.001", "9.5", "10", "∞", "–"]
DOWNWARD = ["∞", "10", "9.5", "0.001", "−2", "–"]


def page():
    """Return a page with a table to sort, one that is too wide, one with sentences, and strings of an attacker."""
    columns = [
        Column(key="name", head="Name", header=True),
        Column(key="value", head="Value", numeric=True),
        Column(key="tied", head="Tied", numeric=True),
        Column(key="who", head=HOSTILE, wide=True, keep=True),
    ]
    rows = [
        Row(
            cells={
                "name": name_cell(f"row {place}"),
                "value": cell(shown, value),
                "tied": cell("1", 1),
                "who": Cell(text=HOSTILE, detail=HOSTILE),
            },
            group=1 + place // 2,
            starts_group=place % 2 == 0,
            reference=place == 1,
        )
        for place, (shown, value) in enumerate(zip(VALUES, NUMBERS, strict=True))
    ]
    wide = [Column(key="0", head="Row", header=True), *(Column(key=str(k), head="x" * 20) for k in range(1, 30))]
    broad = table("broad", "Broad", wide, [Row(cells={str(k): cell("y" * 20) for k in range(30)})], sortable=False)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" role="img"><text y="9">figure</text></svg>'
    picture = Picture(anchor="p", name="p", title=HOSTILE, caption=HOSTILE, alternative=HOSTILE, svg=svg)
    blocks = [
        text(HOSTILE, Piece(text=HOSTILE, code=True), Piece(text=HOSTILE, strong=True)),
        Tabular(table=table("sorted", HOSTILE, columns, rows, notes=[HOSTILE])),
        Tabular(table=broad),
        Facts(items=[(HOSTILE, pieces("z" * 400))]),
        Notes(title=HOSTILE, items=[pieces(HOSTILE)]),
        Code(lines=["w" * 400, HOSTILE]),
        Gallery(pictures=[picture]),
    ]
    return Page(title=HOSTILE, subtitle=HOSTILE, sections=[Section(anchor="s", title=HOSTILE, blocks=blocks)])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page by hand, and the report of our own measurements."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "hand.html").write_text(html(page()), encoding="utf-8")
    if RESULTS.is_dir():
        write_report(folder / "real.html", [RESULTS], registry=Registry())
    return folder


@pytest.fixture(params=["hand", "real"])
def opened(request, browser, pages, show):
    """The browser with each page open, at desktop size."""
    file = pages / f"{request.param}.html"
    if not file.exists():
        pytest.skip("our own results are not part of this checkout")
    return show(browser, file)


@pytest.fixture
def hand(browser, pages, show):
    return show(browser, pages / "hand.html")


def column(browser, place):
    """Return the texts of a column of the sorted table, from the top down."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"#sorted tbody tr > :nth-child({place})")
    return [each.get_attribute("textContent").strip() for each in cells]


def head(browser, place):
    return browser.find_element(By.CSS_SELECTOR, f"#sorted thead th:nth-child({place})")


def click(browser, place):
    button = head(browser, place).find_element(By.TAG_NAME, "button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()


def test_a_click_on_a_heading_sorts_by_number_and_the_next_one_reverses(hand):
    assert column(hand, 2) == VALUES
    click(hand, 2)
    assert column(hand, 2) == UPWARD
    assert head(hand, 2).get_attribute("aria-sort") == "ascending"
    click(hand, 2)
    assert column(hand, 2) == DOWNWARD
    assert head(hand, 2).get_attribute("aria-sort") == "descending"
    click(hand, 1)
    assert column(hand, 1)[0].startswith("row 0")
    assert head(hand, 2).get_attribute("aria-sort") is None
    assert head(hand, 1).get_attribute("aria-sort") == "ascending"


def test_rows_that_tie_keep_the_order_of_the_page(hand):
    before = column(hand, 1)
    click(hand, 3)
    assert column(hand, 1) == before
    click(hand, 3)
    assert column(hand, 1) == before


def test_the_keyboard_sorts_too(hand):
    button = head(hand, 2).find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert column(hand, 2) == UPWARD
    assert hand.switch_to.active_element == button
    button.send_keys(Keys.SPACE)
    assert column(hand, 2) == DOWNWARD


def test_a_column_of_the_real_board_sorts_by_its_numbers(browser, pages, show):
    if not (pages / "real.html").exists():
        pytest.skip("our own results are not part of this checkout")
    show(browser, pages / "real.html")
    shown = next(
        t for t in browser.find_elements(By.CSS_SELECTOR, "table.sortable") if "-result" in t.get_attribute("id")
    )
    heads = shown.find_elements(By.CSS_SELECTOR, "thead th")
    place = next(k for k, each in enumerate(heads, start=1) if each.text.startswith("Quality"))
    button = heads[place - 1].find_element(By.TAG_NAME, "button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    cells = shown.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({place})")
    values = [float(each.get_attribute("data-value")) for each in cells]
    assert values == sorted(values)
    assert len(set(values)) > 1


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened, width, show):
    url = opened.current_url
    show(opened, Path(url.removeprefix("file://")), width=width)
    inner, outer = opened.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer <= width


def test_text_is_large_enough_for_a_phone(browser, pages, show):
    show(browser, pages / "hand.html", width=360)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('main p, main td, main li, main dd')]"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


def test_a_page_says_nothing_to_anybody_and_has_no_errors(opened):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = opened.current_url
    assert own in asked
    assert {url for url in asked if url != own and not url.startswith("data:")} == set()
    assert opened.get_log("browser") == []


def test_strings_of_an_attacker_execute_nothing_and_are_shown(hand):
    assert hand.execute_script("return window.broken === undefined")
    assert hand.find_elements(By.CSS_SELECTOR, "img") == []
    assert len(hand.find_elements(By.TAG_NAME, "script")) == 1
    assert hand.title == HOSTILE
    assert HOSTILE in hand.find_element(By.TAG_NAME, "h1").text
    click(hand, 4)
    assert hand.execute_script("return window.broken === undefined")


def test_the_policy_would_stop_a_script_that_got_in(hand):
    hand.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 4'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = '<b onclick=\"window.broken = 5\">x</b>';"
        "document.body.append(d); d.firstChild.click();"
    )
    assert hand.execute_script("return window.broken === undefined")
    hand.get_log("browser")


def test_colours_follow_the_dark_mode_of_the_system(browser, pages, show):
    asked = "return ['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
    drawn = "return getComputedStyle(document.querySelector('figure svg')).color"
    show(browser, pages / "hand.html", scheme="light")
    light, ink = browser.execute_script(asked), browser.execute_script(drawn)
    show(browser, pages / "hand.html", scheme="dark")
    dark, chalk = browser.execute_script(asked), browser.execute_script(drawn)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert (ink, chalk) == (light[1], dark[1]), "figures have the colour of the text"


def test_without_scripts_every_table_is_whole(browser, pages, show):
    file = pages / "hand.html"
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, file)
        assert browser.find_elements(By.CSS_SELECTOR, "thead button") == []
        assert column(browser, 2) == VALUES
        assert browser.find_element(By.ID, "broad").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_wide_tables_scroll_in_a_box_that_the_keyboard_reaches(hand):
    box = hand.find_element(By.CSS_SELECTOR, ".scroll:has(#broad)")
    assert box.get_attribute("tabindex") == "0"
    inner, outer = hand.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", box)
    assert inner > outer


def test_tables_with_sentences_are_stacked_on_a_phone(browser, pages, show):
    show(browser, pages / "hand.html", width=360)
    shown = browser.execute_script("return getComputedStyle(document.querySelector('#sorted tbody tr')).display")
    label = browser.execute_script(
        "return getComputedStyle(document.querySelector('#sorted tbody td'), '::before').content"
    )
    assert (shown, label.split('"')[1].strip()) == ("block", "Value")


def test_print_shows_whole_tables(hand):
    hand.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert hand.execute_script(style, ".scroll", "overflowX") == "visible"
        assert hand.execute_script(style, ".contents", "display") == "none"
    finally:
        hand.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
