"""Weights are what was saved, or an error of one line; no pickle is ever executed."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eqr.checkpoint import CheckpointError, load_model, load_tensors, save_model, save_tensors
from eqr.config import to_dict
from eqr.imports.pth import Inert, read_official
from eqr.imports.weights import convert, official_config
from eqr.model import Reasoner
from eqr.settings import ConfigError, UserError
from eqr.streams import stream


def one_line(error: pytest.ExceptionInfo, path: Path) -> None:
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_model_file_runs_as_what_was_saved_and_says_what_it_is(make_recipe, tmp_path):
    recipe = make_recipe(model={"init": "fixed", "rope": "2d", "mixer": "attention", "heads": 2})
    model = Reasoner.for_task(recipe.task, recipe.model, stream(0, "init"))
    path = tmp_path / "deep" / "model.safetensors"
    about = {"step": 5, "recipe": to_dict(recipe, defaults=False)}
    sha256 = save_model(path, model, recipe.task, about)
    loaded = load_model(path)
    assert loaded.sha256 == sha256 and loaded.task == recipe.task
    assert loaded.meta["step"] == 5 and loaded.meta["recipe"] == to_dict(recipe, defaults=False)
    start = model.initial_state(2, stream(0, "unused"))
    x = torch.arange(32).view(2, 16) % 6
    one, other = (
        m.step(m.initial_state(2, stream(0, "unused")), x, noise=0.0) for m in (model, loaded.model)
    )
    assert torch.equal(one.logits, other.logits) and (start.z_high != 0).any()
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary is left"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written \(disk full\)"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    assert load_tensors(path)[0]["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_flipped_bit_in_a_model_file_goes_unnoticed(learned, tmp_path):
    """In the tensors, in their table, and in the header that says how to run them."""
    raw, path = learned.path.read_bytes(), tmp_path / "model.safetensors"
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    draw, unnoticed = random.Random(0), []
    places = draw.sample(range(header), 150) + draw.sample(range(header, len(raw)), 50)
    for at in places:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(7)]) + raw[at + 1 :])
        try:
            load_model(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            continue
        except Exception as error:  # any other error would reach the user as a traceback
            unnoticed.append(f"{type(error).__name__} at {raw[max(0, at - 12) : at + 8]}")
            continue
        unnoticed.append(f"loads after a change at {raw[max(0, at - 12) : at + 8]}")
    assert not unnoticed, f"{len(unnoticed)} of {len(places)}: {unnoticed[:5]}"


def test_what_is_not_a_model_file_is_refused_in_one_line(learned, tmp_path):
    raw, path = learned.path.read_bytes(), tmp_path / "x.safetensors"
    for size in (0, 5, 300, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match="damaged") as error:
            load_model(path)
        one_line(error, path)
    path.write_bytes(b"not a checkpoint\n" * 99)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not written by eqr"):
        load_model(path)
    with pytest.raises(UserError, match="is not what this command writes"):
        save_tensors(path, {"a": torch.ones(2)}, {})
    path.unlink()
    save_tensors(path, {"a": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="another kind"):
        load_model(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint") as error:
            load_model(missing)
        one_line(error, missing)


def test_a_model_file_whose_tensors_and_configuration_disagree_is_refused(learned, tmp_path):
    path = tmp_path / "x.safetensors"
    for section, change in (
        ("model", {"hidden": 16}),  # another shape
        ("model", {"hiden": 16}),
        ("task", {"kind": "sudko"}),
        ("model", None),
    ):
        tensors, meta, _ = load_tensors(learned.path)
        meta[section] = change and meta[section] | change
        save_tensors(path, tensors, meta)
        with pytest.raises(CheckpointError) as error:
            load_model(path)
        one_line(error, path)


def test_weights_shipped_as_float16_run_as_float32(learned, tmp_path):
    tensors, meta, _ = load_tensors(learned.path)
    path = tmp_path / "half.safetensors"
    save_tensors(path, {k: v.half() for k, v in tensors.items()}, meta)
    model = load_model(path).model
    assert model.lm_head.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.lm_head.weight, tensors["lm_head.weight"], atol=1e-3, rtol=1e-3
    )


# --- Official files -------------------------------------------------------------------------------

OFFICIAL = {"seq_len": 25, "vocab_size": 6, "hidden_size": 8, "num_heads": 2, "H_cycles": 2,
            "L_cycles": 3, "L_layers": 1, "mlp_t": False, "pos_encodings": "rope2d",
            "lambda_": 0.9}  # fmt: skip


@pytest.fixture
def official(tmp_path, official_tensors) -> Path:
    """A file in the layout of the official code, for a 5×5 maze."""
    path = tmp_path / "official.pth"
    torch.save({"model": official_tensors, "config": OFFICIAL, "step": 7}, path)
    return path


def test_official_weights_become_a_model_of_their_settings_and_say_from_where(official, tmp_path):
    _, made = convert(official, tmp_path / "out.safetensors")
    head = torch.load(official, weights_only=True)["model"]["_orig_mod.model.inner.q_head.bias"]
    assert made.model.halt_head.bias.item() == head[0], "of two halting outputs, the first"
    config = made.model.config
    assert (config.damping, config.noise, config.rope, config.layers) == (0.1, 0.01, "2d", 8)
    assert (made.task.kind, made.task.height) == ("maze", 5)
    assert made.meta["step"] == 7 and made.meta["imported"]["file"] == "official.pth"


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
def test_a_pickle_in_a_pth_file_is_not_executed(tmp_path, old_format):
    trap, path, out = (tmp_path / name for name in ("trap", "evil.pth", "out.safetensors"))
    content = {"model": {"a": torch.ones(1)}, "config": Payload(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    torch.load(path, weights_only=False)
    assert trap.exists(), "the trap works"
    trap.unlink()
    with pytest.raises(CheckpointError, match="would execute a pickle") as error:
        convert(path, out, OFFICIAL)
    one_line(error, path)
    assert not trap.exists() and not out.exists()


@dataclass
class Carry:
    """An object of somebody's trainer, as official files hold one; making it leaves a trace."""

    steps: torch.Tensor
    made: ClassVar[list] = []

    def __setstate__(self, state: dict) -> None:
        Carry.made.append(state)


