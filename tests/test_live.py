"""Replay and live solver in a real browser: the model is the same, the controls do their work."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browsing import NEEDS_BROWSER, Tab, opened, served

from eqr import checkpoint, evaluate, select
from eqr.config import EvalConfig
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
    trained = SimpleNamespace(model=loaded.model, recipe=loaded, run=SimpleNamespace(id="train-1"))
    model = play.PageModel.of("Tiny EqR", trained, "smoke")
    for index, inputs in enumerate(problems.test.inputs):
        solution = solve(model.model, model.task, inputs, depth=DEPTH, breadth=BREADTH)
        if solution.valid and (solution.finals == solution.answer).all():
            return model, index, solution
    raise AssertionError("the learned model solves no test problem from all starts")


@pytest.fixture(scope="module")
def site(tmp_path_factory, solved, problems, learned) -> Path:
    """Bare pages with the real scripts: replay and solver, and the home page's board."""
    root, (model, index, _) = tmp_path_factory.mktemp("site"), solved
    maze, draw = Maze(5, 5), torch.Generator().manual_seed(9)
    tasks = {"Tiny EqR": model.task, "Untrained": model.task, "Maze": maze}
    trained = {}
    for k, (title, task) in enumerate(tasks.items(), 1):
        one = model.model if k == 1 else Reasoner.for_task(task, learned.recipe.model, draw)
        made = {"recipe": SimpleNamespace(task=task), "run": SimpleNamespace(id=f"train-{k}")}
        trained[title] = SimpleNamespace(model=one, data=problems, **made)
    place, home = root / play.PLACE, root / "home.html"
    play.install(place, home, trained, "smoke")
    shutil.copytree(play.SCRIPTS, place, dirs_exist_ok=True)  # for the tests that import from it
    inputs, label = problems.test.inputs[index], problems.test.labels[index]
    made = play.record(model, inputs, label, depth=DEPTH, breadth=BREADTH)
    replay = play.replay([("the problem", [made]), ("again", [made, made])])
    other, walk = problems.test.inputs[1], maze.generate(1, 0).inputs[0]
    puzzles = [
        {"title": "known", "text": model.task.format(inputs), "model": model.title},
        {"title": "walk", "text": maze.format(walk), "model": "Maze"},
        {"title": "torn", "text": model.task.format(other), "model": "Untrained"}
        | {"depth": 9, "breadth": 3, "noise": 0.1, "right": 2},
    ]
    models = [play.PageModel.of(title, one, "smoke") for title, one in trained.items()]
    (root / "chapters").mkdir()
    text = replay.text + play.solver(models, puzzles).text
    (root / "chapters/settling.html").write_text(PAGE.format(text), encoding="utf-8")
    (root / "index.html").write_text(PAGE.format(home.read_text("utf-8")), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def origin(site):
    """The pages' address."""
    with served(site) as address:
        yield address


@pytest.fixture
def tab(chromium, origin):
    """The page with replay and solver, fresh, its scripts run."""
    with opened(chromium, origin) as one:
        one.page.goto(f"{origin}/chapters/settling.html")
        one.page.wait_for_function("document.querySelector('.eqr-solver').explorer")
        yield one


@pytest.fixture
def live(tab):
    """The solver's part of the page, without a fault at the end."""
    yield tab.page.locator(".eqr-solver")
    tab.check()


def field(live: Any, name: str) -> Any:
    """One of the solver's controls."""
    return live.locator(f".eqr-field-{name}")


def press(live: Any, name: str, *keys: str) -> None:
    """Focus a control and press keys."""
    field(live, name).focus()
    for key in keys:
        live.page.keyboard.press(key)


def move(live: Any, name: str, value: float) -> None:
    """Move a slider, as a drag does."""
    events = "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind))"
    field(live, name).evaluate(f"e => {{ e.value = {value}; {events} }}")


def click(live: Any, name: str) -> None:
    """Press a button."""
    live.get_by_role("button", name=name).click()


def recording(live: Any) -> dict:
    """What the first board shows."""
    return live.page.evaluate(f"(({{task, ...rest}}) => rest)({PLAYER}.recordings[0])")


def play_through(live: Any, depth: int = DEPTH) -> dict:
    """Set the depth, press Play, and return the recording shown at the end."""
    move(live, "depth", depth)
    click(live, "Play")
    live.page.wait_for_function(f"{PLAYER}.depth >= {depth} && !{PLAYER}.playing")
    return recording(live)


def board(part: Any) -> list[str]:
    """What stands in the cells of the first board."""
    return part.locator("table.eqr-board").first.locator("td").all_inner_texts()


def shows(live: Any, cells: str) -> None:
    """Wait until the first board shows these cells, a dot for a blank one."""
    read = "e => Array.from(e.querySelectorAll('td'), d => d.innerText || '.').join('')"
    script = f"cells => ({read})(document.querySelector('.eqr-solver table')).startsWith(cells)"
    live.page.wait_for_function(script, arg=cells)


def said(live: Any, words: str, kind: str = "message") -> None:
    """Wait for words in one of the solver's lines."""
    live.locator(f"p.eqr-{kind}").filter(has_text=words).wait_for(state="attached")


def call(tab: Tab, module: str, names: str, body: str, argument: Any = None) -> Any:
    """The result of JavaScript with ``names`` of a module of the page in scope, and ``argument``
    as ``given``."""
    script = f"""async (given) => {{
      const {{ {names} }} = await import('../{play.PLACE.as_posix()}/{module}.mjs');
      {body}
    }}"""
    return tab.page.evaluate(script, argument)


class TestNumbers:
    """What the browser computes is what the package computes."""

    def test_logits_are_those_of_torch(self, tab, solved):
        script = f"""
          const place = new URL('../{play.PLACE.as_posix()}/', document.baseURI).href;
          const {{ models }} = document.querySelector('.eqr-solver').explorer;
          const solver = workerAt(place, models), [{{ inputs }}] = given;
          const run = {{ model: 0, inputs, breadth: 1, noise: 0, damping: null, seed: 0 }};
          await solver.call('begin', {{ runs: [run] }});
          return Promise.all(given.map((one) => solver.call('iterate', one)));"""

        def ask(_: play.PageModel, calls: list) -> list:
            return call(tab, "viewer", "workerAt", script, calls)

        assert play.difference(solved[0], ask) < export.TOLERANCE

    def test_starts_have_the_size_the_model_asks_for(self, tab):
        script = """
          const draw = (next) => Array.from({ length: 40000 }, next);
          return [draw(truncated(uniform(3, 1), 0.5)), draw(normal(uniform(3, 2)))];"""
        cut, plain = map(np.array, call(tab, "numbers", "truncated, normal, uniform", script))
        assert abs(cut.std() - 0.5) < 0.01 and abs(cut).max() < 1.2 and abs(cut.mean()) < 0.01
        assert abs(plain.std() - 1) < 0.02 and abs(plain).max() > 3

    def test_each_rule_takes_the_restart_that_the_package_takes(self, tab, solved, problems):
        model, test = solved[0], problems.test
        script = """
          const chosen = ([name, rule]) => [name, rule(decoded(given), 8)];
          return Object.fromEntries(Object.entries(RULES).map(chosen));"""
        choices = set()
        for index in range(4):
            inputs, labels = test.inputs[index : index + 1], test.labels[index : index + 1]
            made = play.record(model, inputs[0], depth=8, breadth=6, noise=0.3)
            config = EvalConfig((8,), 6, noise=0.3, problems=1)
            outcomes = evaluate.records(model.model, inputs, labels, config).at(8)
            taken = call(tab, "viewer", "RULES, decoded", script, made)
            for name, title in RULES.items():
                assert taken[title] == select.RULES[name](outcomes)[0], (index, name)
            choices.add(tuple(taken.values()))
        assert any(len(set(taken)) > 1 for taken in choices), "no rule differs from another"

    @pytest.mark.parametrize("task", [Sudoku(2, 2), Maze(5, 5)], ids=lambda task: task.kind)
    def test_bad_problems_are_refused_in_the_same_words(self, task, tab):
        script = """const [task, text] = given, rules = RULES[task.kind];
          try {
            return rules.fault(rules.parse(text, task), task);
          } catch (error) { return error.message; }"""
        for text in BAD[task.kind]:
            with pytest.raises(ProblemError) as refused:
                task.parse(text)
            assert call(tab, "rules", "RULES", script, [board_of(task), text]) == str(refused.value)

    @pytest.mark.parametrize(
        "task", [Sudoku(2, 3, clues_min=12), Maze(9, 9)], ids=lambda task: task.kind
    )
    def test_verdicts_agree_with_the_checker(self, task, tab):
        """Right answers, and right answers with one cell changed."""
        problems = task.generate(12, 3)
        answers = problems.labels.copy()
        draw = np.random.default_rng(0)
        for row in range(0, 12, 2):
            cell = draw.choice(np.flatnonzero(problems.inputs[row] != problems.labels[row]))
            others = task.height if task.kind == "sudoku" else 1
            answers[row, cell] = 2 + (answers[row, cell] - 1) % others
        script = """const [task, rows] = given, { verdict } = RULES[task.kind];
          return rows.map(([inputs, answer]) => verdict(inputs, task)(answer));"""
        rows = [[a.tolist(), b.tolist()] for a, b in zip(problems.inputs, answers, strict=True)]
        right = call(tab, "rules", "RULES", script, [board_of(task), rows])
        assert right == task.check(problems.inputs, answers).tolist()
        assert any(right) and not all(right)


BAD = {
    "sudoku": ["1", "12345", "x" * 16, "11" + "." * 14, "1..." + "1" + "." * 11, "1" * 16],
    "maze": ["#", "o" * 25, "S" + "." * 24, "SG" + "x" * 23, "S#..." + "#####" * 3 + "....G",
             "S/G"],
}  # fmt: skip


def test_the_live_page_solves_a_real_problem(tab, live, solved):
    model, _, solution = solved
    names = tab.page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    early = [name for name in names if play.PLACE.as_posix() in name]
    assert early == [], "fetched before anybody asked for it"
    frames = play_through(live)["frames"]
    facts = live.locator(".eqr-facts").inner_text()
    assert live.locator(".eqr-verdict").inner_text() == "Settled, and right by the rules."
    assert "".join(board(live)) == model.task.format(solution.answer)
    inputs = np.repeat(solution.inputs[None], 8, 0)
    for frame in frames:
        right = model.task.check(inputs, np.array(frame["answers"]))
        assert frame["right"] == right.tolist()
    count = sum(frames[-1]["right"])
    assert f"{count} of 8 are right" in facts
    assert live.locator(".eqr-traces .end.right").count() == count
    assert live.locator(".eqr-plane .end.refused").count() == 8 - count


def test_trajectories_are_functions_of_seed_and_restart(live):
    move(live, "noise", 0.1)
    first = play_through(live, 4)
    field(live, "seed").fill("7")
    press(live, "seed", "Tab")
    other = play_through(live, 4)
    assert other["frames"][-1]["residual"] != first["frames"][-1]["residual"]
    field(live, "seed").fill("0")
    press(live, "seed", "Tab")
    press(live, "breadth", "ArrowLeft")  # one restart fewer, and the seed of before
    again = play_through(live, 4)
    assert again["breadth"] == first["breadth"] - 1
    for a, b in zip(again["frames"], first["frames"], strict=True):
        np.testing.assert_allclose(a["residual"], b["residual"][:-1], rtol=1e-4)


def test_a_problem_is_written_as_text_and_by_keyboard(live):
    """A bad one gets a message, and the board stays."""
    before = board(live)
    field(live, "text").fill("11..............")
    click(live, "Use this problem")
    said(live, "row 1 holds 1 twice, at r1c1 and r1c2")
    assert board(live) == before
    field(live, "text").fill("1...............")
    click(live, "Use this problem")
    said(live, "several solutions", "status")
    shows(live, "1...............")
    assert live.locator("p.eqr-message").inner_text() == ""
    assert field(live, "puzzle").locator("option:checked").inner_text() == "your own"
    live.locator("td").first.focus()
    keyboard = live.page.keyboard
    for key in ("ArrowRight", "ArrowDown", "3"):
        keyboard.press(key)
    shows(live, "1....3..........")
    keyboard.press("1")  # twice in the box
    said(live, "box 1 holds 1 twice")
    assert board(live)[5] == "3"
    for key in ("Backspace", "ArrowRight", "2"):  # faster than they are read
        keyboard.press(key)
    shows(live, "1.....2.........")
    focused = live.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "row 2, column 3: 2, given"


def test_only_what_a_problem_has_is_written(live):
    """A path is no part of a maze's problem; the keys write into the marked cell."""
    field(live, "puzzle").select_option(label="walk")
    before = recording(live)["inputs"]
    wall = before.index(1)
    live.locator("td").nth(wall).click()
    live.page.keyboard.press("o")
    assert recording(live)["inputs"] == before
    live.page.keyboard.press(".")
    live.page.wait_for_function(f"{PLAYER}.recordings[0].inputs[{wall}] === 2")
    press(live, "breadth", "ArrowRight")  # new boards, the same cell
    click(live, "# wall")
    live.page.wait_for_function(f"{PLAYER}.recordings[0].inputs[{wall}] === 1")
    assert recording(live)["inputs"] == before
    assert len(field(live, "text").input_value().splitlines()) == 5
    assert field(live, "puzzle").locator("option:checked").inner_text() == "walk"


def test_controls_say_and_use_their_values(live):
    for name, text in (("depth", "25 iterations"), ("breadth", "9 restarts"), ("noise", "0.01"),
                       ("damping", "0.00")):  # fmt: skip
        press(live, name, "ArrowRight")
        assert field(live, name).get_attribute("aria-valuetext") == text
        assert text in live.inner_text()
    now = recording(live)
    assert (now["breadth"], now["noise"], now["damping"]) == (9, 0.01, 0)
    for typed, used in (("-5", "0"), ("123456", "9999"), ("2.7", "2")):
        field(live, "seed").fill(typed)
        press(live, "seed", "Tab")
        assert field(live, "seed").input_value() == used
        assert recording(live)["seed"] == int(used)


def test_an_example_opens_the_model_and_settings_that_it_was_measured_with(live):
    field(live, "puzzle").select_option(label="torn")
    now = recording(live)
    assert now["model"]["name"] == "Untrained" and now["damping"] is None
    assert (now["breadth"], now["noise"]) == (3, 0.1)
    assert live.page.evaluate(f"{PLAYER}.longest") == 9
    play_through(live, 9)
    facts = live.locator(".eqr-facts")
    assert "are right, 2 of 3 in the book's runs at D = 9" in facts.inner_text()
    assert "wrong by the rules" in live.locator(".eqr-verdict").inner_text()
    field(live, "model").select_option(label="Tiny EqR")  # another model, the same problem
    other = recording(live)
    assert other["model"]["name"] == "Tiny EqR" and other["inputs"] == now["inputs"]
    play_through(live, 1)
    assert "book" not in facts.inner_text()


def test_two_models_side_by_side_and_a_change_while_playing(live):
    field(live, "other").select_option(label="Untrained")
    assert live.locator("table[role=grid]").count() == 1, "one board takes the keys"
    play_through(live, 3)
    assert live.locator("section.eqr-panel").count() == 2
    move(live, "depth", 64)
    click(live, "Play")
    field(live, "model").select_option(label="Maze")  # while the other ones are computed
    # The worker answers in order: after this call, what was under way has come.
    live.page.evaluate("document.querySelector('.eqr-solver').explorer.channel"
                       ".call('read', { model: 2, text: '' })")  # fmt: skip
    assert live.page.evaluate(f"[{PLAYER}.depth, {PLAYER}.playing]") == [0, False]
    assert field(live, "other").is_disabled()
    assert len(play_through(live, 3)["frames"]) == 3
    assert live.locator("section.eqr-panel").count() == 1


def test_a_change_while_the_solver_loads(live):
    """What was asked for before the change is forgotten, and the new trajectories are whole."""
    page, held = live.page, []
    page.route("**/train-1.js", lambda route: held.append(route))
    field(live, "other").select_option(label="Untrained")
    with page.expect_request("**/train-1.js"):
        click(live, "Play")
    for _ in range(3):
        press(live, "breadth", "ArrowLeft")
        click(live, "Play")
    held[0].continue_()
    page.wait_for_function(f"{PLAYER}.depth >= 6")
    now = recording(live)
    assert now["breadth"] == 5 and len(now["frames"][0]["residual"]) == 5
    assert now["frames"][0]["residual"][0] > now["frames"][5]["residual"][0]
    assert {len(frame["plane"]) for frame in now["frames"]} == {5}
    for kind in ("status", "message"):
        assert live.locator(f"p.eqr-{kind}").inner_text() == ""


def test_a_solver_that_does_not_load_says_so_and_can_be_tried_again(tab):
    live = tab.page.locator(".eqr-solver")  # the cut request is a fault, and meant
    tab.page.route("**/solver.js", lambda route: route.abort())
    click(live, "Play")
    said(live, "The solver stopped")
    tab.page.unroute("**/solver.js")
    assert len(play_through(live, 3)["frames"]) == 3
    assert live.locator("p.eqr-message").inner_text() == ""


def test_the_time_line_moves_while_playing(live):
    play_through(live, 8)
    page = live.page
    page.evaluate(f"{PLAYER}.interval = 400; {PLAYER}.seek(0)")
    click(live, "Play")
    page.wait_for_function(f"{PLAYER}.depth >= 2")
    live.get_by_role("slider", name="Iteration").focus()
    page.keyboard.press("End")
    assert page.evaluate(f"[{PLAYER}.depth, {PLAYER}.playing]") == [8, False]
    page.evaluate("new Promise((done) => setTimeout(done, 401))")  # after the player's own timer
    assert page.evaluate(f"{PLAYER}.depth") == 8, "what was under way moves nothing"
    click(live, "Reset")
    assert "Not started" in live.locator(".eqr-facts").inner_text()


def test_doubt_and_change_are_shown_without_colour(tab, solved, problems):
    """A doubtful cell has a smaller token, one that has just changed a corner; both in words."""
    model, index, _ = solved
    made = play.record(model, problems.test.inputs[index], depth=3, breadth=1)
    script = """
      const [stored, sure] = given;
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
              root.querySelectorAll('td.changed').length];"""
    small, corner, words, count = call(tab, "viewer", "Player, decoded", script, [made, 0.1])
    large = call(tab, "viewer", "Player, decoded", script, [made, 0.99])[0]
    assert small < 0.8 * large and "gradient" in corner and count == 1
    assert "10 % sure, unchanged for 0" in words


def test_replay_and_solver_work_from_a_file(chromium, site, solved):
    model, _, solution = solved
    with opened(chromium, "file://", viewport={"width": 380, "height": 800}) as tab:
        page = tab.page
        page.goto((site / "chapters/settling.html").as_uri())
        part = page.locator(".eqr-replay")
        assert "".join(board(part)) == model.task.format(solution.answer)
        slider = part.get_by_role("slider", name="Iteration")
        slider.focus()
        page.keyboard.press("Home")
        assert "Not started" in part.locator(".eqr-facts").inner_text()
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == f"iteration 1 of {DEPTH}"
        assert part.locator("p[role=status]").inner_text().startswith("Iteration 1. ")
        for key in ("End", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        part.get_by_role("button", name="Play").press("Enter")
        part.locator(".eqr-count").filter(has_text=f"{DEPTH} / {DEPTH}").wait_for()
        part.get_by_label("Problem").select_option(label="again")
        assert part.locator("table.eqr-board").count() == 2
        assert any(play_through(page.locator(".eqr-solver"))["frames"][-1]["right"])
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 380, "the page scrolls sideways on a phone"
        tab.check()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_home_board_respects_less_motion(motion, chromium, origin):
    watch = """window.counts = new Set();
      new MutationObserver(() => counts.add(document.querySelector('.eqr-count')?.textContent))
        .observe(document, { childList: true, subtree: true });"""
    with opened(chromium, origin, reduced_motion=motion) as tab:
        tab.page.add_init_script(watch)
        tab.page.goto(f"{origin}/index.html")
        tab.page.wait_for_function("counts.has('16 / 16')")
        assert tab.page.evaluate("counts.has('9 / 16')") == (motion == "no-preference")
        tab.check()
