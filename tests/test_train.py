"""Training is a function of its recipe, survives a kill bitwise, and learns."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eqr import checkpoint, experiments, train as training
from eqr.config import to_dict
from eqr.data import Dataset
from eqr.optim import probabilities, token_loss
from eqr.run_folder import RAW
from eqr.store import Store
from eqr.streams import stream
from eqr.task import Problems
from eqr.train import Trainer, TrainingError, train


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def same_result(one: Path, other: Path) -> bool:
    """Equal logs to the byte, and equal weights to the bit, averaged and raw."""
    same = (one / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()
    for name in ("model.safetensors", RAW):
        a, b = (checkpoint.load_tensors(folder / name) for folder in (one, other))
        same &= equal(a[0], b[0]) and a[1:] == b[1:]
    return same


def test_stablemax_loss_is_the_naive_formula():
    logits = torch.tensor([[[2.0, -1.0, 0.0]], [[-3.0, -0.5, 7.0]]])
    labels = torch.tensor([[1], [2]])
    mass = [[3.0, 1 / 2, 1.0], [1 / 4, 1 / 1.5, 8.0]]
    wanted = [[-math.log(mass[0][1] / sum(mass[0]))], [-math.log(mass[1][2] / sum(mass[1]))]]
    actual = token_loss(logits, labels, "stablemax")
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual.tolist(), wanted)
    uniform = token_loss(torch.zeros(1, 5, 4), torch.zeros(1, 5).long(), "stablemax")
    torch.testing.assert_close(uniform, torch.full((1, 5), math.log(4)).double())


@pytest.mark.parametrize("kind", ["stablemax", "softmax"])
def test_the_loss_is_minus_the_logarithm_of_the_probability(kind):
    logits = 4 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    every = [token_loss(logits, torch.full((2, 5), token), kind) for token in range(7)]
    torch.testing.assert_close(torch.stack(every, -1), -probabilities(logits, kind).log())


@pytest.mark.parametrize("kind", ["stablemax", "softmax"])
def test_loss_and_gradient_stay_finite_and_point_the_right_way_for_huge_logits(kind):
    logits = torch.tensor([[[1e30, -1e30, 0.0], [-1e30, 1e30, 5.0]]], requires_grad=True)
    loss = token_loss(logits, torch.tensor([[0, 0]]), kind)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert loss[0, 0] < 1e-6 < loss[0, 1]
    moderate = torch.tensor([[[3.0, -2.0, 0.5]]], requires_grad=True)
    token_loss(moderate, torch.tensor([[0]]), kind).sum().backward()
    assert moderate.grad[0, 0, 0] < 0 < moderate.grad[0, 0, 1:].min()


def test_training_is_bitwise_a_function_of_recipe_and_seed(make_recipe, problems):
    def result(seed: int, **sections) -> tuple[dict, list]:
        trainer = Trainer(make_recipe(seed, **sections), problems)
        for _ in range(6):
            torch.rand(3)  # the global generator must not matter
            trainer.advance()
        return trainer.state_dict(), list(trainer.read_sums().values())[:2]

    (one, loss), (again, same), (other, different) = result(0), result(0), result(1)
    assert equal(one, again) and loss == same
    assert loss != different and not torch.equal(one["carry.x"], other["carry.x"])
    plain, _ = result(0, data={"augment": False})
    assert not torch.equal(one["carry.x"], plain["carry.x"])


def test_a_batch_holds_distinct_problems_and_an_epoch_shows_each_at_most_once(
    make_recipe, problems
):
    recipe = make_recipe(train={"batch": 5}, data={"augment": False})
    trainer, size = Trainer(recipe, problems), len(problems.train.inputs)

    def shown(step: int, trainer: Trainer = trainer) -> list[bytes]:
        trainer.step = step
        return [row.numpy().tobytes() for row in trainer.sample_batch()[0]]

    epochs = [
        [row for step in range(size // 5) for row in shown(size // 5 * epoch + step)]
        for epoch in (0, 1)
    ]
    assert all(len(set(epoch)) == len(epoch) == size // 5 * 5 for epoch in epochs)
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    assert shown(3) == shown(3, Trainer(recipe, problems)), "a function of seed and step"
    assert shown(3) != shown(3, Trainer(replace(recipe, seed=recipe.seed + 1), problems))
    all_at_once = replace(recipe, train=replace(recipe.train, batch=2 * size + 1))
    assert len(set(shown(0, Trainer(all_at_once, problems)))) == size, "repeats only where it must"


def test_what_is_reported_while_training_never_reads_the_test_problems(make_recipe, problems):
    recipe = make_recipe(train={"steps": 2, "eval_every": 1})
    held = replace(problems, validation=problems.test, test=None)  # reading it would fail
    seen = [event.metrics for event in train(recipe, held) if event.kind == "eval"]
    without = [event.metrics for event in train(recipe, problems) if event.kind == "eval"]
    assert len(seen) == 2 and seen == without, "without a validation split it is the test problems"


def test_a_gradient_is_clipped_to_the_norm_asked_for(make_recipe, problems):
    recipe = make_recipe(train={"optimizer": "adamw", "halt_max": 1})
    norms = {}
    for clip in (None, 1e-3):
        trainer = Trainer(replace(recipe, train=replace(recipe.train, clip=clip)), problems)
        trainer.advance()
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms[clip] = torch.nn.utils.get_total_norm(gradients).item()
        assert trainer.read_sums()["grad_norm"] == pytest.approx(norms[None]), "as it came"
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2) and norms[None] > 2e-3


def test_stopping_and_going_on_changes_no_bit(make_recipe, problems, tmp_path):
    """Stopped after each step, between log rows too: all files are those of an unbroken run."""
    recipe = make_recipe(train={"steps": 12, "optimizer": "adam_atan2", "loss": "stablemax"})
    folder = tmp_path / "broken"
    for _ in range(10):
        list(train(recipe, problems, folder, stop_after_s=0.0))
    assert not (folder / "model.safetensors").exists()
    tensors, meta, _ = checkpoint.load_tensors(folder / "resume.safetensors")
    whole = Trainer(recipe, problems)
    for _ in range(10):
        whole.advance()
        if whole.step % recipe.train.log_every == 0:
            whole.read_sums()
    assert meta["step"] == 10 and equal(tensors, whole.state_dict())
    kinds = {key.split(".")[0] for key in tensors}
    assert kinds == {"model", "ema", "optimizer", "carry", "sums", "step"}
    for _ in range(2):
        list(train(recipe, problems, folder, stop_after_s=0.0))
    list(train(recipe, problems, tmp_path / "whole"))
    assert same_result(folder, tmp_path / "whole"), "a stop at the last step is the end"


KILLED = """
import json, os, signal, sys
from eqr import experiments
from eqr.config import recipe_from_dict
from eqr.store import Store

