"""Data sets from elsewhere: Sudoku-Extreme's CSV files, the official arrays, from disk or the hub;
and the paper's Maze-Unique, imported by its hashes or made as its official builder does.

Training augments on the fly, so only the problems themselves are kept. As in sets of our own, no
test solution is a symmetric image of a training solution; what is left out for it is counted.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr.config import DataConfig
from eqr.data import DataError, Dataset, take_rows
from eqr.files import read_whole
from eqr.imports import hub
from eqr.settings import ConfigError
from eqr.streams import stream_seed
from eqr.task import Problems, Task, task_from_dict

SPLITS = ("train", "test")  # of the published files
ARRAYS = ("inputs", "labels", "group_indices")  # the last may be absent
NPY_FILES = tuple(f"{split}/all__{name}.npy" for split in SPLITS for name in ARRAYS)
CSV_FILES = tuple(f"{split}.csv" for split in SPLITS)

#: The columns of a CSV file, by their names in Sudoku-Extreme and in other public sets.
COLUMNS = {
    "question": ("question", "quizzes", "puzzle"),
    "answer": ("answer", "solutions", "solution"),
    "rating": ("rating",),  # may be absent
}

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

Files = Mapping[str, Path | zipfile.Path]  # where the published files are, by their names


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


def import_set(
    source: str, kind: str | None, settings: Mapping[str, Any], pins: Mapping[str, str], **how: Any
) -> Dataset:
    """Read the data set that ``source`` names: a local path, or what :mod:`eqr.imports.hub` reads
    as a source (then its files are fetched), or ``maze-unique``.

    Args:
        kind, settings: of the task; None is Sudoku.
        pins: the sha256 that files must have, by their path below the folder, as in ``train.csv``.
        how: see :func:`read`.

    Raises:
        HubError: a file cannot be had, or is not the one it is pinned to.
        ConfigError, DataError, ProblemError: as :func:`named_task` and :func:`read`.
    """
    kind = kind or (MAZE_UNIQUE if source == MAZE_UNIQUE else "sudoku")
    task = named_task(kind, settings)
    if kind == MAZE_UNIQUE:
        if pins:
            raise ConfigError(f"{MAZE_UNIQUE} brings its own hashes: leave out --sha256")
        pins = UNIQUE_PINS
        if source == MAZE_UNIQUE and not Path(source).exists():
            source = UNIQUE_SOURCE
    place = hub.locate(source, "dataset", data_folders, "data set")
    hub.check_pins(pins, files_of(place.path))
    made = read(place.path, task, **how)
    more = {"source": source, "hub": place.origin} if place.origin else {}
    return replace(made, origin=made.origin | more)


def read(
    source: Path,
    task: Task,
    *,
    train: int | None = 1000,
    test: int | None = None,
    subsample: str = "random",
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    allow_ambiguous: bool = False,
) -> Dataset:
    """Read files as what they are: of a form of the task's own, ``train.csv`` and ``test.csv`` with
    questions and answers (Sudoku-Extreme), or the official arrays ``{train,test}/all__inputs.npy``
    and ``all__labels.npy``.

    Args:
        source: the folder, or an .npz archive with ``{train,test}_inputs`` and ``_labels``.
        task: what the problems are.
        train, test: how many to keep of each; None keeps all.
        subsample: ``"random"`` (seeded, order kept) or ``"first"``.
        seed: of the subsample.
        columns: names in the CSV files of :data:`COLUMNS`, where they are none of the known ones.
        allow_ambiguous: keep problems with several answers where the task says that each has one.

    Repeats are left out, and test problems whose solution is a symmetric image of a training
    solution; the manifest says how many, and how many are ambiguous.

    Raises:
        DataError: a file or column is missing, or something is malformed (names file and line).
        ProblemError: as :meth:`eqr.task.Task.read`.
    """
    source = Path(source)
    files, problems = files_of(source), task.read(source)
    kind = task.kind if problems else "csv" if files[CSV_FILES[0]].is_file() else "npy"
    for name in columns or ():
        if kind != "csv" or name not in COLUMNS:
            rule = f"is of {CSV_FILES[0]} and names {' or '.join(COLUMNS)}"
            raise ConfigError(f"--columns {name}: {rule}; correct it or leave it out")
    if not problems:
        if not any(file.is_file() for file in files.values()):
            where = f"neither {CSV_FILES[0]} nor {NPY_FILES[0]}"
            raise DataError(f"{source}: holds {where}; name the folder that does")
        problems = {}
        for split in SPLITS:
            if kind == "csv":
                made, place, numbers = _csv(files, split, task, columns or {})
            else:
                made, place, numbers = _npy(files, split, task)
            wrong = ~task.check(made.inputs, made.labels)
            if wrong.any():
                raise DataError(
                    f"{place} {numbers[wrong.argmax()]}: the answer breaks the rules of "
                    f"{task.kind}; {wrong.sum()} such, correct them or leave them out"
                )
            problems[split] = made
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
        raise DataError(
            f"{source}: every test problem shares its solution with training, up to symmetry; take "
            "other test problems"
        )
    tested = _subsample(take_rows(problems["test"], new), test, subsample, seed)
    ambiguous = {"train": task.ambiguous(trained.inputs), "test": task.ambiguous(tested.inputs)}
    if any(ambiguous.values()) and not allow_ambiguous:
        raise DataError(
            f"{source}: {ambiguous['train']} of {len(trained)} training and {ambiguous['test']} of "
            f"{len(tested)} test questions have several answers; leave them out, or take them with "
            "--allow-ambiguous"
        )
    origin = {"kind": kind, "source": source.name, "subsample": subsample, "seed": seed}
    left_out = {"left_out_of_test": len(keys) - len(new), "repeats_left_out": repeats}
    more = {"ambiguous": ambiguous} if any(ambiguous.values()) else {}
    return Dataset(task, trained, tested, origin | left_out | more)


def _subsample(problems: Problems, n: int | None, how: str, seed: int) -> Problems:
    if how not in ("random", "first"):
        raise DataError(f"--subsample {how!r} must be 'random' or 'first'")
    if n is None or n >= len(problems):
        return problems
    if how == "first":
        return take_rows(problems, range(n))
    draw = np.random.default_rng(stream_seed(seed, "subsample"))
    return take_rows(problems, np.sort(draw.choice(len(problems), n, replace=False)))


# --- Where the files are --------------------------------------------------------------------------


def files_of(source: Path) -> Files:
    """Where the published files would be in a folder; an archive's arrays, or those of the one
    archive in the folder, go by the same names. Raises DataError where the archive is damaged."""
    inside = list(source.iterdir()) if source.is_dir() else [source]
    if len(inside) > 1 or not inside or inside[0].suffix != ".npz" or not inside[0].is_file():
        return {name: source / name for name in (*CSV_FILES, *NPY_FILES)}
    try:
        with zipfile.ZipFile(inside[0]) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"bad CRC of {damaged}")
    except zipfile.BadZipFile as error:
        raise DataError(f"{inside[0]}: not a readable archive ({error}); get it anew") from error
    names = {name: name.replace("/all__", "_") for name in (*CSV_FILES, *NPY_FILES)}
    return {name: zipfile.Path(inside[0], there) for name, there in names.items()}


def data_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders that hold published files, each with those files.

    >>> data_folders(["README.md", "set/train.csv", "set/test.csv"])
    {'set': ['set/train.csv', 'set/test.csv']}
    """
    folders: dict[str, list[str]] = {}
    for path in paths:
        for name in (*CSV_FILES, *NPY_FILES):
            if f"/{path}".endswith(f"/{name}"):
                folders.setdefault(path.removesuffix(name).rstrip("/"), []).append(path)
    return folders


