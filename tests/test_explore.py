"""The explorer without a front end: its frames, its threads, its pictures, its controls."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET

import nbformat
import numpy as np
import pytest
import torch

from eqr import book, evaluate, runner, select
from eqr.analysis.dynamics import MapModel
from eqr.checkpoint import Checkpoint, load_model
from eqr.config import EvalConfig
from eqr.graph import BOOK
from eqr.model import Reasoner, State
from eqr.rollout import rollout
from eqr.select import Outcomes
from eqr.settings import ProblemError
from eqr.tasks.drawing import VERMILLION
from eqr.tasks.maze import Maze
from eqr.tasks.miniarc import MiniArc
from eqr.viewer.controls import OWN, UNCHANGED
from eqr.viewer.explorer import Explorer, explore
from eqr.viewer.frames import Engine, Frame, Plane, Settings, Trajectory, turning
from eqr.viewer.views import View, pictures


class Slow(MapModel):
    """A map whose steps take a while, outside the interpreter as PyTorch's do."""

    device = torch.device("cpu")

    def __init__(self, seconds: float, tokens: int = 16) -> None:
        super().__init__(lambda z: 0.5 * z)
        self.seconds, self.tokens, self.steps = seconds, tokens, 0

    def initial_state(self, rows: int, generator: object) -> State:
        return self.start(torch.ones(rows, self.tokens))

    def step(self, *words: object, **more: object):
        time.sleep(self.seconds)
        self.steps += 1
        return super().step(*words, **more)


def wait_for(condition, limit: float = 10.0) -> None:
    """Until it holds; fails after ``limit`` seconds."""
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


@pytest.fixture
def small(learned, problems) -> Explorer:
    """An explorer of the tiny model, closed at the end."""
    found = explore(learned.path, problems=problems.test.inputs, settings=Settings(6, 4))
    yield found
    found.close()


