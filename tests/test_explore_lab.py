"""The explorer in a live JupyterLab, used by keyboard; nothing but the local server is asked."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browsing import NEEDS_BROWSER, PATIENCE, Tab, browser, opened

from eqr import PROJECT

pytestmark = NEEDS_BROWSER


@contextlib.contextmanager
def lab(work: Path) -> Iterator[str]:
    """JupyterLab on ``work/notebooks``, with settings of its own and without news; its origin."""
    quiet = work / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {f"JUPYTERLAB_{name.upper()}_DIR": name for name in ("settings", "workspaces")}
    own |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipy"}
    own |= {"JUPYTER_DATA_DIR": "data"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.password="]
    command += [f"--ServerApp.root_dir={work / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = os.environ | {name: str(work / folder) for name, folder in own.items()}
    environment["PYTHONPATH"] = str(PROJECT)
    log = work / "log"
    with log.open("w") as lines:
        server = subprocess.Popen(command, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + PATIENCE / 1000
            while not (ready := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert server.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield ready[0]
        finally:
            server.terminate()
            server.wait(PATIENCE / 1000)


@pytest.fixture(scope="module")
def tab(learned, tmp_path_factory) -> Iterator[Tab]:
    """A notebook with an explorer of a tiny model, its cell run."""
    work = tmp_path_factory.mktemp("lab")
    # However busy the machine is, the explorer waits.
    code = "from eqr.viewer import explorer\nexplorer.PATIENCE = float('inf')\n"
    code += f"explorer.explore({str(learned.path)!r})"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (work / "notebooks").mkdir()
    nbformat.write(book, work / "notebooks/a.ipynb")
    with (
        lab(work) as origin,
        browser() as chromium,
        opened(chromium, origin, viewport={"width": 1280, "height": 1000}) as tab,
    ):
        tab.page.goto(f"{origin}/lab/tree/a.ipynb")
        tab.page.get_by_text(re.compile(r"\| Idle$")).wait_for()  # else it is not run
        tab.page.locator(".jp-CodeCell .cm-content").first.click()
        tab.page.keyboard.press("Shift+Enter")
        tab.page.wait_for_selector(".eqr-viewer svg")
        yield tab


@pytest.fixture
def viewer(tab):
    """The explorer in the cell's output, without a fault at the end."""
    yield tab.page.locator(".jp-OutputArea .eqr-viewer")
    tab.check()


def until(viewer, done: int, words: str = "Restart") -> list[str]:
    """What the cells show after so many iterations, at rest, when the facts say so."""
    viewer.get_by_text(f"{done} / 16", exact=True).wait_for()
    viewer.get_by_role("button", name="Play", exact=True).wait_for()
    viewer.locator(".eqr-facts").filter(has_text=words).wait_for()
    return viewer.locator("table.eqr-board td").all_inner_texts()


def test_opens_computed_and_is_played_by_keyboard(tab, viewer):
    assert all(cell in "1234" for cell in until(viewer, 16, "of 8 are right"))
    for name, key, done in (("Reset", "Enter", 0), ("Step", "Space", 1), ("Step", "Space", 2),
                            ("Play", "Enter", 16)):  # fmt: skip
        viewer.get_by_role("button", name=name).focus()
        tab.page.keyboard.press(key)
        until(viewer, done, "Restart" if done else "Not started")
    viewer.locator(".eqr-field-breadth").focus()
    tab.page.keyboard.press("ArrowLeft")
    until(viewer, 16, "of 7 are right")


def test_a_bad_puzzle_is_refused_beside_the_board_which_stays(viewer):
    before, text = until(viewer, 16), viewer.locator(".eqr-field-text")
    good = text.input_value()
    text.fill("11.. .... .... ....")
    viewer.get_by_role("button", name="Use this problem").click()
    alert = viewer.locator(".eqr-message")
    assert alert.get_attribute("role") == "alert"
    alert.filter(has_text="row 1 holds 1 twice, at r1c1 and r1c2").wait_for()
    assert "keeps the problem before" in alert.inner_text() and until(viewer, 16) == before
    text.fill(good)
    viewer.get_by_role("button", name="Use this problem").click()
    alert.filter(has_text=re.compile("^$")).wait_for(state="attached")
    assert until(viewer, 16) == before


def test_a_cell_is_written_and_jupyterlab_keeps_its_own_keys(tab, viewer):
    """Digits would turn the notebook's cell into a heading, arrows would leave it."""
    text = viewer.locator(".eqr-field-text")
    for index in (1, 0):  # the model is right about the latter
        viewer.locator(".eqr-field-puzzle").select_option(index=index)
        answer, given = until(viewer, 16), "".join(text.input_value().split())
        assert all(symbol in (".", cell) for symbol, cell in zip(given, answer, strict=True))
    cell = given.index(".")
    viewer.locator("td").nth(cell).click()
    for key in ("ArrowRight", "ArrowLeft", answer[cell]):
        tab.page.keyboard.press(key)
    after = given[:cell] + answer[cell] + given[cell + 1 :]
    script = "document.querySelector('.eqr-field-text').value.split('\\n').join('')"
    tab.page.wait_for_function(f"after => {script} === after", arg=after)
    until(viewer, 16)
    assert tab.page.locator(".jp-MarkdownCell").count() == 0