def test_what_an_official_file_holds_beside_tensors_is_left_alone(official, tmp_path):
    """A generator's state, an object of the trainer: they are named, and never made."""
    path, content = tmp_path / "whole.pth", torch.load(official, weights_only=True)
    state = np.random.RandomState(0).get_state()
    torch.save(content | {"numpy": state, "carry": Carry(torch.ones(3))}, path)
    torch.load(path, weights_only=False)
    assert len(Carry.made) == 1, "the trace works"
    assert isinstance(read_official(path)["carry"], Inert) and len(Carry.made) == 1
    one, two = (
        convert(file, tmp_path / f"{file.stem}.safetensors")[1].model.state_dict()
        for file in (official, path)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("config", "shapes", "board"),
    [
        ({"mlp_t": True},
         {"lm_head.weight": (11, 8), "x.mlp_t.down_proj.weight": (81, 256)}, (9, 9)),
        ({"dataset": {"data_path": "data/maze-30x30-unique-1k"}},
         {"lm_head.weight": (6, 8)}, (30, 30)),
        ({"board_height": 5, "board_width": 8}, {"lm_head.weight": (6, 8)}, (5, 8)),
    ],
    ids=["token mixer", "name of the data", "not square"],
)  # fmt: skip
def test_sizes_that_the_official_code_does_not_store_follow_from_others(config, shapes, board):
    unsized = {k: v for k, v in OFFICIAL.items() if k not in ("seq_len", "vocab_size")}
    tensors = {f"_orig_mod.model.inner.{k}": torch.ones(shape) for k, shape in shapes.items()}
    _, task = official_config(unsized | config, tensors)
    assert (task.height, task.width) == board
    with pytest.raises(ConfigError, match="seq_len is missing"):
        official_config(unsized, {})


def test_a_pth_file_that_is_cut_or_of_another_layout_is_refused_in_one_line(official, tmp_path):
    out, path = tmp_path / "out.safetensors", tmp_path / "other.pth"
    raw = official.read_bytes()
    cuts = [raw[: int(share * len(raw))] for share in (0.0, 0.01, 0.99)]
    layouts = [[1, 2], {"model": [1]}, {"model": {}, "ema": torch.ones(2)},
               {"model": {"lm_head.weight": 1}}, {"model": {"inner.x": torch.ones(1)}}]  # fmt: skip
    for content in cuts + layouts:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(CheckpointError) as error:
            convert(path, out, OFFICIAL)
        one_line(error, path)
        assert not out.exists()
