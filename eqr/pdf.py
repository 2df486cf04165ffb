"""The whole book as one PDF: the built pages, one after the other, printed by Chromium.

Serves `make pdf`. The browser sets the equations and figures as in the pages, so that nothing of
the book needs a second form. Links between pages become links inside the PDF; what only works on a
screen (``.eqr-live``) is left out, and what stands in for it (``.eqr-static``) is shown.
"""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from eqr.book import BookError
from eqr.browser import chromium
from eqr.store import replace_file

__all__ = ["print_book"]

#: Parts of a page that are of no use on paper.
LEFT_OUT = (
    "script, .headerlink, .eqr-launch, .eqr-live, .copybtn, .onlyprint, iframe, video, audio, "
    "noscript, form, input, button"
)

SET = """async () => {
  await window.MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  return document.querySelectorAll("mjx-container").length;
}"""

FOOT = """<div style="width:100%;font:8px sans-serif;color:#555;padding:0 15mm;display:flex;
justify-content:space-between"><span>{title}</span><span class="pageNumber"></span></div>"""


def anchor(page: str, fragment: str = "") -> str:
    """The name, inside the PDF, of a page or of a place on it.

    >>> anchor("chapters/plan.html", "claims"), anchor("index.html")
    ('chapters-plan--claims', 'index')
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", page.removesuffix(".html"))
    return f"{slug}--{fragment}" if fragment else slug


def order(index: Any) -> list[tuple[str, str]]:
    """The pages as the sidebar of the first page lists them: address and title; home comes first.

    Part captions come as ``("", caption)``.
    """
    found = [("index.html", "Home")]
    for node in index.select("nav.bd-links .caption-text, nav.bd-links li.toctree-l1 > a"):
        href = node.get("href", "")
        if not href.startswith("#"):  # that is the first page itself
            found.append((href, " ".join(node.get_text().split())))
    return found


def adopt(article: Any, page: str, pages: set[str]) -> None:
    """Give a page's content names and addresses that hold in the one long page."""
    for node in article.select(LEFT_OUT):
        node.decompose()
    for node in article.select("details"):
        if "eqr-origin" in node.get("class", ()) or node.select_one(".eqr-origin"):
            node["open"] = ""
    for node in article.find_all(id=True):
        node["id"] = anchor(page, node["id"])
    for key in ("aria-labelledby", "aria-describedby"):
        for node in article.find_all(attrs={key: True}):
            node[key] = " ".join(anchor(page, name) for name in node[key].split())
    for node in article.find_all("a", href=True):
        parts = urlsplit(node["href"])
        if parts.scheme or parts.netloc:
            continue
        target = page
        if parts.path:
            target = posixpath.normpath(
                posixpath.join(posixpath.dirname(page), unquote(parts.path))
            )
        if target in pages:
            node["href"] = "#" + anchor(target, unquote(parts.fragment))
        else:
            del node["href"]
    for node in article.find_all(src=True):
        if not urlsplit(node["src"]).scheme:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), node["src"]))
            node["src"] = quote(unquote(path))


def one_page(html_dir: Path) -> str:
    """The whole book as one HTML page, to be opened from the root of the built pages.

    Raises:
        eqr.book.BookError: there is no book in ``html_dir``, or a page has no article.
    """
    from bs4 import BeautifulSoup

    def soup(name: str) -> Any:
        path = html_dir / name
        if not path.is_file():
            raise BookError(f"{path}: no such page; build the book first")
        return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")

    index = soup("index.html")
    listed = order(index)
    pages = {name for name, _ in listed if name}
    title = index.select_one("meta[property='og:site_name']")["content"]
    for node in index.select(".eqr-screen"):
        node.decompose()
    told = (node.get_text().strip(" ·\n") for node in index.select("p.eqr-stamp, p.eqr-licence"))
    stamp = "".join(f"<p>{escape(text)}</p>" for text in told)
    contents, bodies = [], []
    for name, label in listed:
        if not name:
            contents.append(f'<li class="part">{escape(label)}</li>')
            continue
        page = soup(name)
        article = page.select_one("article.bd-article")
        if article is None:
            raise BookError(f"{html_dir / name}: has no article to print")
        adopt(article, name, pages)
        article.name, article["id"] = "section", anchor(name)
        contents.append(f'<li><a href="#{anchor(name)}">{escape(label)}</a></li>')
        bodies.append(str(article))
    head = "".join(map(str, index.select("head link[rel=stylesheet]")))
    scripts = "".join(
        str(node)
        for node in index.select("script")
        if "mathjax" in node.get("src", "").lower() or "MathJax" in (node.string or "")
    )
    return f"""<!doctype html><html lang="en" data-theme="light" data-mode="light">
<head><meta charset="utf-8"><title>{escape(title)}</title>{head}
{scripts}</head><body class="eqr-print">
<header class="eqr-cover"><h1>{escape(title)}</h1>{stamp}
<p>Printed {datetime.now(UTC):%d %B %Y}</p></header>
<nav class="eqr-contents" aria-label="Contents"><h2>Contents</h2><ul>{"".join(contents)}</ul></nav>
{"".join(bodies)}</body></html>"""


def print_book(html_dir: Path, out: Path, browser: Any = None) -> Path:
    """Print a built book to ``out``, which appears complete or not at all.

    Args:
        html_dir: the built pages.
        out: the PDF.
        browser: a running one; None starts the system's.

    Raises:
        eqr.book.BookError: there is no Chromium, no book, or a page has no equations set.
    """
    text = one_page(html_dir)
    page_file = html_dir / ".eqr-print.html"
    try:
        page_file.write_text(text, encoding="utf-8")
        with chromium(browser) as found:
            page = found.new_page()
            page.set_default_timeout(300_000)
            page.emulate_media(media="print", color_scheme="light")
            page.goto(page_file.resolve().as_uri())
            if not page.evaluate(SET) and r"\(" in text:
                raise BookError("The equations were not set: MathJax did not run.")
            if page.locator("mjx-merror").count():
                broken = page.locator("mjx-merror").first.get_attribute("data-mjx-error")
                raise BookError(f"An equation cannot be set: {broken}")
            title = page.title()
            content = page.pdf(
                format="A4",
                print_background=True,
                prefer_css_page_size=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOT.format(title=escape(title)),
                margin={"top": "18mm", "bottom": "18mm", "left": "17mm", "right": "17mm"},
                outline=True,
                tagged=True,
            )
            page.close()
    finally:
        page_file.unlink(missing_ok=True)
    replace_file(out, content)
    return out