@pytest.fixture
def engine():
    """A maker of engines that are closed at the end."""
    made = []

    def make(paint, **more) -> Engine:
        made.append(Engine(paint, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


class TestFrames:
    @pytest.mark.parametrize(
        "settings", [Settings(5, 3), Settings(4, 2, 0.1, 0.3, 7), Settings(3, 1, 0.0, 0.0, 1)]
    )
    def test_are_those_of_a_rollout_with_the_same_seed(self, learned, problems, settings):
        model, inputs = load_model(learned.path).model, problems.test.inputs[0]
        found = Trajectory(model, inputs, settings)
        found.record(settings.depth)
        more = {"noise": settings.noise, "damping": settings.damping, "seed": settings.seed}
        wanted = rollout(
            model, torch.as_tensor(inputs)[None], depth=settings.depth, breadth=settings.breadth,
            **more,
        )  # fmt: skip
        for frame, it in zip(found.frames, wanted, strict=True):
            assert frame.depth == it.depth
            assert (frame.answer == it.answer.numpy()).all()
            assert (frame.residuals[-1] == it.residual.numpy()).all()
            assert (frame.confidence == it.step.logits.softmax(-1).amax(-1).numpy()).all()

    def test_selected_restart_is_that_of_the_books_rule(self, learned, problems):
        model, test = load_model(learned.path).model, problems.test
        config = EvalConfig((1, 2, 6), 8, noise=0.2, seed=3, problems=1)
        kept = evaluate.records(model, test.inputs[:1], test.labels[:1], config)
        found = Trajectory(model, test.inputs[0], Settings(6, 8, 0.2, None, 3))
        found.record(6)
        for depth in (1, 2, 6):
            outcomes: Outcomes = kept.at(depth)
            frame = found.frames[depth - 1]
            assert np.allclose(frame.settled, outcomes.residual[0], rtol=1e-5)
            assert frame.selected == select.converged(outcomes)[0]
            agree = outcomes.answer[0] == outcomes.answer[0, frame.selected]
            assert (frame.agree == agree).all()

    def test_unchanged_counts_the_iterations_since_a_token_was_another(self, learned, problems):
        found = Trajectory(
            load_model(learned.path).model, problems.test.inputs[1], Settings(8, 4, 0.5)
        )
        found.record(8)
        answers = np.stack([frame.answer for frame in found.frames])
        for k, frame in enumerate(found.frames):
            for count in range(k):
                same = (answers[k - count - 1 : k] == answers[k]).all(0)
                assert ((frame.unchanged > count) == same).all()

    def test_recording_stops_in_time(self):
        found = Trajectory(Slow(0.05), np.ones(16, np.uint8), Settings())
        found.record(1000, 0.2)
        assert 1 <= len(found.frames) <= 5


class TestPlane:
    def walk(self, rows: int, seed: int = 0) -> list[np.ndarray]:
        """A noisy spiral of 3 states in 40 dimensions."""
        draw = np.random.default_rng(seed)
        ways = draw.normal(size=(3, 40))
        turns = np.exp(-0.1 * np.arange(rows)[:, None] + 0.5j * np.arange(rows)[:, None])
        return [ways * r.real + np.roll(ways, 7, 1) * r.imag for r in turns]

    def test_axes_do_not_flip_from_one_fit_to_the_next(self):
        """Turning is what keeps the picture: without it a point may jump to its mirror image."""
        plane, before = Plane(), None
        for states in self.walk(64):
            plane.add(states.astype(np.float32))
            now = plane.points
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
        assert plane.explained == pytest.approx(size[:2].sum() / size.sum(), abs=1e-3)

    def test_equal_states_are_one_point(self):
        plane = Plane()
        for _ in range(5):
            plane.add(np.ones((3, 8), np.float32))
        assert plane.points.shape == (5, 3, 2) and not plane.points.any()


class TestEngine:
    def test_paints_at_least_every_100_ms_while_steps_take_five_times_as_long(self, engine):
        """Allowing for what the machine itself keeps a thread waiting, measured beside it."""
        times, machine = [], []
        runner = engine(lambda: times.append(time.monotonic()), pace=0)
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                machine.append(time.monotonic())
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        run = Trajectory(Slow(0.5), np.ones(16, np.uint8), Settings())
        runner.pose([run])
        watcher.start()
        began = time.monotonic()
        runner.aim(3)
        wait_for(lambda: not runner.busy)
        ended = time.monotonic()
        stop.set()
        watcher.join()
        assert len(run.frames) == 3 and ended - began > 1.5
        painted = np.array([began, *(t for t in times if t < ended), ended])
        late = max(0.0, np.diff(machine).max() - 0.055)
        assert np.diff(painted).max() <= 0.1 + late
        assert len(times) >= 15 / (1 + 20 * late)

    def test_cancel_returns_at_once_and_nothing_is_painted_afterwards(self, engine):
        times: list[float] = []
        runner = engine(lambda: times.append(time.monotonic()), pace=0)
        model = Slow(0.4)
        runner.pose([Trajectory(model, np.ones(16, np.uint8), Settings())])
        runner.aim(100)
        wait_for(lambda: times)
        began = time.monotonic()
        runner.cancel()
        ended = time.monotonic()
        assert ended - began < 0.2, "it waited for the step"
        time.sleep(0.9)
        assert not [t for t in times if t > ended]
        assert model.steps <= 2, "more was computed than the step in flight"

    def test_closing_takes_one_step_and_leaves_no_thread(self, engine):
        before = set(threading.enumerate())
        runner = engine(lambda: None, pace=0)
        runner.pose([Trajectory(Slow(0.2), np.ones(16, np.uint8), Settings())])
        runner.aim(100)
        wait_for(lambda: runner.waiting > 0)
        began = time.monotonic()
        runner.close()
        assert time.monotonic() - began < 1.0
        assert set(threading.enumerate()) <= before

    def test_what_is_posed_meanwhile_replaces_what_was_under_way(self, engine):
        runner = engine(lambda: None, pace=0)
        old, new = (Trajectory(Slow(0.1), np.ones(16, np.uint8), Settings()) for _ in "ab")
        runner.pose([old])
        runner.aim(100)
        wait_for(lambda: old.frames)
        runner.pose([new])
        runner.aim(2)
        wait_for(lambda: not runner.busy)
        seen = len(old.frames)
        assert len(new.frames) == 2
        time.sleep(0.25)
        assert len(old.frames) == seen and len(new.frames) == 2

    def test_two_models_keep_step(self, engine):
        gaps = []
        runs = [Trajectory(Slow(s), np.ones(16, np.uint8), Settings()) for s in (0.0, 0.02)]
        runner = engine(lambda: gaps.append(abs(len(runs[0].frames) - len(runs[1].frames))), pace=0)
        runner.pose(runs)
        runner.aim(6)
        wait_for(lambda: not runner.busy)
        assert [len(run.frames) for run in runs] == [6, 6] and max(gaps) <= 1

    def test_an_error_of_the_model_stops_it_and_is_kept(self, engine):
        def broken(z: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

        model = Slow(0.0)
        model.function = broken
        runner = engine(lambda: None, pace=0)
        runner.pose([Trajectory(model, np.ones(16, np.uint8), Settings())])
        runner.aim(3)
        wait_for(lambda: not runner.busy)
        assert str(runner.fault) == "out of memory"


def read(picture: str) -> tuple[ET.Element, str]:
    """A picture parsed as XML, and its text alternative."""
    root = ET.fromstring(picture)
    return root, root.get("aria-label")


class TestPictures:
    def test_unsure_cells_are_tinted_smaller_and_told(self, learned, problems):
        """Each in a way of its own, so that colour is not the only cue."""
        task, inputs = learned.recipe.task, problems.test.inputs[0]
        run = Trajectory(load_model(learned.path).model, inputs, Settings(2, 2))
        frame = run.advance()
        blank = int(np.flatnonzero(inputs == 1)[0])
        shapes = []
        for sure in (0.3, 0.99):
            values = {name: getattr(frame, name) for name in Frame.__slots__}
            values["confidence"] = np.full_like(frame.confidence, sure)
            root, _ = read(pictures([View("m", task, inputs, Frame(**values), 2)]))
            spots = {c.find("{*}title").text: c for c in root.iter("{http://www.w3.org/2000/svg}g")
                     if c.find("{*}title") is not None}  # fmt: skip
            start = f"row {blank // 4 + 1}, column {blank % 4 + 1}: "
            (cell,) = (c for words, c in spots.items() if words.startswith(start))
            assert f"probability {sure:.2f}" in cell.find("{*}title").text
            tint = float(cell.find("{*}rect").get("fill-opacity"))
            shapes.append((tint, float(cell.find("{*}text").get("font-size"))))
        assert shapes[0][0] > 0.3 > 0.02 > shapes[1][0] and shapes[0][1] < 0.8 * shapes[1][1]

    def test_a_corner_marks_the_blank_cells_whose_token_is_new(self, learned, problems):
        task, inputs, counts = learned.recipe.task, problems.test.inputs[2], []
        run = Trajectory(load_model(learned.path).model, inputs, Settings(8, 4, 5.0))  # all noise
        run.record(8)
        for k, frame in enumerate(run.frames):
            root, _ = read(pictures([View("m", task, inputs, frame, 6)]))
            paths = root.iter("{http://www.w3.org/2000/svg}path")
            marks = [path for path in paths if path.get("fill") == VERMILLION]
            before = run.frames[max(0, k - 1)].answer[frame.selected]
            new = frame.answer[frame.selected] != before
            counts.append(int((new & (inputs == 1)).sum()))
            assert len(marks) == counts[-1]
        assert sum(counts) > 0

    def test_a_maze_has_its_walls_ends_and_path(self):
        task = Maze(5, 5, path_min=2)
        problems = task.generate(1, 0)
        model = Slow(0.0, 25)
        frame = Trajectory(model, problems.inputs[0], Settings(1, 1)).advance()
        values = {name: getattr(frame, name) for name in Frame.__slots__}
        values["answer"] = problems.labels[:1]
        root, label = read(pictures([View("m", task, problems.inputs[0], Frame(**values), 1)]))
        dark = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if "444" in r.get("fill")]
        assert len(dark) == (problems.inputs[0] == 1).sum()
        shown = label.split("board ")[1].replace(" / ", "")
        assert shown == task.format(problems.labels[0])

    def test_two_models_stand_side_by_side_with_a_text_each(self, learned, problems):
        task, inputs = learned.recipe.task, problems.test.inputs[0]
        root, label = read(pictures([View(name, task, inputs, None, 4) for name in "AB"]))
        assert "A: iteration 0 of 4" in label and "B: iteration 0 of 4" in label
        assert root.get("role") == "img" and root.find("{*}title").text == label


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
    runner.execute(tmp_path / "a.ipynb", tmp_path / "done/a.ipynb", {})
    source = book.assemble(BOOK, {"a": tmp_path / "done/a.ipynb"}, tmp_path / "source")
    for path in source.glob("*.md"):
        path.unlink()
    (source / "_toc.yml").write_text("format: jb-book\nroot: chapters/a\n")
    page = book.build_html(source, tmp_path / "html").parent / "chapters/a.html"
    html = page.read_text()
    assert 'alt="A board."' in html and ".svg" in html
    assert "widget-view" not in html and "widget-state" not in html


class TestControls:
    def settle(self, found: Explorer) -> None:
        """Until all is computed and painted."""
        wait_for(lambda: not found.engine._to_paint())
        with found.engine.quiet:  # the last paint has begun; now it is over
            pass

    def test_a_bad_puzzle_is_told_and_the_previous_one_kept(self, small):
        before = small.inputs.copy()
        for text, why in (("12", "2 characters; expected 16"), ("1x..", "character 2 is 'X'"),
                          ("11" + 14 * ".", "row 1 holds 1 twice"),
                          (16 * ".", "several solutions")):  # fmt: skip
            small.controls.text.value = text
            assert why in small.controls.message.value.replace("&#x27;", "'")
            assert (small.inputs == before).all()
            assert "\n" not in small.controls.message.value

    def test_a_pasted_puzzle_is_posed_whatever_its_white_space(self, small, problems):
        other = problems.test.inputs[5]
        small.controls.text.value = " ".join(small.task.format(other)) + "\n"
        assert (small.inputs == other).all() and small.controls.puzzle.value == OWN
        self.settle(small)
        assert small.engine.done == 6 and "!" not in small.controls.message.value

    def test_a_puzzle_is_edited_cell_by_cell(self, small, problems):
        c, label = small.controls, problems.test.labels[0]
        blank = int(np.flatnonzero(small.inputs == 1)[0])
        c.row.value, c.column.value = blank // 4 + 1, blank % 4 + 1
        c.symbol.value = small.task.format(label)[blank]
        c.put.click()
        assert small.inputs[blank] == label[blank] and (small.inputs > 1).sum() > 1
        c.symbol.value = "."
        c.put.click()
        assert (small.inputs == problems.test.inputs[0]).all()

    @pytest.mark.parametrize(
        ("name", "value"), [("breadth", 2), ("noise", 0.1), ("damping", 0.5), ("seed", 3)]
    )
    def test_another_setting_makes_other_trajectories(self, small, name, value):
        first = small.runs[0]
        getattr(small.controls, name).value = value
        self.settle(small)
        assert small.runs[0] is not first
        wanted = Trajectory(small.models["model 0"], small.inputs, small.controls.settings)
        wanted.record(6)
        assert getattr(small.controls.settings, name) == value
        shown = small.frames()[0]
        assert (shown.residuals == wanted.frames[-1].residuals).all()

    def test_depth_only_limits_or_extends(self, small):
        small.controls.play.click()
        self.settle(small)
        run, frames = small.runs[0], list(small.runs[0].frames)
        small.controls.depth.value = 2
        assert small.frames()[0] is frames[1]
        small.controls.depth.value = 9
        self.settle(small)
        assert small.runs[0] is run and len(run.frames) == 9
        assert all(a is b for a, b in zip(run.frames, frames, strict=False))

    def test_play_pause_step_reset(self, small):
        c = small.controls
        c.step.click()
        self.settle(small)
        assert small.engine.done == 1 and "paused at iteration 1 of 6" in c.status.value
        c.play.click()
        assert c.play.description == "Pause"
        c.play.click()
        self.settle(small)
        assert 1 <= small.engine.done < 6 and c.play.description == "Play"
        c.reset.click()
        assert small.engine.done == 0 and small.frames() == [None]
        assert "ready at iteration 0 of 6" in c.status.value

    def test_the_status_is_written_once_for_each_change_and_the_pulse_each_time(
        self, learned, problems
    ):
        """A screen reader follows the status; eyes follow the pulse while a step takes long."""
        found = Explorer({"slow": Slow(0.3)}, learned.recipe.task, problems.test.inputs)
        said, beats = [], []
        found.controls.status.observe(lambda change: said.append(change["new"]), "value")
        found.controls.pulse.observe(lambda change: beats.append(change["new"]), "value")
        found.controls.step.click()
        self.settle(found)
        found.close()
        assert [words.partition(">")[2] for words in said] == [
            "iteration 0 of 16</span>", "paused at iteration 1 of 16</span>"
        ]  # fmt: skip
        assert len(beats) >= 3 and any("0.2 s" in beat for beat in beats) and beats[-1] == ""

    def test_every_control_has_a_name(self, small):
        for name, control in vars(small.controls).items():
            if hasattr(control, "description") and name not in (
                "message",
                "status",
                "pulse",
                "figure",
            ):
                assert control.description, name
        assert small.controls.damping.value == UNCHANGED

    def test_readers_without_a_kernel_get_the_picture(self, small):
        bundle = small._repr_mimebundle_()
        root, label = read(bundle["image/svg+xml"])
        assert "iteration 6 of 6" in label and root.get("width")
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert "by the rules" in bundle["text/plain"]

    def test_the_model_sees_the_puzzle_only(self, learned, problems, monkeypatch):
        """A checker that finds everything valid changes the verdict and nothing else."""
        pictured = []
        for verdict in (True, False):
            checked = lambda self, x, y, v=verdict: np.full(len(y), v)  # noqa: E731
            monkeypatch.setattr(type(learned.recipe.task), "check", checked)
            found = explore(learned.path, problems=problems.test.inputs, settings=Settings(3, 4))
            label = read(found._repr_mimebundle_()["image/svg+xml"])[1]
            pictured.append(label.split("; by the rules: "))
            found.close()
        (first, told), (second, other) = pictured
        assert first == second and told != other
        assert told.partition("board")[2] == other.partition("board")[2]

    def test_boards_that_differ_and_puzzles_that_are_not_there_are_refused(
        self, learned, problems, tmp_path
    ):
        with pytest.raises(ProblemError, match="no puzzle 99: there are 0 to 23"):
            explore(learned.path, problems=problems.test.inputs, puzzle=99)
        with pytest.raises(ProblemError, match="give each model one of its own"):
            explore(learned.path, learned.path, titles=("A", "A"))


def test_a_task_that_it_cannot_draw_is_refused(make_recipe):
    """Mini-ARC's answer takes the cells of its problem, and its text has words in front."""
    task = MiniArc(demonstrations=1)
    model = Reasoner.for_task(task, make_recipe().model, torch.Generator().manual_seed(0))
    with pytest.raises(ProblemError, match="one character a cell, which miniarc has not"):
        explore(Checkpoint(model, task, {}, "0" * 64))
