"""Replay and live solver in a real browser: the model is the same, the controls do their work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import NEEDS_BROWSER, Tab, browser, opened, served

from eqr import checkpoint, evaluate, select
from eqr.config import EvalConfig
from eqr.data import PROJECT
from eqr.model import Reasoner
from eqr.settings import ProblemError
from eqr.solve import solve
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku
from eqr.viewer import onnx as export, page as play
from eqr.viewer.frames import board_of

pytestmark = NEEDS_BROWSER

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Play</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<body style="margin: 12px">{}</body></html>"""

DEPTH, BREADTH = 16, 4
PLAYER = "document.querySelector('.eqr-solver').explorer.player"
PLACE = f"../{play.PLACE.as_posix()}"

#: The rules of the viewer by those of the package.
RULES = {
    "converged": "smallest residual",
    "majority": "most frequent answer",
    "margin": "largest margin",
    "halt": "halting head",
}


@pytest.fixture(scope="module")
def solved(learned, problems):
    """The learned model, and a test problem that it solves: (page model, index, solution)."""
    loaded = checkpoint.load_model(learned.path)
    model = play.PageModel("Tiny EqR", loaded.model, loaded.task, "train-0000000000000001", "smoke")
    for index, inputs in enumerate(problems.test.inputs):
        solution = solve(loaded.model, loaded.task, inputs, depth=DEPTH, breadth=BREADTH)
        if solution.valid and (solution.finals == solution.answer).all():
            return model, index, solution
    raise AssertionError("the learned model solves no test problem from all starts")


@pytest.fixture(scope="module")
def site(tmp_path_factory, solved, problems, learned) -> Path:
    """Bare pages with the real scripts: replay and solver, and the home page's board."""
    root = tmp_path_factory.mktemp("site")
    model, index, _ = solved
    config, maze = learned.recipe.model, Maze(5, 5)
    untrained = Reasoner.for_task(model.task, config, torch.Generator().manual_seed(9))
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
    for name in (*play.MODULES, "viewer.mjs"):
        shutil.copy(play.SCRIPTS / name, place / name)
    shutil.copytree(
        PROJECT / "book/_vendor/_static/vendor/onnxruntime", place.parent / "vendor/onnxruntime"
    )
    inputs, label = problems.test.inputs[index], problems.test.labels[index]
    recording = play.record(model, inputs, label, depth=DEPTH, breadth=BREADTH)
    replay = play.replay([("the problem", [recording]), ("again", [recording, recording])])
    measured = {"depth": 9, "breadth": 3, "noise": 0.1}
    puzzles = [
        {"title": "known", "text": model.task.format(inputs), "model": model.title},
        {"title": "walk", "text": maze.format(maze.generate(1, 0).inputs[0]), "model": "Maze"},
        {"title": "torn", "text": model.task.format(problems.test.inputs[1]), "model": "Untrained"}
        | measured,
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
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def origin(site):
    """The pages' address."""
    with served(site) as address:
        yield address


def visit(tab: Tab, origin: str) -> None:
    """The page with replay and solver, its scripts run."""
    tab.page.goto(f"{origin}/chapters/play.html")
    tab.page.wait_for_function("document.querySelector('.eqr-solver').explorer")


@pytest.fixture
def tab(chromium, origin):
    """The page with replay and solver, fresh, without a fault at the end."""
    with opened(chromium, origin) as one:
        visit(one, origin)
        yield one
        one.check()


def live(tab: Tab):
    """The solver's part of the page."""
    return tab.page.locator(".eqr-solver")


def field(tab: Tab, name: str):
    """One of the solver's controls."""
    return live(tab).locator(f".eqr-field-{name}")


def move(tab: Tab, name: str, value: float) -> None:
    """Move a slider, as a drag does."""
    events = "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind))"
    field(tab, name).evaluate(f"e => {{ e.value = {value}; {events} }}")


def recording(tab: Tab) -> dict:
    """What the first board shows."""
    return tab.page.evaluate(f"(({{task, ...rest}}) => rest)({PLAYER}.recordings[0])")


def play_through(tab: Tab, depth: int = DEPTH) -> dict:
    """Set the depth, press Play, and return the recording shown at the end."""
    move(tab, "depth", depth)
    live(tab).get_by_role("button", name="Play").click()
    tab.page.wait_for_function(f"{PLAYER}.depth >= {depth} && !{PLAYER}.playing", timeout=60_000)
    return recording(tab)


def board(tab: Tab, where: str = ".eqr-solver") -> list[str]:
    """What stands in the cells of the first board."""
    return tab.page.locator(f"{where} table.eqr-board").first.locator("td").all_inner_texts()


def shows(tab: Tab, cells: list[str]) -> None:
    """Wait until the first board shows these cells."""
    script = "document.querySelectorAll('.eqr-solver table.eqr-board')[0].querySelectorAll('td')"
    tab.page.wait_for_function(f"c => Array.from({script}, d => d.innerText).join() === c.join()",
                               arg=cells)  # fmt: skip


def use(tab: Tab, text: str) -> None:
    """Write a problem and have it used."""
    field(tab, "text").fill(text)
    live(tab).get_by_role("button", name="Use this problem").click()


def said(tab: Tab, words: str, kind: str = "message") -> None:
    """Wait for words in one of the solver's lines."""
    live(tab).locator(f"p.eqr-{kind}").filter(has_text=words).wait_for(state="attached")


def test_nothing_is_fetched_before_it_is_wanted(tab):
    names = tab.page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in names if name.endswith((".wasm", ".onnx", ".mjs"))] == []


