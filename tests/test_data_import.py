"""What others made, data and weights: taken as it is, or refused with what is wrong, and where."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eqr.checkpoint import CheckpointError, load_model
from eqr.config import ModelConfig
from eqr.data import DataError, file_sha256, load, verify
from eqr.imports import datasets
from eqr.imports.datasets import read
from eqr.imports.weights import import_official
from eqr.model import Reasoner
from eqr.settings import ConfigError
from eqr.streams import stream
from eqr.tasks.sudoku import Sudoku


@pytest.fixture
def csv(tmp_path, csv_files) -> Path:
    """A folder with train.csv (6 puzzles) and test.csv (3): change a file, then import."""
    folder = tmp_path / "csv"
    folder.mkdir()
    for name, content in csv_files.items():
        (folder / name).write_bytes(content)
    return folder


def test_csv_is_read_as_it_is_and_subsampled_by_seed(csv, pool):
    whole = read(csv, Sudoku(), train=None)
    assert np.array_equal(whole.train.inputs, pool.inputs[:6])
    assert np.array_equal(whole.test.labels, pool.labels[6:])
    assert whole.train.rating.tolist() == [0, 1, 2, 3, 4, 5]
    (csv / "train.csv").write_text((csv / "train.csv").read_text().replace(".", "0"))
    assert read(csv, Sudoku(), train=None).digest == whole.digest, "0 is a blank too"
    picks = [
        read(csv, Sudoku(), train=3, seed=seed).train.rating.tolist() for seed in (0, 0, 1, 2, 3)
    ]
    assert picks[0] == picks[1] and len(set(map(tuple, picks))) > 1
    assert all(pick == sorted(pick) and len(pick) == 3 for pick in picks)
    first = read(csv, Sudoku(), train=2, test=1, subsample="first")
    assert first.train.rating.tolist() == [0, 1] and first.test.rating.tolist() == [6]


@pytest.mark.parametrize(
    ("line", "alter", "said"),
    [
        (1, lambda f: [f[0], "puzzle", *f[2:]], ": columns .*puzzle.*expected source,question"),
        (4, lambda f: [f[0], f[1] + ".", *f[2:]], ", line 4: question has 82 characters"),
        (4, lambda f: f[:2], ", line 4: answer has 0 characters, expected 81"),
        (4, lambda f: [f[0], "é" + f[1][1:], *f[2:]], ", line 4: question may hold only digits"),
        (4, lambda f: [*f[:3], "²"], ", line 4: rating '²'"),
        (4, lambda f: ["\nx", f[1], f[2][::-1], f[3]], ", line 5: answer does not solve question"),
    ],
    ids=["columns", "long", "missing", "letter", "rating", "wrong answer below a blank line"],
)
def test_a_malformed_line_is_named_by_file_and_number(csv, line, alter, said):
    lines = (csv / "train.csv").read_text().splitlines()
    lines[line - 1] = ",".join(alter(lines[line - 1].split(",")))
    (csv / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"train\.csv{said}"):
        read(csv, Sudoku())


def test_an_empty_file_and_a_missing_file_are_named(csv):
    (csv / "test.csv").write_text("source,question,answer,rating\n")
    with pytest.raises(DataError, match=r"test\.csv: holds no puzzles"):
        read(csv, Sudoku())
    (csv / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv: no such file"):
        read(csv, Sudoku())


def test_test_puzzles_whose_solution_was_trained_on_are_left_out(csv, pool):
    """A digit-relabelled, transposed training puzzle among the test puzzles goes."""
    task, relabel = Sudoku(), np.array([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2], np.uint8)
    image = [relabel[a[0].reshape(9, 9).T.ravel()] for a in (pool.inputs, pool.labels)]
    with (csv / "test.csv").open("a") as file:
        file.write(f"image,{task.format(image[0])},{task.format(image[1])},99\n")
    actual = read(csv, Sudoku(), train=None)
    assert actual.test.rating.tolist() == [6, 7, 8] and actual.origin["left_out_of_test"] == 1


def test_official_arrays_keep_the_first_of_each_group(tmp_path, pool):
    image = np.array([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2])  # the next digit for each
    for split, rows in (("train", [0, -1, -1, 1, -1, 2]), ("test", [3, 4])):
        folder = tmp_path / "npy" / split
        folder.mkdir(parents=True)
        for name in ("inputs", "labels"):
            tokens = []
            for row in rows:
                tokens.append(image[tokens[-1]] if row < 0 else getattr(pool, name)[row])
            np.save(folder / f"all__{name}.npy", np.array(tokens, np.int32))
    np.save(tmp_path / "npy/train/all__group_indices.npy", np.array([0, 3, 5, 6], np.int32))
    actual = read(tmp_path / "npy", Sudoku())
    assert np.array_equal(actual.train.inputs, pool.inputs[:3])
    assert np.array_equal(actual.test.inputs, pool.inputs[3:5])
    assert actual.test.inputs.dtype == np.uint8
    with pytest.raises(DataError, match=r"all__inputs\.npy: shape .* does not fit 16 tokens"):
        read(tmp_path / "npy", Sudoku(2, 2))
    labels = tmp_path / "npy/test/all__labels.npy"
    for tokens, said in (
        (pool.labels[[4, 3]], "test: the label of problem 0 breaks the rules"),
        (np.full((2, 81), 11), r"all__labels\.npy: tokens outside 0\.\.10"),
        (np.array([{"a": 1}], dtype=object), r"all__labels\.npy: not a readable array"),
    ):
        np.save(labels, tokens, allow_pickle=True)
        with pytest.raises(DataError, match=said):
            read(tmp_path / "npy", Sudoku())


def test_the_papers_mazes_come_from_an_archive_and_have_their_hashes(eqr, tmp_path, monkeypatch):
    """A small stand-in for them, imported and built: one and the same data set."""
    small = {"kind": "maze", "height": 9, "width": 9, "path_min": 6, "path_max": 12}
    monkeypatch.setattr(datasets, "UNIQUE_TASK", small)
    sizes = ("--train", 6, "--test", 4, "--validation", 2, "--seed", 1)
    assert eqr("data", "build", tmp_path / "built", "--kind", "maze-unique", *sizes).code == 0
    made, arrays, pins = load(tmp_path / "built"), {}, {}
    assert len(made.validation) == 2 and verify(tmp_path / "built")["test_wrong_labels"] == 0
    for split, problems in (("train", made.train), ("test", made.test)):
        for name in ("inputs", "labels"):
            arrays[f"{split}_{name}"] = getattr(problems, name)
            file = tmp_path / "built" / f"{split}_{name}.npy"
            pins[f"{split}/all__{name}.npy"] = file_sha256(file)
    (tmp_path / "paper").mkdir()
    np.savez(tmp_path / "paper/mazes.npz", **arrays)
    words = ("data", "import", tmp_path / "paper", tmp_path / "out", "--kind", "maze-unique")
    assert "train/all__inputs.npy: field sha256 is" in eqr(*words).err
    monkeypatch.setattr(datasets, "UNIQUE_PINS", pins)
    assert eqr(*words).code == 0
    assert replace(made, validation=None).digest == load(tmp_path / "out").digest
    words = (*words, "--overwrite")
    assert "leave out --sha256" in eqr(*words, "--sha256", f"train.csv={'0' * 64}").err
    assert "use --kind maze with --set" in eqr(*words, "-s", "loops=1").err
    (tmp_path / "paper/mazes.npz").write_bytes(b"PK")
    assert "mazes.npz: not a readable archive" in eqr(*words).err


def test_the_shared_hard_puzzles_import(shared, tmp_path):
    files = {"train": "shift_forum_hardest_1106", "test": "shift_magictour_top1465"}
    for split, source in files.items():
        shutil.copy(shared / "data" / "sudoku" / f"{source}.csv", tmp_path / f"{split}.csv")
    actual = read(tmp_path, Sudoku(), train=30, test=30)
    assert len(actual.train) == 30
    assert actual.task.check(actual.test.inputs, actual.test.labels).all()


# ---------------------------------------------------------------------------------------- weights


RENAMED = {"blocks.": "L_level.layers.", "mixer.swiglu": "mlp_t", "channel": "mlp",
           "down": "down_proj", "gate_up": "gate_up_proj", "mixer.qkv": "self_attn.qkv_proj",
           "mixer.out": "self_attn.o_proj", "embed.weight": "embed_tokens.embedding_weight",
           "halt_head": "q_head", "fixed_high": "H_init", "fixed_low": "L_init",
           "prefix": "puzzle_emb.weights"}  # fmt: skip


INNER = "_orig_mod.model.inner."


def layout(model: Reasoner, wrapper: str = INNER) -> dict[str, torch.Tensor]:
    """The tensors of a model of ours as the official code stores them."""
    tensors = {}
    for name, value in model.state_dict().items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        if name.startswith("q_head"):
            value = torch.cat((value, -value))  # halt and continue
        if name not in ("H_init", "L_init") or model.config.init == "fixed":
            tensors[wrapper + name] = value[None] if name.startswith("puzzle_emb") else value
    return tensors


def drawn(**settings) -> Reasoner:
    """A model for 4×5 mazes, every tensor that the official code would store drawn."""
    model = Reasoner(ModelConfig(hidden=8, blocks=2, heads=2, **settings), 4, 5, 6)
    for k, (name, value) in enumerate(model.state_dict().items()):
        if "fixed" not in name or model.config.init == "fixed":
            value.normal_(generator=stream(k, "drawn"))
    return model


def equal(one: Reasoner, other: Reasoner) -> bool:
    """Whether two models have the same configuration and weights."""
    mine, theirs = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(mine[k], v) for k, v in theirs.items())


BOARD = {"hidden_size": 8, "num_heads": 2, "H_cycles": 3, "L_cycles": 6, "L_layers": 2,
         "board_height": 4, "board_width": 5}  # fmt: skip
PREFIX = {"prefix": 3, "prefix_width": 20}
TABLE = {"puzzle_emb_len": 3, "puzzle_emb_ndim": 20, "num_puzzle_identifiers": 1}


MIXER = BOARD | {"mlp_t": True, "pos_encodings": "none"}


def imported(folder: Path, content: dict, config: dict | None, weights: str | None = None):
    """What :func:`import_official` makes of a file with this content, and what it says of it."""
    torch.save(content, folder / "theirs.pth")
    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    try:
        made = import_official(folder / "theirs.pth", out, config, weights)
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error) and not out.exists()
        raise
    return load_model(out).model, made


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        ("mlp", TABLE | {"seq_len": 20}),
        ("mlp", {}),  # the table and the mixer say it
        ("mlp", TABLE | {"puzzle_emb_len": 0}),  # as many tokens as the row takes
        ("attention", {"puzzle_emb_len": 3}),
        ("attention", TABLE | {"input_seq_len": 20, "seq_len": 23}),
    ],
    ids=str,
)
def test_a_prefix_goes_in_and_comes_out_equal(tmp_path, mixer, config):
    model = drawn(mixer=mixer, rope="none" if mixer == "mlp" else "1d", **PREFIX)
    config = BOARD | {"mlp_t": mixer == "mlp", "pos_encodings": "rope"} | config
    assert equal(imported(tmp_path, {"model": layout(model)}, config)[0], model)


@pytest.mark.parametrize(
    ("change", "rows", "said"),
    [
        ({"num_puzzle_identifiers": 2}, 2, "num_puzzle_identifiers = 2 must be 1"),
        ({"num_puzzle_identifiers": None}, 2, "has size .2, 20.; expected 1 row"),
        ({"puzzle_emb_len": None}, 1, "puzzle_emb_len is missing; add it"),
        ({"puzzle_emb_ndim": 0}, 1, "puzzle_emb_ndim is missing; add it"),
        ({"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}, 1, "does not fit"),
        ({"puzzle_emb_len": 2}, 1, "prefix_width must be at most"),
        ({"input_seq_len": 20, "seq_len": 20}, 1, "seq_len = 20 must be input_seq_len"),
        ({"pos_encodings": "rope2d"}, 1, "prefix has no place on a board"),
    ],
    ids=str,
)
def test_a_prefix_that_is_not_one_row_of_this_configuration_is_refused(
    tmp_path, change, rows, said
):
    tensors, name = layout(drawn(mixer="attention", **PREFIX)), f"{INNER}puzzle_emb.weights"
    tensors[name] = tensors[name].repeat(rows, 1)
    config = BOARD | TABLE | {"mlp_t": False, "pos_encodings": "none"} | change
    with pytest.raises((CheckpointError, ConfigError), match=said):
        imported(tmp_path, {"model": tensors}, config)


TRM = {"init": "fixed", "damping": 0.0, "noise": 0.0}
TRM_NAME = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"


@pytest.mark.parametrize("name", [None, TRM_NAME, "trm@TRMModel", "TRM"])
def test_a_trm_keeps_its_start_and_has_neither_damping_nor_noise(tmp_path, name):
    model = drawn(**TRM, **PREFIX)
    config = MIXER | ({"name": name} if name else {})
    ours, made = imported(tmp_path, layout(model), config)
    assert (made.family, made.weights) == ("TRM", "raw") and equal(ours, model)
    start = ours.initial_state(2, stream(0, "unused"))
    assert (start.z_high == model.fixed_high).all() and (start.z_low == model.fixed_low).all()


OTHERS = {
    "HRM by name": ("recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", "", "HRM"),
    "EqR's HRM": ("hrm@HRMModel", "", "HRM"),
    "two levels": ("", "H_level.layers.0.mlp.down_proj.weight", "HRM"),
    "URM by name": ("urm.urm@URM", "", "URM"),
    "one latent": ("", "init_hidden", "URM"),
    "no level": ("", "layers.0.mlp.dwconv.weight", "URM"),
    "CGAR": ("recursive_reasoning.trm_cgar@TinyRecursiveReasoningModel_ACTV1_CGAR", "", "CGAR"),
    "a variant": ("trm_singlez@TinyRecursiveReasoningModel_ACTV1", "", "trm_singlez"),
    "TRM of a name": ("eqr@EqRModel", "", r"holds 2 of the starts .* is of EqR"),
}


@pytest.mark.parametrize(("name", "tensor", "said"), OTHERS.values(), ids=OTHERS)
def test_another_family_is_refused_by_its_name(tmp_path, name, tensor, said):
    tensors = layout(drawn(**TRM)) | ({f"module.{tensor}": torch.ones(8)} if tensor else {})
    with pytest.raises(CheckpointError, match=rf"theirs\.pth: .*{said}"):
        imported(tmp_path, tensors, {"arch": MIXER | ({"name": name} if name else {})})


@pytest.mark.parametrize("beside", [{"name": "hrm@HRMModel"}, {"short_name": "HRM"}], ids=str)
def test_a_family_named_beside_arch_counts_as_one_named_in_it(tmp_path, beside):
    trm = layout(drawn(**TRM))
    for arch in (MIXER, MIXER | {"name": TRM_NAME}):
        with pytest.raises(CheckpointError, match="a checkpoint of HRM"):
            imported(tmp_path, trm, {"arch": arch} | beside)
        assert imported(tmp_path, trm, {"arch": arch, "name": TRM_NAME})[1].family == "TRM"
    for tensors, arch, said in (
        (layout(drawn()), MIXER, "0 of the starts .* is of TRM"),
        (trm, MIXER | {"name": "eqr@EqRModel"}, "is of EqR and TRM"),
    ):
        with pytest.raises(CheckpointError, match=said):
            imported(tmp_path, tensors, {"arch": arch, "name": TRM_NAME})


def test_names_tensors_and_settings_of_two_families_do_not_go_together(tmp_path):
    eqr, trm = layout(drawn()), layout(drawn(**TRM))
    half = {key: value for key, value in trm.items() if "L_init" not in key}
    for tensors, config, said in (
        (eqr, {"name": TRM_NAME}, "holds 0 of the starts"),
        (half, {}, "holds 1 of the starts"),
        (trm, {"loss": {"name": "losses_cgar@ACTLossHead_CGAR"}}, "a checkpoint of CGAR"),
        (trm, {"lambda_": 0.95}, "lambda_ is a setting of EqR, and these are the weights of a TRM"),
        (trm, {"noise_scale": 0.0}, "noise_scale is a setting of EqR"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=said):
            imported(tmp_path, {"model": tensors}, MIXER | config)


@pytest.mark.parametrize("whole", [False, True], ids=["flat", "whole"])
def test_each_setting_is_used_harmless_or_refused(tmp_path, whole):
    harmless = {"name": "eqr@EqRModel", "halt_max_steps": 16, "forward_dtype": "bfloat16"}
    trainer = {"lr": 1e-4, "ema": True, "puzzle_emb_lr": 1e-4}

    def taken(**change: object):
        config = MIXER | harmless | change
        return imported(tmp_path, layout(drawn()), trainer | {"arch": config} if whole else config)

    taken()
    for change, said in (
        ({"experts": 4}, "experts is neither used here nor known to be harmless.*--config"),
        ({"rope_theta": 5000.0}, "rope_theta = 5000.0 must be 10000.0"),
        ({"no_ACT_continue": False}, "no_ACT_continue = False must be True"),
        ({"pos_encodings": "learned"}, "pos_encodings = 'learned'"),
    ):
        with pytest.raises(ConfigError, match=said):
            taken(**change)


@pytest.mark.parametrize("wrapper", ["", "module.model.inner.", "module._orig_mod.model.inner."])
def test_names_are_read_through_what_was_put_around_the_model(tmp_path, wrapper):
    model = drawn(**PREFIX)
    tensors = layout(model, wrapper)
    tensors[f"{wrapper}puzzle_emb.local_weights"] = torch.ones(768, 20)  # a cache of the batch's
    ours, made = imported(tmp_path, {"model": tensors, "step": 5}, MIXER)
    assert equal(ours, model) and (made.family, made.weights) == ("EqR", "raw")


def test_the_average_is_taken_in_either_layout_or_the_error_says_what_was_seen(tmp_path):
    """The parts that are no parameters (starts, the prefix's table) have no average."""
    model = drawn(**TRM, **PREFIX)
    raw, inert = layout(model), ("H_init", "L_init", "puzzle_emb.weights")
    mean = {k: 2 * v for k, v in layout(model, "model.inner.").items() if not k.endswith(inert)}
    lacking = {key: value for key, value in mean.items() if "lm_head" not in key}
    for average in (mean, {"mu": 0.999, "shadow": mean}, {"mu": torch.tensor(0.9), **mean}):
        for wanted in (None, "ema"):
            ours, made = imported(tmp_path, {"model": raw, "ema": average}, MIXER, wanted)
            assert made.weights == "ema" and torch.equal(ours.prefix, model.prefix)
            assert torch.equal(ours.lm_head.weight, 2 * model.lm_head.weight)
        assert equal(imported(tmp_path, {"model": raw, "ema": average}, MIXER, "raw")[0], model)
    for content, wanted, said in (
        (raw, "ema", "stores no average .*--weights raw"),
        ({"model": raw, "ema": None}, "ema", "stores no average .*--weights raw"),
        ({"model": raw, "ema": [1]}, None, "is 'list', not a dictionary .*--weights raw"),
        ({"model": raw, "ema": {"decay": 0.9}}, None, r"is \['decay'\], not"),
        ({"model": raw, "ema": {"shadow": lacking}}, None, r"lacks lm_head\.weight"),
        ({"state_dict": raw}, None, r"holds no tensors.*\['state_dict'\]"),
        ({"model": {**raw, "module.model.inner.H_init": torch.ones(8)}}, None, "under two names"),
    ):
        with pytest.raises(CheckpointError, match=said):
            imported(tmp_path, content, MIXER, wanted)


STATE = {"optimizers": [{"state": torch.ones(2)}], "step": 5, "best": 0.9, "rng": {}, "carry": None}
STATE |= {"config": MIXER, "ema": None}


@pytest.mark.parametrize("name", ["ema_state_dict", "model_ema", "state_dict_ema", "averaged"])
def test_an_average_under_another_name_is_not_passed_over(tmp_path, name):
    raw = layout(drawn())
    content = {"model": raw, **STATE}
    assert imported(tmp_path, content, MIXER)[1].weights == "raw"
    for files in (content, raw):
        for wanted in (None, "ema"):
            with pytest.raises(CheckpointError, match=rf"'{name}' is neither .*--weights raw"):
                imported(tmp_path, files | {name: raw}, MIXER, wanted)
        assert imported(tmp_path, files | {name: raw}, MIXER, "raw")[1].weights == "raw"
    content |= {"ema": raw, name: raw}
    with pytest.raises(CheckpointError, match=f"entry '{name}' is neither"):
        imported(tmp_path, content, MIXER)
    assert imported(tmp_path, content, MIXER, "ema")[1].weights == "ema"


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "not finite"), (float("-inf"), "not finite"), (1e300, "not finite"),
     (1j, "complex")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["lm_head.weight", "q_head.bias", "L_init"])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, name, value, said):
    tensors, key = layout(drawn(**TRM)), f"_orig_mod.model.inner.{name}"
    tensors[key] = tensors[key].to(torch.complex64 if value == 1j else torch.float64)
    tensors[key][-1] = value
    with pytest.raises(CheckpointError, match=f"tensor '{name}' .*{said}"):
        imported(tmp_path, tensors, MIXER)


