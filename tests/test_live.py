"""Replay and live solver in a real browser: the model is the same, the controls do their work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import NEEDS_BROWSER, Tab, browser, opened, served

from eqr import checkpoint
from eqr.data import PROJECT
from eqr.model import Reasoner
from eqr.settings import ProblemError
from eqr.solve import solve
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku
from eqr.viewer import onnx as export, page as play

pytestmark = NEEDS_BROWSER

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Play</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<body style="margin: 12px">{}</body></html>"""

DEPTH, BREADTH = 16, 4
PLAYER = "document.querySelector('.eqr-solver').solver.player"


@pytest.fixture(scope="module")
def solved(learned, problems):
    """The learned model, and a test problem that it solves: (page model, index, solution)."""
    loaded = checkpoint.load_model(learned.path)
    model = play.PageModel("Tiny EqR", loaded.model, loaded.task, "train-0000000000000001", "smoke")
    for index, inputs in enumerate(problems.test.inputs):
        found = solve(loaded.model, loaded.task, inputs, depth=DEPTH, breadth=BREADTH)
        if found.valid and (found.finals == found.answer).all():
            return model, index, found
    raise AssertionError("the learned model solves no test problem from all starts")


@pytest.fixture(scope="module")
def site(tmp_path_factory, solved, problems, learned) -> Path:
    """Bare pages with the real scripts: replay and solver, and the home page's board."""
    root = tmp_path_factory.mktemp("site")
    model, index, _ = solved
    config = learned.recipe.model
    untrained = Reasoner.for_task(model.task, config, torch.Generator().manual_seed(9))
    maze = Maze(5, 5)
    walker = Reasoner.for_task(maze, config, torch.Generator().manual_seed(9))
    models = [
        model,
        play.PageModel("Untrained", untrained, model.task, "train-0000000000000002", "smoke"),
        play.PageModel("Maze", walker, maze, "train-0000000000000003", "smoke"),
    ]
    place = root / play.PLACE
    place.mkdir(parents=True)
    for one in models:
        export.export(one.model, place / one.file)
    for name in play.MODULES:
        shutil.copy(play.SCRIPTS / name, place / name)
    shutil.copytree(
        PROJECT / "book/_vendor/_static/vendor/onnxruntime", place.parent / "vendor/onnxruntime"
    )
    inputs, label = problems.test.inputs[index], problems.test.labels[index]
    recording = play.record(model, inputs, label, depth=DEPTH, breadth=BREADTH)
    replay = play.replay([("the problem", [recording]), ("again", [recording, recording])])
    walk = maze.generate(1, 0).inputs[0]
    puzzles = [
        {"title": "known", "text": model.task.format(inputs), "model": model.title},
        {"title": "walk", "text": maze.format(walk), "model": "Maze"},
    ]
    (root / "chapters").mkdir()
    text = replay.text + play.solver(models, puzzles).text
    (root / "chapters/play.html").write_text(PAGE.format(text), encoding="utf-8")
    home = play.home_board(model, inputs, label)
    (root / "index.html").write_text(PAGE.format(home.text), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def chromium():
    """One browser for this file."""
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def origin(site):
    """The pages' address."""
    with served(site) as found:
        yield found


@pytest.fixture
def tab(chromium, origin):
    """The page with replay and solver, fresh, without a fault at the end."""
    with opened(chromium, origin) as found:
        found.page.goto(f"{origin}/chapters/play.html")
        found.page.wait_for_function("document.querySelector('.eqr-solver').solver")
        yield found
        found.check()


def live(tab: Tab):
    """The solver's part of the page."""
    return tab.page.locator(".eqr-solver")


def play_through(tab: Tab, depth: int = DEPTH) -> dict:
    """Set the depth by script, press Play, and return the recording shown at the end."""
    tab.page.locator("#eqr-live-depth").evaluate(
        f"e => {{ e.value = {depth}; e.dispatchEvent(new Event('input')) }}"
    )
    live(tab).get_by_role("button", name="Play").click()
    tab.page.wait_for_function(f"{PLAYER}.depth >= {depth} && !{PLAYER}.playing", timeout=30_000)
    return tab.page.evaluate(
        f"(({{breadth, frames, inputs}}) => ({{breadth, frames, inputs}}))({PLAYER}.recordings[0])"
    )


def board(tab: Tab, where: str = ".eqr-solver") -> list[str]:
    """What stands in the cells of the first board."""
    return tab.page.locator(f"{where} table.eqr-board").first.locator("td").all_inner_texts()


def test_nothing_heavy_is_fetched_before_it_is_wanted(tab):
    names = tab.page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in names if name.endswith((".wasm", ".onnx", "worker.mjs"))] == []
    assert any(name.endswith("live.mjs") for name in names)


