"""Data sets: splits that share nothing, and files that cannot lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from eqr import data
from eqr.config import DataConfig
from eqr.data import DataError
from eqr.imports import datasets
from eqr.settings import ProblemError, digest
from eqr.task import Problems
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku


def same(one: Problems, other: Problems) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in data.ARRAYS)


@pytest.mark.parametrize(
    "task",
    [Sudoku(2, 2, clues_min=5, clues_max=9), Sudoku(2, 3, clues_min=10), Maze(9, 9, path_min=6)],
    ids=["4x4", "6x6", "maze"],
)
def test_splits_have_their_sizes_and_share_no_solution_up_to_symmetry(task):
    third = {} if task.seq_len == 16 else {"validation": 30}  # 4×4 Sudoku has two groups
    config = DataConfig(train=40, test=25, seed=3, **third)
    built = data.build(task, config)
    sizes = {split: len(problems) for split, problems in built.splits.items()}
    assert sizes == {"train": 40, "test": 25} | third
    keys = [set(task.symmetry_key(p.inputs, p.labels)) for p in built.splits.values()]
    assert all(keys) and not any(a & b for a, b in combinations(keys, 2))
    for split in built.splits.values():
        assert task.check(split.inputs, split.labels).all()
        assert len(np.unique(split.inputs, axis=0)) == len(split)
    again, other = data.build(task, config), data.build(task, replace(config, seed=4))
    assert again.digest == built.digest and same(again.train, built.train)
    assert other.digest != built.digest


def test_impossible_requests_are_refused_with_what_is_possible():
    with pytest.raises(ProblemError, match=r"clues_min=3: .*4 to 16 clues"):
        Sudoku(2, 2, clues_min=3)
    with pytest.raises(ProblemError, match=r"no path of 98 or more steps: on 7x7"):
        Maze(7, 7, path_min=98)
    with pytest.raises(DataError, match="ask for fewer, or for a larger board"):
        data.build(Sudoku(2, 2, clues_min=16), DataConfig(train=200, test=150))  # 288 grids
    with pytest.raises(ProblemError, match="widen clues_min"):
        data.build(Sudoku(2, 2, clues_min=9, minimal=True), DataConfig(train=2, test=2))


def test_a_few_problems_of_a_task_with_two_groups_can_be_split():
    """A first pool that falls into one group must be widened: 4×4 Sudoku has two."""
    for seed in range(20):
        built = data.build(Sudoku(2, 2, clues_min=7), DataConfig(train=2, test=2, seed=seed))
        assert (len(built.train), len(built.test)) == (2, 2)


def test_what_is_saved_is_what_is_loaded_and_appears_all_at_once(problems, tmp_path, monkeypatch):
    folder = data.save(problems, tmp_path / "set")
    loaded = data.load(folder)
    assert loaded.task == problems.task and loaded.digest == problems.digest
    assert same(loaded.train, problems.train) and same(loaded.test, problems.test)
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "no temporary is left"
    three = data.load(data.save(replace(problems, validation=problems.test), tmp_path / "three"))
    assert same(three.validation, problems.test) and three.digest != problems.digest
    assert data.verify(tmp_path / "three")["test_shares_solution_with_validation"] == len(
        three.test
    )
    shutil.rmtree(tmp_path / "three")
    with pytest.raises(DataError, match="exists already"):
        data.save(problems, folder)
    swapped = replace(problems, train=problems.test, test=problems.train)
    assert data.load(data.save(swapped, folder, overwrite=True)).digest == swapped.digest
    write = np.save

    def slow(path, *rest, **settings):  # meanwhile another process finishes the same set
        write(path, *rest, **settings)
        if not (tmp_path / "raced").exists():
            (tmp_path / "set").rename(tmp_path / "raced")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="exists already"):
        patch.setattr(data.np, "save", slow)
        data.save(problems, tmp_path / "raced")
    (tmp_path / "raced").rename(tmp_path / "set")
    broken = replace(problems, origin={"seed": object()})
    with pytest.raises(TypeError):
        data.save(broken, tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "a failure leaves nothing"


@pytest.mark.parametrize("name", ["train_inputs.npy", "test_labels.npy", "test_rating.npy"])
def test_a_flipped_byte_a_cut_and_a_missing_file_are_named(problems, tmp_path, name):
    folder = data.save(problems, tmp_path / "set")
    raw = (folder / name).read_bytes()
    for at in (3, 70, len(raw) - 1):
        (folder / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(DataError, match=f"{name}: altered"):
            data.load(folder)
    (folder / name).write_bytes(raw[:-1])
    with pytest.raises(DataError, match=f"{name}: altered or truncated"):
        data.load(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        data.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["sizes"].update(train=63), r"sizes\.train"),
        (lambda m: m.update(digest="0" * 16), "digest"),
        (lambda m: m.update(format="eqr-data-0"), "format"),
        (lambda m: m.update(task={"kind": "sudoku", "box_width": 2}), "task does not fit"),
        (lambda m: m["task"].update(kind="sudko"), "sudko"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m.pop("origin"), "origin"),
    ],
    ids=["sizes", "digest", "format", "task", "kind", "no files", "no origin"],
)
def test_a_manifest_that_does_not_fit_is_named_with_the_field(problems, tmp_path, change, said):
    path = data.save(problems, tmp_path / "set") / data.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        data.load(tmp_path / "set")
    del manifest["seal"]  # whoever alters it may seal it anew
    path.write_text(json.dumps(manifest | {"seal": digest(manifest)}))
    with pytest.raises(DataError, match=f"manifest.json.*{said}"):
        data.load(tmp_path / "set")


def test_a_manifest_that_is_missing_or_no_json_is_named(problems, tmp_path):
    path = data.save(problems, tmp_path / "set") / data.MANIFEST
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        data.load(tmp_path / "set")
    path.unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        data.load(tmp_path / "set")


def test_verify_counts_wrong_labels_repeats_and_shared_solutions(problems, tmp_path):
    sound = data.verify(data.save(problems, tmp_path / "sound"))
    assert (sound["train"], sound["test"]) == (64, 24)
    assert not any(value for key, value in sound.items() if "_" in key)
    labels = problems.train.labels.copy()
    labels[[1, 2], 5] = labels[[1, 2], 6]
    train = replace(problems.train, labels=labels)
    inputs = problems.test.inputs.copy()
    inputs[3] = inputs[4]
    test = replace(problems.test, inputs=inputs)
    bad = data.verify(data.save(replace(problems, train=train, test=test), tmp_path / "bad"))
    assert (bad["train_wrong_labels"], bad["test_repeated"]) == (2, 1)
    # Relabelled copies of training puzzles as test puzzles: every solution is shared.
    relabel = np.array([0, 1, 3, 2, 5, 4], np.uint8)
    image = Problems(
        *(relabel[getattr(problems.train, n)[:6]] for n in data.ARRAYS[:2]), labels[:6, 0]
    )
    shared = data.verify(data.save(replace(problems, test=image), tmp_path / "shared"))
    assert shared["test_shares_solution_with_train"] == 6


def test_a_recipe_takes_its_problems_from_cache_or_source_and_says_what_does_not_fit(
    make_recipe, problems, tmp_path
):
    first = data.for_recipe(make_recipe(), tmp_path / "cache")
    assert first.digest == problems.digest
    (folder,) = (tmp_path / "cache").iterdir()
    stamp = (folder / data.MANIFEST).stat().st_mtime_ns
    assert data.for_recipe(make_recipe(), tmp_path / "cache").digest == first.digest
    assert (folder / data.MANIFEST).stat().st_mtime_ns == stamp, "made once"
    fewer = make_recipe(data={"source": str(folder), "train": 10, "test": 5})
    part = data.for_recipe(fewer, tmp_path / "cache")
    assert np.array_equal(part.train.inputs, problems.train.inputs[:10]) and len(part.test) == 5
    with pytest.raises(DataError, match=r"has 24 test problems, but data\.test = 99"):
        data.for_recipe(make_recipe(data={"source": str(folder), "test": 99}), tmp_path)
    with pytest.raises(DataError, match="the recipe's task is"):
        data.for_recipe(make_recipe(data={"source": str(folder)}, task={"clues_max": 10}), tmp_path)


def test_the_papers_mazes_come_from_an_archive_and_have_their_hashes(eqr, tmp_path, monkeypatch):
    """A small stand-in for them, imported and built: one and the same data set."""
    small = {"kind": "maze", "height": 9, "width": 9, "path_min": 6, "path_max": 12}
    monkeypatch.setattr(datasets, "UNIQUE_TASK", small)
    sizes = ("--train", 6, "--test", 4, "--validation", 2, "--seed", 1)
    assert eqr("data", "build", tmp_path / "built", "--kind", "maze-unique", *sizes).code == 0
    made, arrays, pins = data.load(tmp_path / "built"), {}, {}
    assert len(made.validation) == 2 and data.verify(tmp_path / "built")["test_wrong_labels"] == 0
    for split, problems in (("train", made.train), ("test", made.test)):
        for name in ("inputs", "labels"):
            arrays[f"{split}_{name}"] = getattr(problems, name)
            file = tmp_path / "built" / f"{split}_{name}.npy"
            pins[f"{split}/all__{name}.npy"] = data.file_sha256(file)
    (tmp_path / "paper").mkdir()
    np.savez(tmp_path / "paper/mazes.npz", **arrays)
    words = ("data", "import", tmp_path / "paper", tmp_path / "out", "--kind", "maze-unique")
    assert "train/all__inputs.npy: field sha256 is" in eqr(*words).err
    monkeypatch.setattr(datasets, "UNIQUE_PINS", pins)
    assert eqr(*words).code == 0
    assert replace(made, validation=None).digest == data.load(tmp_path / "out").digest
    words = (*words, "--overwrite")
    assert "leave out --sha256" in eqr(*words, "--sha256", f"train.csv={'0' * 64}").err
    assert "use --kind maze with --set" in eqr(*words, "-s", "loops=1").err
    (tmp_path / "paper/mazes.npz").write_bytes(b"PK")
    assert "mazes.npz: not a readable archive" in eqr(*words).err