# --- Reading them: the problems, and where each of them stands ------------------------------------

Read = tuple[Problems, str, np.ndarray]


def _csv(files: Files, split: str, task: Task, given: Mapping[str, str]) -> Read:
    """One CSV file; lines are counted from 1 at the header."""
    path, cells = files[f"{split}.csv"], task.seq_len
    signs = [task.format(np.full(cells, token)) for token in range(1, task.vocab_size)]
    if len(signs[0]) != cells:
        raise DataError(
            f"{path}: --kind {task.kind} cannot be read from CSV; see `eqr data import -h`"
        )
    tokens = {sign[0]: token for token, sign in enumerate(signs, 1)}
    tokens = {"0": tokens["."], "_": tokens["."]} | tokens
    options = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    try:
        table = pd.read_csv(path, encoding_errors="replace", **options)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: not a readable CSV file ({error}); get it anew") from error
    columns = {}
    for field, known in COLUMNS.items():
        wanted = [given[field]] if field in given else known
        there = [name for name in wanted if name in table.columns]
        if not there and (field != "rating" or field in given):
            there = f"no column {' or '.join(wanted)} among {', '.join(table.columns)}"
            raise DataError(f"{path}: {there}; name it with --columns {field}=NAME")
        columns |= {name: field for name in there[:1]}
    table = table[[*columns]].rename(columns=columns)
    table = table[(table != "").any(axis=1)]  # blank lines hold nothing, but count as lines
    if not len(table):
        raise DataError(f"{path}: holds no puzzles")
    lines = table.index.to_numpy() + 2

    def require(right: pd.Series, field: str, rule: str) -> None:
        if not right.all():
            row = right.to_numpy().argmin()
            value = table[field].iloc[row]
            raise DataError(f"{path}, line {lines[row]}: {field} {value!r:.90} must {rule}")

    arrays, code = [], np.zeros(128, np.uint8)
    code[[ord(sign) for sign in tokens]] = [*tokens.values()]
    board = f"have {cells} characters; or name another board, as with -s box_height=2"
    for field in ("question", "answer"):
        require(table[field].str.len() == cells, field, board)
        alphabet = re.escape("".join(tokens))
        require(
            table[field].str.fullmatch(f"[{alphabet}]*"), field, f"hold only {' '.join(tokens)}"
        )
        text = "".join(table[field]).encode("ascii")
        arrays.append(code[np.frombuffer(text, np.uint8)].reshape(-1, cells))
    rating = task.rate(arrays[1])
    if "rating" in table:
        require(table.rating.str.fullmatch("[0-9]+"), "rating", "be a whole number")
        rating = table.rating.astype(float).clip(upper=2**31 - 1).to_numpy(np.int32)
    return Problems(*arrays, rating), f"{path}, line", lines