def test_the_live_page_solves_a_real_problem(tab, solved):
    model, _, solution = solved
    recording = play_through(tab)
    facts = live(tab).locator(".eqr-facts").inner_text()
    assert "by the rules, the answer is right" in facts and ", settled" in facts
    shown = "".join(board(tab))
    assert shown == model.task.format(solution.answer)
    for answer in recording["frames"][-1]["answers"]:
        assert model.task.format(np.array(answer))  # each restart decodes to tokens of the board


def test_its_logits_are_those_of_torch(tab, solved, origin):
    model = solved[0]
    inputs = export.example(model.model, 3, seed=4)
    sent = {k: {"values": v.ravel().tolist(), "dims": list(v.shape)} for k, v in inputs.items()}
    script = """async ([address, facts, inputs]) => {
      const { Solver } = await import(new URL('live.mjs', address).href);
      const solver = new Solver();
      await solver.call('load', { model: address, facts });
      return solver.call('iterate', { model: address, inputs });
    }"""
    address = f"{origin}/{play.PLACE.as_posix()}/{model.file}"
    found = tab.page.evaluate(script, [address, export.describe(model.model, model.task), sent])
    with torch.no_grad():
        wanted = export.OneIteration(model.model)(*map(torch.from_numpy, inputs.values()))
    for name, value in zip(export.OUTPUTS, wanted, strict=True):
        values = np.array(found[name]["values"]).reshape(found[name]["dims"])
        np.testing.assert_allclose(values, value, atol=export.TOLERANCE, err_msg=name)


def test_trajectories_are_functions_of_seed_and_restart(tab):
    tab.page.locator("#eqr-live-noise").evaluate(
        "e => { e.value = 0.1; e.dispatchEvent(new Event('change')) }"
    )
    first = play_through(tab, 4)
    tab.page.locator("#eqr-live-seed").fill("7")
    tab.page.locator("#eqr-live-seed").press("Tab")
    other = play_through(tab, 4)
    assert other["frames"][-1]["residual"] != first["frames"][-1]["residual"]
    tab.page.locator("#eqr-live-seed").fill("0")
    tab.page.locator("#eqr-live-breadth").focus()
    tab.page.keyboard.press("ArrowLeft")  # one restart fewer, and the seed of before
    again = play_through(tab, 4)
    assert again["breadth"] == first["breadth"] - 1
    for a, b in zip(again["frames"], first["frames"], strict=True):
        np.testing.assert_allclose(a["residual"], b["residual"][:-1], rtol=1e-4)


def test_starts_have_the_size_the_model_asks_for(tab):
    script = """async () => {
      const { truncated, normal, uniform } = await import('../_static/play/numbers.mjs');
      const cut = truncated(uniform(3, 1), 0.5), plain = normal(uniform(3, 2));
      const draw = (f) => Array.from({ length: 40000 }, f);
      return [draw(cut), draw(plain)];
    }"""
    cut, plain = map(np.array, tab.page.evaluate(script))
    assert abs(cut.std() - 0.5) < 0.01 and abs(cut).max() < 1.2 and abs(cut.mean()) < 0.01
    assert abs(plain.std() - 1) < 0.02 and abs(plain).max() > 3


