"""Imported data: taken as it is, or refused with the file and line that is wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from eqr.data import DataError, file_sha256, load, verify
from eqr.imports import datasets
from eqr.imports.datasets import read
from eqr.task import Problems
from eqr.tasks.sudoku import Sudoku

HEADER = "source,question,answer,rating"


@pytest.fixture(scope="module")
def pool() -> Problems:
    """9×9 puzzles to write CSV files and official arrays from."""
    return Sudoku().generate(9, seed=1)


@pytest.fixture
def csv(tmp_path, pool):
    """A folder with train.csv (6 puzzles) and test.csv (3): change a file, then import."""
    task = Sudoku()
    rows = [
        f"made,{task.format(q)},{task.format(a)},{k}"
        for k, (q, a) in enumerate(zip(pool.inputs, pool.labels, strict=True))
    ]
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train.csv").write_text("\n".join([HEADER, *rows[:6]]) + "\n")
    (folder / "test.csv").write_text("\n".join([HEADER, *rows[6:]]) + "\n")
    return folder


def test_csv_is_read_as_it_is_and_subsampled_by_seed(csv, pool):
    whole = read(csv, Sudoku(), train=None)
    assert np.array_equal(whole.train.inputs, pool.inputs[:6])
    assert np.array_equal(whole.test.labels, pool.labels[6:])
    assert whole.train.rating.tolist() == [0, 1, 2, 3, 4, 5]
    (csv / "train.csv").write_text((csv / "train.csv").read_text().replace(".", "0"))
    assert read(csv, Sudoku(), train=None).digest == whole.digest, "0 is a blank too"
    picks = {
        seed: read(csv, Sudoku(), train=3, seed=seed).train.rating.tolist() for seed in range(5)
    }
    assert picks[0] == read(csv, Sudoku(), train=3, seed=0).train.rating.tolist()
    assert len(set(map(tuple, picks.values()))) > 1
    assert all(pick == sorted(pick) and len(pick) == 3 for pick in picks.values())
    first = read(csv, Sudoku(), train=2, test=1, subsample="first")
    assert first.train.rating.tolist() == [0, 1] and first.test.rating.tolist() == [6]


def break_line(csv, number: int, change) -> None:
    """Change the fields of line ``number`` (from 1) of train.csv."""
    lines = (csv / "train.csv").read_text().splitlines()
    lines[number - 1] = ",".join(change(lines[number - 1].split(",")))
    (csv / "train.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: [f[0], f[1] + ".", *f[2:]], "question has 82 characters, expected 81"),
        (lambda f: f[:2], "answer has 0 characters"),
        (lambda f: [f[0], "é" + f[1][1:], *f[2:]], "question may hold only digits"),
        (lambda f: [*f[:2], f[2][1:] + f[2][0], f[3]], "answer does not solve question"),
        (lambda f: [*f[:3], "²"], "rating '²'"),
    ],
    ids=["long", "missing", "letter", "wrong answer", "rating"],
)
def test_a_malformed_csv_row_is_named_by_file_and_line(csv, change, said):
    break_line(csv, 4, change)
    with pytest.raises(DataError, match=rf"train\.csv, line 4: {said}"):
        read(csv, Sudoku())


def test_a_wrong_answer_below_a_blank_line_is_named_by_its_line(csv):
    break_line(csv, 5, lambda f: [*f[:2], f[2][1:] + f[2][0], f[3]])
    lines = (csv / "train.csv").read_text().splitlines()
    (csv / "train.csv").write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"train\.csv, line 6: answer does not solve"):
        read(csv, Sudoku())


def test_wrong_columns_an_empty_file_and_a_missing_file_are_named(csv):
    text = (csv / "test.csv").read_text()
    (csv / "test.csv").write_text(text.replace("question", "puzzle", 1))
    with pytest.raises(DataError, match=r"test\.csv: columns .*puzzle.*expected source,question"):
        read(csv, Sudoku())
    (csv / "test.csv").write_text(HEADER + "\n")
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
    assert (
        np.array_equal(actual.test.inputs, pool.inputs[3:5])
        and actual.test.inputs.dtype == np.uint8
    )
    with pytest.raises(DataError, match=r"all__inputs\.npy: shape .* does not fit 16 tokens"):
        read(tmp_path / "npy", Sudoku(2, 2))
    labels = tmp_path / "npy/test/all__labels.npy"
    np.save(labels, pool.labels[[4, 3]])
    with pytest.raises(DataError, match="test: the label of problem 0 breaks the rules"):
        read(tmp_path / "npy", Sudoku())
    np.save(labels, np.full((2, 81), 11))
    with pytest.raises(DataError, match=r"all__labels\.npy: tokens outside 0\.\.10"):
        read(tmp_path / "npy", Sudoku())
    np.save(labels, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"all__labels\.npy: not a readable array"):
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
    for split, source in (
        ("train", "shift_forum_hardest_1106"),
        ("test", "shift_magictour_top1465"),
    ):
        shutil.copy(shared / "data" / "sudoku" / f"{source}.csv", tmp_path / f"{split}.csv")
    actual = read(tmp_path, Sudoku(), train=30, test=30)
    assert (
        len(actual.train) == 30 and actual.task.check(actual.test.inputs, actual.test.labels).all()
    )
    first = (tmp_path / "test.csv").read_text().splitlines()[1:]
    questions = {line.split(",")[1] for line in first}
    assert {actual.task.format(row) for row in actual.test.inputs} <= questions
