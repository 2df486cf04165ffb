"""The explorer in a live JupyterLab, used by keyboard; nothing but the local server is asked."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browsing import NEEDS_BROWSER, Tab, browser, opened

from eqr.data import PROJECT

pytestmark = NEEDS_BROWSER
PATIENCE = 60_000  # milliseconds for a server or a kernel to start; all else has Playwright's 30 s


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def lab(work: Path) -> Iterator[str]:
    """JupyterLab on ``work/notebooks``, with settings of its own and without news; its origin."""
    quiet = work / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {f"JUPYTERLAB_{name.upper()}_DIR": name for name in ("settings", "workspaces")}
    own |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipy"}
    own |= {"JUPYTER_DATA_DIR": "data"}
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password="]
    command += [f"--ServerApp.root_dir={work / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = os.environ | {name: str(work / folder) for name, folder in own.items()}
    environment["PYTHONPATH"] = str(PROJECT)
    with (work / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + PATIENCE / 1000
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=1).close()
                    break
                alive = server.poll() is None and time.monotonic() < until
                assert alive, (work / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def tab(learned, tmp_path_factory) -> Iterator[Tab]:
    """A notebook with an explorer of a tiny model, its cell run."""
    work = tmp_path_factory.mktemp("lab")
    code = "from eqr.viewer.explorer import explore\n" + f"explore({str(learned.path)!r})"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (work / "notebooks").mkdir()
    nbformat.write(book, work / "notebooks/a.ipynb")
    with (
        lab(work) as origin,
        browser() as found,
        opened(found, origin, viewport={"width": 1280, "height": 1000}) as tab,
    ):
        tab.page.goto(f"{origin}/lab/tree/a.ipynb", timeout=PATIENCE)
        tab.page.get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=PATIENCE)  # else not run
        tab.page.locator(".jp-CodeCell .cm-content").first.click()
        tab.page.keyboard.press("Shift+Enter")
        tab.page.wait_for_selector(".eqr-viewer svg", timeout=PATIENCE)
        yield tab


def viewer(tab: Tab):
    """The explorer in the cell's output."""
    return tab.page.locator(".jp-OutputArea .eqr-viewer")


def until(tab: Tab, done: int, words: str = "Restart") -> None:
    """Wait until so many iterations are shown, at rest, and the facts say so."""
    viewer(tab).get_by_text(f"{done} / 16", exact=True).wait_for()
    viewer(tab).get_by_role("button", name="Play", exact=True).wait_for()
    viewer(tab).locator(".eqr-facts").filter(has_text=words).wait_for()


def board(tab: Tab) -> list[str]:
    """What stands in the cells."""
    return viewer(tab).locator("table.eqr-board td").all_inner_texts()


def test_opens_with_the_trajectories_computed(tab):
    until(tab, 16, "of 8 are right")
    assert all(cell in "1234" for cell in board(tab))
    tab.check()


def test_reset_step_and_play_by_keyboard(tab):
    viewer(tab).get_by_role("button", name="Reset").focus()
    tab.page.keyboard.press("Enter")
    until(tab, 0, "Not started")
    viewer(tab).get_by_role("button", name="Step").focus()
    for done in (1, 2):
        tab.page.keyboard.press("Space")
        until(tab, done)
    viewer(tab).get_by_role("button", name="Play").focus()
    tab.page.keyboard.press("Enter")
    until(tab, 16)
    tab.check()


def test_a_slider_moved_by_keyboard_starts_new_trajectories(tab):
    viewer(tab).locator(".eqr-field-breadth").focus()
    tab.page.keyboard.press("ArrowLeft")
    until(tab, 16, "of 7 are right")
    tab.check()


def test_a_bad_puzzle_is_refused_beside_the_board_which_stays(tab):
    before, text = board(tab), viewer(tab).locator(".eqr-field-text")
    good = text.input_value()
    text.fill("11.. .... .... ....")
    viewer(tab).get_by_role("button", name="Use this problem").click()
    alert = viewer(tab).locator(".eqr-message")
    assert alert.get_attribute("role") == "alert"
    alert.filter(has_text="row 1 holds 1 twice, at r1c1 and r1c2").wait_for()
    assert "keeps the problem before" in alert.inner_text() and board(tab) == before
    text.fill(good)
    viewer(tab).get_by_role("button", name="Use this problem").click()
    alert.filter(has_text=re.compile("^$")).wait_for(state="attached")
    until(tab, 16)
    assert board(tab) == before
    tab.check()


def test_a_cell_is_written_by_keyboard_and_jupyterlab_keeps_its_own_keys(tab):
    """Digits would turn the notebook's cell into a heading, arrows would leave it."""
    text = viewer(tab).locator(".eqr-field-text")
    before = text.input_value().split()
    cell = "".join(before).index(".")
    answer = board(tab)[cell]
    viewer(tab).locator("td").nth(cell).click()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press(answer)
    tab.page.wait_for_function(
        "old => document.querySelector('.eqr-field-text').value.split('\\n').join() !== old",
        arg=",".join(before),
    )
    after = "".join(text.input_value().split())
    assert after == "".join(before)[:cell] + answer + "".join(before)[cell + 1 :]
    until(tab, 16)
    assert tab.page.locator(".jp-MarkdownCell").count() == 0
    tab.check()


def test_another_puzzle_is_chosen_and_solved(tab):
    text = viewer(tab).locator(".eqr-field-text")
    viewer(tab).locator(".eqr-field-puzzle").select_option(index=1)
    until(tab, 16)
    given = "".join(text.input_value().split())
    for symbol, cell in zip(given, board(tab), strict=True):
        assert symbol in (".", cell)
    tab.check()
