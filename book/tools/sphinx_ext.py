"""A Sphinx extension: what a page has beside its text, and what it says to search engines.

Under a chapter's title the links that open it elsewhere, in every footer version and commit, in the
head description and link preview; and the glossary's definitions, for terms that are pointed at.
Sphinx runs it in a process of its own, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from book.tools.pages import CLAIMS, PDF, Site
from eqr import __version__

LENGTH = 200  # characters of a description that link previews and search engines show

#: Where the glossary's definitions go, for eqr.js to load when a term is first pointed at.
TERMS = "_static/glossary/terms.js"

#: What axe-core finds in the HTML of docutils, pandas and MyST-NB, and what stands there instead.
REPAIRS = {
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # of div, not of li
    ' role="doc-biblioentry"': "",  # given up by ARIA 1.3
    # Hidden cells: a name that does not have the words that are shown.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    "<th></th>": "<td></td>",  # the empty corner of a table is no heading
}


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx; the values are written by :func:`book.tools.build.assemble`."""
    app.add_config_value("eqr_site", {}, "html")  # the fields of a Site
    app.add_config_value("eqr_pdf", False, "html")  # whether the book is printed too
    # sphinx-exercise has entries for singlehtml, beside which Sphinx does not look at those of
    # sphinx-proof for html; its own are the same for both.
    app.registry.translation_handlers.pop("singlehtml", None)
    for name, part in (("claim", "measured"), ("answer", "answer")):
        app.add_role(name, partial(quoted, part))
    app.connect("html-page-context", dress)
    app.connect("build-finished", write_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def quoted(part: str, name: str, raw: str, text: str, line: int, inliner: Any, *_: Any) -> Any:
    """The roles ``claim`` (value and interval) and ``answer`` (a sentence): see claims.json."""
    from docutils import nodes

    env = inliner.document.settings.env
    path = Path(env.srcdir) / CLAIMS
    env.note_dependency(CLAIMS)
    claims = {one["id"]: one for one in json.loads(path.read_text(encoding="utf-8"))}
    if text not in claims:
        fault = inliner.reporter.error(f"no chapter has a claim with the id {text!r}", line=line)
        return [inliner.problematic(raw, raw, fault)], [fault]
    words = nodes.inline(raw, claims[text][part], classes=["eqr-claim"])
    return [words], []


def description(doctree: Any) -> str:
    """The first paragraph of a page that is more than a line of links or a label."""
    from docutils import nodes

    for node in doctree.findall(nodes.paragraph) if doctree is not None else ():
        if isinstance(node.parent, nodes.entry | nodes.list_item):
            continue
        text = node.astext()
        if len(text) > 60:
            text = re.sub(r"^Question\.\s+", "", text)
            return textwrap.shorten(text, LENGTH, placeholder=" …")
    return ""


def dress(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Complete a page: its head, the links under a chapter's title, its footer."""
    title, book = re.sub(r"<[^>]+>", "", context.get("title", "")), app.config.html_title
    values = context | {
        "site": Site(**app.config.eqr_site),
        "package_version": __version__,
        "pdf": PDF if app.config.eqr_pdf else "",
        "chapter": page.removeprefix("chapters/"),
        "home": page == app.config.root_doc,
        "book": book,
        "plain_title": title,
        "about": description(doctree) or f"{title}: a page of {book}",
    }

    def part(name: str) -> str:
        return app.builder.templates.render(name, values)

    context["metatags"] = context.get("metatags", "") + part("preview.html")
    context["theme_extra_footer"] = (context.get("theme_extra_footer") or "") + part("stamp.html")
    if body := context.get("body", ""):
        for there, instead in REPAIRS.items():
            body = body.replace(there, instead)
        if page.startswith("chapters/"):
            body = body.replace("</h1>", "</h1>\n" + part("launch.html"), 1)
        context["body"] = body


def definitions(page: str) -> dict[str, str]:
    """The glossary's definitions by the anchors of their terms, as HTML without links."""
    from bs4 import BeautifulSoup

    terms = {}
    for entry in BeautifulSoup(page, "html.parser").select("dl.glossary > dd"):
        for link in entry.find_all("a"):
            link.unwrap()
        for node in entry.find_all(id=True):
            del node["id"]  # the page that shows the definition may have the same one
        term = entry.find_previous_sibling("dt")
        while term is not None and term.name == "dt":
            terms[term["id"]] = entry.decode_contents().strip()
            term = term.find_previous_sibling()
    return terms


def write_terms(app: Any, exception: Exception | None) -> None:
    """Write the glossary's definitions as a script, which loads from file:// too."""
    page = Path(app.outdir) / "glossary.html"
    if exception is not None or not page.is_file():
        return
    terms = definitions(page.read_text(encoding="utf-8"))
    path = Path(app.outdir) / TERMS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"window.eqrTerms = {json.dumps(terms, indent=0)};\n", encoding="utf-8")
