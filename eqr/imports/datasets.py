"""Data sets from elsewhere: Sudoku-Extreme's CSV files, the official arrays, from disk or the hub;
and the paper's Maze-Unique, imported by its hashes or made as its official builder does.

Training augments on the fly, so only the problems themselves are kept. As in sets of our own, no
test solution is a symmetric image of a training solution; what is left out for it is counted.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr.config import DataConfig
from eqr.data import DataError, Dataset, file_sha256, take_rows
from eqr.imports import hub
from eqr.settings import ConfigError, nearest
from eqr.streams import stream_seed
from eqr.task import Problems, Task, task_from_dict

SPLITS = ("train", "test")  # of the published files
CSV_FILES = tuple(f"{split}.csv" for split in SPLITS)
NPY_FILES = tuple(f"{split}/all__{name}.npy" for split in SPLITS for name in ("inputs", "labels"))
NPY_GROUPS = tuple(f"{split}/all__group_indices.npy" for split in SPLITS)  # where there are any

#: The paper's mazes: their name as a source and kind, the task, where they are, their sha256.
MAZE_UNIQUE = "maze-unique"
UNIQUE_TASK = {"kind": "maze", "path_min": 100, "path_max": 140}
UNIQUE_SOURCE = "hub:eqr-data/maze-30x30-unique-1k"
UNIQUE_PINS = {
    "train/all__inputs.npy": "2922455815232dcb636ee45f335e7ce834aa45d4fab743b96ac97c17284ca7e2",
    "train/all__labels.npy": "6b1a99761606b78f85fe43085b158457f22a3d6274b1e09f12f7b16814fdb5e4",
    "test/all__inputs.npy": "c501b3f75ec018e27fd6d00534b6738ebcc555da50536909e530787d16b1ce0f",
    "test/all__labels.npy": "20b21168459847fb260d986394098addf7cca94becc7e682dcb358967d5993dc",
}


def named_task(kind: str, settings: Mapping[str, Any]) -> Task:
    """The task of a kind, or that of Maze-Unique, which has no settings; raises ConfigError."""
    if kind != MAZE_UNIQUE:
        return task_from_dict({"kind": kind, **settings})
    if settings:
        raise ConfigError(f"--kind {MAZE_UNIQUE} is one data set: use --kind maze with --set")
    return task_from_dict(UNIQUE_TASK)


def build_official(task: Task, config: DataConfig) -> Dataset:
    """The mazes of the official builder (``Maze.generate_official``) in its order: training, test,
    validation. With 1,000 + 1,000 and seed 42 they are the paper's."""
    wanted = {s: getattr(config, s) for s in (*SPLITS, "validation") if getattr(config, s)}
    made = task.generate_official(sum(wanted.values()), config.seed)
    rows = iter(range(len(made)))
    parts = {split: take_rows(made, islice(rows, n)) for split, n in wanted.items()}
    return Dataset(task, origin={"kind": "official", "seed": config.seed, **wanted}, **parts)


def read(
    source: Path,
    task: Task,
    *,
    train: int | None = 1000,
    test: int | None = None,
    subsample: str = "random",
    seed: int = 0,
) -> Dataset:
    """Read files as what they are: of a form of the task's own, ``train.csv`` and ``test.csv`` with
    the columns ``source,question,answer,rating`` (Sudoku-Extreme), or the official arrays
    ``{train,test}/all__inputs.npy`` and ``all__labels.npy``.

    Args:
        source: the folder, or an .npz archive with ``{train,test}_inputs`` and ``_labels``.
        task: what the problems are.
        train, test: how many to keep of each; None keeps all.
        subsample: ``"random"`` (seeded, order kept) or ``"first"``.
        seed: of the subsample.

    Repeats are left out, and test problems whose solution is a symmetric image of a training
    solution; the manifest says how many.

    Raises:
        DataError: a file or column is missing, or something is malformed (names file and line).
        ProblemError: as :meth:`eqr.task.Task.read`.
    """
    source = Path(source)
    if own := task.read(source):
        kind, problems = task.kind, own
    elif (source / CSV_FILES[0]).is_file():
        kind, problems = "csv", {s: _read_csv(source / f"{s}.csv", task) for s in SPLITS}
    elif _file(source, NPY_FILES[0]).is_file() or (source / SPLITS[0]).is_dir():
        kind, problems = "npy", {s: _read_npy(source, s, task) for s in SPLITS}
    else:
        raise DataError(f"{source}: holds neither {CSV_FILES[0]} nor {NPY_FILES[0]}")
    repeats = {}
    for split in SPLITS:
        first = np.unique(problems[split].inputs, axis=0, return_index=True)[1]
        repeats[split] = len(problems[split]) - len(first)
        problems[split] = take_rows(problems[split], np.sort(first))
    trained = _subsample(problems["train"], train, subsample, seed)
    known = set(task.symmetry_key(trained.inputs, trained.labels))
    keys = task.symmetry_key(problems["test"].inputs, problems["test"].labels)
    new = [row for row, key in enumerate(keys) if key not in known]
    if not new:
        raise DataError("every test problem shares its solution with training, up to symmetry")
    tested = _subsample(take_rows(problems["test"], new), test, subsample, seed)
    origin = {"kind": kind, "source": source.name, "subsample": subsample, "seed": seed}
    left_out = {"left_out_of_test": len(keys) - len(new), "repeats_left_out": repeats}
    return Dataset(task, trained, tested, origin | left_out)


