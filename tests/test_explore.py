"""Trajectories, recordings and explorer without a browser: they hold what the rollout did."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from book.tools import build, pages
from eqr import evaluate, select
from eqr.checkpoint import Checkpoint, load_model, save_model
from eqr.config import EvalConfig, to_dict
from eqr.model import Reasoner
from eqr.notebook import execute
from eqr.recipes import load_recipe
from eqr.rollout import rollout
from eqr.settings import ProblemError
from eqr.solve import solve
from eqr.tasks.maze import Maze
from eqr.tasks.miniarc import MiniArc
from eqr.viewer import explorer, page
from eqr.viewer.explorer import Explorer, explore
from eqr.viewer.frames import LEVELS, Plane, Settings, Trajectory, turning


def read(text: str) -> list[int]:
    """The inverse of `in_base_36`."""
    return [int(char, 36) for char in text]


def trajectory(learned, inputs: np.ndarray, *settings) -> Trajectory:
    """Recorded restarts of the tiny model, up to the depth of the settings."""
    model, task = load_model(learned.path).model, learned.recipe.task
    run = Trajectory(model, task, inputs, Settings(*settings))
    run.record(run.settings.depth)
    return run


class TestFrames:
    @pytest.mark.parametrize("settings", [(4, 2, 0.1, 0.3, 7), (3, 1, 0.0, 0.0, 1)])
    def test_are_those_of_a_rollout_with_the_same_seed(self, learned, problems, settings):
        inputs, task = problems.test.inputs[0], learned.recipe.task
        run = trajectory(learned, inputs, *settings)
        more = {name: getattr(run.settings, name) for name in Settings.__slots__}
        model, x = load_model(learned.path).model, torch.as_tensor(inputs)[None]
        expected = rollout(model, x, **more)
        for frame, it in zip(run.frames, expected, strict=True):
            sure = it.step.logits.softmax(-1).amax(-1).numpy()
            assert (frame.answer == it.answer.numpy()).all()
            assert (frame.residual == it.residual.numpy()).all()
            assert (frame.confidence == sure).all()
            valid = task.check(np.repeat(inputs[None], len(frame.right), 0), frame.answer)
            assert (frame.right == valid).all()
            packed = frame.packed()
            assert [read(row) for row in packed["answers"]] == it.answer.tolist()
            levels = np.array([read(row) for row in packed["confidence"]]) / LEVELS
            np.testing.assert_allclose(levels, sure, atol=0.5 / LEVELS + 1e-6)
            np.testing.assert_allclose(packed["residual"], it.residual, rtol=6e-3)

    def test_selected_restart_is_that_of_the_books_rule(self, learned, problems):
        test = problems.test
        config = EvalConfig((1, 2, 6), 8, noise=0.2, seed=3, problems=1)
        model = load_model(learned.path).model
        records = evaluate.records(model, test.inputs[:1], test.labels[:1], config)
        for depth in (1, 2, 6):
            run = trajectory(learned, test.inputs[0], depth, 8, 0.2, None, 3)
            outcomes = records.at(depth)
            assert np.allclose(run.frames[-1].settled, outcomes.residual[0], rtol=1e-5)
            assert run.selected == select.converged(outcomes)[0]

    def test_recording_stops_in_time(self, learned, problems):
        model = load_model(learned.path).model
        run = Trajectory(model, learned.recipe.task, problems.test.inputs[0], Settings())
        run.record(10**6, 0.2)
        assert len(run.frames) < 10**6

    def test_the_model_sees_the_puzzle_only(self, learned, problems, monkeypatch):
        """A checker that calls everything valid changes the verdict and nothing else."""
        frames = []
        for verdict in (True, False):
            checked = lambda self, x, y, v=verdict: np.full(len(y), v)  # noqa: E731
            monkeypatch.setattr(type(learned.recipe.task), "check", checked)
            frames.append(trajectory(learned, problems.test.inputs[0], 3, 4).packed())
        for one, other in zip(*frames, strict=True):
            assert one.pop("right") == [1] * 4 and other.pop("right") == [0] * 4
            assert one == other


class TestConfidence:
    """What boards are tinted by is the probability of the loss that a model was trained with."""

    def largest(self, logits: torch.Tensor, loss: str) -> np.ndarray:
        """Of each token's probabilities, by the formulas."""
        x = logits.double().numpy()
        low, high = np.minimum(x, 0), np.maximum(x, 0)
        mass = np.exp(x) if loss == "softmax" else np.where(x < 0, 1 / (1 - low), high + 1)
        return (mass / mass.sum(-1, keepdims=True)).max(-1)

    @pytest.fixture
    def make(self, learned, make_recipe, tmp_path):
        """The learned model as if trained with a loss, which some header of its file tells."""

        def make(loss: str, header: str = "recipe") -> Checkpoint:
            recipe = make_recipe(train={"loss": loss})
            meta = {header: to_dict(recipe, defaults=False) if header == "recipe" else {}}
            path = tmp_path / "model.safetensors"
            save_model(path, load_model(learned.path).model, recipe.task, meta)
            return load_model(path)

        return make

    @pytest.mark.parametrize(
        ("loss", "header"),
        [("softmax", "recipe"), ("stablemax", "recipe"), ("stablemax", "imported"),
         ("softmax", "nothing known")],
    )  # fmt: skip
    def test_of_solver_and_frames(self, loss, header, make, problems):
        made, inputs = make(loss, header), problems.test.inputs[0]
        iterations = rollout(made.model, torch.as_tensor(inputs)[None], depth=3, breadth=2)
        wanted = np.stack([self.largest(it.step.logits, loss) for it in iterations])
        solution = solve(made.model, made.task, inputs, depth=3, breadth=2)
        np.testing.assert_allclose(solution.confidence, wanted[:, solution.restart], rtol=1e-5)
        run = Trajectory(made.model, made.task, inputs, Settings(3, 2))
        run.record(3)
        np.testing.assert_allclose([f.confidence for f in run.frames], wanted, rtol=1e-5)

    @pytest.mark.parametrize("loss", ["softmax", "stablemax"])
    def test_of_the_page(self, loss, make_recipe, problems):
        """From a start that is not drawn, the browser's frames are those of the package."""
        recipe, inputs = make_recipe(model={"init": "fixed"}), problems.test.inputs[0]
        model = untrained(recipe.task, recipe.model).model
        model.normalisation = loss
        trained = SimpleNamespace(model=model, recipe=recipe, run=SimpleNamespace(id="train-1"))
        one = page.PageModel.of("one", trained, "smoke")
        run = {"model": 0, "inputs": inputs.tolist(), "breadth": 2, "noise": 0, "seed": 0}
        calls = [{"call": "begin", "runs": [run]}, *3 * [{"call": "advance"}]]
        wanted = Trajectory(one.model, one.task, inputs, Settings(3, 2))
        wanted.record(3)
        for (frame,), own in zip(page.asked(one, calls)[1:], wanted.frames, strict=True):
            assert frame["answers"] == own.answer.tolist() and len(frame["plane"]) == frame["depth"]
            for name in ("confidence", "residual", "margin", "halt", "right"):
                np.testing.assert_allclose(frame[name], getattr(own, name), atol=1e-4, err_msg=name)


