"""Look at the built pages instead of trusting the tools that built them.

Jupyter Book builds a page with a traceback in it and exits with 0, and its default pages ask public
servers for scripts. A page must load nothing from another machine when it is opened, give every
image an alt text, show no error output, and link only to pages and anchors that exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

SHOWN = 30  # problems listed in a message; the rest are counted

#: The <link> relations that only name another page; a browser loads what the others name.
NAMED_ONLY = {"alternate", "author", "canonical", "help", "index", "license", "next", "prev"}
NAMED_ONLY |= {"search"}

CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")
EXTERNAL = re.compile(r"\s*(?:(?:https?|ftp|wss?):|//)", re.IGNORECASE)  # asks another machine
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# An inline script that fetches: import "...", import("..."), fetch("..."), x.src = "...".
SCRIPT_URL = re.compile(
    r"""(?:\bimport\b[^;'"]{0,200}|\bfetch\(\s*|\.src\s*=\s*)['"]((?:https?:)?//[^'"]+)"""
)


class BookError(RuntimeError):
    """The build or a page is not as it must be; ``problems`` has a line for each fault."""

    def __init__(self, headline: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        lines = [headline, *(f"  {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        super().__init__("\n".join(lines))


class Page:
    """What has to be known of a page: its anchors, and the addresses in it.

    Attributes:
        links: those that wait for the reader's click.
        loaded: what a browser loads on its own when it opens the page.
        faults: those that can be seen without the other pages.
    """

    def __init__(self, path: Path) -> None:
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        self.links = [a["href"] for a in soup.select("a[href]")]
        self.loaded = [url for tag in soup(True) for url in loads(tag)]
        self.anchors = {tag["id"] for tag in soup.find_all(id=True)}
        self.anchors |= {a["name"] for a in soup.select("a[name]")}
        images = [image.get("src", "")[:80] for image in soup("img") if bare(image)]
        self.faults = [f"image without alt text: {src}" for src in images]
        outputs = [out.get_text() for out in soup.select(".cell_output")]
        shown = any("Traceback (most recent call last)" in text for text in outputs)
        self.faults += ["error output"] * bool(shown or soup.select_one(".traceback"))


def bare(image: Tag) -> bool:
    """Whether an image has no alt text; its own file name, docutils' stopgap, is none."""
    alt, src = image.get("alt", "").strip(), image.get("src", "")
    return not alt or alt in (src, unquote(src), PurePosixPath(unquote(src)).name)


def loads(tag: Tag) -> Iterator[str]:
    """The addresses that a browser loads when it meets an element."""
    if tag.name != "a" and not NAMED_ONLY.issuperset(tag.get("rel", ["?"])):
        yield from filter(None, [tag.get("href")])
    if tag.name in ("image", "use"):  # of a drawing
        yield from filter(None, [tag.get("href"), tag.get("xlink:href")])
    yield from filter(None, [tag.get("src"), tag.get("poster")])
    yield from [tag["data"]] if tag.name == "object" and tag.get("data") else []
    yield from (part.split()[0] for part in tag.get("srcset", "").split(",") if part.strip())
    yield from css_urls(tag.get("style", ""))
    if tag.name == "style":
        yield from css_urls(tag.string or "")
    if tag.name == "script":
        yield from SCRIPT_URL.findall(tag.string or "")


def css_urls(css: str) -> list[str]:
    """The addresses that a style sheet fetches."""
    return [one or two for one, two in CSS_URL.findall(CSS_COMMENT.sub("", css))]


def check_html(folder: Path) -> None:
    """Check all pages of a built book; BookError says of each fault ``page: what: address``."""
    folder = folder.resolve()
    # In _static the theme leaves templates of its own; they are no pages.
    files = [p for p in sorted(folder.rglob("*.html")) if folder / "_static" not in p.parents]
    if not files:
        raise BookError(f"There is no page in {folder}.")
    pages = {path: Page(path) for path in files}
    problems = []
    for path, page in pages.items():
        faults = page.faults + [f"external request: {u}" for u in page.loaded if EXTERNAL.match(u)]
        for url in (*page.links, *page.loaded):
            if fault := link_fault(folder, path, url, pages):
                faults.append(f"{fault}: {url}")
        problems += [f"{path.relative_to(folder)}: {fault}" for fault in dict.fromkeys(faults)]
    for path in sorted(folder.rglob("*.css")):
        urls = css_urls(path.read_text(encoding="utf-8", errors="replace"))
        name = path.relative_to(folder)
        problems += [f"{name}: external request: {url}" for url in urls if EXTERNAL.match(url)]
    if problems:
        raise BookError(f"Faults in {len(files)} pages of {folder}:", problems)


def link_fault(folder: Path, path: Path, url: str, pages: Mapping[Path, Page]) -> str:
    """What is wrong with an internal link on the page ``path``; empty when nothing is."""
    parts = urlsplit(url.strip())
    if parts.scheme or parts.netloc:
        return ""  # another site, mailto:, data:, ...
    if parts.path.startswith("/"):
        return "link from the server's root, which breaks below a folder"
    target = path
    if parts.path:
        target = Path(os.path.normpath(path.parent / unquote(parts.path)))
        target = target / "index.html" if target.is_dir() else target
        if not target.is_relative_to(folder) or not target.is_file():
            return "broken link"
    anchor = unquote(parts.fragment)
    if anchor in ("", "top") or target not in pages or anchor in pages[target].anchors:
        return ""
    return "no such anchor"