def _subsample(problems: Problems, n: int | None, how: str, seed: int) -> Problems:
    if how not in ("random", "first"):
        raise DataError(f"subsample = {how!r} must be 'random' or 'first'")
    if n is None or n >= len(problems):
        return problems
    if how == "first":
        return take_rows(problems, range(n))
    draw = np.random.default_rng(stream_seed(seed, "subsample"))
    return take_rows(problems, np.sort(draw.choice(len(problems), n, replace=False)))


# --- Where the files are --------------------------------------------------------------------------


def locate(source: str, pins: Mapping[str, str] | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder that ``source`` names, and what to record of where it came from.

    It is a local path (with a folder that holds only an archive, the archive is meant), or what
    :mod:`eqr.imports.hub` reads as a source: then its files are fetched. ``pins`` are the sha256
    that files must have, by their path below the folder, as in ``train.csv``.

    Raises:
        HubError: a file cannot be had, or is not the one it is pinned to.
    """
    pins, remote = pins or {}, hub.parse(source, "dataset")
    if remote is None:
        folder = Path(source)
        inside = list(folder.iterdir()) if folder.is_dir() else []
        if len(inside) == 1 and inside[0].suffix == ".npz":
            folder = inside[0]
        files = {name: _file(folder, name) for name in (*CSV_FILES, *NPY_FILES, *NPY_GROUPS)}
        _check_names(pins, [name for name, file in files.items() if file.is_file()])
        hub.check_pins(pins, {name: file_sha256(files[name]) for name in pins})
        return folder, {}
    repository = hub.open_repository(remote)
    folders = data_folders(repository.files)
    below = hub.pick(remote, folders, "data set")
    _check_names(pins, folders[below])
    paths = {name: f"{below}/{name}".lstrip("/") for name in folders[below]}
    fetched = repository.fetch(paths.values(), {paths[name]: pin for name, pin in pins.items()})
    return fetched / below, {"source": str(remote), "hub": repository.origin()}


def _file(source: Path, name: str) -> Path | zipfile.Path:
    """A file by its name below the folder, or the array of that split and name in an archive."""
    if source.suffix != ".npz" or not source.is_file():
        return source / name
    try:
        with zipfile.ZipFile(source) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"bad CRC of {damaged}")
    except zipfile.BadZipFile as error:
        raise DataError(f"{source}: not a readable archive ({error}); get it anew") from error
    return zipfile.Path(source, name.replace("/all__", "_"))


def data_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders that hold a data set, each with the files that are read, those it lacks too.

    >>> data_folders(["README.md", "set/train.csv", "set/test.csv"])
    {'set': ['train.csv', 'test.csv']}
    """
    paths, folders = set(paths), {}
    for names in (NPY_FILES, CSV_FILES):  # a folder with both is read as CSV, as `read` does
        for path in paths:
            if path == names[0] or path.endswith(f"/{names[0]}"):
                folder = path.removesuffix(names[0])
                groups = [n for n in NPY_GROUPS if names is NPY_FILES and folder + n in paths]
                folders[folder.rstrip("/")] = [*names, *groups]
    return folders


def _check_names(pins: Mapping[str, str], names: list[str]) -> None:
    for name in pins:
        if name not in names:
            raise hub.HubError(f"sha256 of {name}: no such file is read; {nearest(name, names)}")


# --- Reading them ---------------------------------------------------------------------------------


def _read_csv(path: Path, task: Task) -> Problems:
    """One CSV file as problems; the errors name the line, counted from 1 at the header."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if task.kind != "sudoku":
        raise DataError(f"{path}: a CSV file holds Sudoku puzzles; leave out --kind {task.kind}")
    columns = ["source", "question", "answer", "rating"]
    options = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    try:
        table = pd.read_csv(path, encoding_errors="replace", **options)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    if list(table.columns) != columns:
        raise DataError(f"{path}: columns {list(table.columns)}, expected {','.join(columns)}")
    table = table[(table != "").any(axis=1)]  # blank lines hold nothing, but count as lines
    if not len(table):
        raise DataError(f"{path}: holds no puzzles")

    def refuse(wrong: pd.Series | np.ndarray, why: Callable[[pd.Series], str]) -> None:
        wrong = np.asarray(wrong)
        if wrong.any():
            row = table.iloc[wrong.argmax()]
            raise DataError(f"{path}, line {row.name + 2}: {why(row)}")

    cells, tokens = task.seq_len, {}
    for field in ("question", "answer"):
        refuse(
            table[field].str.len() != cells,
            lambda row, field=field: f"{field} has {len(row[field])} characters, expected {cells}",
        )
        refuse(
            ~table[field].str.fullmatch(r"[0-9.]*"),
            lambda _, field=field: f"{field} may hold only digits and '.'",
        )
        joined = "".join(table[field]).replace(".", "0").encode("ascii")
        tokens[field] = np.frombuffer(joined, np.uint8).reshape(-1, cells) - np.uint8(ord("0") - 1)
    refuse(
        ~table.rating.str.fullmatch(r"[0-9]+"),
        lambda row: f"rating {row.rating!r} is not a whole number",
    )
    rating = table.rating.astype(float).clip(upper=np.iinfo(np.int32).max).to_numpy(np.int32)
    wrong = ~task.check(tokens["question"], tokens["answer"])
    refuse(wrong, lambda _: "answer does not solve question")
    return Problems(tokens["question"], tokens["answer"], rating)


def _read_npy(source: Path, split: str, task: Task) -> Problems:
    """The official arrays of a split: each problem followed by its augmentations.

    Where ``all__group_indices.npy`` says so, only the first of each group is kept, since eqr
    augments while it trains.
    """
    arrays = {}
    for name in ("inputs", "labels"):
        path = _file(source, f"{split}/all__{name}.npy")
        array = arrays[name] = _load_npy(path)
        if array.ndim != 2 or array.shape[1] != task.seq_len:
            raise DataError(
                f"{path}: shape {array.shape} does not fit {task.seq_len} tokens; "
                "name the task that fits"
            )
        if not len(array):
            raise DataError(f"{path}: holds no problems")
        if array.min() < 0 or array.max() >= task.vocab_size:
            raise DataError(f"{path}: tokens outside 0..{task.vocab_size - 1}")
    if arrays["inputs"].shape != arrays["labels"].shape:
        raise DataError(f"{source / split}: inputs and labels differ in shape")
    rows = np.arange(len(arrays["inputs"]))
    groups = _file(source, f"{split}/all__group_indices.npy")
    if groups.is_file():
        rows = _load_npy(groups)[:-1].astype(np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= len(arrays["inputs"]):
            raise DataError(f"{groups}: does not fit all__inputs.npy")
    inputs, labels = (arrays[name][rows].astype(np.uint8) for name in ("inputs", "labels"))
    wrong = ~task.check(inputs, labels)
    if wrong.any():
        raise DataError(
            f"{source / split}: the label of problem {int(np.argmax(wrong))} breaks the rules of "
            f"{task.kind}; {int(wrong.sum())} such"
        )
    return Problems(inputs, labels, task.rate(labels))


def _load_npy(path: Path | zipfile.Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable array ({error})") from error
