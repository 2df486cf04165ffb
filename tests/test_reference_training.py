"""The trainer, led through six steps of the official code by its draws, agrees with it to 1e-6.

``golden/train_*.npz`` holds what the official training step drew and what it gave, in float64 (see
``golden/README.md``). The real :class:`eqr.train.Trainer` steps here, from the same weights; only
what it draws is replaced, in :func:`official_draws`.

``python tests/test_reference_training.py ../shared/golden`` makes the files from the whole outputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eqr.config import Recipe, recipe_from_dict
from eqr.data import Dataset
from eqr.imports.weights import official_tensors
from eqr.model import Reasoner
from eqr.task import Problems
from eqr.train import Trainer

GOLDEN = Path(__file__).parent / "golden"
CASES = ("train_mixer_eqr", "train_rope_trm")
STEPS, BATCH = 6, 6
TOLERANCE = {"rtol": 0, "atol": 1e-6}

#: Of matrices with more rows than this, every eighth row of the last weights and their average is
#: stored: an update that were wrong elsewhere would show in the next step's logits.
ROWS_STORED, ROW_STRIDE = 256, 8

Reference = dict[str, np.ndarray]  # a golden file: per-step quantities have a first axis of STEPS


# ------------------------------------------------------------------- the seams with the trainer


def official_trainer(reference: Reference) -> Trainer:
    """A trainer in float64 with the settings and first weights of the official run.

    Its training problems are the official batches one after the other: step k draws the rows
    ``BATCH k .. BATCH k + BATCH - 1`` of them.
    """
    recipe = official_recipe(json.loads(str(reference["settings"])))
    inputs, labels = (reference[name].reshape(-1, 25).astype(np.uint8) for name in "xy")
    problems = Problems(inputs, labels, np.zeros(len(inputs), np.int32))
    trainer = Trainer(recipe, Dataset(recipe.task, problems, problems, {"from": "official code"}))
    for model in (trainer.model, trainer.ema):
        model.double()
        model.load_state_dict(our_tensors(reference, "weight", model))
        if "start/H" in reference:
            model.fixed_high.copy_(torch.tensor(reference["start/H"]))
            model.fixed_low.copy_(torch.tensor(reference["start/L"]))
    return trainer


def official_draws(patch: pytest.MonkeyPatch, reference: Reference, step: int) -> dict[str, list]:
    """Make the trainer draw at ``step`` what the official code drew; returns what is left to draw.

    Each source of chance has its values in the order in which one step asks for them. A draw of
    another shape, or one more than the official step made, fails.
    """
    left = {
        "randint": [torch.tensor(reference["least_steps"][step])],
        "rand": [torch.tensor(reference["explore_uniform"][step])],
        "standard_normal": [],
        "truncated_normal": [],
    }
    if "noise" in reference:
        left["standard_normal"] = list(torch.tensor(reference["noise"][step]).double())
        left["truncated_normal"] = [torch.tensor(reference[f"start_{z}"][step]) for z in "HL"]

    def source(name: str):
        def draw(*args, **_) -> Tensor:
            assert left[name], f"one draw more of {name} than the official step has"
            value = left[name].pop(0)
            shape = next(arg for arg in args if isinstance(arg, tuple))
            assert tuple(value.shape) == tuple(shape), name
            return value

        return draw

    # The official loader's order, in which the problems are stored.
    patch.setattr("torch.randperm", lambda count, **_: torch.arange(count))
    patch.setattr("torch.randint", source("randint"))  # the exploration's length
    patch.setattr("torch.rand", source("rand"))  # which slots explore
    patch.setattr("eqr.layers.standard_normal", source("standard_normal"))  # noise of each update
    patch.setattr("eqr.model.truncated_normal", source("truncated_normal"))  # starts, high then low
    return left


def official_recipe(settings: dict) -> Recipe:
    """Our recipe of the official settings."""
    arch, mixer = settings["arch"], settings["arch"]["mlp_t"]
    eqr = settings["kind"] == "eqr"
    model = {
        "hidden": arch["hidden_size"],
        "blocks": arch["L_layers"],
        "high_cycles": arch["H_cycles"],
        "low_cycles": arch["L_cycles"],
        "mixer": "mlp" if mixer else "attention",
        "heads": arch["num_heads"],
        "rope": "none" if mixer else "1d",
        "expansion": float(arch["expansion"]),
        "init": "random" if eqr else "fixed",
        "damping": round(1 - arch["lambda_"], 12) if eqr else 0.0,
        "noise": arch["noise_scale"] if eqr else 0.0,
    }
    same = ["steps", "batch", "lr", "warmup", "weight_decay", "beta1", "beta2"]
    same += ["ema", "loss", "halt_max", "halt_explore"]
    return recipe_from_dict(
        {
            "name": "official",
            "task": {"kind": "maze", "height": 5, "width": 5},
            "data": {"augment": False},
            "model": model,
            "train": {"optimizer": "adam_atan2"} | {key: settings[key] for key in same},
        }
    )


def our_tensors(reference: Reference, kind: str, model: Reasoner) -> dict[str, Tensor]:
    """The tensors stored under ``kind`` by our names."""
    stored = {
        key.removeprefix(f"{kind}/"): torch.tensor(value)
        for key, value in reference.items()
        if key.startswith(f"{kind}/")
    }
    return official_tensors(stored, model)


def stored_rows(tensor: np.ndarray) -> np.ndarray:
    """The rows of a weight that the files hold of the last weights and their average."""
    return tensor[::ROW_STRIDE] if len(tensor) > ROWS_STORED else tensor


# --------------------------------------------------------------------------------------- the test


@pytest.mark.parametrize("case", CASES)
def test_six_steps_are_those_of_the_official_code(case, monkeypatch):
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        reference = dict(file)
    trainer, outputs = official_trainer(reference), {}
    for name, head in (("logits", trainer.model.lm_head), ("halt_logit", trainer.model.halt_head)):
        head.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    x, y = np.zeros((2, BATCH, 25), np.uint8)
    halted = np.ones(BATCH, bool)
    for k in range(STEPS):
        official = {key: value[k] for key, value in reference.items() if len(value.shape) > 0
                    and "/" not in key}  # fmt: skip
        x[halted], y[halted] = official["x"][halted], official["y"][halted]
        with monkeypatch.context() as patch:
            left = official_draws(patch, reference, k)
            trainer.advance()
        assert not any(left.values()), f"step {k}: fewer draws than the official step has"

        carry, report = trainer.carry, trainer.read_sums()
        halted, solved = official["halted"], official["logits"].argmax(-1) == y
        report["lr"] = [g["lr"] for o in trainer.optimizers for g in o.param_groups]
        pairs = {name: (report[name], official[name]) for name in
                 ("lr", "loss", "token_loss", "halt_loss", "grad_norm")}  # fmt: skip
        pairs |= {
            "logits": (outputs["logits"], official["logits"]),
            "halt_logit": (outputs["halt_logit"].squeeze(-1), official["halt_logit"]),
            "z_H": (carry.state.z_high, official["z_H"]),
            "z_L": (carry.state.z_low, official["z_L"]),
            "token accuracy": (report["token"], solved.mean()),
            "exact accuracy": (report["exact"], solved.all(1).mean()),
            "share that leaves": (report["left"], halted.mean()),
            "steps of those": (report["halt_steps"], official["steps"][halted].mean()),
        }
        for name, (ours, theirs) in pairs.items():
            compare(ours, theirs, f"step {k}: {name}")
        for ours, theirs in (
            (carry.x, x), (carry.y, y), (carry.steps, official["steps"]), (carry.halted, halted)
        ):  # fmt: skip
            np.testing.assert_array_equal(ours.numpy(), theirs, err_msg=f"step {k}")
    for kind, model in (("final", trainer.model), ("ema", trainer.ema)):
        for name, theirs in our_tensors(reference, kind, model).items():
            if not name.startswith("fixed_"):
                ours = stored_rows(model.state_dict()[name].numpy())
                compare(ours, theirs, f"{kind} {name}")


def compare(ours, theirs, what: str) -> None:
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.dtype == np.float64, f"{what}: computed in {ours.dtype}"
    assert ours.shape == theirs.shape or theirs.ndim == 0, what
    np.testing.assert_allclose(ours, theirs, **TOLERANCE, err_msg=what)


# ----------------------------------------------------------------------------- making the files


def shorten(whole: Reference) -> Reference:
    """What the test needs of an official output, in as little room as its tolerance allows."""
    short, eqr = {"settings": whole["settings"]}, "eqr" in str(whole["settings"])
    for key, value in whole.items():
        kind = key.split("/")[0]
        if kind in ("final", "ema"):
            short[key] = stored_rows(value).astype(np.float32)
        elif kind == "weight":
            short[key] = value.astype(np.float32)
            assert (short[key] == value).all(), f"{key}: float32 loses something"
        elif kind == "start" and not eqr:
            short[key] = value
    names = sorted({key.split("/")[1] for key in whole if key[0].isdigit()})
    for name in names:
        short[name] = np.stack([whole[f"{k}/{name}"] for k in range(STEPS)])
    if eqr:
        # Multiples of 2^-22, which float32 holds exactly up to 4.
        short["noise"] = (np.round(short["noise"] * 2**22) / 2**22).astype(np.float32)
        # A start that no slot takes: whoever uses it shall notice.
        used = np.concatenate([np.ones((1, BATCH), bool), short["halted"][:-1]])
        for name in ("start_H", "start_L"):
            short[name] = np.where(used[..., None, None], short[name], np.nan)
    else:
        for name in ("noise", "start_H", "start_L"):
            short.pop(name, None)
    for name in ("z_H", "z_L"):
        short[name] = short[name].astype(np.float32)
    return short


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for case in CASES:
        with np.load(Path(sys.argv[1]) / f"{case}.npz", allow_pickle=False) as file:
            np.savez_compressed(GOLDEN / f"{case}.npz", **shorten(dict(file)))
