"""The Chromium that prints the book and measures its pages, where this machine has one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from eqr.book import BookError

NAMES = ("chromium", "chromium-browser", "google-chrome")

#: As root, as in a container, Chromium starts without its sandbox only.
SANDBOX = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []


def find_chromium() -> str:
    """The path of the system's Chromium or Chrome.

    Raises:
        eqr.book.BookError: there is none, or Playwright, which drives it, is not installed.
    """
    try:
        import playwright  # noqa: F401
    except ImportError as error:
        raise BookError(
            'Playwright is not installed here: run `pip install -e ".[book,test]"`.'
        ) from error
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise BookError(
        f"There is no Chromium here (looked for {', '.join(NAMES)}): install one, "
        "on Debian and Ubuntu with `apt-get install chromium`."
    )


@contextlib.contextmanager
def chromium(running: Any = None) -> Iterator[Any]:
    """A headless Chromium, as Playwright's ``Browser``, ended afterwards.

    Args:
        running: one that is running already, to be taken instead and left running.

    Raises:
        eqr.book.BookError: see :func:`find_chromium`.
    """
    if running is not None:
        yield running
        return
    path = find_chromium()
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=SANDBOX)
        except Error as error:
            raise BookError(f"{path} did not start: {error.message.splitlines()[0]}") from error
        try:
            yield found
        finally:
            found.close()