def test_the_live_page_solves_a_real_problem(tab, solved):
    model, _, solution = solved
    frames = play_through(tab)["frames"]
    facts = live(tab).locator(".eqr-facts").inner_text()
    assert "by the rules, the answer is right" in facts and ", settled" in facts
    assert "".join(board(tab)) == model.task.format(solution.answer)
    inputs = np.repeat(solution.inputs[None], 8, 0)
    for frame in frames:
        right = model.task.check(inputs, np.array(frame["answers"]))
        assert frame["right"] == right.tolist()
    count = sum(frames[-1]["right"])
    assert f"{count} of 8 are right" in facts
    assert live(tab).locator(".eqr-traces .end.right").count() == count
    assert live(tab).locator(".eqr-plane .end.refused").count() == 8 - count


def test_its_logits_are_those_of_torch(tab, solved, origin):
    model = solved[0]
    inputs = export.example(model.model, 3, seed=4)
    sent = {k: {"values": v.ravel().tolist(), "dims": list(v.shape)} for k, v in inputs.items()}
    script = f"""async (inputs) => {{
      const {{ workerAt }} = await import('{PLACE}/viewer.mjs');
      const {{ models }} = document.querySelector('.eqr-solver').explorer;
      const channel = workerAt(new URL('{PLACE}/worker.mjs', document.baseURI), models);
      return channel.call('iterate', {{ model: 0, inputs }});
    }}"""
    outputs = tab.page.evaluate(script, sent)
    with torch.no_grad():
        expected = export.OneIteration(model.model)(*map(torch.from_numpy, inputs.values()))
    for name, value in zip(export.OUTPUTS, expected, strict=True):
        values = np.array(outputs[name]["values"]).reshape(outputs[name]["dims"])
        np.testing.assert_allclose(values, value, atol=export.TOLERANCE, err_msg=name)


def test_trajectories_are_functions_of_seed_and_restart(tab):
    move(tab, "noise", 0.1)
    first = play_through(tab, 4)
    field(tab, "seed").fill("7")
    field(tab, "seed").press("Tab")
    other = play_through(tab, 4)
    assert other["frames"][-1]["residual"] != first["frames"][-1]["residual"]
    field(tab, "seed").fill("0")
    field(tab, "breadth").focus()
    tab.page.keyboard.press("ArrowLeft")  # one restart fewer, and the seed of before
    again = play_through(tab, 4)
    assert again["breadth"] == first["breadth"] - 1
    for a, b in zip(again["frames"], first["frames"], strict=True):
        np.testing.assert_allclose(a["residual"], b["residual"][:-1], rtol=1e-4)


