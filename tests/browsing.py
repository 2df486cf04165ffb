"""A real browser for tests: Chromium, allowed to ask one origin, with what went wrong on record."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eqr import vendor

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

#: For a test module's ``pytestmark``.
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(not vendor.is_current(), reason="page scripts not fetched: make vendor"),
]


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
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextlib.contextmanager
def opened(found: Any, origin: str, **options: Any) -> Iterator[Tab]:
    """A fresh tab that can load from ``origin`` only; every other request is cut and is a fault.

    Args:
        found: the browser.
        origin: "http://127.0.0.1:8000", or "file://".
        options: of Playwright's ``new_context``: viewport, color_scheme, reduced_motion.
    """
    context = found.new_context(**options)
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

    context.route("**/*", route)
    tab.page.on("pageerror", lambda error: tab.faults.append(f"{tab.page.url}: {error}"))
    tab.page.on("response", answered)
    tab.page.on("requestfailed", lambda r: tab.faults.append(f"failed: {r.url}"))
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
