"""What makes training faster: short operators at first, normalised SwiGLUs; what a run costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eqr import experiments
from eqr.config import ModelConfig
from eqr.cost import cost, step_flops
from eqr.layers import SwiGLU, swiglu_width
from eqr.model import Reasoner
from eqr.optim import operator_at, short_steps
from eqr.optimizers import orthogonalized
from eqr.recipes import load_recipe
from eqr.store import Store
from eqr.streams import stream
from eqr.studies.rows import study
from eqr.train import Trainer, train

MUON = {"optimizer": "muon", "muon_lr": 0.02}
SHORT = {"short_until": 0.5}
FAST = {**MUON, **SHORT, "starts": 3, "schedule": "cosine", "final_lr": 0.01}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("grad_cycles", [1, 2])
def test_short_steps_are_those_of_a_short_operator_and_the_others_of_the_full_one(
    make_recipe, problems, grad_cycles
):
    full = {"high_cycles": 2, "low_cycles": 2, "grad_cycles": grad_cycles}
    brief = {"high_cycles": 1, "low_cycles": 1, "grad_cycles": 1}
    trainer = Trainer(make_recipe(model=full, train={"steps": 6, **SHORT}), problems)
    first = Trainer(make_recipe(model=brief, train={"steps": 6}), problems)
    for _ in range(3):
        trainer.advance()
        first.advance()
    assert equal(trainer.state_dict(), first.state_dict())
    then = Trainer(make_recipe(model=full, train={"steps": 6}), problems)
    then.load_state_dict({k: v.clone() for k, v in trainer.state_dict().items()})
    for _ in range(3):
        trainer.advance()
        then.advance()
    assert equal(trainer.state_dict(), then.state_dict())
    first.advance()
    assert not equal(trainer.ema.state_dict(), first.ema.state_dict())


def test_the_operator_of_a_step_is_a_valid_one(make_recipe):
    model = {"high_cycles": 4, "low_cycles": 3, "grad_cycles": 3}
    train_ = {"steps": 10, "short_until": 0.3, "short_high_cycles": 2, "short_low_cycles": 1}
    recipe = make_recipe(model=model, train=train_)
    assert short_steps(recipe.train) == 3
    for step in range(10):
        actual = operator_at(recipe, step)
        assert (actual == recipe.model) == (step >= 3)
    short = operator_at(recipe, 2)
    assert (short.high_cycles, short.low_cycles, short.grad_cycles) == (2, 1, 2)
    assert short == replace(recipe.model, high_cycles=2, low_cycles=1, grad_cycles=2)
    assert operator_at(make_recipe(), 0) == make_recipe().model


def test_a_normalised_swiglu_does_not_see_how_large_its_product_is():
    settings = {"hidden": 12, "blocks": 1, "width_multiple": 8}
    layers = [SwiGLU(12, ModelConfig(**settings, norm_swiglu=norm)) for norm in (True, False)]
    normed, plain = layers
    for layer in layers:
        layer.requires_grad_(False)
    plain.load_state_dict(normed.state_dict())
    h = torch.randn(5, 7, 12, generator=stream(0, "h"))
    before, product = normed(h), plain(h)
    assert normed.gate_up.weight.chunk(2)[1].mul_(100.0).abs().max() > 1
    plain.load_state_dict(normed.state_dict())
    torch.testing.assert_close(normed(h), before, rtol=1e-2, atol=1e-3)  # RMS_EPS, while small
    torch.testing.assert_close(plain(h), 100 * product, rtol=1e-4, atol=1e-4)
    normed.gate_up.weight.mul_(1e3)
    bound = torch.linalg.matrix_norm(normed.down.weight, 2) * normed.down.in_features**0.5
    assert (normed(h).norm(dim=-1) <= bound).all()


def test_every_swiglu_of_a_model_is_normalised(make_recipe, problems):
    """Multiplying all ups by a constant leaves the logits where they are."""
    recipe = make_recipe(model={"norm_swiglu": True})
    model = Trainer(recipe, problems).model.double().requires_grad_(False)
    x = torch.as_tensor(problems.test.inputs)
    state = model.initial_state(len(x), stream(0, "start"))
    before = model.step(state, x, noise=0.0).logits
    ups = [m.gate_up.weight.chunk(2)[1] for m in model.modules() if isinstance(m, SwiGLU)]
    assert len(ups) == 2
    for up in ups:
        up.mul_(50.0)
    torch.testing.assert_close(model.step(state, x, noise=0.0).logits, before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({}, {"starts": 3}),
        ({"norm_swiglu": True, "mixer": "attention", "heads": 2}, {**FAST, "dtype": "bfloat16"}),
        (
            {"init": "learned", "learn_noise": True},
            {"unroll": 2, "supervise_from": 2, "halting": "oracle"},
        ),
    ],
    ids=["starts", "fast", "construction"],
)
def test_every_way_resumes_bitwise(make_recipe, problems, tmp_path, model, settings):
    """Stopped after each step, before and after the operator grows."""
    recipe = make_recipe(model=model, train={"steps": 6, "halt_max": 2} | settings)
    for _ in range(6):
        list(train(recipe, problems, tmp_path / "broken", stop_after_s=0.0))
    list(train(recipe, problems, tmp_path / "whole"))
    for name in ("log.jsonl", "model.safetensors"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("broken", "whole")]
        assert files[0] == files[1], name


def test_a_tiny_model_learns_with_all_of_it(make_recipe, problems):
    settings = {"steps": 60, "batch": 16, "lr": 0.005, **FAST}
    trainer = Trainer(make_recipe(model={"norm_swiglu": True}, train=settings), problems)
    losses = []
    for _ in range(3):
        for _ in range(20):
            trainer.advance()
        losses.append(trainer.read_sums()["token_loss"])
    assert losses[2] < 0.7 * losses[0]


def priced(settings: dict, tmp_path: Path):
    recipe = load_recipe("headroom", "smoke", overrides=settings)
    return cost(recipe, experiments.dataset(recipe, Store(tmp_path))), recipe


@pytest.mark.parametrize(
    "settings",
    [
        {"model.norm_swiglu": True},
        {"model.norm_swiglu": True, "model.mixer": "attention", "model.heads": 2},
        {"model.norm_swiglu": True, "model.init": "learned"},
        {"train.starts": 3, "train.batch": 8},
        {"train.short_until": 0.25},
    ],
    ids=str,
)
def test_activation_memory_is_its_formula(settings, tmp_path):
    actual, _ = priced(settings, tmp_path)
    assert actual.saved_bytes == pytest.approx(actual.activation_bytes, rel=0.06)


def test_what_a_run_costs(tmp_path):
    """By hand, for headroom: two cycles of three updates, the gradient through one of them."""
    base, recipe = priced({}, tmp_path)
    rows = recipe.train.steps * recipe.train.batch
    assert base.train_layers == rows * 6 and base.train_flops == rows * base.flops * 2
    four, _ = priced({"train.starts": 4}, tmp_path)
    assert four.train_layers == 4 * base.train_layers and four.train_flops == 4 * base.train_flops
    assert four.activation_bytes == 4 * base.activation_bytes
    short, recipe = priced({"train.short_until": 0.25}, tmp_path)  # two updates, both carry one
    assert short.train_layers == rows * (0.25 * 2 + 0.75 * 6)
    assert short.train_flops == pytest.approx(rows * base.flops * (0.25 * 3 * 2 / 6 + 0.75 * 2))
    assert short.activation_bytes == base.activation_bytes
    normed, _ = priced({"model.norm_swiglu": True}, tmp_path)
    assert normed.flops == base.flops and normed.parameters == base.parameters
    assert normed.activation_bytes > base.activation_bytes


@pytest.mark.parametrize(("name", "profile"), [("sudoku9-fast", "paper"), ("headroom", "laptop")])
def test_orthogonalising_is_a_small_part_of_a_step(name, profile):
    """Which is why the cost leaves it out: by the shapes of its products."""
    recipe = load_recipe(name, profile)
    with torch.device("meta"):
        model = Reasoner.for_task(recipe.task, recipe.model)
    total = 0
    for features in (recipe.task.seq_len, recipe.model.hidden):
        width = swiglu_width(features, recipe.model)
        small, large = sorted((features, width))
        products = 2 * 2 * small**2 * large + 2 * small**3
        total += recipe.model.blocks * 3 * 5 * products
    assert total < 0.02 * step_flops(recipe, model)
    assert orthogonalized(torch.ones(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_rows_of_the_study_are_matched_as_it_says(profile):
    rows = {row.name: row.build(profile, 0) for row in study("fast").rows}
    base = rows["baseline"]
    assert base == study("shaping").row("ri-ni").build(profile, 0), "the runs are shared"
    for name, recipe in rows.items():
        train_ = recipe.train
        assert (train_.steps, recipe.data) == (base.train.steps, base.data)
        assert train_.batch * train_.starts == base.train.batch
        assert recipe.model == replace(base.model, norm_swiglu=recipe.model.norm_swiglu)
        assert (train_.short_until > 0) == (name == "short-early") or name == "all"
