"""The built pages in a real browser, as a reader and as a screen reader meet them.

Without more, the pages are those of the stand-in book (tests/browsing.py); with
``EQR_SITE=build/smoke/html`` they are those of a book that was really built, and all of them are
looked at rather than one of each kind.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import ELSEWHERE, NEEDS_BROWSER, Tab, opened, served

from book.tools import BOOK, build, check, pdf, sphinx_ext
from eqr.studies.registry import as_html, published

pytestmark = NEEDS_BROWSER

REAL = "EQR_SITE" in os.environ
AXE = BOOK / "_vendor/.checks/axe.min.js"

#: Waits until a page has done what it does by itself.
SETTLED = """async () => {
  await document.fonts.ready;
  if (window.MathJax && window.MathJax.startup) await window.MathJax.startup.promise;
}"""

HEADINGS = """() => [...document.querySelectorAll("main h1, main h2, main h3, main h4, main h5")]
  .filter((node) => node.offsetParent !== null).map((node) => Number(node.tagName[1]))"""

IDS = "() => [...document.querySelectorAll('[id]')].map((node) => node.id)"
LINKS = """() => [...document.querySelectorAll("article a[href^='#']:not(.headerlink)")]
  .map((node) => decodeURIComponent(node.hash.slice(1))).filter((name) => name !== "")"""

FINDINGS = """async () => {
  const report = await axe.run(document, {preload: false, resultTypes: ["violations"]});
  return report.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map(
    (v) => `${v.id}, ${v.nodes.length} times: ${v.nodes[0].target} ` +
           `${v.nodes[0].failureSummary.split("\\n").slice(1).join(" ")}`);
}"""


@pytest.fixture(scope="module")
def origin(built_book) -> Iterator[str]:
    """The pages over http."""
    with served(built_book) as address:
        yield address


def names(folder: Path, every: bool = REAL) -> list[str]:
    """The pages to look at; unless ``every`` one, of the chapters the first only."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.html"))]
    listed = [path.as_posix() for path in files if path.parts[0] != "_static"]
    chapters = [name for name in listed if name.startswith("chapters/")]
    return listed if every else [name for name in listed if name not in chapters[1:]]


def visit(tab: Tab, url: str) -> Any:
    """Open a page and wait until it stands."""
    tab.page.goto(url)
    tab.page.evaluate(SETTLED)
    return tab.page


def heading_fault(levels: list[int]) -> str:
    """What is wrong with the levels of a page's headings; empty when nothing is."""
    if levels[:1] != [1] or levels.count(1) != 1:
        return "not one h1, and that first"
    if any(b > a + 1 for a, b in itertools.pairwise(levels)):
        return "a level is skipped"
    return ""


def test_the_checks_see_faults(chromium, tmp_path):
    """A level skipped, a missing file, a request elsewhere, an error, and grey on grey."""
    assert not heading_fault([1, 2, 3, 2])
    assert heading_fault([1, 3]) and heading_fault([1, 2, 1]) and heading_fault([2])
    (tmp_path / "bad.html").write_text(
        "<!doctype html><html lang=en><title>t</title><main><h1>A</h1><img src=gone.png alt=b>"
        "<p style='color:#999;background:#aaa'>grey</p></main>"
        "<script src=https://cdn.example/a.js></script><script>throw Error('thrown')</script>"
    )
    with served(tmp_path) as origin, opened(chromium, origin) as tab:
        page = visit(tab, f"{origin}/bad.html")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        assert "color-contrast" in " ".join(page.evaluate(FINDINGS))
        seen = "\n".join(tab.faults)
    for fault in ("404: ", "gone.png", "request elsewhere: https://cdn.example/a.js", "thrown"):
        assert fault in seen


def test_every_page_opens_over_http_on_a_phone_with_headings_in_order(chromium, origin, built_book):
    """No error, nothing missing, nothing from elsewhere; no sideways scrolling at 380 pixels."""
    faults = []
    with opened(chromium, origin, viewport={"width": 380, "height": 800}) as tab:
        for name in names(built_book):
            page = visit(tab, f"{origin}/{name}")
            wide = page.evaluate("document.documentElement.scrollWidth")
            faults += [f"{name}: {wide} pixels wide"] if wide > 380 else []
            levels = page.evaluate(HEADINGS)
            faults += [f"{name}: {fault}: {levels}" for fault in [heading_fault(levels)] if fault]
            text = page.locator('meta[name="description"]').get_attribute("content")
            faults += [f"{name}: its description is short"] if len(text) < 20 else []
        faults += tab.faults
    assert not faults, "\n".join(faults)


