"""The pages as a browser shows them, without a network. Skipped where there is no Chromium."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from browsing import CHROMIUM, NEEDS_BROWSER

from eqr import book

pytestmark = NEEDS_BROWSER


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


def test_the_book_is_sound_and_typesets_its_equations_offline(stand_in, tmp_path):
    book.check_html(stand_in)
    dom, log = opened(stand_in / "index.html", tmp_path)
    assert dom.count("<mjx-container") >= 4, "MathJax did not run"
    assert "Equilibrium Reasoners" in dom and "Only a rehearsal." in dom
    errors = [line for line in log.splitlines() if re.search(r"CONSOLE.*(Uncaught|ERR_)", line)]
    assert not errors