def test_as_many_restarts_are_right_in_the_browser(model, problems):
    """Its random numbers are others, so up to the binomial error of both counts."""
    inputs, own = problems.test.inputs[:12], []
    run = {"model": 0, "breadth": 32, "noise": 0.1, "seed": 0}
    begin = {"call": "begin", "runs": [run | {"inputs": one.tolist()} for one in inputs]}
    for one in inputs:
        recorded = Trajectory(model.model, model.task, one, Settings(2, 32, 0.1))
        recorded.record(2)
        own.append(recorded.frames[-1].right.sum())
    theirs = [sum(f["right"]) for f in page.asked(model, [begin, *2 * [{"call": "advance"}]])[-1]]
    share = (np.array(own) + theirs) / 64
    error = np.sqrt((2 * 32 * share * (1 - share)).sum())
    assert error > 4, "no count could be wrong"
    assert abs(sum(own) - sum(theirs)) < 4 * error


class TestPlane:
    def walk(self, rows: int, seed: int = 0) -> list[np.ndarray]:
        """A noisy spiral of 3 states in 40 dimensions."""
        draw = np.random.default_rng(seed)
        ways = draw.normal(size=(3, 40))
        turns = np.exp(-0.1 * np.arange(rows)[:, None] + 0.5j * np.arange(rows)[:, None])
        return [ways * r.real + np.roll(ways, 7, 1) * r.imag for r in turns]

    def test_axes_do_not_flip_from_one_fit_to_the_next(self):
        """Without turning, a point may jump to its mirror image."""
        plane, before = Plane(), None
        for states in self.walk(64):
            plane.add(states.astype(np.float32))
            now = plane.fit()
            if before is not None and len(before) > 3:
                old = before.reshape(-1, 2) - before.mean((0, 1))
                new = now[: len(before)].reshape(-1, 2)
                new = new - new.mean(0)
                same = (turning(new, old) - np.eye(2)).round(6)
                assert (same == 0).all(), "a turn would bring it nearer to the picture before"
            before = now

    def test_holds_as_much_variance_as_any_plane(self):
        states, plane = self.walk(32), Plane()
        for one in states:
            plane.add(one.astype(np.float32))
        cloud = np.concatenate(states)
        size = np.linalg.svd(cloud - cloud.mean(0), compute_uv=False) ** 2
        shown = ((plane.fit() - plane.points.mean((0, 1))) ** 2).sum()
        assert shown == pytest.approx(size[:2].sum(), rel=1e-3)
        points = np.array(plane.packed())  # in thousandths of the largest coordinate
        assert points.shape == (32, 3, 2) and np.abs(points).max() == 1000
        assert (points.std((0, 1)) > 0).all()

    def test_equal_states_are_one_point(self):
        plane = Plane()
        for _ in range(5):
            plane.add(np.ones((3, 8), np.float32))
        assert plane.fit().shape == (5, 3, 2) and not plane.points.any()