def test_starts_have_the_size_the_model_asks_for(tab):
    script = f"""async () => {{
      const {{ truncated, normal, uniform }} = await import('{PLACE}/numbers.mjs');
      const cut = truncated(uniform(3, 1), 0.5), plain = normal(uniform(3, 2));
      const draw = (f) => Array.from({{ length: 40000 }}, f);
      return [draw(cut), draw(plain)];
    }}"""
    cut, plain = map(np.array, tab.page.evaluate(script))
    assert abs(cut.std() - 0.5) < 0.01 and abs(cut).max() < 1.2 and abs(cut.mean()) < 0.01
    assert abs(plain.std() - 1) < 0.02 and abs(plain).max() > 3


def test_each_rule_takes_the_restart_that_the_package_takes(tab, solved, problems):
    model, test = solved[0], problems.test
    script = f"""async (stored) => {{
      const {{ RULES, decoded }} = await import('{PLACE}/viewer.mjs');
      return Object.entries(RULES).map(([name, rule]) => [name, rule(decoded(stored), 8)]);
    }}"""
    choices = set()
    for index in range(4):
        inputs, labels = test.inputs[index : index + 1], test.labels[index : index + 1]
        made = play.record(model, inputs[0], depth=8, breadth=6, noise=0.3)
        config = EvalConfig((8,), 6, noise=0.3, problems=1)
        outcomes = evaluate.records(model.model, inputs, labels, config).at(8)
        taken = dict(tab.page.evaluate(script, made))
        for name, title in RULES.items():
            assert taken[title] == select.RULES[name](outcomes)[0], (index, name)
        choices.add(tuple(taken.values()))
    assert any(len(set(taken)) > 1 for taken in choices), "no rule differs from another"


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
    script = f"""async ([kind, task, text]) => {{
      const {{ RULES }} = await import('{PLACE}/rules.mjs');
      try {{
        return RULES[kind].fault(RULES[kind].parse(text, task), task);
      }} catch (error) {{ return error.message; }}
    }}"""
    for text in BAD[kind]:
        with pytest.raises(ProblemError) as refused:
            task.parse(text)
        assert tab.page.evaluate(script, [kind, board_of(task), text]) == str(refused.value)


@pytest.mark.parametrize("task", [Sudoku(2, 3, clues_min=12), Maze(9, 9)], ids=lambda t: t.kind)
def test_verdicts_agree_with_the_checker(task, tab):
    """Right answers, and right answers with one cell changed."""
    problems = task.generate(12, 3)
    answers = problems.labels.copy()
    draw = np.random.default_rng(0)
    for row in range(0, 12, 2):
        cell = draw.choice(np.flatnonzero(problems.inputs[row] != problems.labels[row]))
        others = task.height if task.kind == "sudoku" else 1
        answers[row, cell] = 2 + (answers[row, cell] - 1) % others
    script = f"""async ([kind, task, rows]) => {{
      const {{ RULES }} = await import('{PLACE}/rules.mjs');
      return rows.map(([inputs, answer]) => RULES[kind].verdict(inputs, task)(answer));
    }}"""
    rows = [[a.tolist(), b.tolist()] for a, b in zip(problems.inputs, answers, strict=True)]
    right = tab.page.evaluate(script, [task.kind, board_of(task), rows])
    assert right == task.check(problems.inputs, answers).tolist()
    assert any(right) and not all(right)


def test_a_bad_problem_gets_a_message_and_the_board_stays(tab):
    before = board(tab)
    use(tab, "11..............")
    said(tab, "row 1 holds 1 twice, at r1c1 and r1c2")
    assert board(tab) == before
    use(tab, "1...............")
    said(tab, "several solutions", "status")
    shows(tab, ["1"] + [""] * 15)
    assert live(tab).locator("p.eqr-message").inner_text() == ""
    assert field(tab, "puzzle").locator("option:checked").inner_text() == "your own"


