"""The compiled operator: the same numbers up to rounding, and only where it is worth it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from eqr import checkpoint, compiled
from eqr.config import EvalConfig
from eqr.cost import forward_flops
from eqr.recipes import load_recipe
from eqr.settings import ConfigError
from eqr.train import Trainer, TrainingError, train

TROUBLE = compiled.trouble


@pytest.fixture(autouse=True)
def fresh_verdict():
    """The verdict on the machine is kept for the process; a test that fakes it must not leak."""
    yield
    TROUBLE.cache_clear()


@pytest.mark.slow
def test_compiled_training_is_eager_training_up_to_rounding(make_recipe, problems):
    """Loss and gradient of a step with noise and damping, of a step without a gradient before it,
    and of the averaged weights' evaluation."""
    if why := compiled.trouble():
        pytest.skip(f"nothing can be compiled here: {why}")
    recipe = make_recipe()
    recipe = replace(recipe, model=replace(recipe.model, damping=0.1, noise=0.05, init="random"))
    plain, fused = (Trainer(recipe, problems, fused=on) for on in (False, True))
    assert fused.fused and not plain.fused
    for _ in range(3):
        plain.advance()
        fused.advance()
    one, two = plain.read_sums(), fused.read_sums()
    for name in ("loss", "grad_norm"):
        assert one[name] == pytest.approx(two[name], rel=1e-4)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(fused.model.state_dict()[name], value, rtol=0, atol=2e-4)
    assert fused.evaluate()["residual"] == pytest.approx(plain.evaluate()["residual"], rel=1e-3)
    assert forward_flops(fused.model) == forward_flops(plain.model)
    assert copy.deepcopy(fused.model).state_dict().keys() == plain.model.state_dict().keys()


def test_a_machine_that_cannot_compile_trains_all_the_same(
    make_recipe, problems, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise RuntimeError("No working C++ compiler found\nin config.cpp.cxx")

    monkeypatch.setattr(torch, "compile", refuse)
    compiled.trouble.cache_clear()
    assert compiled.trouble() == "No working C++ compiler found in config.cpp.cxx"
    recipe = make_recipe()
    recipe = replace(recipe, train=replace(recipe.train, steps=2))
    with pytest.warns(UserWarning, match="running uncompiled.*No working"):
        last = list(train(recipe, problems, tmp_path, fused=True))[-1]
    assert last.step == 2 and '"fused": false' in (tmp_path / "timing.json").read_text()


@pytest.mark.slow
def test_a_resumed_run_keeps_the_operator_it_began_with(
    make_recipe, problems, tmp_path, monkeypatch
):
    if why := compiled.trouble():
        pytest.skip(f"nothing can be compiled here: {why}")
    recipe = make_recipe()
    recipe = replace(recipe, train=replace(recipe.train, steps=4, checkpoint_every=2, eval_every=9))

    def whole(folder, fused):
        list(train(recipe, problems, folder, fused=fused))
        return checkpoint.load_tensors(folder / "model.safetensors")[2]

    wanted = {fused: whole(tmp_path / f"whole {fused}", fused) for fused in (False, True)}
    for began in (False, True):
        folder = tmp_path / f"cut {began}"
        for event in train(recipe, problems, folder, fused=began):
            if event.kind == "checkpoint":
                break
        assert whole(folder, not began) == wanted[began]
    for event in train(recipe, problems, tmp_path / "moved", fused=True):
        if event.kind == "checkpoint":
            break
    monkeypatch.setattr(compiled, "trouble", lambda device: "no compiler")
    with (
        pytest.warns(UserWarning, match="running uncompiled"),
        pytest.raises(TrainingError, match="begun with a compiled operator"),
    ):
        next(train(recipe, problems, tmp_path / "moved"))


def test_only_long_work_is_compiled_unless_it_is_asked_for(monkeypatch, learned):
    monkeypatch.delenv("EQR_COMPILE", raising=False)
    assert not any(compiled.training_is_long(load_recipe(n, "smoke")) for n in ("sudoku9", "maze9"))
    assert all(compiled.training_is_long(load_recipe(n)) for n in ("headroom", "sudoku9", "maze9"))
    model = checkpoint.load_model(learned.path).model
    long = EvalConfig(depths=(1024,), breadth=64, problems=512)
    assert compiled.evaluation_is_long(model, long, 256)
    assert not compiled.evaluation_is_long(model, EvalConfig(depths=(16,), problems=64), 256)
    for asked, verdict in (("0", False), ("1", True)):
        monkeypatch.setenv("EQR_COMPILE", asked)
        assert compiled.training_is_long(load_recipe("headroom")) is verdict
    monkeypatch.setattr(compiled, "trouble", lambda device: "no compiler")
    with pytest.raises(ConfigError, match="EQR_COMPILE = 1, but nothing can be compiled"):
        compiled.compile_operator(model)
    monkeypatch.setenv("EQR_COMPILE", "yes")
    with pytest.raises(ConfigError, match="EQR_COMPILE = 'yes' must be 0, 1 or auto"):
        compiled.wanted(1e9)