@pytest.fixture
def small(learned, problems, monkeypatch) -> Explorer:
    """An explorer of the tiny model, closed at the end."""
    monkeypatch.setattr(explorer, "PATIENCE", float("inf"))  # however slow the machine
    made = explore(learned.path, problems=problems.test.inputs, settings=Settings(6, 4))
    yield made
    made.close()


def ask(explorer: Explorer, call: str, view: str = "one", **words) -> object:
    """The result of a call, as the viewer makes it."""
    reply = explorer.answer({"id": 1, "view": view, "call": call, **words})
    assert (reply["id"], reply["view"]) == (1, view)
    return reply.get("result", reply)


def begin(explorer: Explorer, inputs: np.ndarray, view: str = "one", **settings) -> None:
    """New trajectories of the first model."""
    run = {"breadth": 3, "noise": 0.0, "damping": None, "seed": 0} | settings
    run |= {"model": 0, "inputs": inputs.tolist()}
    assert ask(explorer, "begin", view, runs=[run]) is True


class TestAnswers:
    def test_a_written_puzzle_is_read_or_refused_in_one_line(self, small, problems):
        other = problems.test.inputs[5]
        spaced = " ".join(small.task.format(other)) + "\n"
        assert ask(small, "read", model=0, text=spaced)["inputs"] == other.tolist()
        for text, why in (("12", "2 characters; expected 16"), ("1x..", "character 2 is 'X'"),
                          ("11" + 14 * ".", "row 1 holds 1 twice"),
                          (16 * ".", "several solutions")):  # fmt: skip
            fault = ask(small, "read", model=0, text=text)["fault"]
            assert why in fault and "\n" not in fault

    @pytest.mark.parametrize(
        "changed", [{}, {"breadth": 2, "noise": 0.1, "damping": 0.5, "seed": 3}]
    )
    def test_frames_are_those_of_the_settings_asked_for(self, small, learned, problems, changed):
        inputs = problems.test.inputs[2]
        begin(small, inputs, **changed)
        settings = {"breadth": 3, "noise": 0.0, "damping": None, "seed": 0} | changed
        run = trajectory(learned, inputs, 3, *settings.values())
        for depth, expected in enumerate(run.frames, 1):
            (frame,) = ask(small, "advance")
            assert frame["depth"] == depth == len(frame["plane"])
            assert {k: frame[k] for k in expected.packed()} == expected.packed()

    def test_two_views_do_not_disturb_each_other(self, small, problems):
        begin(small, problems.test.inputs[0], "one")
        first = ask(small, "advance", "one")
        begin(small, problems.test.inputs[1], "two", seed=5)
        ask(small, "advance", "two")
        begin(small, problems.test.inputs[0], "three")
        ask(small, "advance", "three")
        assert ask(small, "advance", "one") == ask(small, "advance", "three") != first

    def test_an_error_of_the_model_is_an_answer_and_not_the_end(self, small, problems, monkeypatch):
        begin(small, problems.test.inputs[0])
        with monkeypatch.context() as broken:
            broken.setattr(Reasoner, "forward", lambda *_: 1 / 0)
            assert "division" in ask(small, "advance")["error"]
        begin(small, problems.test.inputs[0])
        assert ask(small, "advance")[0]["depth"] == 1

    def test_it_opens_with_the_trajectories_of_its_settings(self, small, learned, problems):
        (opened,) = small.stored["recordings"]
        run = trajectory(learned, problems.test.inputs[0], 6, 4)
        assert opened["frames"] == run.packed() and opened["breadth"] == 4
        assert [puzzle["title"][:2] for puzzle in small.stored["puzzles"][:2]] == ["0:", "1:"]


