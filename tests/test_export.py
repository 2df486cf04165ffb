"""The exported iteration is the model's own, for any number of rows; nothing else is written."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eqr import PROJECT, checkpoint
from eqr.model import Reasoner, State, residual
from eqr.viewer import onnx as export, page

VARIANTS = {
    "mixer": {},
    "attention": {"mixer": "attention", "heads": 2, "rope": "2d"},
    "single latent": {"hierarchical": False},
    "learned start and noise": {"init": "learned", "learn_noise": True},
    "prefix": {"prefix": 3},
    "fixed start, normalised gate": {"init": "fixed", "norm_swiglu": True},
}


def made(make_recipe, changes: dict) -> Reasoner:
    """An untrained model of a variant, whose learned vectors are not zero."""
    recipe = make_recipe(model=changes)
    model = Reasoner.for_task(recipe.task, recipe.model, torch.Generator().manual_seed(1))
    for name, value in model.named_parameters():
        if name.startswith(("noise_", "start_", "prefix", "halt_head.weight")):
            value.data.normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnxruntime_agrees_with_step(variant, make_recipe, tmp_path):
    """With the noise that `step` would have drawn, and without any; for any number of rows."""
    model = made(make_recipe, VARIANTS[variant])
    export.export(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    named = {i.name for i in session.get_inputs()}
    for rows, beta in ((1, 0.0), (2, 0.1), (5, 0.0)):
        inputs = export.example(model, rows, seed=rows) | {"beta": np.array(beta, np.float32)}
        state = State(torch.from_numpy(inputs["z_high"]), torch.from_numpy(inputs["z_low"]))
        drawn, own = (torch.Generator().manual_seed(3) for _ in range(2))
        draws = range(model.config.updates)
        noise = [torch.randn(state.z_high.shape, generator=drawn) for _ in draws]
        inputs["noise"] = torch.stack(noise).numpy()
        with torch.no_grad():
            x = torch.from_numpy(inputs["x"])
            step = model.step(state, x, noise=beta, generator=own, damping=0.3)
        outputs = session.run(None, {k: v for k, v in inputs.items() if k in named})
        expected = (step.state.z_high, step.state.z_low, step.logits, step.halt,
                    residual(state, step.state))  # fmt: skip
        for name, ours, theirs in zip(export.OUTPUTS, expected, outputs, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=export.TOLERANCE, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pages_kernel_agrees_with_step(variant, make_recipe):
    """Compiled, and as a browser without SIMD has it."""
    model, recipe = made(make_recipe, VARIANTS[variant]), make_recipe()
    trained = SimpleNamespace(model=model, recipe=recipe, run=SimpleNamespace(id="train-1"))
    one = page.PageModel.of(variant, trained, "smoke")
    for ask in (page.asked, functools.partial(page.asked, kernel="")):
        assert page.difference(one, ask) < export.TOLERANCE


def test_the_kernel_in_git_is_what_its_source_compiles_to():
    """Where `make vendor` has compiled it; `make kernel` puts it there."""
    compiled = PROJECT / "book/_vendor/.checks/kernel.wasm"
    if not compiled.is_file():
        pytest.skip("not compiled here: make vendor")
    assert compiled.read_bytes() == (page.SCRIPTS / "kernel.wasm").read_bytes()


def test_a_width_that_the_kernel_has_not_is_refused(make_recipe):
    recipe = make_recipe(model={"hidden": 18})
    model = Reasoner.for_task(recipe.task, recipe.model, torch.Generator().manual_seed(1))
    with pytest.raises(export.ExportError, match="hidden = 18"):
        page.weights(model)


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
    start = export.describe(random, task)["start"]
    assert start == {"kind": "random", "std_high": 1.0, "std_low": 1.0}
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


@pytest.mark.parametrize(("model", "out"), [(None, "m.txt"), ("gone.safetensors", "m.onnx")])
def test_command_refuses_in_one_line(model, out, eqr, learned, tmp_path):
    done = eqr("export", tmp_path / model if model else learned.path, tmp_path / out)
    assert done.code == 1 and done.err.count("\n") == 1 and (model or out) in done.err
    assert list(tmp_path.glob("m.*")) == []