def test_every_page_opens_from_the_disk(chromium, built_book):
    """The same from file://, as from a USB stick."""
    with opened(chromium, "file://") as tab:
        for name in names(built_book):
            visit(tab, (built_book / name).as_uri())
    tab.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding(chromium, origin, built_book, scheme):
    """Contrast, names, roles and landmarks: on each page, in the dark on each kind of page."""
    script, faults = AXE.read_text(encoding="utf-8"), []
    with opened(chromium, origin, color_scheme=scheme, reduced_motion="reduce") as tab:
        for name in names(built_book, REAL and scheme == "light"):
            page = visit(tab, f"{origin}/{name}")
            shown = page.evaluate("document.documentElement.dataset.theme")
            assert shown == scheme, "the page follows the reader's setting"
            page.evaluate(script)
            faults += [f"{name}: {finding}" for finding in page.evaluate(FINDINGS)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("way", ["http", "file"])
def test_search_finds_a_word(chromium, origin, built_book, way):
    """Over http with an excerpt of each page, from the disk with titles."""
    root = origin if way == "http" else built_book.as_uri()
    with opened(chromium, origin if way == "http" else "file://") as tab:
        page = visit(tab, f"{root}/index.html")
        page.keyboard.press("Control+k")
        page.keyboard.type("damping")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=damping")
        page.wait_for_selector("#search-results li a")
        assert "Glossary" in page.locator("#search-results").inner_text()
        if way == "http":
            page.wait_for_selector("#search-results .context")
        page.locator("#search-results li a", has_text="Glossary").first.click()
        page.wait_for_url("**/glossary.html*")
    tab.check()


def test_keyboard_reaches_content_search_and_the_colours(chromium, origin):
    """The first stop skips to the content; later ones are the search and the theme's switch."""
    with opened(chromium, origin, viewport={"width": 1280, "height": 800}) as tab:
        page = visit(tab, f"{origin}/glossary.html")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent.trim()").startswith("Skip to")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("!!document.activeElement.closest('main')"), "the skip link works"

        page = visit(tab, f"{origin}/glossary.html")
        reached, mode = set(), "document.documentElement.dataset.mode"
        while "theme-switch-button" not in reached and len(reached) < 200:
            page.keyboard.press("Tab")
            reached |= set(page.evaluate("[...document.activeElement.classList]"))
        assert "search-button-field" in reached
        before = page.evaluate(mode)
        page.keyboard.press("Enter")
        assert page.evaluate(mode) != before
    tab.check()


def test_a_term_shows_its_definition_by_pointer_and_by_keyboard(chromium, built_book):
    """WCAG 1.4.13: it stays under the pointer, Escape puts it away and leaves the focus."""
    with opened(chromium, "file://", viewport={"width": 1280, "height": 900}) as tab:
        tab.page.clock.install()
        page = visit(tab, (built_book / "index.html").as_uri())
        term = page.locator('a[href*="#term-residual"]').first
        tip = page.locator("#eqr-term")
        term.focus()
        tip.wait_for(state="visible")
        assert "says how far the state still moves" in tip.inner_text()
        assert tip.locator("mjx-container").count() and term.get_attribute("aria-describedby")
        page.keyboard.press("Escape")
        tip.wait_for(state="hidden")
        assert term.evaluate("node => node === document.activeElement")

        page.locator("article h1").hover()
        term.evaluate("node => node.blur()")
        term.hover()
        tip.wait_for(state="visible")
        tip.hover()
        page.clock.run_for(600)  # longer than it stays without a pointer
        assert tip.is_visible(), "it can be pointed at"
        page.locator("article h1").hover()
        tip.wait_for(state="hidden")
    tab.check()


def test_the_registry_sorts_and_filters_by_keyboard(chromium, tmp_path):
    """And without JavaScript all its rows stand there, in the order of the file."""
    style, script = (BOOK / f"_static/{name}" for name in ("eqr.css", "tables.js"))
    (tmp_path / "page.html").write_text(
        f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>t</title>'
        f'<link rel="stylesheet" href="{style.as_uri()}"><script src="{script.as_uri()}"></script>'
        f"<main><h1>t</h1>{as_html(published().assign(contradicts=None), 'A caption')}</main>",
        encoding="utf-8",
    )
    rows, exact = len(published()), ".eqr-registry tbody tr:not([hidden]) td:nth-child(4)"
    for plain in (True, False):
        options = {"java_script_enabled": not plain}
        with opened(chromium, "file://", viewport={"width": 360, "height": 740}, **options) as tab:
            page = visit(tab, (tmp_path / "page.html").as_uri())
            assert page.locator(exact).count() == rows
            if plain:
                continue
            page.add_script_tag(path=AXE)
            assert page.evaluate(FINDINGS) == []
            page.get_by_role("button", name="exact, %").focus()
            for order in (sorted, lambda values: sorted(values, reverse=True)):
                page.keyboard.press("Enter")
                values = [float(text) for text in page.locator(exact).all_inner_texts()]
                assert values == order(values)
            page.get_by_label("task").select_option("Maze-Unique")
            page.get_by_label("find").fill("supplement trm")
            assert page.get_by_role("status").inner_text() == f"2 of {rows} rows"
            assert page.locator(exact).all_inner_texts() == ["99.4", "89.4"]
        tab.check()


def test_a_chapter_can_be_taken_along_and_says_how_it_was_made(chromium, origin, built_book):
    """The notebook's link leads to a notebook; the footer opens by keyboard and names its runs."""
    with opened(chromium, origin) as tab:
        page = visit(tab, f"{origin}/chapters/settling.html")
        href = page.get_by_role("link", name="Download this notebook").get_attribute("href")
        notebook = nbformat.read((built_book / "chapters" / href).resolve(), as_version=4)
        nbformat.validate(notebook)
        assert all(not cell.get("outputs") for cell in notebook.cells)
        origin_of = page.locator("details.eqr-origin")
        assert not origin_of.evaluate("node => node.open")
        origin_of.locator("summary").focus()
        page.keyboard.press("Enter")
        text = origin_of.inner_text()
        assert "eqr notebook notebooks/settling.ipynb build/settling.ipynb -p profile=" in text
        assert re.search(r"train-[0-9a-f]{16}", text) and re.search(r"Commit\s+[0-9a-f]{10}", text)
        assert "torch" in text and "numpy" in text and "seed" in text
        assert "eqr-book 0." in page.locator(".eqr-stamp").inner_text()
    tab.check()


def test_the_home_board_plays_and_the_live_solver_runs(chromium, origin):
    """On the real pages; what they compute is held by tests/test_live.py."""
    with opened(chromium, origin) as tab:
        page = visit(tab, f"{origin}/index.html")
        page.wait_for_function("document.querySelector('.eqr-count').textContent === '16 / 16'")
        if REAL:
            page = visit(tab, f"{origin}/chapters/settling.html")
            solver = page.locator(".eqr-solver")
            solver.get_by_role("button", name="Play").click()
            deep = "document.querySelector('.eqr-solver').explorer.player.depth > 3"
            page.wait_for_function(deep)
            assert "residual" in solver.locator(".eqr-facts").inner_text()
    tab.check()


def test_the_book_prints_as_one_pdf_with_links_inside(chromium, stand_in, tmp_path, monkeypatch):
    """Every page of the table of contents is in it; what only works on a screen is not."""
    if REAL:
        pytest.skip("slow for a real book; `make pdf` prints it")
    source = stand_in.parent / "source"
    single = build.sphinx(source, tmp_path / "work", "singlehtml")
    with opened(chromium, "file://") as tab:
        tab.page.emulate_media(media="print")
        page = visit(tab, (single / "index.html").as_uri())
        assert not page.get_by_text("Only on a screen.").first.is_visible()
        assert not page.get_by_text("Download this notebook").first.is_visible()
        assert page.get_by_text("In its place.").first.is_visible()
        inside, ids = set(page.evaluate(LINKS)), page.evaluate(IDS)
        assert len(inside) >= 25 and {name for name in inside if ids.count(name) != 1} == set()
    # In a process of its own: Playwright runs once in each.
    code = "import sys; from pathlib import Path; from book.tools.pdf import print_book; "
    code += "print_book(*map(Path, sys.argv[1:]))"
    out = tmp_path / "book.pdf"
    subprocess.run([sys.executable, "-c", code, single, out], check=True, cwd=BOOK.parent)
    made = out.read_bytes()
    assert made.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", made)) >= 20
    assert made.count(b"/Subtype /Link") >= 20 and b"term-residual" in made
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(check.BookError, match=r"no Chromium here .*apt-get install chromium"):
        pdf.print_book(single, tmp_path / "other.pdf")
    assert {path.name for path in tmp_path.iterdir()} == {"work", "book.pdf"}, "and no half PDF"


def test_every_term_of_the_glossary_has_a_definition_for_its_links(built_book):
    """What eqr.js loads holds the anchors that the pages link to."""
    page = (built_book / "glossary.html").read_text(encoding="utf-8")
    terms = sphinx_ext.definitions(page)
    assert set(terms) == set(re.findall(r'<dt id="(term-[^"]+)"', page)) and len(terms) > 20
    assert all(len(text) > 20 and "<a " not in text for text in terms.values())


def test_a_page_quotes_claims(stand_in):
    page = (stand_in / "chapters/theory.html").read_text(encoding="utf-8")
    said = re.findall('<span class="eqr-claim">([^<]*)</span>', page)
    assert said == ["It holds.", "0.5 [0.4, 0.6]"]


def test_a_link_to_a_page_has_a_preview(stand_in):
    """Title, description and picture; the picture is there, of the right shape and light."""
    from PIL import Image

    page = (stand_in / "chapters/settling.html").read_text(encoding="utf-8")
    tags = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', page))
    assert tags["og:title"].endswith("Chapter settling")
    assert tags["description"].startswith("A chapter’s first paragraph")
    assert tags["og:url"] == f"{ELSEWHERE.address}chapters/settling.html"
    card = stand_in / tags["og:image"].removeprefix(ELSEWHERE.address)
    assert card.stat().st_size <= 100_000
    with Image.open(card) as picture:
        assert picture.size == (1200, 630)