SIZES = "hidden_size num_heads H_cycles L_layers seq_len board_width expansion puzzle_emb_len"


@pytest.mark.parametrize("size", [10**6, 10**30, 10**400, -(10**5000)], ids=["6", "30", "400", "-"])
def test_a_size_beyond_all_models_is_named(tmp_path, size):
    for key in (*SIZES.split(), "rope_theta"):
        with pytest.raises(ConfigError, match=rf"\.{key} must be at most"):
            imported(tmp_path, layout(drawn()), MIXER | {key: size})


def test_a_size_that_the_weights_do_not_have_takes_no_memory(tmp_path):
    """2**16 wide, one block would take 100 GB."""
    with pytest.raises(CheckpointError, match="does not fit the configuration"):
        imported(tmp_path, layout(drawn()), MIXER | {"hidden_size": 2**16})
    large = {"board_height": None, "dataset": {"data_path": "maze-9999x9999"}, "mlp_t": False}
    with pytest.raises(ConfigError, match="seq_len = 99980001 must be at most"):
        imported(tmp_path, layout(drawn(mixer="attention")), MIXER | large)


SOFTMAX = {"loss": {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"}}
STABLEMAX = {"loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"}}


@pytest.mark.parametrize(
    ("config", "normalisation"),
    [
        ({"arch": MIXER}, "stablemax"),
        ({"arch": MIXER | STABLEMAX}, "stablemax"),
        ({"arch": MIXER | SOFTMAX}, "softmax"),
        (MIXER | SOFTMAX, "softmax"),
        ({"arch": MIXER} | SOFTMAX, "softmax"),
    ],
    ids=["none", "stablemax", "softmax", "flat", "beside"],
)
def test_the_confidence_goes_by_the_loss_of_the_official_configuration(
    tmp_path, config, normalisation
):
    model, _ = imported(tmp_path, layout(drawn()), config)
    assert model.normalisation == normalisation


def test_another_loss_or_two_losses_are_refused(tmp_path):
    for config in (
        {"arch": MIXER | SOFTMAX} | STABLEMAX,
        MIXER | {"loss": {"loss_type": "focal"}},
        MIXER | {"loss": "focal"},
    ):
        with pytest.raises(ConfigError, match=r"loss\.loss_type is .* must be one of stablemax_"):
            imported(tmp_path, layout(drawn()), config)


class Container:
    """Settings as OmegaConf keeps them: the official code stores its configuration so."""

    def __init__(self, content: object) -> None:
        self.__dict__["_content" if isinstance(content, dict | list) else "_val"] = content


def test_a_configuration_in_containers_is_read_as_what_it_holds(tmp_path):
    arch = {**MIXER, "hidden_size": Container(8), "loss": Container({"name": "losses@ACTLossHead"})}
    model, whole = drawn(), {"arch": Container(arch), "eval_save_outputs": Container([])}
    ours, _ = imported(tmp_path, {"model": layout(model), "config": Container(whole)}, None)
    assert equal(ours, model)


def test_the_command_says_which_family_start_and_weights_it_took(eqr, shared, tmp_path):
    for file, config, said in (
        ("trm_flat.pth", "trm.json", "TRM: fixed starts, damping 0, noise 0, raw weights"),
        ("eqr_flat_ema.pth", "eqr.json", "EqR: random starts, damping 0.05, noise 0, averaged"),
    ):
        files = (shared / "cases" / file, tmp_path / file, "--config", shared / "cases" / config)
        done = eqr("import-checkpoint", *files, "--json")
        assert done.code == 0 and said in done.err, done.err
        assert json.loads(done.out)["sha256"] == load_model(tmp_path / file).sha256
        content = torch.load(shared / "cases" / file, weights_only=True)
        tensors = content.get("ema", content)
        head = tensors["_orig_mod.model.inner.lm_head.weight"]
        assert torch.equal(load_model(tmp_path / file).model.lm_head.weight, head)
