"""The exported iteration is the model's own, for any number of rows; nothing else is written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eqr import checkpoint
from eqr.model import Reasoner, State, residual
from eqr.tasks.maze import Maze
from eqr.viewer import onnx as export

VARIANTS = {
    "mixer": {},
    "attention": {"mixer": "attention", "heads": 2, "rope": "2d"},
    "single latent": {"hierarchical": False},
    "learned start and noise": {"init": "learned", "learn_noise": True},
    "fixed start, normalised gate": {"init": "fixed", "norm_swiglu": True},
}


def made(make_recipe, changes: dict) -> Reasoner:
    """An untrained model of a variant, whose learned vectors are not zero."""
    recipe = make_recipe(model=changes)
    model = Reasoner.for_task(recipe.task, recipe.model, torch.Generator().manual_seed(1))
    for name, value in model.named_parameters():
        if name.startswith(("noise_", "start_")):
            value.data.normal_(generator=torch.Generator().manual_seed(2))
    return model


def run(path, inputs: dict) -> dict[str, np.ndarray]:
    """The outputs of an ONNX file by another implementation than the one `export` checks with."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = {i.name for i in session.get_inputs()}
    found = session.run(None, {k: v for k, v in inputs.items() if k in named})
    return dict(zip(export.OUTPUTS, found, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnxruntime_agrees_with_step(variant, make_recipe, tmp_path):
    model = made(make_recipe, VARIANTS[variant])
    export.export(model, tmp_path / "m.onnx")
    for rows in (1, 5):
        inputs = export.example(model, rows, seed=rows)
        inputs["beta"] = np.zeros((), np.float32)
        found = run(tmp_path / "m.onnx", inputs)
        state = State(torch.from_numpy(inputs["z_high"]), torch.from_numpy(inputs["z_low"]))
        with torch.no_grad():
            step = model.step(state, torch.from_numpy(inputs["x"]), noise=0.0, damping=0.3)
        wanted = {
            "next_high": step.state.z_high,
            "next_low": step.state.z_low,
            "logits": step.logits,
            "halt": step.halt,
            "residual": residual(state, step.state),
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=export.TOLERANCE, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_given_noise_is_what_step_would_have_drawn(variant, make_recipe):
    model = made(make_recipe, VARIANTS[variant])
    inputs = {k: torch.from_numpy(v) for k, v in export.example(model, 2).items()}
    state = State(inputs["z_high"], inputs["z_low"])
    shape = state.z_high.shape
    drawn = torch.Generator().manual_seed(3)
    inputs["noise"] = torch.stack(
        [torch.randn(shape, generator=drawn) for _ in range(model.config.updates)]
    )
    with torch.no_grad():
        found = export.OneIteration(model)(*inputs.values())
        own = torch.Generator().manual_seed(3)
        step = model.step(state, inputs["x"], noise=0.1, generator=own, damping=0.3)
    torch.testing.assert_close(found[0], step.state.z_high, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], step.logits, atol=1e-5, rtol=1e-5)


def test_a_graph_that_disagrees_is_not_written(make_recipe, tmp_path, monkeypatch):
    model = made(make_recipe, {})
    graph = export.traced(model)
    weight = next(w for w in graph.graph.initializer if w.dims)
    other = onnx.numpy_helper.to_array(weight) + 1
    weight.CopyFrom(onnx.numpy_helper.from_array(other, weight.name))
    monkeypatch.setattr(export, "traced", lambda model: graph)
    with pytest.raises(export.ExportError, match="differs from torch"):
        export.export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_is_the_same_file_each_time(make_recipe, tmp_path):
    model = made(make_recipe, {})
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        export.export(model, path, {"run": "train-x"})
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    (own,) = onnx.load(paths[0]).metadata_props
    assert own.key == "eqr" and json.loads(own.value) == {"run": "train-x"}


def test_description_says_how_to_start(make_recipe):
    random, fixed = (made(make_recipe, {"init": kind}) for kind in ("random", "fixed"))
    task = make_recipe().task
    assert export.describe(random, task)["start"] == {
        "kind": "random",
        "std_high": 1.0,
        "std_low": 1.0,
    }
    start = export.describe(fixed, task)["start"]
    np.testing.assert_allclose(start["high"], fixed.fixed_high)
    np.testing.assert_allclose(start["low"], fixed.fixed_low)


def test_command_writes_the_model_and_its_description(eqr, learned, tmp_path):
    done = eqr("export", learned.path, tmp_path / "out/m.onnx", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["difference"] <= export.TOLERANCE
    assert report["bytes"] == (tmp_path / "out/m.onnx").stat().st_size
    about = json.loads((tmp_path / "out/m.json").read_text())
    loaded = checkpoint.load_model(learned.path)
    assert about["weights"] == loaded.sha256 and about["updates"] == 6
    assert about["task"]["height"] == 4 and about["vocab_size"] == loaded.task.vocab_size


@pytest.mark.parametrize("words", [("MODEL", "m.txt"), ("gone.safetensors", "m.onnx")])
def test_command_refuses_in_one_line(words, eqr, learned, tmp_path):
    model, out = words
    done = eqr("export", learned.path if model == "MODEL" else tmp_path / model, tmp_path / out)
    assert done.code == 1 and done.err.count("\n") == 1
    assert (out if model == "MODEL" else model) in done.err
    assert list(tmp_path.glob("m.*")) == []


def test_a_maze_model_is_exported_too(make_recipe, tmp_path):
    config = replace(make_recipe().model, hidden=16)
    model = Reasoner.for_task(Maze(5, 5), config, torch.Generator().manual_seed(0))
    assert export.export(model, tmp_path / "m.onnx").difference <= export.TOLERANCE
