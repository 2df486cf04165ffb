"""A Sphinx extension: what a page tells search engines and link previews, and the glossary's words.

Serves every page of the book; `_config.yml` names it among the extensions. Sphinx runs it in a
process of its own, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

LENGTH = 200  # characters of a description that link previews and search engines show

#: The picture that stands for the book where a link to it is shown.
CARD = "_static/card.png"
CARD_ALT = "Four boards of one Sudoku: a model's answer after 1, 2, 4 and 16 iterations"

#: Where the glossary's definitions go, for eqr.js to load when a term is first pointed at.
TERMS = "_static/glossary/terms.js"


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", add_metadata)
    app.connect("html-page-context", mend)
    app.connect("build-finished", write_terms)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def shortened(text: str, length: int = LENGTH) -> str:
    """``text`` on one line, cut after a word.

    >>> shortened("Some  networks answer by settling.", 20)
    'Some networks …'
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    return text[: length - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def description(doctree: Any) -> str:
    """The first paragraph of a page that is more than a line of links or a label."""
    from docutils import nodes

    for node in doctree.findall(nodes.paragraph) if doctree is not None else ():
        if isinstance(node.parent, nodes.entry | nodes.list_item):
            continue
        text = node.astext()
        if len(text) > 60:
            return shortened(re.sub(r"^Question\.\s+", "", text))
    return ""


def add_metadata(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add description and preview to the head of a page, and make the footer's link relative."""
    home = pagename == app.config.root_doc
    book, title = app.config.html_title or app.config.project, context.get("title", "")
    title = re.sub(r"<[^>]+>", "", title)
    about = description(doctree) or f"{title}: a page of {book}"
    tags = {
        "description": about,
        "og:title": book if home else title,
        "og:description": about,
        "og:type": "website" if home else "article",
        "og:site_name": book,
        "twitter:card": "summary",
    }
    if root := app.config.html_baseurl:
        image = f"{root.rstrip('/')}/{CARD}"
        tags |= {
            "og:url": f"{root.rstrip('/')}/{pagename}.html",
            "og:image": image,
            "og:image:alt": CARD_ALT,
            "twitter:card": "summary_large_image",
            "twitter:image": image,
            "twitter:image:alt": CARD_ALT,
        }
    lines = [
        f'<meta {"property" if key.startswith("og:") else "name"}="{key}" '
        f'content="{escape(value)}" />'
        for key, value in tags.items()
    ]
    context["metatags"] = context.get("metatags", "") + "\n    ".join(["", *lines, ""])
    footer = context.get("theme_extra_footer") or ""
    root = context.get("content_root", "./")
    context["theme_extra_footer"] = footer.replace("PAGES_ROOT", root)


#: What axe-core finds in the HTML of docutils, pandas and MyST-NB, and what stands there instead.
MENDED = {
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # of div, not of li
    ' role="doc-biblioentry"': "",  # given up by ARIA 1.3
    # Hidden cells: a name that does not have the words that are shown.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    "<th></th>": "<td></td>",  # the empty corner of a table is no heading
}


def mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend a page's content where a screen reader would stumble over it."""
    body = context.get("body", "")
    for found, instead in MENDED.items():
        body = body.replace(found, instead)
    if body:
        context["body"] = body


def definitions(page: str) -> dict[str, str]:
    """The glossary's definitions by the anchors of their terms, as HTML without links.

    >>> definitions('<dl class="glossary"><dt id="term-a">a</dt><dd><p>An <a>b</a>.</p></dd></dl>')
    {'term-a': '<p>An b.</p>'}
    """
    from bs4 import BeautifulSoup

    found = {}
    for entry in BeautifulSoup(page, "html.parser").select("dl.glossary > dd"):
        for link in entry.find_all("a"):
            link.unwrap()
        for node in entry.find_all(id=True):
            del node["id"]  # the page that shows the definition may have the same one
        term = entry.find_previous_sibling("dt")
        while term is not None and term.name == "dt":
            found[term["id"]] = entry.decode_contents().strip()
            term = term.find_previous_sibling()
    return found


def write_terms(app: Any, exception: Exception | None) -> None:
    """Write the glossary's definitions as a script, which loads from file:// too."""
    page = Path(app.outdir) / "glossary.html"
    if exception is not None or not page.is_file():
        return
    found = definitions(page.read_text(encoding="utf-8"))
    path = Path(app.outdir) / TERMS
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=0, ensure_ascii=False)
    path.write_text(f"window.eqrTerms = {text};\n", encoding="utf-8")
