"""Look at the built book: a small server for this machine, and how heavy each page is.

Serves `make serve` and the page *Run it again*. The pages also open from the disk without it.
"""

from __future__ import annotations

import errno
import functools
import http.server
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqr.browser import chromium
from eqr.recipes import PROFILES
from eqr.settings import ConfigError, nearest


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, with the types that modules and WebAssembly need on every system."""

    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".ipynb": "application/x-ipynb+json",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
    }

    def end_headers(self) -> None:
        """Ask the browser to look again each time: the book may have been built anew."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


def built(profile: str | None, out: Path) -> Path:
    """The pages of a profile; without one, those that were built last.

    Raises:
        ConfigError: there are none; the message says how to make them.
    """
    if profile is not None and profile not in PROFILES:
        raise ConfigError(f"--profile {profile!r} is not known; {nearest(profile, PROFILES)}")
    found = sorted(out.glob(f"{profile or '*'}/html/index.html"), key=lambda p: p.stat().st_mtime)
    if not found:
        where = out / profile if profile else out
        which = f" PROFILE={profile}" if profile else ""
        raise ConfigError(f"{where}: no book is built there yet; run `make book{which}` first")
    return found[-1].parent


def server(pages: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of a folder on this machine; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken.
    """
    handler = functools.partial(Handler, directory=str(pages))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigError(
            f"port {port}: {error.strerror}; choose another with --port (make serve PORT=...)"
        ) from error


def address(found: http.server.ThreadingHTTPServer) -> str:
    """Where a server can be reached, with a slash at the end."""
    return f"http://127.0.0.1:{found.server_address[1]}/"


@dataclass(frozen=True, slots=True)
class Load:
    """What a page fetches when it is opened for the first time."""

    page: str
    requests: int
    bytes: int  # of all bodies, not compressed


def first_loads(
    pages: Path, say: Callable[[str], None] = lambda line: None, browser: Any = None
) -> list[Load]:
    """Open each page in a fresh browser profile, and add up what it fetches.

    Args:
        pages: the folder of a built book.
        say: gets the name of each page as it is opened.
        browser: a running one; None starts the system's.

    Raises:
        eqr.book.BookError: there is no Chromium.
    """
    names = [path.relative_to(pages).as_posix() for path in page_files(pages)]
    found = []
    with chromium(browser) as running:
        for name in names:
            say(name)
            context = running.new_context()
            bodies: dict[str, int] = {}

            def note(request: Any, bodies: dict[str, int] = bodies) -> None:
                path = (
                    pages / request.url.removeprefix(pages.resolve().as_uri() + "/").split("?")[0]
                )
                bodies[request.url] = path.stat().st_size if path.is_file() else 0

            context.on("requestfinished", note)
            page = context.new_page()
            page.goto((pages / name).resolve().as_uri())
            page.wait_for_load_state("networkidle")
            context.close()
            found.append(Load(name, len(bodies), sum(bodies.values())))
    return found


def page_files(pages: Path) -> list[Path]:
    """The pages of a built book: its HTML files but for the theme's templates in `_static`."""
    return [p for p in sorted(pages.rglob("*.html")) if pages / "_static" not in p.parents]


def total(pages: Path) -> int:
    """Bytes of all files of a built book."""
    return sum(path.stat().st_size for path in pages.rglob("*") if path.is_file())
