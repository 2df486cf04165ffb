"""What others made, data and weights: taken as it is, or refused with what is wrong, and where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eqr.checkpoint import CheckpointError, load_model
from eqr.config import ModelConfig
from eqr.data import DataError, load, save
from eqr.imports.datasets import read
from eqr.imports.weights import convert
from eqr.model import Reasoner
from eqr.settings import ConfigError, UserError
from eqr.streams import stream
from eqr.tasks.maze import Maze
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
        (1, lambda f: [f[0], "puzle", *f[2:]], ": no column question .*--columns question="),
        (4, lambda f: [f[0], f[1] + ".", *f[2:]], ", line 4: question .* 81 characters"),
        (4, lambda f: [f[0], "é" + f[1][1:], *f[2:]], ", line 4: question 'é.* must hold only"),
        (4, lambda f: [*f[:3], "²"], ", line 4: rating '²'"),
        (4, lambda f: ["\nx", f[1], f[2][::-1], f[3]], ", line 5: the answer breaks the rules"),
    ],
    ids=["columns", "long", "letter", "rating", "wrong answer below a blank line"],
)
def test_a_malformed_line_is_named_by_file_and_number(csv, line, alter, said):
    lines = (csv / "train.csv").read_text().splitlines()
    lines[line - 1] = ",".join(alter(lines[line - 1].split(",")))
    (csv / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"train\.csv{said}"):
        read(csv, Sudoku())
    (csv / "train.csv").write_text(lines[0] if line > 1 else "question,answer")
    with pytest.raises(DataError, match=r"train\.csv: holds no puzzles"):
        read(csv, Sudoku())


def test_columns_go_by_the_names_of_public_sets_or_by_those_given(csv, eqr, tmp_path):
    wanted = read(csv, Sudoku(), train=None)
    for header in ("s,quizzes,solutions,rating", "s,puzzle,solution,rating", "s,q,a,rating"):
        for name in ("train.csv", "test.csv"):
            lines = (csv / name).read_text().splitlines()
            (csv / name).write_text("\n".join([header, *lines[1:]]))
        if "q,a" in header:
            with pytest.raises(DataError, match=r"no column question .*--columns question="):
                read(csv, Sudoku())
        names = {"question": "q", "answer": "a"} if "q,a" in header else {}
        assert read(csv, Sudoku(), train=None, columns=names).digest == wanted.digest
    words = ("data", "import", csv, tmp_path / "out", "--columns")
    eqr(*words, "question=p").refused("train.csv", "no column p", "--columns question=")
    eqr(*words, "question").refused("'question' must", "name=value")
    eqr(*words, "quizzes=question").refused("--columns quizzes", "question or answer")
    assert eqr(*words, "question=q,answer=a").code == 0


@pytest.mark.parametrize("task", [Sudoku(2, 3, clues_min=12), Maze(7, 7, path_min=3)])
def test_boards_of_any_size_and_task_with_a_text_form_are_read(tmp_path, eqr, task):
    made = task.generate(8, seed=1)
    texts = [[task.format(row) for row in a] for a in (made.inputs, made.labels)]
    rows = [f"{q},{a}" for q, a in zip(*texts, strict=True)]
    for name, part in (("train", rows[:6]), ("test", rows[6:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["question,answer", *part]))
    assert np.array_equal(read(tmp_path, task).train.inputs, made.inputs[:6])
    words = ("data", "import", tmp_path, tmp_path / "out")
    eqr(*words).refused("train.csv, line 2: question", "81 characters", "-s box_height=2")
    eqr(*words, "--kind", "miniarc").refused("train.csv: --kind miniarc cannot be read from CSV")


def test_questions_with_several_answers_are_counted_and_refused_unless_asked_for(
    shared, eqr, tmp_path
):
    words = ("data", "import", shared / "cases" / "several_solutions", tmp_path / "out")
    eqr(*words).refused("2 of 2 training", "several answers", "--allow-ambiguous")
    done = eqr(*words, "--allow-ambiguous", "--json")
    assert json.loads(done.out)["ambiguous"] == {"train": 2, "test": 2}
    assert "2 test problems have several answers" in eqr("data", "verify", tmp_path / "out").out
    made = load(tmp_path / "out")
    save(replace(made, origin={}), tmp_path / "out", overwrite=True)
    assert "test_ambiguous" in eqr("data", "verify", tmp_path / "out").err


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
    with pytest.raises(DataError, match=r"all__inputs\.npy: shape .* 16"):
        read(tmp_path / "npy", Sudoku(2, 2))
    labels = tmp_path / "npy/test/all__labels.npy"
    for tokens, said in (
        (pool.labels[[4, 3]], r"test/all__labels\.npy, problem 0: the answer breaks the rules"),
        (np.full((2, 81), 11), r"all__labels\.npy: tokens must be 0\.\.10"),
        (np.array([{"a": 1}], dtype=object), r"all__labels\.npy: not a readable array"),
    ):
        np.save(labels, tokens, allow_pickle=True)
        with pytest.raises(UserError, match=said):
            read(tmp_path / "npy", Sudoku())


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
MIXER = BOARD | {"mlp_t": True, "pos_encodings": "none"}
PREFIX = {"prefix": 3, "prefix_width": 20}
TABLE = {"puzzle_emb_len": 3, "puzzle_emb_ndim": 20, "num_puzzle_identifiers": 1}
TRM = {"init": "fixed", "damping": 0.0, "noise": 0.0}
TRM_NAME = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"


def imported(folder: Path, content: dict, config: dict | None, weights: str | None = None):
    """What :func:`convert` makes of a file with this content, and which weights it took."""
    torch.save(content, folder / "theirs.pth")
    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    try:
        _, made = convert(folder / "theirs.pth", out, config, weights)
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error) and not out.exists()
        raise
    return made.model, made.meta["imported"]["weights"]


def refused(folder: Path, said: str, *given) -> None:
    """Assert that :func:`imported` refuses what is given, with a message that matches."""
    with pytest.raises((CheckpointError, ConfigError), match=said):
        imported(folder, *given)


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        ("mlp", TABLE | {"seq_len": 20}),
        ("mlp", {}),  # the table and the mixer say it
        ("mlp", TABLE | {"puzzle_emb_len": 0}),  # as many tokens as the row takes
        ("attention", TABLE | {"input_seq_len": 20, "seq_len": 23}),
    ],
    ids=str,
)
def test_a_prefix_goes_in_and_comes_out_equal(tmp_path, mixer, config):
    model = drawn(mixer=mixer, rope="none" if mixer == "mlp" else "1d", **PREFIX)
    config = BOARD | {"mlp_t": mixer == "mlp", "pos_encodings": "rope"} | config
    assert equal(imported(tmp_path, {"model": layout(model)}, config)[0], model)


def test_a_prefix_that_is_not_one_row_of_this_configuration_is_refused(tmp_path):
    tensors, name = layout(drawn(mixer="attention", **PREFIX)), f"{INNER}puzzle_emb.weights"
    rows = tensors | {name: tensors[name].repeat(2, 1)}
    for content, change, said in (
        (rows, {"num_puzzle_identifiers": None}, "puzzle_emb.weights.* 1 row"),
        (tensors, {"num_puzzle_identifiers": 2}, "num_puzzle_identifiers = 2 must"),
        (tensors, {"puzzle_emb_len": None}, "puzzle_emb_len is missing"),
        (tensors, {"puzzle_emb_ndim": 0}, "puzzle_emb_ndim is missing"),
        (tensors, {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}, "does not fit"),
        (tensors, {"input_seq_len": 20, "seq_len": 20}, "seq_len = 20 must be input_seq_len"),
        (tensors, {"pos_encodings": "rope2d"}, "prefix has no place"),
    ):
        config = BOARD | TABLE | {"mlp_t": False, "pos_encodings": "none"} | change
        refused(tmp_path, said, {"model": content}, config)


@pytest.mark.parametrize("name", [None, TRM_NAME, "TRM"])
def test_a_trm_keeps_its_start_and_has_neither_damping_nor_noise(tmp_path, name):
    model = drawn(**TRM, **PREFIX)
    ours, weights = imported(tmp_path, layout(model), MIXER | ({"name": name} if name else {}))
    assert weights == "raw" and equal(ours, model)
    start = ours.initial_state(2, stream(0, "unused"))
    assert (start.z_high == model.fixed_high).all() and (start.z_low == model.fixed_low).all()


def test_another_family_is_refused_by_its_name(tmp_path):
    """Wherever the name stands, beside ``arch`` or in it, and by the tensors of no other."""
    trm = layout(drawn(**TRM))
    for name, tensor, said in (
        ("recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", "", "HRM"),
        ("", "H_level.layers.0.mlp.down_proj.weight", "HRM"),
        ("urm.urm@URM", "", "URM"),
        ("", "init_hidden", "URM"),
        ("recursive_reasoning.trm_cgar@TinyRecursiveReasoningModel_ACTV1_CGAR", "", "CGAR"),
        ("trm_singlez@TinyRecursiveReasoningModel_ACTV1", "", "trm_singlez"),
    ):
        tensors = trm | ({f"module.{tensor}": torch.ones(8)} if tensor else {})
        named = {"name": name} if name else {}
        for config in ({"arch": MIXER | named}, {"arch": MIXER} | named):
            refused(tmp_path, rf"theirs\.pth: a checkpoint of {said}", tensors, config)
    named = {"arch": MIXER | {"name": TRM_NAME}, "short_name": "HRM"}
    refused(tmp_path, "a checkpoint of HRM", trm, named)


def test_names_tensors_and_settings_of_two_families_do_not_go_together(tmp_path):
    eqr, trm = layout(drawn()), layout(drawn(**TRM))
    half = {key: value for key, value in trm.items() if "L_init" not in key}
    for tensors, config, said in (
        (eqr, {"name": TRM_NAME}, "holds 0 of the starts .* TRM"),
        (half, {}, "holds 1 of the starts"),
        (trm, {"name": "eqr@EqRModel"}, "holds 2 of the starts .* EqR"),
        (trm, {"loss": {"name": "losses_cgar@ACTLossHead_CGAR"}}, "a checkpoint of CGAR"),
        (trm, {"lambda_": 0.95}, "lambda_ is a setting of EqR"),
    ):
        refused(tmp_path, said, {"model": tensors}, MIXER | config)
    two = {"arch": MIXER | {"name": "eqr@EqRModel"}, "name": TRM_NAME}
    refused(tmp_path, "EqR and TRM", trm, two)


@pytest.mark.parametrize("whole", [False, True], ids=["flat", "whole"])
def test_each_setting_is_used_harmless_or_refused(tmp_path, whole):
    harmless = {"name": "eqr@EqRModel", "halt_max_steps": 16, "forward_dtype": "bfloat16"}
    trainer = {"lr": 1e-4, "ema": True, "puzzle_emb_lr": 1e-4}

    def given(**change: object):
        config = MIXER | harmless | change
        return layout(drawn()), trainer | {"arch": config} if whole else config

    imported(tmp_path, *given())
    for change, said in (
        ({"experts": 4}, "experts is not a known setting.*--config"),
        ({"rope_theta": 5000.0}, "rope_theta = 5000.0 must"),
        ({"no_ACT_continue": False}, "no_ACT_continue = False must"),
        ({"pos_encodings": "learned"}, "pos_encodings = 'learned'"),
        ({"num_heads": 3, "mlp_t": False}, "heads must divide"),
        ({"vocab_size": 7}, "vocab_size = 7"),
        ({"board_height": None, "seq_len": 24}, "seq_len = 24"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 2**16}, r"theirs\.pth: does not fit"),  # one block would take 100 GB
        ({"hidden_size": 10**30}, "hidden_size .* must"),
        ({"expansion": -(10**5000)}, "expansion .* must"),
    ):
        refused(tmp_path, said, *given(**change))
    large = {"board_height": None, "mlp_t": False, "dataset": {"data_path": "maze-9999x9999"}}
    attention = layout(drawn(mixer="attention"))
    refused(tmp_path, "seq_len = 99980001", attention, MIXER | large)


@pytest.mark.parametrize("wrapper", ["", "module._orig_mod.model.inner."])
def test_names_are_read_through_what_was_put_around_the_model(tmp_path, wrapper):
    model = drawn(**PREFIX)
    tensors = layout(model, wrapper)
    tensors[f"{wrapper}puzzle_emb.local_weights"] = torch.ones(768, 20)  # a cache of the batch's
    ours, weights = imported(tmp_path, {"model": tensors, "step": 5}, MIXER)
    assert equal(ours, model) and weights == "raw"


def test_the_average_is_taken_in_either_layout_or_the_error_says_what_was_seen(tmp_path):
    """The parts that are no parameters (starts, the prefix's table) have no average."""
    model = drawn(**TRM, **PREFIX)
    raw, inert = layout(model), ("H_init", "L_init", "puzzle_emb.weights")
    mean = {k: 2 * v for k, v in layout(model, "model.inner.").items() if not k.endswith(inert)}
    lacking = {key: value for key, value in mean.items() if "lm_head" not in key}
    for average in (mean, {"mu": 0.999, "shadow": mean}, {"mu": torch.tensor(0.9), **mean}):
        for wanted in (None, "ema"):
            ours, weights = imported(tmp_path, {"model": raw, "ema": average}, MIXER, wanted)
            assert weights == "ema" and torch.equal(ours.prefix, model.prefix)
            assert torch.equal(ours.lm_head.weight, 2 * model.lm_head.weight)
        assert equal(imported(tmp_path, {"model": raw, "ema": average}, MIXER, "raw")[0], model)
    for content, wanted, said in (
        (raw, "ema", "stores no average .*--weights raw"),
        ({"model": raw, "ema": [1]}, None, "'list'.*--weights raw"),
        ({"model": raw, "ema": {"decay": 0.9}}, None, r"\['decay'\]"),
        ({"model": raw, "ema": {"shadow": lacking}}, None, r"lacks lm_head\.weight"),
        ({"state_dict": raw}, None, r"holds no tensors.*\['state_dict'\]"),
        ({"model": {**raw, "module.model.inner.H_init": torch.ones(8)}}, None, "under two names"),
    ):
        refused(tmp_path, said, content, MIXER, wanted)


def test_an_average_under_another_name_is_not_passed_over(tmp_path):
    raw, name = layout(drawn()), "ema_state_dict"
    content = {"model": raw, "optimizers": [{"state": torch.ones(2)}], "step": 5, "best": 0.9}
    content |= {"rng": {}, "carry": None, "config": MIXER, "ema": None}
    assert imported(tmp_path, content, MIXER)[1] == "raw"
    for files in (content | {name: raw}, raw | {name: raw}):
        for wanted in (None, "ema"):
            refused(tmp_path, f"'{name}'.*--weights raw", files, MIXER, wanted)
        assert imported(tmp_path, files, MIXER, "raw")[1] == "raw"
    two = content | {"ema": raw, name: raw}
    refused(tmp_path, f"'{name}'", two, MIXER)
    assert imported(tmp_path, two, MIXER, "ema")[1] == "ema"


def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path):
    tensors = layout(drawn(**TRM))
    for name, value in (("lm_head.weight", float("nan")), ("L_init", 1e300), ("q_head.bias", 1j)):
        changed = tensors[INNER + name].to(torch.complex64 if value == 1j else torch.float64)
        changed[-1] = value
        refused(tmp_path, f"tensor '{name}'", tensors | {INNER + name: changed}, MIXER)


def test_the_confidence_goes_by_the_loss_of_the_official_configuration(tmp_path):
    tensors, name = layout(drawn()), {"name": "losses@ACTLossHead"}
    softmax = {"loss": name | {"loss_type": "softmax_cross_entropy"}}
    stablemax = {"loss": name | {"loss_type": "stablemax_cross_entropy"}}
    for config, normalisation in (
        ({"arch": MIXER}, "stablemax"),
        ({"arch": MIXER | softmax}, "softmax"),
        (MIXER | softmax, "softmax"),
        ({"arch": MIXER} | softmax, "softmax"),
    ):
        assert imported(tmp_path, tensors, config)[0].normalisation == normalisation
    for config in ({"arch": MIXER | softmax} | stablemax, MIXER | {"loss": "focal"}):
        refused(tmp_path, r"loss\.loss_type", tensors, config)


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
        head = content.get("ema", content)[f"{INNER}lm_head.weight"]
        assert torch.equal(load_model(tmp_path / file).model.lm_head.weight, head)