calls, fsync = 0, os.fsync

def kill(file):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = kill
experiments.train_run(recipe_from_dict(json.loads(sys.argv[1])), Store(sys.argv[3]))
"""


def test_a_killed_run_ends_as_if_nothing_had_happened(make_recipe, problems, tmp_path):
    """SIGKILL in the midst of writing, soon, and again later; then run to the end."""
    recipe = make_recipe()
    store, environment = Store(tmp_path / "store"), os.environ | {"OMP_NUM_THREADS": "1"}
    for calls in ("13", "5"):  # the first ten write the data set
        command = [sys.executable, "-c", KILLED, json.dumps(to_dict(recipe)), calls, store.root]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(store.root.glob("partial/*/resume.safetensors"))
    run = experiments.train_run(recipe, store)
    list(train(recipe, problems, tmp_path / "whole"))
    assert same_result(tmp_path / "whole", run.path)


def test_a_run_folder_of_another_recipe_or_with_a_cut_log_is_refused(
    make_recipe, problems, tmp_path
):
    def go_on(recipe=None, problems=problems) -> None:
        list(train(recipe or make_recipe(), problems, tmp_path, stop_after_s=0.0))

    go_on()
    for recipe in (make_recipe(train={"lr": 0.1}), make_recipe(seed=1)):
        with pytest.raises(checkpoint.CheckpointError, match="another recipe"):
            go_on(recipe)
    with pytest.raises(checkpoint.CheckpointError, match="another data"):
        go_on(problems=Dataset(problems.task, problems.test, problems.train, {}))
    resume = tmp_path / "resume.safetensors"
    with pytest.raises(checkpoint.CheckpointError, match=r"another kind .*model\.safetensors"):
        checkpoint.load_model(resume)
    for _ in range(4):
        go_on()
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"log\.jsonl.*shorter"):
        go_on()
    trainer = Trainer(make_recipe(), problems)
    checkpoint.save_model(resume, trainer.ema, problems.task, {})
    with pytest.raises(checkpoint.CheckpointError, match="another kind"):
        go_on()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_anything_is_updated(
    make_recipe, problems, tmp_path, monkeypatch, bad
):
    """The weights stay, and the last checkpoint still leads to the uninterrupted result."""
    recipe = make_recipe()
    real = training.token_loss
    losses = []

    def spoiled(logits, labels, kind):
        losses.append(real(logits, labels, kind))
        return losses[-1] * bad if len(losses) == 9 else losses[-1]

    list(train(recipe, problems, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "token_loss", spoiled)
        with pytest.raises(TrainingError, match=r"step 8: lower train\.lr"):
            list(train(recipe, problems, tmp_path / "broken"))
    events = list(train(recipe, problems, tmp_path / "broken"))
    assert events[0].step == 8, "goes on from the checkpoint of step 6"
    assert same_result(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("spoiled", ["weight", "gradient", "sums"])
def test_what_is_not_finite_reaches_neither_weights_nor_log(make_recipe, problems, spoiled):
    """A gradient can overflow where its loss does not (bfloat16), and on a GPU no step waits to be
    asked: there the sums are, before anything is stored."""
    trainer = Trainer(make_recipe(), problems)
    trainer.advance()
    trainer.require_finite(trainer.sums)
    weight = trainer.model.lm_head.weight
    if spoiled == "weight":
        weight.data[0, 0] = math.nan
    elif spoiled == "gradient":
        weight.register_hook(lambda grad: grad * math.inf)
    else:
        trainer.sums[1] += math.nan
    before = {k: v.clone() for k, v in trainer.state_dict().items() if not k.startswith("carry")}
    with pytest.raises(TrainingError, match="not finite at step 1: lower"):
        trainer.require_finite(trainer.sums) if spoiled == "sums" else trainer.advance()
    after = trainer.state_dict()
    assert all(torch.equal(v.nan_to_num(), after[k].nan_to_num()) for k, v in before.items())


def test_halting_follows_the_head_the_limit_and_exploration(make_recipe, problems):
    """With halt_max 4: exploration (30 %) demands 2, 3 or 4 iterations, each as likely."""
    recipe = make_recipe(train={"halt_max": 4, "halt_explore": 0.3, "batch": 30_000})
    two = Problems(problems.test.inputs[:2], problems.test.labels[:2], np.zeros(2, np.int32))
    trainer = Trainer(recipe, Dataset(problems.task, two, two, {}))
    wants, waits = torch.ones(30_000), -torch.ones(30_000)
    shares = []
    for steps in range(1, 5):
        trainer.carry.steps = torch.full((30_000,), steps)
        shares.append(trainer.choose_halted(wants, stream(0, "halt", steps)).double().mean().item())
        assert trainer.choose_halted(waits, stream(0, "halt")).all() == (steps == 4)
        assert trainer.choose_halted(waits, stream(0, "halt")).any() == (steps == 4)
    assert shares == pytest.approx([0.7, 0.8, 0.9, 1.0], abs=0.01)
    trainer.recipe = replace(recipe, train=replace(recipe.train, halt_max=1))
    trainer.carry.steps = torch.ones(30_000)
    assert trainer.choose_halted(waits, stream(0, "halt")).all(), "one iteration is the limit"


def test_a_tiny_model_learns_four_by_four_sudoku(learned):
    logs = [event.metrics for event in learned.events if event.kind == "log"]
    assert logs[0]["loss"] > 1.2 > 0.5 > logs[-1]["token_loss"] and logs[0]["exact"] < 0.1
    assert logs[-1]["exact"] > 0.5
    assert math.isnan(logs[0]["halt_steps"]), "nothing halts before the limit of 8"
    assert logs[-1]["halt_steps"] < 3, "the halting head has learned to fire"
    rows = (learned.path.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if '"log"' in row] == list(range(4, 201, 4))


def test_training_in_bfloat16_keeps_float32_weights_and_lowers_the_loss(make_recipe, problems):
    trainer = Trainer(make_recipe(train={"dtype": "bfloat16"}), problems)
    exact = Trainer(make_recipe(), problems)
    losses = []
    for _ in range(6):
        for _ in range(8):
            trainer.advance()
        losses.append(trainer.read_sums()["loss"])
    exact.advance()
    assert losses[-1] < 0.8 * losses[0]
    assert {v.dtype for v in trainer.model.state_dict().values()} == {torch.float32}
    assert trainer.carry.state.z_high.dtype == torch.float32
    assert losses[0] != exact.read_sums()["loss"]
