"""The pages as a browser shows them, without a network. Skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

from eqr import book, play, vendor
from eqr.runner import BOOK

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(not vendor.is_current(), reason="page scripts not fetched: make vendor"),
]


def chapter(path: Path, name: str) -> Path:
    """A notebook that stands in for an executed chapter."""
    text = f"# Chapter {name}\n\nAn equation, $z^* = f(z^*)$.\n\n## A section\n\nText."
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
    return path


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The real book's pages around four stand-in chapters."""
    work = tmp_path_factory.mktemp("book")
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    names = [file.removeprefix("chapters/") for file in files if file.startswith("chapters/")]
    chapters = {name: chapter(work / f"{name}.ipynb", name) for name in names}
    source = book.assemble(BOOK, chapters, work / "source", "Only a rehearsal.")
    (source / play.HOME).parent.mkdir()
    (source / play.HOME).write_text("<p>A board.</p>")
    book.build_html(source, work / "html")
    return work / "html"


def opened(page: Path, profile: Path) -> tuple[str, str]:
    """The page's DOM after its scripts have run with every host name unresolvable; the log."""
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-sync", "--disable-component-update"),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, done.stderr


def test_the_book_is_sound_and_typesets_its_equations_offline(html, tmp_path):
    book.check_html(html)
    dom, log = opened(html / "index.html", tmp_path)
    assert dom.count("<mjx-container") >= 4, "MathJax did not run"
    assert "Equilibrium Reasoners" in dom and "Only a rehearsal." in dom
    errors = [line for line in log.splitlines() if re.search(r"CONSOLE.*(Uncaught|ERR_)", line)]
    assert not errors