def test_selection_is_that_of_the_package(tab, solved, problems):
    model, index, _ = solved
    inputs = problems.test.inputs[index]
    for noise in (0.0, 0.2):
        made = play.record(model, inputs, depth=8, breadth=6, noise=noise)
        own = solve(model.model, model.task, inputs, depth=8, breadth=6, noise=noise)
        chosen = tab.page.evaluate("r => EqrPlay.selected(r, 8)", made)
        settled = np.array([frame["residual"] for frame in made["frames"]])[-3:].mean(0)
        assert settled[chosen] == settled.min() == settled[own.restart]


BAD = {
    "sudoku": ["1", "12345", "x" * 16, "11" + "." * 14, "1..." + "1" + "." * 11, "1" * 16],
    "maze": [
        "#",
        "o" * 25,
        "S" + "." * 24,
        "SG" + "x" * 23,
        "S#..." + "#####" * 3 + "....G",
        "S/G",
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_problems_are_refused_as_by_the_package(kind, tab):
    task = Sudoku(2, 2) if kind == "sudoku" else Maze(5, 5)
    script = """async ([kind, task, text]) => {
      const { RULES } = await import('../_static/play/rules.mjs');
      try {
        const tokens = RULES[kind].parse(text, task);
        return RULES[kind].fault(tokens, task);
      } catch (error) { return error.message; }
    }"""
    for text in BAD[kind]:
        with pytest.raises(ProblemError) as refused:
            task.parse(text)
        assert tab.page.evaluate(script, [kind, export.board_of(task), text]) == str(refused.value)


@pytest.mark.parametrize("task", [Sudoku(2, 3, clues_min=12), Maze(9, 9)], ids=lambda t: t.kind)
def test_verdicts_agree_with_the_checker(task, tab):
    """Right answers, and right answers with one cell changed."""
    found = task.generate(12, 3)
    answers = found.labels.copy()
    draw = np.random.default_rng(0)
    for row in range(0, 12, 2):
        open_ = np.flatnonzero(found.inputs[row] != found.labels[row])
        cell = draw.choice(open_)
        answers[row, cell] = 2 + (answers[row, cell] - 1) % (
            task.height if task.kind == "sudoku" else 1
        )
    script = """async ([kind, task, rows]) => {
      const { RULES } = await import('../_static/play/rules.mjs');
      return rows.map(([inputs, answer]) => RULES[kind].verdict(inputs, task)(answer));
    }"""
    rows = [[a.tolist(), b.tolist()] for a, b in zip(found.inputs, answers, strict=True)]
    words = tab.page.evaluate(script, [task.kind, export.board_of(task), rows])
    right = ["not" not in text for text in words]
    assert right == task.check(found.inputs, answers).tolist()
    assert any(right) and not all(right)


def test_a_bad_problem_gets_a_message_and_the_board_stays(tab):
    before = board(tab)
    live(tab).locator("#eqr-live-text").fill("11..............")
    live(tab).get_by_role("button", name="Use this problem").click()
    message = live(tab).get_by_role("alert")
    assert "row 1 holds 1 twice, at r1c1 and r1c2" in message.inner_text()
    assert board(tab) == before
    live(tab).locator("#eqr-live-text").fill("1...............")
    live(tab).get_by_role("button", name="Use this problem").click()
    assert "several solutions" in live(tab).locator("p.eqr-status").inner_text()
    assert live(tab).locator("p.eqr-message").inner_text() == ""
    assert board(tab) == ["1"] + [""] * 15


def test_cells_are_written_by_keyboard(tab):
    live(tab).locator("#eqr-live-text").fill("1...............")
    live(tab).get_by_role("button", name="Use this problem").click()
    page = tab.page
    live(tab).locator("td").first.focus()
    for key in ("ArrowRight", "ArrowDown", "3"):
        page.keyboard.press(key)
    assert board(tab) == ["1", "", "", "", "", "3"] + [""] * 10
    page.keyboard.press("1")  # twice in the box
    assert "box 1 holds 1 twice" in live(tab).get_by_role("alert").inner_text()
    assert board(tab)[5] == "3"
    page.keyboard.press("Backspace")
    assert board(tab)[5] == ""
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "row 2, column 2: blank"


def test_sliders_move_by_keyboard(tab):
    for name, text in (("depth", "25 iterations"), ("breadth", "9 restarts"), ("noise", "0.01")):
        tab.page.locator(f"#eqr-live-{name}").focus()
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.locator(f"#eqr-live-{name}").get_attribute("aria-valuetext") == text
        assert text in live(tab).inner_text()
    assert tab.page.evaluate(f"{PLAYER}.recordings[0].breadth") == 9
    assert tab.page.evaluate(f"{PLAYER}.recordings[0].noise") == 0.01


def test_two_models_side_by_side_and_a_change_while_playing(tab):
    tab.page.select_option("#eqr-live-other", label="Untrained")
    play_through(tab, 3)
    assert live(tab).locator("section.eqr-panel").count() == 2
    tab.page.locator("#eqr-live-depth").evaluate(
        "e => { e.value = 64; e.dispatchEvent(new Event('input')) }"
    )
    live(tab).get_by_role("button", name="Play").click()
    tab.page.select_option("#eqr-live-model", label="Maze")  # while the other ones are computed
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate(f"{PLAYER}.depth") == 0 and not tab.page.evaluate(f"{PLAYER}.playing")
    assert tab.page.locator("#eqr-live-other").is_disabled()
    assert len(play_through(tab, 3)["frames"]) == 3
    assert live(tab).locator("section.eqr-panel").count() == 1


def test_a_change_while_the_solver_loads(chromium, origin):
    """What was asked for before the change is forgotten, and the new trajectories are whole."""
    with opened(chromium, origin) as tab:
        page = tab.page
        page.goto(f"{origin}/chapters/play.html")
        page.wait_for_function("document.querySelector('.eqr-solver').solver")
        page.route("**/*.wasm", lambda route: (page.wait_for_timeout(700), route.continue_()))
        page.select_option("#eqr-live-other", label="Untrained")
        live(tab).get_by_role("button", name="Play").click()
        page.locator("#eqr-live-breadth").focus()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
            live(tab).get_by_role("button", name="Play").click()
            page.locator("#eqr-live-breadth").focus()
        page.wait_for_function(f"{PLAYER}.depth >= 6", timeout=30_000)
        recording = page.evaluate(
            f"(({{breadth, frames}}) => ({{breadth, frames}}))({PLAYER}.recordings[0])"
        )
        assert recording["breadth"] == 5 and len(recording["frames"][0]["residual"]) == 5
        assert recording["frames"][0]["residual"][0] > recording["frames"][5]["residual"][0]
        assert [len(frame["plane"]) for frame in recording["frames"]] == [5] * len(
            recording["frames"]
        )
        assert live(tab).locator("p.eqr-status").inner_text() == ""
        assert live(tab).locator("p.eqr-message").inner_text() == ""


def test_a_solver_that_does_not_load_says_so_and_can_be_tried_again(chromium, origin):
    with opened(chromium, origin) as tab:
        page = tab.page
        page.goto(f"{origin}/chapters/play.html")
        page.wait_for_function("document.querySelector('.eqr-solver').solver")
        page.route("**/*.wasm", lambda route: route.abort())
        live(tab).get_by_role("button", name="Play").click()
        message = live(tab).get_by_role("alert").filter(has_text="The solver stopped")
        message.wait_for()
        page.unroute("**/*.wasm")
        assert len(play_through(tab, 3)["frames"]) == 3
        assert message.count() == 0


def test_the_time_line_moves_while_playing(tab):
    play_through(tab, 8)
    page = tab.page
    live(tab).get_by_role("button", name="Back").focus()
    page.evaluate(f"{PLAYER}.interval = 400; {PLAYER}.seek(0)")
    live(tab).get_by_role("button", name="Play").click()
    page.wait_for_function(f"{PLAYER}.depth >= 2")
    slider = live(tab).get_by_role("slider", name="Iteration")
    slider.focus()
    page.keyboard.press("End")
    assert page.evaluate(f"[{PLAYER}.depth, {PLAYER}.playing]") == [8, False]
    page.wait_for_timeout(500)
    assert page.evaluate(f"{PLAYER}.depth") == 8, "what was under way moves nothing"


def test_only_what_a_problem_has_is_written(tab):
    """A path is no part of a maze's problem; the keys write into the marked cell."""
    page = tab.page
    page.select_option("#eqr-live-model", label="Maze")
    before = page.evaluate(f"{PLAYER}.recordings[0].inputs")
    wall = before.index(1)
    live(tab).locator("td").nth(wall).click()
    page.keyboard.press("o")
    assert page.evaluate(f"{PLAYER}.recordings[0].inputs") == before
    page.keyboard.press(".")
    assert page.evaluate(f"{PLAYER}.recordings[0].inputs[{wall}]") == 2
    page.locator("#eqr-live-breadth").focus()
    page.keyboard.press("ArrowRight")  # new boards, the same cell
    live(tab).get_by_role("button", name="# wall").click()
    assert page.evaluate(f"{PLAYER}.recordings[0].inputs") == before
    assert "/" in page.locator("#eqr-live-text").input_value()


def test_with_two_models_one_board_takes_the_keys(tab):
    tab.page.select_option("#eqr-live-other", label="Untrained")
    assert live(tab).locator("table[role=grid]").count() == 1
    assert live(tab).locator("table.eqr-board").count() == 2


def test_a_seed_out_of_range_is_written_back(tab):
    for typed, kept in (("-5", "0"), ("123456", "9999"), ("2.7", "2")):
        tab.page.locator("#eqr-live-seed").fill(typed)
        tab.page.locator("#eqr-live-seed").press("Tab")
        assert tab.page.locator("#eqr-live-seed").input_value() == kept
        assert tab.page.evaluate(f"{PLAYER}.recordings[0].seed") == int(kept)


def test_replay_works_from_a_file(chromium, site, solved):
    model, _, solution = solved
    with opened(chromium, "file://", viewport={"width": 380, "height": 800}) as tab:
        page = tab.page
        page.goto((site / "chapters/play.html").as_uri())
        part = page.locator(".eqr-replay")
        assert "".join(board(tab, ".eqr-replay")) == model.task.format(solution.answer)
        slider = part.get_by_role("slider", name="Iteration")
        slider.focus()
        page.keyboard.press("Home")
        assert "Not started" in part.locator(".eqr-facts").inner_text()
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == f"iteration 1 of {DEPTH}"
        assert part.locator("p[role=status]").inner_text().startswith("Iteration 1. ")
        part.get_by_role("button", name="Play").press("Enter")
        page.wait_for_function(
            "parseInt(document.querySelector('.eqr-replay .eqr-count').textContent) > 1"
        )
        part.get_by_role("button", name="Pause").press("Enter")
        part.get_by_label("Problem").select_option(label="again")
        assert part.locator("table.eqr-board").count() == 2
        assert "web server" in page.locator(".eqr-solver").inner_text()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 380, "the page scrolls sideways on a phone"
        tab.check()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_home_board_respects_less_motion(motion, chromium, origin):
    with opened(chromium, origin, reduced_motion=motion) as tab:
        tab.page.goto(f"{origin}/index.html")
        button = tab.page.locator(".eqr-controls button").first
        assert button.inner_text() == ("▶ Play" if motion == "reduce" else "❚❚ Pause")
        ended = "document.querySelector('.eqr-count').textContent === '16 / 16'"
        tab.page.wait_for_function(ended, timeout=15_000)
        tab.check()
