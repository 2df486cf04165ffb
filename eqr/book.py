"""Assemble, build and check the book's pages.

Last step of the flow: executed notebooks -> book. `eqr book` executes the chapters,
then calls `check_notebook`, `assemble`, `build_html` and `check_html` from here, in
that order. Nothing here needs a network.

Jupyter Book builds a page with a traceback in it and exits with 0, and its default
pages ask public servers for scripts; hence the checks, which look at the finished
notebooks and pages instead of trusting the tools (page "How this project is built").
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import yaml

__all__ = ["BookError", "assemble", "build_html", "check_html", "check_notebook"]

SHOWN = 30  # problems listed in a message; the rest are counted

# Version 1 has no `python -m jupyter_book`, and its script need not be on the PATH.
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"


class BookError(RuntimeError):
    """A notebook, the build or a page is not as it must be.

    Attributes:
        problems: one line for each fault, naming its file.
    """

    def __init__(self, headline: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        lines = [headline, *(f"  {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        super().__init__("\n".join(lines))


# --- the source tree and the build ------------------------------------------------------


def assemble(
    book_dir: Path, chapters: Mapping[str, Path], out: Path, announcement: str = ""
) -> Path:
    """Make a fresh source tree: `book_dir` plus executed notebooks under `chapters/`.

    Args:
        book_dir: the book's own pages, configuration and static files.
        chapters: name as in `_toc.yml` (`"attractor"`) -> executed notebook.
        out: the tree to make; an old one there is removed.
        announcement: a line above every page, empty for none.

    Returns:
        `out`.

    Raises:
        BookError: a notebook is missing.
    """
    missing = [f"{name}: no file {path}" for name, path in chapters.items() if not path.is_file()]
    if missing:
        raise BookError("Chapters without an executed notebook:", missing)
    shutil.rmtree(out, ignore_errors=True)
    skip = shutil.ignore_patterns("node_modules", "_build", ".vendor-*", "package*.json")
    shutil.copytree(book_dir, out, ignore=skip)
    (out / "chapters").mkdir(exist_ok=True)
    for name, path in chapters.items():
        shutil.copy(path, out / "chapters" / f"{name}.ipynb")
    if announcement:
        path = out / "_config.yml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = config["sphinx"]["config"].setdefault("html_theme_options", {})
        options["announcement"] = announcement
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return out


def build_html(source: Path, out: Path) -> Path:
    """Build the pages of `source` into `out`, warnings being errors.

    Always from clean: Sphinx repeats a page's warnings only when it reads that page
    again, so a second build after a failed one would pass.

    Returns:
        The path of `index.html`.

    Raises:
        BookError: the build failed or warned; `problems` holds those lines.
    """
    if importlib.util.find_spec("jupyter_book") is None:
        raise BookError('jupyter-book is not installed here: run `pip install -e ".[book]"`.')
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".html-", dir=out.parent) as work:
        flags = ["--path-output", work, "--builder", "html", "-W", "--keep-going"]
        done = subprocess.run(
            [sys.executable, "-c", JUPYTER_BOOK, "build", str(source), *flags],
            env=os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        pages = Path(work) / "_build" / "html"
        faults = warning_lines(done.stdout, source)
        if done.returncode != 0 or faults or not (pages / "index.html").is_file():
            # A crash prints no warning: then its last words are the best there is.
            last_words = [line for line in done.stdout.splitlines() if line.strip()][-15:]
            raise BookError(f"jupyter-book could not build {source}:", faults or last_words)
        pages.rename(out)
    return out / "index.html"


def warning_lines(output: str, source: Path) -> list[str]:
    """The warnings and errors in Sphinx's output, without colours or `source`'s path.

    >>> warning_lines("reading\\n/b/a.md:3: WARNING: no such term\\ndone", Path("/b"))
    ['a.md:3: WARNING: no such term']
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    wanted = re.compile(r"\b(WARNING|ERROR|SEVERE|CRITICAL):")
    prefix = f"{source.resolve()}{os.sep}"
    return [line.replace(prefix, "") for line in plain.splitlines() if wanted.search(line)]


# --- checks of executed notebooks -------------------------------------------------------


def check_notebook(path: Path) -> None:
    """Check that every code cell of an executed notebook ran, and without an error.

    Raises:
        BookError: naming each faulty cell by its number among all cells, from 1.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BookError(f"{path} is not a notebook: {error}") from error
    problems = []
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
        problems += [f"cell {number}: {out['ename']}: {out['evalue']}" for out in errors]
        if not errors and cell.get("execution_count") is None:
            problems.append(f"cell {number}: not executed")
    if problems:
        raise BookError(f"{path.name} did not run through:", problems)


# --- checks of finished pages -----------------------------------------------------------

# What a browser fetches on its own when it opens a page. An <a href> is not among
# these: it waits for the reader's click.
FETCHED: dict[str, tuple[str, ...]] = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
# The <link> relations that only name another page.
NAMED_ONLY = frozenset({"alternate", "author", "canonical", "help", "index", "license"})
NAMED_ONLY |= {"next", "prev", "search"}

CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# An inline script that fetches: import "...", import("..."), fetch("..."), x.src = "...".
SCRIPT_URL = re.compile(
    r"""(?:\bimport\b[^;'"]{0,200}|\bfetch\(\s*|\.src\s*=\s*)['"]((?:https?:)?//[^'"]+)"""
)


@dataclass(slots=True)
class Page:
    """What `check_html` needs to know of one page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # <a href>
    fetched: list[str] = field(default_factory=list)  # loaded when the page opens
    no_alt: list[str] = field(default_factory=list)  # sources of images without alt text
    tracebacks: int = 0