def test_cells_are_written_by_keyboard(tab):
    use(tab, "1...............")
    shows(tab, ["1"] + [""] * 15)
    live(tab).locator("td").first.focus()
    for key in ("ArrowRight", "ArrowDown", "3"):
        tab.page.keyboard.press(key)
    shows(tab, ["1", "", "", "", "", "3"] + [""] * 10)
    tab.page.keyboard.press("1")  # twice in the box
    said(tab, "box 1 holds 1 twice")
    assert board(tab)[5] == "3"
    for key in ("Backspace", "ArrowRight", "2"):  # faster than they are read
        tab.page.keyboard.press(key)
    shows(tab, ["1", "", "", "", "", "", "2"] + [""] * 9)
    focused = tab.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "row 2, column 3: 2, given"


def test_sliders_move_by_keyboard(tab):
    for name, text in (("depth", "25 iterations"), ("breadth", "9 restarts"), ("noise", "0.01"),
                       ("damping", "0.00")):  # fmt: skip
        field(tab, name).focus()
        tab.page.keyboard.press("ArrowRight")
        assert field(tab, name).get_attribute("aria-valuetext") == text
        assert text in live(tab).inner_text()
    now = recording(tab)
    assert (now["breadth"], now["noise"], now["damping"]) == (9, 0.01, 0)


def test_an_example_opens_the_model_and_settings_that_it_was_measured_with(tab):
    field(tab, "puzzle").select_option(label="torn")
    now = recording(tab)
    assert now["model"]["name"] == "Untrained" and now["damping"] is None
    assert (now["breadth"], now["noise"]) == (3, 0.1)
    assert tab.page.evaluate(f"{PLAYER}.longest") == 9
    field(tab, "model").select_option(label="Tiny EqR")  # another model is asked the same problem
    other = recording(tab)
    assert other["model"]["name"] == "Tiny EqR" and other["inputs"] == now["inputs"]


def test_two_models_side_by_side_and_a_change_while_playing(tab):
    field(tab, "other").select_option(label="Untrained")
    assert live(tab).locator("table[role=grid]").count() == 1, "one board takes the keys"
    play_through(tab, 3)
    assert live(tab).locator("section.eqr-panel").count() == 2
    move(tab, "depth", 64)
    live(tab).get_by_role("button", name="Play").click()
    field(tab, "model").select_option(label="Maze")  # while the other ones are computed
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate(f"{PLAYER}.depth") == 0 and not tab.page.evaluate(f"{PLAYER}.playing")
    assert field(tab, "other").is_disabled()
    assert len(play_through(tab, 3)["frames"]) == 3
    assert live(tab).locator("section.eqr-panel").count() == 1


def test_a_change_while_the_solver_loads(chromium, origin):
    """What was asked for before the change is forgotten, and the new trajectories are whole."""
    with opened(chromium, origin) as tab:
        visit(tab, origin)
        page = tab.page
        page.route("**/*.wasm", lambda route: (page.wait_for_timeout(700), route.continue_()))
        field(tab, "other").select_option(label="Untrained")
        live(tab).get_by_role("button", name="Play").click()
        for _ in range(3):
            field(tab, "breadth").focus()
            page.keyboard.press("ArrowLeft")
            live(tab).get_by_role("button", name="Play").click()
        page.wait_for_function(f"{PLAYER}.depth >= 6", timeout=60_000)
        now = recording(tab)
        assert now["breadth"] == 5 and len(now["frames"][0]["residual"]) == 5
        assert now["frames"][0]["residual"][0] > now["frames"][5]["residual"][0]
        assert {len(frame["plane"]) for frame in now["frames"]} == {5}
        for kind in ("status", "message"):
            assert live(tab).locator(f"p.eqr-{kind}").inner_text() == ""


def test_a_solver_that_does_not_load_says_so_and_can_be_tried_again(chromium, origin):
    with opened(chromium, origin) as tab:
        visit(tab, origin)
        tab.page.route("**/*.wasm", lambda route: route.abort())
        live(tab).get_by_role("button", name="Play").click()
        said(tab, "The solver stopped")
        tab.page.unroute("**/*.wasm")
        assert len(play_through(tab, 3)["frames"]) == 3
        assert live(tab).locator("p.eqr-message").inner_text() == ""


