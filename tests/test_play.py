"""Recordings hold what the rollout did, and the page's pieces are well-formed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eqr import checkpoint
from eqr.rollout import rollout
from eqr.solve import solve
from eqr.viewer import page as play
from eqr.viewer.frames import LEVELS


@pytest.fixture(scope="module")
def page_model(learned) -> play.PageModel:
    """The tiny learned model as the page speaks of it."""
    loaded = checkpoint.load_model(learned.path)
    return play.PageModel("tiny", loaded.model, loaded.task, "train-0123456789abcdef", "smoke")


def read(text: str) -> list[int]:
    """The inverse of `in_base_36`."""
    return [int(char, 36) for char in text]


def stored(html: play.Html) -> dict:
    """The JSON inside a piece of a page."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html.text, re.DOTALL)
    return json.loads(text)


def test_recording_is_the_rollout(page_model, problems):
    inputs, label = problems.test.inputs[3], problems.test.labels[3]
    made = play.record(page_model, inputs, label, depth=6, breadth=4, noise=0.1, seed=5)
    x = torch.as_tensor(inputs)[None]
    steps = list(rollout(page_model.model, x, depth=6, breadth=4, noise=0.1, seed=5))
    assert len(made["frames"]) == len(steps) == 6
    assert read(made["inputs"]) == inputs.tolist() and read(made["label"]) == label.tolist()
    for frame, it in zip(made["frames"], steps, strict=True):
        assert [read(row) for row in frame["answers"]] == it.answer.tolist()
        sure = it.step.logits.softmax(-1).amax(-1)
        levels = np.array([read(row) for row in frame["confidence"]]) / LEVELS
        np.testing.assert_allclose(levels, sure, atol=0.5 / LEVELS + 1e-6)
        np.testing.assert_allclose(frame["residual"], it.residual, rtol=6e-3)


def test_plane_is_in_thousandths(page_model, problems):
    made = play.record(page_model, problems.test.inputs[0], depth=12, breadth=3)
    plane = np.array([frame["plane"] for frame in made["frames"]])
    assert plane.shape == (12, 3, 2) and np.abs(plane).max() == 1000
    assert plane[..., 0].std() > 0 and plane[..., 1].std() > 0


def test_text_cannot_end_the_script(page_model, problems):
    made = play.record(page_model, problems.test.inputs[0], depth=2, breadth=1)
    made["model"]["name"] = "</script><b>"
    html = play.replay([("</script>", [made])])
    assert stored(html)["items"][0]["title"] == "</script>"
    assert html.text.count("</script>") == 2  # the data's own end and the player's


def test_examples_carry_their_model_and_settings(page_model, problems):
    rival = play.PageModel("rival", page_model.model, page_model.task, "train-f", "smoke")
    inputs = problems.test.inputs[0]
    puzzle = {"title": "one", "text": page_model.task.format(inputs), "model": "rival"}
    data = stored(play.solver([page_model, rival], [puzzle | {"breadth": 4}]))
    assert [model["board"] for model in data["models"]] == [0, 0]
    (listed,) = data["puzzles"]
    assert (listed["model"], listed["breadth"]) == (1, 4)
    assert read(listed["inputs"]) == inputs.tolist()
    assert data["models"][0]["file"] == "train-0123456789abcdef.onnx"


@dataclass
class FakeTrained:
    """As much of `eqr.experiments.Trained` as `install` asks for."""

    model: object
    recipe: object
    run: object
    data: object


def test_install_puts_modules_models_and_the_board_in_place(
    page_model, learned, problems, tmp_path
):
    run = SimpleNamespace(id="train-0123456789abcdef")
    trained = FakeTrained(page_model.model, learned.recipe, run, problems)
    place, home = tmp_path / "play", tmp_path / "new/home.html"
    play.install(place, home, {"sudoku6": trained}, "smoke")
    assert {p.name for p in place.iterdir()} == {*play.MODULES, "train-0123456789abcdef.onnx"}
    (made,) = stored(play.Html(home.read_text()))["items"][0]["recordings"]
    solution = solve(
        page_model.model, page_model.task, problems.test.inputs[0], depth=16, breadth=8
    )
    last = made["frames"][-1]["answers"][solution.restart]
    assert read(last) == solution.answer.tolist()