def test_a_page_shows_the_picture_and_no_widget(learned, tmp_path):
    """A chapter is executed and built as in the book: no dead sliders, no saved widget state."""
    cell = nbformat.v4.new_code_cell(
        f"from eqr.viewer.explorer import explore\nexplore({str(learned.path)!r})",
        metadata={"mystnb": {"image": {"alt": "A board."}}},
    )
    text = nbformat.v4.new_markdown_cell("# Title")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[text, cell], metadata=kernel)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    execute(tmp_path / "a.ipynb", tmp_path / "done/a.ipynb", {})
    source = build.assemble({"a": tmp_path / "done/a.ipynb"}, tmp_path / "source", pages.Site())
    for path in source.glob("*.md"):
        path.unlink()
    (source / "_toc.yml").write_text("format: jb-book\nroot: chapters/a\n")
    built = build.build_pages(source, tmp_path / "html") / "chapters/a.html"
    html = built.read_text()
    assert 'alt="A board."' in html and ".png" in html
    assert "widget-view" not in html and "widget-state" not in html


def untrained(task, config) -> Checkpoint:
    """A model of the task that has learned nothing."""
    model = Reasoner.for_task(task, config, torch.Generator().manual_seed(0))
    return Checkpoint(model, task, {}, "0" * 64)


def test_what_cannot_be_shown_is_refused(learned, problems, make_recipe):
    config = make_recipe().model
    with pytest.raises(ProblemError, match="no puzzle 99: there are 0 to 23"):
        explore(learned.path, problems=problems.test.inputs, puzzle=99)
    with pytest.raises(ProblemError, match="give each model one of its own"):
        explore(learned.path, learned.path, titles=("A", "A"))
    with pytest.raises(ProblemError, match="boards differ"):
        explore(learned.path, untrained(Maze(5, 5), config))
    # Mini-ARC's answer takes the cells of its problem, and its text has words in front.
    with pytest.raises(ProblemError, match="one character a cell, which miniarc has not"):
        explore(untrained(MiniArc(demonstrations=1), config))


def test_a_maze_and_two_models_are_drawn(make_recipe):
    loaded = untrained(Maze(5, 5, path_min=2), make_recipe().model)
    made = explore(loaded, loaded, titles=("A", "B"), settings=Settings(2, 2))
    assert [fact["title"] for fact in made.stored["models"]] == ["A", "B"]
    assert {fact["task"]["symbols"] for fact in made.stored["models"]} == {"?#.SGo"}
    shown, _ = made._repr_mimebundle_()  # for readers without a kernel too
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(shown)
    assert len(shown["image/png"]) > 10_000 and shown["text/plain"].count("by the rules") == 2
    made.close()


@pytest.fixture(scope="module")
def model(learned) -> page.PageModel:
    """The tiny learned model as the page speaks of it."""
    loaded = load_model(learned.path)
    run = "train-0123456789abcdef"
    return page.PageModel("tiny", loaded.model, loaded.task, run, "smoke")


def stored(html: str) -> dict:
    """The JSON inside a piece of a page."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_text_cannot_end_the_script(model, problems):
    made = page.record(model, problems.test.inputs[0], depth=2, breadth=1)
    made["model"]["name"] = "</script><b>"
    html = page.replay([("</script>", [made])]).text
    assert stored(html)["items"][0]["title"] == "</script>"
    assert html.count("</script>") == 2  # the data's own end and the player's


def test_the_live_models_and_all_scripts_weigh_less_than_a_megabyte():
    scripts = [*map(len, page.scripts().values()), (page.SCRIPTS / "viewer.mjs").stat().st_size]
    recipes = [load_recipe(name) for name in page.LIVE]
    models = [untrained(recipe.task, recipe.model).model for recipe in recipes]
    assert sum(scripts) + sum(len(page.weights(one)["data"]) for one in models) < 900_000


def test_install_puts_modules_models_and_the_board_in_place(model, learned, problems, tmp_path):
    run = SimpleNamespace(id=model.run)
    trained = SimpleNamespace(model=model.model, recipe=learned.recipe, run=run, data=problems)
    place, home = tmp_path / "play", tmp_path / "new/home.html"
    page.install(place, home, {"sudoku6": trained}, "smoke")
    assert {p.name for p in place.iterdir()} == {page.SOLVER, f"{model.run}.js"}
    (made,) = stored(home.read_text())["items"][0]["recordings"]
    inputs, label = problems.test.inputs[0], problems.test.labels[0]
    assert read(made["inputs"]) == inputs.tolist() and read(made["label"]) == label.tolist()
    solution = solve(model.model, model.task, inputs, depth=16, breadth=8)
    assert read(made["frames"][-1]["answers"][solution.restart]) == solution.answer.tolist()