class PageParser(HTMLParser):
    """Read one page into a `Page`."""

    VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta"})
    VOID |= {"source", "track", "wbr"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[tuple[str, bool]] = []  # tag, whether a cell's output starts there

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids, links, fetched addresses, images without alt text, error outputs."""
        page, attr = self.page, {name: value or "" for name, value in attrs}
        classes = attr.get("class", "").split()
        if tag not in self.VOID:
            self.open.append((tag, "cell_output" in classes))
        if "id" in attr:
            page.ids.add(attr["id"])
        if tag == "a":
            page.ids.add(attr.get("name", ""))
            page.links += [attr["href"]] if "href" in attr else []
        for key in FETCHED.get(tag, ()):
            page.fetched += split_srcset(attr[key]) if key == "srcset" and key in attr else []
            page.fetched += [attr[key]] if key != "srcset" and attr.get(key) else []
        if tag == "link" and not NAMED_ONLY.issuperset(attr.get("rel", "").lower().split()):
            page.fetched.append(attr.get("href", ""))
        page.fetched += css_urls(attr.get("style", ""))
        if tag == "img" and lacks_alt(attr):
            page.no_alt.append(attr.get("src", "")[:80])
        page.tracebacks += "traceback" in classes

    def handle_endtag(self, tag: str) -> None:
        """Close `tag`, and whatever inside it was left open."""
        if any(name == tag for name, _ in self.open):
            while self.open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Look into inline styles and scripts, and for tracebacks in outputs."""
        inside = self.open[-1][0] if self.open else ""
        if inside == "style":
            self.page.fetched += css_urls(data)
        elif inside == "script":
            self.page.fetched += SCRIPT_URL.findall(data)
        elif "Traceback (most recent call last)" in data and any(out for _, out in self.open):
            self.page.tracebacks += 1


def lacks_alt(attr: Mapping[str, str]) -> bool:
    """Whether an image has no alt text; its own file name, docutils' stopgap, is none.

    >>> lacks_alt({"src": "_images/a.png", "alt": "_images/a.png"})
    True
    """
    alt = attr.get("alt", "").strip()
    src = attr.get("src", "")
    return not alt or alt in (src, unquote(src), PurePosixPath(unquote(src)).name)


def css_urls(css: str) -> list[str]:
    """The addresses that a style sheet fetches.

    >>> css_urls("@import 'a.css'; b { background: url(c.png) }")
    ['a.css', 'c.png']
    """
    return [one or two for one, two in CSS_URL.findall(CSS_COMMENT.sub("", css))]


def split_srcset(value: str) -> list[str]:
    """The addresses of a `srcset`: `"a.png 1x, b.png 2x"` -> `["a.png", "b.png"]`."""
    return [part.split()[0] for part in value.split(",") if part.strip()]


def is_external(url: str) -> bool:
    """Whether fetching `url` asks another machine.

    >>> [is_external(url) for url in ("//cdn.x/a.js", "a.js", "data:image/png;base64,AA")]
    [True, False, False]
    """
    parts = urlsplit(url.strip())
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp", "ws", "wss")


def check_html(html_dir: Path) -> None:
    """Check all pages of a built book.

    A page must fetch nothing from another machine when it is opened, give every image an
    alt text, show no error output, and link only to pages and anchors that exist.

    Raises:
        BookError: with one line for each fault, `page: what: address`.
    """
    html_dir = html_dir.resolve()
    # In _static the theme leaves templates of its own; they are no pages.
    static = html_dir / "_static"
    files = [path for path in sorted(html_dir.rglob("*.html")) if static not in path.parents]
    if not files:
        raise BookError(f"There is no page in {html_dir}.")
    pages = {path: read_page(path) for path in files}
    problems: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(html_dir).as_posix()
        problems += [f"{name}: {fault}" for fault in page_faults(html_dir, path, page, pages)]
    for path in sorted(html_dir.rglob("*.css")):
        name = path.relative_to(html_dir).as_posix()
        urls = css_urls(path.read_text(encoding="utf-8", errors="replace"))
        problems += [f"{name}: external request: {url}" for url in urls if is_external(url)]
    if problems:
        raise BookError(f"Faults in {len(files)} pages of {html_dir}:", problems)


def read_page(path: Path) -> Page:
    """Parse one page."""
    parser = PageParser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser.page


def page_faults(
    html_dir: Path, path: Path, page: Page, pages: Mapping[Path, Page]
) -> Iterator[str]:
    """The faults of one page, each once."""
    if page.tracebacks:
        yield f"error output: {page.tracebacks} in all"
    for src in unique(page.no_alt):
        yield f"image without alt text: {src}"
    for url in unique(page.fetched):
        if is_external(url):
            yield f"external request: {url}"
    for url in unique([*page.links, *page.fetched]):
        fault = link_fault(html_dir, path, url, pages)
        if fault:
            yield f"{fault}: {url}"


def link_fault(html_dir: Path, path: Path, url: str, pages: Mapping[Path, Page]) -> str:
    """What is wrong with an internal link on the page `path`; empty when nothing is."""
    parts = urlsplit(url.strip())
    if parts.scheme or parts.netloc:
        return ""  # another site, mailto:, data:, ...
    if parts.path.startswith("/"):
        return "link from the server's root, which breaks below a folder"
    target = path
    if parts.path:
        target = Path(os.path.normpath(path.parent / unquote(parts.path)))
        if target.is_dir():
            target /= "index.html"
        if not target.is_relative_to(html_dir) or not target.is_file():
            return "broken link"
    anchor = unquote(parts.fragment)
    if anchor in ("", "top") or target not in pages or anchor in pages[target].ids:
        return ""
    return "no such anchor"


def unique(items: Sequence[str]) -> list[str]:
    """`items` without repetitions, in order."""
    return list(dict.fromkeys(items))
