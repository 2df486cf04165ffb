"""Commands do what their help says; bad input ends in one line and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pandas as pd
import pytest
import torch
import typer

from eqr import data
from eqr.checkpoint import load_model, load_tensors, save_model, save_tensors
from eqr.cli import main as cli
from eqr.config import DataConfig
from eqr.model import Reasoner
from eqr.recipes import recipe_names
from eqr.streams import stream
from eqr.tasks.sudoku import Sudoku

COMMANDS = ["train", "eval", "export", "solve", "bench", "recipes", "notebook", "halt"]
COMMANDS += ["import-checkpoint", "plan"]


@pytest.fixture(scope="module")
def puzzle(problems) -> str:
    return problems.task.format(problems.test.inputs[0])


GROUPS = {
    "data": {"build", "import", "verify"},
    "results": {"list", "show", "ship", "verify", "diff"},
    "study": {"run", "list", "plan"},
}
GROUPED = [f"{group} {name}" for group, names in GROUPS.items() for name in sorted(names)]


@pytest.mark.parametrize("words", [*COMMANDS, *GROUPED])
def test_help_of_every_command_has_an_example_of_itself(eqr, words):
    done = eqr(*words.split(), "--help")
    assert done.code == 0 and "Example" in done.out
    assert f"eqr {words}" in " ".join(done.out.split()), "the example is of this command"


def test_the_commands_tested_are_all_there_are(eqr):
    group = typer.main.get_command(cli.app)
    assert set(group.commands) == {*COMMANDS, *GROUPS}
    for name, commands in GROUPS.items():
        assert set(group.commands[name].commands) == commands


# ------------------------------------------------------------------------------------- bad input


BAD = {
    "a puzzle too short": ("solve 1234 -c MODEL", "4 characters; expected 16"),
    "no solution": ("solve 123...4......... -c MODEL", "no solution: a given must be wrong"),
    "no checkpoint": ("solve 1234 -c none.safetensors", "none.safetensors: no such checkpoint"),
    "a name that looks like markup": ("solve 1234 -c [/bold]", "[/bold]: no such checkpoint"),
    "a corrupted checkpoint": ("solve 1234 -c BROKEN", "broken.safetensors: damaged"),
    "a corrupted header": ("eval -c HEADER", "header.safetensors"),
    "an unknown recipe": ("train sudok6", "did you mean 'sudoku6'"),
    "an unknown profile": ("train sudoku6 --profile papr", "did you mean 'paper'"),
    "an unknown setting": ("train sudoku6 -s train.step=3", "did you mean 'steps'"),
    "an unknown section": ("train sudoku6 -s modle.hidden=3", "did you mean 'model'"),
    "a section for a value": ("train sudoku6 -s train=3", "train"),
    "a negative seed": ("train sudoku6 -s seed=-1", "seed"),
    "a device that is not there": ("train sudoku6 --device tpu", "--device tpu is not available"),
    "too few clues": ("data build out -s clues_min=16", "clues_min=16: a 9x9 Sudoku"),
    "a path too long": ("data build out --kind maze -s path_min=9999", "no path of 9999"),
    "an unknown task": ("data build out --kind sudoko", "did you mean 'sudoku'"),
    "two sources of a task": ("data build out --recipe sudoku6 -s loops=1", "leave out --kind"),
    "a directory that exists": ("data build here", "here: exists already"),
    "an import to where something is": ("data import here here", "here: exists already"),
    "an import of nothing": ("data import nowhere out", "nowhere: holds neither train.csv nor"),
    "a parent that is a file": ("data build file/out --kind maze --train 3 --test 3", "file"),
    "a store that is a file": ("train sudoku6 --profile smoke --store file", "file"),
    "an unknown rule": ("eval -c MODEL --select majorty", "did you mean 'majority'"),
    "a depth of zero": ("eval -c MODEL --depth 0,4", "--depth '0,4' must be whole numbers from 1"),
    "a table that is a folder": ("eval -c MODEL --depth 1 --out .", "is a folder; name a file in"),
    "a plot of no kind": ("eval -c MODEL --depth 1 --plot p.xyz", "must end in .png, .svg, .pdf"),
    "an empty protocol": ("eval -c MODEL --protocol=", "protocol '' is not known"),
    "a table without a folder": ("eval -c MODEL --depth 1 --out no/such/t.csv", "no/such"),
    "data of other boxes": ("eval -c SIX --data TURNED", "does not fit"),
    "the wrong weights": ("import-checkpoint file out --weights best", "must be ema or raw"),
    "no official file": ("import-checkpoint none.pth out", "none.pth: no such checkpoint"),
    "an unknown parameter": ("notebook NOTEBOOK out -p profil=smoke", "did you mean 'profile'"),
    "an unknown run": ("results show train-1", "holds no runs"),
    "a run to ship": ("results ship train-1", "holds no runs"),
    "runs to compare": ("results diff a b", "run 'a' is not known"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(learned, make_recipe, tmp_path_factory) -> dict[str, str]:
    """What the words in capitals stand for."""
    folder = tmp_path_factory.mktemp("places")
    broken, header, six = (folder / f"{s}.safetensors" for s in ("broken", "header", "six"))
    broken.write_bytes(learned.path.read_bytes()[:-40])
    tensors, meta, _ = load_tensors(learned.path)
    save_tensors(header, tensors, meta | {"model": {"hidden": 3}})
    # 6×6 boards with boxes of 2×3 and of 3×2 are different tasks.
    task = Sudoku(2, 3, clues_min=12)
    save_model(six, Reasoner.for_task(task, make_recipe().model, stream(0, "init")), task, {})
    turned = data.build(Sudoku(3, 2, clues_min=12), DataConfig(train=4, test=4))
    data.save(turned, folder / "turned")
    return {
        "MODEL": str(learned.path),
        "BROKEN": str(broken),
        "HEADER": str(header),
        "SIX": str(six),
        "TURNED": str(folder / "turned"),
        "NOTEBOOK": str(Path(__file__).parents[1] / "notebooks" / "training.ipynb"),
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(eqr, places, tmp_path, monkeypatch, case):
    words, said = BAD[case]
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("file").write_text("")
    eqr(*(places.get(word, word) for word in words.split())).refused(said)
    left = {path.name for path in tmp_path.iterdir()} - {"here", "file", "store"}
    assert not left and not list(tmp_path.glob("store/[!dl]*")), "nothing is written"
    assert not list(Path("here").iterdir())


def test_a_malformed_line_of_several_is_named_by_its_number(eqr, learned, puzzle):
    words = ("solve", "-", "-c", learned.path)
    eqr(*words, stdin=f"{puzzle}\n\n{puzzle[:-1]}\n").refused("line 3: 15 characters")
    eqr(*words, stdin="\n").refused("standard input was empty")


# --------------------------------------------------------------------------------------- solving


def test_solve_prints_board_residuals_and_both_verdicts(eqr, learned, problems, puzzle):
    done = eqr("solve", puzzle, "-c", learned.path, "--depth", 3, "--json")
    found = json.loads(done.out)
    assert found["problem"] == puzzle and len(found["residuals"]) == 3
    text = eqr("solve", puzzle, "-c", learned.path, "--depth", 3).out
    assert found["answer"] in text and f"3: {found['residuals'][2]:.4f}" in text
    assert ("NOT converged" in text) != found["converged"]
    assert ("NOT valid" in text) != found["valid"]
    label = problems.task.format(problems.test.labels[0])
    assert found["valid"] == (found["answer"] == label)
    for tolerance, settled in (("1e9", True), ("0", False)):
        words = ("solve", puzzle, "-c", learned.path, "--tolerance", tolerance, "--json")
        assert json.loads(eqr(*words).out)["converged"] is settled


def test_solve_reads_many_puzzles_and_takes_the_restart_with_the_smallest_residual(
    eqr, learned, problems
):
    lines = [problems.task.format(row) for row in problems.test.inputs[:4]]
    done = eqr(
        "solve", "-", "-c", learned.path, "--breadth", 5, "--depth", 2, "--noise", 0.01, "--json",
        stdin="\n".join(lines),
    )  # fmt: skip
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["problem"] for row in found] == lines
    assert len({row["restart"] for row in found}) > 1
    alone = eqr("solve", lines[2], "-c", learned.path, "--depth", 2, "--noise", 0.01, "--json")
    assert json.loads(alone.out)["residuals"][-1] >= found[2]["residuals"][-1] - 1e-6


# ---------------------------------------------------------------------------- data, train, evaluate


def test_data_build_is_deterministic_and_verify_finds_a_flipped_byte(eqr, tmp_path):
    size = ("-s", "box_height=2", "-s", "box_width=2", "-s", "clues_min=7")
    settings = (*size, "--train", 20, "--test", 10)
    first = json.loads(eqr("data", "build", tmp_path / "a", *settings, "--json").out)
    again = json.loads(eqr("data", "build", tmp_path / "b", *settings, "--json").out)
    other = json.loads(eqr("data", "build", tmp_path / "c", *settings, "--seed", 1, "--json").out)
    assert first["digest"] == again["digest"] != other["digest"]
    assert (first["train"], first["test"]) == (20, 10)
    done = eqr("data", "verify", tmp_path / "a", tmp_path / "b")
    assert done.code == 0 and done.out.count("20 + 10 problems, sound") == 2
    file = tmp_path / "a" / "test_labels.npy"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    done = eqr("data", "verify", tmp_path / "b", tmp_path / "a")
    assert done.code == 1 and "test_labels.npy: altered" in done.err
    dataset = data.load(tmp_path / "b")
    dataset.test.inputs[0] = dataset.test.inputs[1]
    data.save(dataset, tmp_path / "b", overwrite=True)
    done = eqr("data", "verify", tmp_path / "b")
    assert done.code == 1 and "test_repeated" in done.err


SMALL = "train sudoku6 --profile smoke -s train.steps=12 -s train.checkpoint_every=4"


def test_train_stopped_early_goes_on_to_the_result_of_an_uninterrupted_run(eqr, tmp_path):
    for _ in range(3):
        done = eqr(*SMALL.split(), "--stop-after", 0, "--json")
        assert json.loads(done.out) == {"run": None, "model": None, "complete": False}
        assert "run the same command again" in done.err
    found = json.loads(eqr(*SMALL.split(), "--json").out)
    assert found["complete"] and Path(found["model"]).is_file()
    stamp = Path(found["model"]).stat().st_mtime_ns
    assert json.loads(eqr(*SMALL.split(), "--json").out) == found
    assert Path(found["model"]).stat().st_mtime_ns == stamp, "a finished run is not made again"
    whole = json.loads(eqr(*SMALL.split(), "--store", tmp_path / "whole", "--json").out)
    one, other = load_model(found["model"]), load_model(whole["model"])
    assert one.sha256 == other.sha256 and whole["run"] == found["run"]
    seeded = json.loads(eqr(*SMALL.split(), "--seed", 3, "--json").out)
    assert seeded["run"] != found["run"] and load_model(seeded["model"]).sha256 != one.sha256


def test_eval_gives_one_tidy_table_as_text_json_and_csv(eqr, learned, tmp_path):
    words = ("eval", "-c", learned.path, "--depth", "4,1", "--breadth", "1,2", "--problems", 8)
    rows = json.loads(eqr(*words, "--json").out)
    frame = pd.DataFrame(rows)
    columns = "depth breadth select noise symmetry n exact low high token residual nfe layers"
    assert list(frame.columns) == columns.split()
    assert set(frame["select"]) == {"average", "converged", "majority", "oracle"}
    assert sorted(set(frame.depth)) == [1, 4] and set(frame.n) == {8} and len(frame) == 16
    done = eqr(*words, "--out", tmp_path / "table.csv", "--rows", 3)
    written = pd.read_csv(tmp_path / "table.csv")
    assert list(written.columns) == columns.split() and columns.split() == done.out.split()[:13]
    np.testing.assert_allclose(written.residual, frame.residual, atol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "table.csv"]


def test_a_model_without_a_recipe_asks_for_its_data(eqr, learned, problems, tmp_path):
    tensors, meta, _ = load_tensors(learned.path)
    del meta["recipe"]
    save_tensors(tmp_path / "bare.safetensors", tensors, meta)
    eqr("eval", "-c", tmp_path / "bare.safetensors").refused("name it with --data")
    data.save(problems, tmp_path / "set")
    words = ("--data", tmp_path / "set", "--depth", 1, "--select", "average", "--json")
    (row,) = json.loads(eqr("eval", "-c", tmp_path / "bare.safetensors", *words).out)
    assert row["n"] == 24


def test_bench_reports_rates_that_hang_together(eqr, monkeypatch):
    from eqr import compiled

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    # Compiling takes longer than all the rest: here it is refused, and one row remains.
    monkeypatch.setattr(compiled, "trouble", lambda device: "not in this test")
    done = eqr("bench", "sudoku6", "--profile", "smoke", "--seconds", 0.1, "--json")
    (row,) = json.loads(done.out)
    assert row["recipe"] == "sudoku6" and row["batch"] == 16 and row["threads"] == 1
    assert row["operator"] == "eager" and row["train_gain"] == row["eval_gain"] == 1
    each = row["train_ms_per_puzzle_iteration"] * row["batch"] * row["train_steps_per_s"]
    assert each == pytest.approx(1000)
    rate = row["eval_puzzles_per_s_at_depth_16"] * 16 * row["eval_ms_per_puzzle_iteration"]
    assert rate == pytest.approx(1000)
    assert 0 < row["eval_share_of_matmul"] < 1 and 0 < row["train_share_of_matmul"] < 1


def test_bench_fits_how_time_grows_and_knows_how_operations_do(eqr, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    command = ("bench", "sudoku6", "--profile", "smoke", "--seconds", 0.1, "--growth", "--json")
    found = {row["quantity"]: row for row in json.loads(eqr(*command).out)}
    assert set(found) == {"depth", "breadth", "batch", "cells of the board"}
    for name, row in found.items():
        assert len(row["values"]) == len(row["milliseconds"]) == 6
        assert row["low"] <= row["exponent"] <= row["high"]
        if name != "cells of the board":
            assert row["theory"] == pytest.approx(1)
    # The channel map grows linearly with the cells, the token mixer with their square.
    assert 1 < found["cells of the board"]["theory"] < 2


def test_recipes_lists_every_recipe_of_the_profile(eqr):
    rows = json.loads(eqr("recipes", "--profile", "smoke", "--json").out)
    text = eqr("recipes", "--profile", "smoke").out
    assert [row["name"] for row in rows] == recipe_names("smoke")
    assert all(row["name"] in text and row["steps"] > 0 for row in rows)


def test_training_stopped_by_ctrl_c_says_how_to_go_on(tmp_path):
    """SIGINT in the middle of a run: exit 130, one line, and the checkpoint stays."""
    command = [sys.executable, "-m", "eqr", "train", "headroom", "--store", str(tmp_path)]
    command += ["-s", "train.checkpoint_every=1", "-s", "train.batch=4"]
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    usual = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, **usual) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(tmp_path.rglob("resume.safetensors")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert not out and "run the same command again" in err and "Traceback" not in err
    assert list(tmp_path.rglob("resume.safetensors"))


def test_overwrite_replaces_data_sets_only(tmp_path, eqr):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    eqr("data", "build", tmp_path / "thesis", "--overwrite").refused("not a data set")
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
