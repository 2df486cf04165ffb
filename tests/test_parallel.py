"""Two processes give what one gives: in training up to rounding, in evaluation to the bit."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from eqr import checkpoint, experiments, parallel, train as training
from eqr.config import EvalConfig
from eqr.evaluate import records
from eqr.model import State
from eqr.parallel import ALONE, World
from eqr.rollout import NEVER
from eqr.store import Store, inspect
from eqr.train import Trainer, TrainingError

# An odd batch: the two shares of it are not equal. Rounding grows from step to step, since an
# untrained operator is not a contraction; a small rate and a short carry keep it small.
SETTINGS = {"batch": 15, "lr": 0.001, "warmup": 20, "halt_max": 4, "steps": 20}
# Two optimizers, several trajectories to a slot, and an operator that grows at step 15.
FAST = {"optimizer": "muon", "muon_lr": 0.002, "starts": 2, "short_until": 0.75}
EVAL = EvalConfig((1, 3), breadth=3, noise=0.1, symmetry=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trace(recipe, problems, world: World, double: bool, start=None) -> dict:
    """Twenty steps: what the batch held at each, the checkpoints at 10 and 20, and the means."""
    trainer = Trainer(recipe, problems, world=world)
    if double:
        trainer.model.double()
        trainer.ema.double()
        state = trainer.carry.state
        trainer.carry.state = State(state.z_high.double(), state.z_low.double())
    if start:
        trainer.load_state_dict(start)
    actual = {"batches": [], "tensors": {}}
    while trainer.step < 20:
        trainer.advance()
        carry = trainer.carry
        actual["batches"].append([carry.x.clone(), carry.steps.clone(), carry.halted.clone()])
        if trainer.step in (10, 20):
            tensors = trainer.state_dict().items()
            actual["tensors"][trainer.step] = {k: v.clone() for k, v in tensors}
    return actual | {"means": trainer.read_sums(), "eval": trainer.evaluate()}


def fast(recipe):
    """The recipe with what makes training faster."""
    return replace(recipe, train=replace(recipe.train, **FAST))


def work(rank: int, port: int, folder: Path, recipe, problems) -> None:
    """What each of two processes does; it leaves its findings in a file."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.joined() as world:
        actual = {"single": trace(recipe, problems, world, False)}
        actual["double"] = trace(recipe, problems, world, True)
        actual["fast"] = trace(fast(recipe), problems, world, True)
        start = torch.load(folder / "ten.pt", weights_only=True)
        actual["resumed"] = trace(recipe, problems, world, False, start)
        store, short = Store(folder / "store"), replace(recipe.train, steps=3)
        for stop in (0.0, 0.0, None, None):  # stopped twice, ended, and read from the store
            run = experiments.train_run(
                replace(recipe, train=short), store, world=world, stop_after_s=stop
            )
            actual.setdefault("runs", []).append(run and run.id)
        trainer = Trainer(recipe, problems, world=world)
        test = problems.test
        results = records(
            trainer.model, test.inputs, test.labels, EVAL, task=problems.task, rows=7, world=world
        )
        np.savez(folder / f"records{rank}.npz", **results.arrays())
        real = training.token_loss
        training.token_loss = lambda *a: real(*a) * (math.inf if rank else 1.0)
        try:
            trainer.advance()
        except TrainingError as error:
            actual["error"] = str(error)
    torch.save(actual, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def recipe(make_recipe):
    return make_recipe(train=SETTINGS)


@pytest.fixture(scope="module")
def alone(recipe, problems) -> dict:
    actual = {
        name: trace(recipe, problems, ALONE, name == "double") for name in ("single", "double")
    }
    return actual | {"fast": trace(fast(recipe), problems, ALONE, True)}


@pytest.fixture(scope="module")
def pair(recipe, problems, alone, tmp_path_factory) -> Path:
    """The folder with the findings of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    torch.save(alone["single"]["tensors"][10], folder / "ten.pt")
    multiprocessing.spawn(work, (free_port(), folder, recipe, problems), nprocs=2)
    return folder


def findings(folder: Path, rank: int = 0) -> dict:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def gap(one: dict, other: dict) -> float:
    """The largest difference between two sets of weights."""
    names = [k for k in one if not k.startswith(("carry.", "optimizer.", "sums"))]
    return max((one[k] - other[k]).abs().max().item() for k in names)


@pytest.mark.parametrize("kind", ["single", "double", "fast"])
def test_training_in_two_processes_sees_the_same_batches_and_ends_alike(alone, pair, kind):
    one, two = alone[kind], findings(pair)[kind]
    for ours, theirs in zip(one["batches"], two["batches"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    actual = [gap(one["tensors"][step], two["tensors"][step]) for step in (10, 20)]
    print(f"{kind}: largest difference of the weights after 10 and 20 steps: {actual}")
    assert max(actual) < {"single": 1e-5, "double": 1e-8, "fast": 1e-8}[kind]
    assert one["means"] == pytest.approx(two["means"], rel=1e-4, nan_ok=True)
    assert one["eval"] == pytest.approx(two["eval"], rel=1e-3)


def test_both_processes_hold_the_same_weights_to_the_bit(pair):
    for kind in ("single", "fast"):
        ours, theirs = (findings(pair, rank)[kind]["tensors"] for rank in (0, 1))
        for step in (10, 20):
            assert ours[step].keys() == theirs[step].keys()
            assert all(torch.equal(v, theirs[step][k]) for k, v in ours[step].items())


def test_a_checkpoint_goes_on_with_another_number_of_processes(alone, pair, recipe, problems):
    two = findings(pair)
    one = trace(recipe, problems, ALONE, False, two["single"]["tensors"][10])
    assert gap(one["tensors"][20], alone["single"]["tensors"][20]) < 1e-5
    assert gap(two["resumed"]["tensors"][20], alone["single"]["tensors"][20]) < 1e-5
    for kind in ("single", "fast"):
        shapes = [
            {k: v.shape for k, v in actual[kind]["tensors"][10].items()} for actual in (alone, two)
        ]
        assert shapes[0] == shapes[1]


def test_the_first_process_keeps_the_store_and_all_get_the_run(pair, recipe, problems):
    (run,) = Store(pair / "store").paths()
    for rank in (0, 1):
        assert findings(pair, rank)["runs"] == [None, None, run.name, run.name]
    assert inspect(run).faults == inspect(run).strays == ()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["provenance"]["processes"] == 2
    rows = [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["log", "eval"], "one process writes the log"
    one = Trainer(recipe, problems)
    for _ in range(3):
        one.advance()
    model = checkpoint.load_model(run / "model.safetensors").model
    assert gap(model.state_dict(), one.ema.state_dict()) < 1e-6


def test_a_loss_that_is_not_finite_in_one_process_stops_both(pair):
    for rank in (0, 1):
        assert "lower train.lr" in findings(pair, rank)["error"]


def test_sharded_records_are_equal_to_the_bit(pair, recipe, problems):
    model, test = Trainer(recipe, problems).model, problems.test
    wanted = records(model, test.inputs, test.labels, EVAL, task=problems.task, rows=7)
    assert len(test) * EVAL.breadth % 7, "the last chunk is not full"
    assert (wanted.halted_at == NEVER).all() and len(np.unique(wanted.residual)) > 50
    for rank in (0, 1):
        with np.load(pair / f"records{rank}.npz") as actual:
            for name, array in wanted.arrays().items():
                np.testing.assert_array_equal(actual[name], array)


def torchrun(*words: object) -> subprocess.CompletedProcess:
    """A command of ``eqr`` in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-port", str(free_port()), "-m", "eqr"]
    return subprocess.run(
        [*launch, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
def test_a_run_begun_by_torchrun_is_ended_by_one_process(eqr, tmp_path):
    words = ["train", "sudoku6", "--profile", "smoke", "-s", "train.steps=6", "--json"]
    words += ["-s", "train.lr=0.0003", "--store"]
    begun = torchrun(*words, tmp_path / "two", "--stop-after", 0)
    assert begun.returncode == 0, begun.stderr
    assert [json.loads(line)["complete"] for line in begun.stdout.splitlines()] == [False]
    done = json.loads(eqr(*words, tmp_path / "two").out)
    assert done["complete"] and not Store(tmp_path / "two").partial()
    whole = json.loads(eqr(*words, tmp_path / "one").out)
    assert whole["run"] == done["run"]
    tensors = [checkpoint.load_tensors(Path(actual["model"]))[0] for actual in (done, whole)]
    assert gap(*tensors) < 1e-5


@pytest.mark.slow
def test_the_table_of_torchrun_is_that_of_one_process_to_the_byte(eqr, learned, tmp_path):
    words = ["eval", "-c", learned.path, "--depth", "1,4", "--breadth", "1,3", "--rows", 7]
    words += ["--noise", 0.05, "--store", tmp_path / "store", "--out"]
    assert eqr(*words, tmp_path / "one.csv").code == 0
    done = torchrun(*words, tmp_path / "two.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert done.stdout.count("residual") == 1, "one process prints"
