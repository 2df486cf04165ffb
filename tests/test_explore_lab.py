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
        tab.page.wait_for_selector(".eqr-explore svg", timeout=PATIENCE)
        yield tab


def board(tab: Tab) -> str:
    """The picture in words."""
    return tab.page.locator(".eqr-explore svg[role=img]").get_attribute("aria-label")


def until(tab: Tab, words: str) -> None:
    """Wait until the status line says so."""
    status = tab.page.locator(".eqr-explore [role=status]")
    status.filter(has_text=re.compile(words)).wait_for()


def test_opens_with_the_trajectories_computed(tab):
    until(tab, "finished at iteration 16 of 16")
    assert re.search("iteration 16 of 16; .*8 restarts agree.*board ([1-4]{4} / ){3}", board(tab))
    tab.check()


def test_reset_step_and_play_by_keyboard(tab):
    tab.page.get_by_role("button", name="Reset").focus()
    tab.page.keyboard.press("Enter")
    until(tab, "ready at iteration 0 of 16")
    assert "iteration 0 of 16" in board(tab)
    tab.page.get_by_role("button", name="Step").focus()
    for done in (1, 2):
        tab.page.keyboard.press("Space")
        until(tab, f"paused at iteration {done} of 16")
        assert f"iteration {done} of 16" in board(tab)
    tab.page.get_by_role("button", name="Play").focus()
    tab.page.keyboard.press("Enter")
    until(tab, "^iteration [0-9]+ of 16")
    tab.page.get_by_role("button", name="Pause").wait_for()
    until(tab, "finished at iteration 16 of 16")
    tab.check()


def test_a_slider_moved_by_keyboard_starts_new_trajectories(tab):
    before = board(tab)
    breadth = tab.page.locator(".widget-hslider", has_text="breadth B").get_by_role("slider")
    breadth.focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.locator(".eqr-explore svg[aria-label*='of 4 restarts agree']").wait_for()
    until(tab, "finished at iteration 16 of 16")
    assert board(tab) != before
    tab.check()


def test_a_bad_puzzle_is_refused_beside_the_board_which_stays(tab):
    until(tab, "finished")
    before = board(tab)
    text = tab.page.locator(".eqr-explore textarea")
    good = text.input_value()
    text.fill("11.. .... .... ....")
    text.dispatch_event("change")  # as when the reader leaves the field
    alert = tab.page.locator(".eqr-explore [role=alert]")
    alert.filter(has_text="row 1 holds 1 twice, at r1c1 and r1c2").wait_for()
    assert "keeps the puzzle before" in alert.inner_text() and board(tab) == before
    text.fill(good)
    text.dispatch_event("change")
    alert.filter(has_text=re.compile("^$")).wait_for(state="attached")
    assert board(tab) == before
    tab.check()


def test_another_puzzle_is_chosen_and_solved(tab):
    text = tab.page.locator(".eqr-explore textarea")
    before = text.input_value()
    # Not by the arrow keys: in command mode JupyterLab keeps them to itself; Space opens the list.
    tab.page.locator(".eqr-explore select").first.select_option(index=1)
    tab.page.wait_for_function(
        "old => document.querySelector('.eqr-explore textarea').value != old", arg=before
    )
    until(tab, "finished at iteration 16 of 16")
    rows = text.input_value().split()
    shown = re.search("board (.*)$", board(tab))[1].split(" / ")
    for given, cells in zip(rows, shown, strict=True):
        assert all(g in (".", c) for g, c in zip(given, cells, strict=True))
    tab.check()