def _npy(files: Files, split: str, task: Task) -> Read:
    """The official arrays of a split: each problem followed by its augmentations.

    Where ``all__group_indices.npy`` says so, only the first of each group is kept, since eqr
    augments while it trains.
    """
    arrays, paths = {}, {name: files[f"{split}/all__{name}.npy"] for name in ARRAYS}
    for name, path in paths.items():
        if name == "group_indices" and not path.is_file():
            continue
        arrays[name] = read_whole(path, "get it anew")
    count = len(arrays["inputs"])
    for name in ("inputs", "labels"):
        shape = arrays[name].shape
        if not count or shape != (count, task.seq_len):
            rule = f"must be (n, {task.seq_len}) for inputs and labels; name the task that fits"
            raise DataError(f"{paths[name]}: shape {shape} {rule}")
        if arrays[name].min() < 0 or arrays[name].max() >= task.vocab_size:
            raise DataError(
                f"{paths[name]}: tokens must be 0..{task.vocab_size - 1}; name the task"
            )
    rows = arrays.get("group_indices", np.arange(count + 1))[:-1].astype(np.int64)
    if not len(rows) or rows.min() < 0 or rows.max() >= count:
        raise DataError(f"{paths['group_indices']}: does not fit inputs and labels; get it anew")
    inputs, labels = (arrays[name][rows].astype(np.uint8) for name in ("inputs", "labels"))
    return Problems(inputs, labels, task.rate(labels)), f"{paths['labels']}, problem", rows
