"""The whole book as one PDF: Sphinx's single page, printed by Chromium.

Serves `make pdf`. The browser sets the equations and figures as in the pages, so that nothing of
the book needs a second form. What only works on a screen (``.eqr-live``) is left out, and what
stands in for it (``.eqr-static``) is shown; both by the style sheet.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from book.tools.check import BookError
from eqr.files import write_file

NAMES = ("chromium", "chromium-browser", "google-chrome")

#: Opens what is folded, and waits until all is set; how many equations there are.
SET = """async () => {
  document.body.classList.add("eqr-print");
  for (const node of document.querySelectorAll("details.eqr-origin")) node.open = true;
  await window.MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  return document.querySelectorAll("mjx-container").length;
}"""

FOOT = '<p style="font:8px sans-serif;margin:0 17mm 0 auto"><span class="pageNumber"></span></p>'


def find_chromium() -> str:
    """The path of the system's Chromium or Chrome; BookError where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise BookError(
        f"There is no Chromium here (looked for {', '.join(NAMES)}): install one, "
        "on Debian and Ubuntu with `apt-get install chromium`."
    )


def print_book(folder: Path, out: Path) -> Path:
    """Print the single page in ``folder`` to ``out``, which appears complete or not at all.

    Raises:
        BookError: there is no Chromium, or an equation is not set.
    """
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.emulate_media(media="print", color_scheme="light")
        page.goto((folder / "index.html").resolve().as_uri())
        if not page.evaluate(SET):
            raise BookError("The equations were not set: MathJax did not run.")
        if broken := page.locator("mjx-merror[data-mjx-error]").all():
            why = broken[0].get_attribute("data-mjx-error")
            raise BookError(f"An equation cannot be set: {why}")
        content = page.pdf(
            format="A4",
            print_background=True,
            prefer_css_page_size=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOT,
            margin=dict.fromkeys(("top", "bottom", "left", "right"), "17mm"),
            outline=True,
            tagged=True,
        )
    write_file(out, content)
    return out