def test_the_time_line_moves_while_playing(tab):
    play_through(tab, 8)
    page = tab.page
    page.evaluate(f"{PLAYER}.interval = 400; {PLAYER}.seek(0)")
    live(tab).get_by_role("button", name="Play").click()
    page.wait_for_function(f"{PLAYER}.depth >= 2")
    slider = live(tab).get_by_role("slider", name="Iteration")
    slider.focus()
    page.keyboard.press("End")
    assert page.evaluate(f"[{PLAYER}.depth, {PLAYER}.playing]") == [8, False]
    page.wait_for_timeout(500)
    assert page.evaluate(f"{PLAYER}.depth") == 8, "what was under way moves nothing"
    live(tab).get_by_role("button", name="Reset").click()
    assert "Not started" in live(tab).locator(".eqr-facts").inner_text()


def test_only_what_a_problem_has_is_written(tab):
    """A path is no part of a maze's problem; the keys write into the marked cell."""
    field(tab, "puzzle").select_option(label="walk")
    before = recording(tab)["inputs"]
    wall = before.index(1)
    live(tab).locator("td").nth(wall).click()
    tab.page.keyboard.press("o")
    assert recording(tab)["inputs"] == before
    tab.page.keyboard.press(".")
    tab.page.wait_for_function(f"{PLAYER}.recordings[0].inputs[{wall}] === 2")
    field(tab, "breadth").focus()
    tab.page.keyboard.press("ArrowRight")  # new boards, the same cell
    live(tab).get_by_role("button", name="# wall").click()
    tab.page.wait_for_function(f"{PLAYER}.recordings[0].inputs[{wall}] === 1")
    assert recording(tab)["inputs"] == before
    assert len(field(tab, "text").input_value().splitlines()) == 5
    assert field(tab, "puzzle").locator("option:checked").inner_text() == "walk"


def test_a_seed_out_of_range_is_written_back(tab):
    for typed, used in (("-5", "0"), ("123456", "9999"), ("2.7", "2")):
        field(tab, "seed").fill(typed)
        field(tab, "seed").press("Tab")
        assert field(tab, "seed").input_value() == used
        assert recording(tab)["seed"] == int(used)


def test_doubt_and_change_are_shown_without_colour(tab, solved, problems):
    """A doubtful cell has a smaller token, one that has just changed a corner; both in words."""
    model, index, _ = solved
    made = play.record(model, problems.test.inputs[index], depth=3, breadth=1)
    script = f"""async ([stored, sure]) => {{
      const {{ Player, decoded }} = await import('{PLACE}/viewer.mjs');
      const recording = decoded(stored), cell = recording.inputs.indexOf(1);
      for (const frame of recording.frames) frame.confidence[0].fill(sure);
      recording.frames[2].answers[0] = [...recording.frames[1].answers[0]];
      recording.frames[2].answers[0][cell] = 5 - recording.frames[2].answers[0][cell] % 2;
      const root = document.createElement('div');
      root.className = 'eqr-viewer';
      document.body.append(root);
      new Player(root, [recording]).seek(3);
      const shown = root.querySelectorAll('td')[cell], style = getComputedStyle(shown);
      return [parseFloat(style.fontSize), style.backgroundImage, shown.title,
              root.querySelectorAll('td.changed').length];
    }}"""
    small, corner, words, count = tab.page.evaluate(script, [made, 0.1])
    large = tab.page.evaluate(script, [made, 0.99])[0]
    assert small < 0.8 * large and "gradient" in corner and count == 1
    assert "10 % sure, unchanged for 0" in words


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
        button.filter(has_text="▶ Play" if motion == "reduce" else "❚❚ Pause").wait_for()
        ended = "document.querySelector('.eqr-count').textContent === '16 / 16'"
        tab.page.wait_for_function(ended)
        tab.check()
