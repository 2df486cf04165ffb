"""A real browser for tests: Chromium, allowed to ask one origin, with what went wrong on record."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
import yaml

from book.tools import BOOK, NOTEBOOKS, build, pages
from book.tools.pdf import NAMES
from eqr import store
from eqr.model import Reasoner
from eqr.notebook import provenance
from eqr.recipes import load_recipe
from eqr.viewer import page as viewer

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

VENDORED = (BOOK / "_vendor/.complete").is_file()

#: For a test module's ``pytestmark``.
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(not VENDORED, reason="page scripts not fetched: make vendor"),
]


#: Milliseconds after which what a test waits for has failed, on however busy a machine.
PATIENCE = 120_000

PIXEL = (  # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)

#: A repository that only stands for one.
ELSEWHERE = pages.Site(
    "https://github.com/owner/name", "https://book.example/", "0" * 40, "0000000000"
)

TEXT = """# Chapter {name}

A chapter's first paragraph, which is long enough to describe what the chapter is about.
An equation, $z^* = f(z^*)$, and a {{term}}`residual`.

{{answer}}`a-claim` It was {{claim}}`a-claim`.

## A section

```{{prf:proposition}} A bound
:label: bound-{name}

It *holds*.
```

<div class="eqr-live">Only on a screen.</div>
<div class="eqr-static">In its place.</div>

:::{{exercise}}
:label: try-{name}

Try it.
:::

:::{{solution}} try-{name}
:class: dropdown

It is done.
:::

:::{{note}}
A note with `code` and a [link](../rerun.md).
:::
"""


def chapter(path: Path, name: str, more: str = "") -> Path:
    """A notebook that stands in for an executed chapter, with each kind of output."""
    v4 = nbformat.v4
    table = pd.DataFrame(0.123456, ["a row"], [f"a column {k}" for k in range(12)]).to_html()

    def code(count: int, source: str, data: dict, **metadata: Any) -> Any:
        output = v4.new_output("display_data", data=data)
        return v4.new_code_cell(source, execution_count=count, outputs=[output], metadata=metadata)

    figure = {"caption": "A *dot*.", "name": f"fig-{name}"}
    hidden = code(
        1,
        'values = [0.5 * k for k in range(8)]  # a comment\nprint("a text", sum(values), None)',
        {"text/html": table, "text/plain": "a table"},
        tags=["hide-input"],
    )
    hidden.outputs.insert(0, v4.new_output("stream", name="stdout", text="a text 14.0 None\n"))
    picture = {"image/png": PIXEL, "text/plain": "Figure"}
    cells = [
        v4.new_markdown_cell(TEXT.format(name=name) + more),
        hidden,
        code(2, "figure", picture, mystnb={"figure": figure, "image": {"alt": "A dot"}}),
        v4.new_markdown_cell("## What we learned\n\n1. Little.\n\n### A part of it\n\nText."),
        code(3, f'provenance("{name}")', {"text/html": made_how(name)}),
    ]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"language_info": language}), path)
    return path


def made_how(name: str) -> str:
    """The last output of a chapter that has read one run."""
    store.USED["train-0123456789abcdef"] = "fedcba9876543210"
    try:
        return provenance(name, profile="smoke", seed=0).data
    finally:
        store.USED.clear()


def untrained() -> SimpleNamespace:
    """A model that has learned nothing, as far as `eqr.viewer.page` looks into a trained one."""
    recipe = load_recipe("sudoku6", "smoke")
    model = Reasoner.for_task(recipe.task, recipe.model, torch.Generator().manual_seed(0))
    data = SimpleNamespace(test=recipe.task.generate(1, 0))
    run = SimpleNamespace(id="train-0000000000000000")
    return SimpleNamespace(model=model, recipe=recipe, run=run, data=data)


def stand_in_book(work: Path) -> Path:
    """The real book's pages around chapters that stand in for executed ones; the built folder."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    names = [file.removeprefix("chapters/") for file in files if file.startswith("chapters/")]
    # The pages quote claims, and refer to propositions, that only real chapters have.
    text = TEXT + "".join(path.read_text(encoding="utf-8") for path in BOOK.glob("*.md"))
    proved = set(re.findall(r"\{prf:ref\}`([^`]+)`", text)) - set(
        re.findall(r":label: (\S+)", text)
    )
    block = "\n```{{prf:proposition}}\n:label: {}\n\nIt holds.\n```\n"
    more = {"theory": "".join(map(block.format, sorted(proved)))}
    chapters = {n: chapter(work / f"{n}.ipynb", n, more.get(n, "")) for n in names}
    source = build.assemble(chapters, work / "source", ELSEWHERE, "Only a rehearsal.")
    ids = set(re.findall(r"\{(?:claim|answer)\}+`([^`]+)`", text))
    claims = [{"id": one, "measured": "0.5 [0.4, 0.6]", "answer": "It holds."} for one in ids]
    (source / pages.CLAIMS).write_text(json.dumps(claims), encoding="utf-8")
    extra = source / build.EXTRA
    viewer.install(extra / viewer.PLACE, source / viewer.HOME, {"sudoku6": untrained()}, "smoke")
    pages.write_notebooks({name: NOTEBOOKS / f"{name}.ipynb" for name in names}, extra, ELSEWHERE)
    return build.build_pages(source, work / "html")


@dataclass
class Tab:
    """A page in the browser and the faults seen since it was opened."""

    page: Any  # playwright.sync_api.Page
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fail where there was an error on the console, a missing file or a request elsewhere."""
        assert not self.faults, "\n".join(self.faults)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium driven by Playwright. One at a time, and with no event loop around."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM)


@contextlib.contextmanager
def opened(running: Any, origin: str, **options: Any) -> Iterator[Tab]:
    """A fresh tab that can load from ``origin`` only; every other request is cut and is a fault.

    Args:
        running: the browser.
        origin: "http://127.0.0.1:8000", or "file://".
        options: of Playwright's ``new_context``: viewport, color_scheme, reduced_motion.
    """
    context = running.new_context(**options)
    context.set_default_timeout(PATIENCE)
    tab = Tab(context.new_page())

    def route(route: Any) -> None:
        url = route.request.url
        if url.startswith((origin, "data:", "blob:")):
            route.continue_()
        else:
            tab.faults.append(f"request elsewhere: {url}")
            route.abort()

    def answered(response: Any) -> None:
        if response.status >= 400:
            tab.faults.append(f"{response.status}: {response.url}")

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before it had come
            tab.faults.append(f"failed: {request.url}: {request.failure}")

    context.route("**/*", route)
    tab.page.on("pageerror", lambda error: tab.faults.append(f"{tab.page.url}: {error}"))
    tab.page.on("response", answered)
    tab.page.on("requestfailed", failed)
    tab.page.on(
        "console",
        lambda m: tab.faults.append(f"{tab.page.url}: {m.text}") if m.type == "error" else None,
    )
    try:
        yield tab
    finally:
        context.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """``folder`` on a free port of this machine; the origin, without a slash at its end."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
