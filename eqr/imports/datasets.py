"""Data sets from elsewhere: Sudoku-Extreme's CSV files, the official arrays, the hub.

Training augments on the fly, so only the problems themselves are kept. As in sets of our own, no
test solution is a symmetric image of a training solution; what is left out for it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr.data import SPLITS, DataError, Dataset, file_sha256, take_rows
from eqr.imports import hub
from eqr.settings import nearest
from eqr.streams import stream_seed
from eqr.task import Problems, Task
from eqr.tasks.sudoku import Sudoku

CSV_FILES = tuple(f"{split}.csv" for split in SPLITS)
NPY_FILES = tuple(f"{split}/all__{name}.npy" for split in SPLITS for name in ("inputs", "labels"))
SUBSAMPLED = {"subsample": "random", "seed": 0}
NPY_GROUPS = tuple(f"{split}/all__group_indices.npy" for split in SPLITS)  # where there are any


def read_sudoku_csv(
    source: Path,
    *,
    train: int | None = 1000,
    test: int | None = None,
    subsample: str = "random",
    seed: int = 0,
) -> Dataset:
    """Read ``train.csv`` and ``test.csv`` with the columns ``source,question,answer,rating``.

    Args:
        source: a directory with both files (the schema of Sudoku-Extreme).
        train, test: how many to keep of each; None keeps all.
        subsample: ``"random"`` (seeded, order kept) or ``"first"``.
        seed: of the subsample.

    Test puzzles whose solution is a symmetric image of a training solution are left out, and the
    manifest says how many.

    Raises:
        DataError: a file or column is missing, or a row is malformed (names file and line).
    """
    task = Sudoku()
    found = {split: _read_csv(Path(source) / f"{split}.csv", task) for split in SPLITS}
    origin = {"kind": "csv", "source": Path(source).name, "subsample": subsample, "seed": seed}
    return _imported(task, found, train, test, origin)


def read_npy(
    source: Path,
    task: Task,
    *,
    train: int | None = 1000,
    test: int | None = None,
    subsample: str = "random",
    seed: int = 0,
) -> Dataset:
    """Read the official arrays: ``{train,test}/all__inputs.npy`` and ``all__labels.npy``.

    Training arrays hold each problem followed by its augmentations; where
    ``all__group_indices.npy`` says so, only the first of each group is kept, since eqr augments
    while it trains. Arguments and errors as :func:`read_sudoku_csv`.
    """
    found = {}
    for split in SPLITS:
        arrays = {}
        for name in ("inputs", "labels"):
            path = Path(source) / split / f"all__{name}.npy"
            arrays[name] = _load_npy(path)
            if arrays[name].ndim != 2 or arrays[name].shape[1] != task.seq_len:
                raise DataError(
                    f"{path}: shape {arrays[name].shape} does not fit {task.seq_len} tokens; "
                    "name the task that fits"
                )
            if not len(arrays[name]):
                raise DataError(f"{path}: holds no problems")
            if arrays[name].min() < 0 or arrays[name].max() >= task.vocab_size:
                raise DataError(f"{path}: tokens outside 0..{task.vocab_size - 1}")
        if arrays["inputs"].shape != arrays["labels"].shape:
            raise DataError(f"{Path(source) / split}: inputs and labels differ in shape")
        rows = np.arange(len(arrays["inputs"]))
        groups = Path(source) / split / "all__group_indices.npy"
        if groups.is_file():
            rows = _load_npy(groups)[:-1].astype(np.int64)
            if not len(rows) or rows.min() < 0 or rows.max() >= len(arrays["inputs"]):
                raise DataError(f"{groups}: does not fit all__inputs.npy")
        inputs, labels = (arrays[n][rows].astype(np.uint8) for n in ("inputs", "labels"))
        wrong = ~task.check(inputs, labels)
        if wrong.any():
            raise DataError(
                f"{Path(source) / split}: the label of problem {int(np.argmax(wrong))} breaks the "
                f"rules of {task.kind}; {int(wrong.sum())} such"
            )
        found[split] = Problems(inputs, labels, np.zeros(len(inputs), np.int32))
    origin = {"kind": "npy", "source": Path(source).name, "subsample": subsample, "seed": seed}
    return _imported(task, found, train, test, origin)


def read(source: Path, task: Task, **sizes) -> Dataset:
    """Read files as what they are: of a form of the task's own, ``train.csv``, or arrays below
    ``train``.

    Raises:
        DataError: none of these; and as :func:`read_sudoku_csv` and :func:`read_npy`.
        ProblemError: as :meth:`eqr.task.Task.read`.
    """
    if own := task.read(source):
        origin = {"kind": task.kind, "source": source.name}
        origin |= {key: sizes.get(key, usual) for key, usual in SUBSAMPLED.items()}
        return _imported(task, own, sizes.get("train"), sizes.get("test"), origin)
    if (source / "train.csv").is_file():
        return read_sudoku_csv(source, **sizes)
    if (source / "train").is_dir():
        return read_npy(source, task, **sizes)
    raise DataError(f"{source}: holds neither train.csv nor train/all__inputs.npy")


@contextmanager
def located(
    source: str, pins: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder that ``source`` names, and what to record of where it came from.

    It is a local path, or what :mod:`eqr.imports.hub` reads as a source: then its files are
    fetched, and lie in the store until the block ends without an error. ``pins`` are the sha256
    that files must have, by their path below the folder, as in ``train.csv``.

    Raises:
        HubError: a file cannot be had, or is not the one it is pinned to.
    """
    pins = pins or {}
    found = hub.parse(source, "dataset")
    if found is None:
        folder = Path(source)
        there = [
            name for name in (*CSV_FILES, *NPY_FILES, *NPY_GROUPS) if (folder / name).is_file()
        ]
        _check_pinned(pins, there)
        hub.check_pins(pins, {name: file_sha256(folder / name) for name in pins})
        yield folder, {}
        return
    with hub.opened(found) as repository:
        folders = data_folders(repository.files)
        below = hub.pick(found, folders, "data set")
        _check_pinned(pins, folders[below])
        names = {name: f"{below}/{name}".lstrip("/") for name in folders[below]}
        for path in names.values():
            if path not in repository.files:
                raise hub.HubError(f"{found}: has no file {path}, which a data set needs")
        repository.pins = {names[name]: sha256 for name, sha256 in pins.items()}
        for path in names.values():
            repository.fetch(path)
        yield repository.folder / below, {"source": str(found), "hub": repository.origin()}


def data_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders that hold a data set, each with the files that are read, those it lacks too.

    >>> data_folders(["README.md", "set/train.csv", "set/test.csv"])
    {'set': ['train.csv', 'test.csv']}
    """
    paths, found = set(paths), {}
    for names in (NPY_FILES, CSV_FILES):  # a folder with both is read as CSV, as `read` does
        for path in paths:
            if path == names[0] or path.endswith(f"/{names[0]}"):
                folder = path.removesuffix(names[0])
                groups = [n for n in NPY_GROUPS if names is NPY_FILES and folder + n in paths]
                found[folder.rstrip("/")] = [*names, *groups]
    return found


def _check_pinned(pins: Mapping[str, str], names: list[str]) -> None:
    for name in pins:
        if name not in names:
            raise hub.HubError(f"--sha256 {name}=…: no such file is read; {nearest(name, names)}")


def _read_csv(path: Path, task: Sudoku) -> Problems:
    """One CSV file as problems; the errors name the line, counted from 1 at the header."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
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

    tokens = {}
    for field in ("question", "answer"):
        refuse(
            table[field].str.len() != task.seq_len,
            lambda row, field=field: (
                f"{field} has {len(row[field])} characters, expected {task.seq_len}"
            ),
        )
        refuse(
            ~table[field].str.fullmatch(r"[0-9.]*"),
            lambda _, field=field: f"{field} may hold only digits and '.'",
        )
        joined = "".join(table[field]).replace(".", "0").encode("ascii")
        codes = np.frombuffer(joined, np.uint8).reshape(-1, task.seq_len)
        tokens[field] = codes - np.uint8(ord("0") - 1)
    refuse(
        ~table.rating.str.fullmatch(r"[0-9]+"),
        lambda row: f"rating {row.rating!r} is not a whole number",
    )
    rating = table.rating.astype(float).clip(upper=np.iinfo(np.int32).max).to_numpy(np.int32)
    problems = Problems(tokens["question"], tokens["answer"], rating)
    wrong = ~task.check(problems.inputs, problems.labels)
    refuse(wrong, lambda _: "answer does not solve question")
    return problems


def _load_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable array ({error})") from error


def _subsample(problems: Problems, n: int | None, how: str, seed: int) -> Problems:
    if how not in ("random", "first"):
        raise DataError(f"subsample = {how!r} must be 'random' or 'first'")
    if n is None or n >= len(problems):
        return problems
    if how == "first":
        return take_rows(problems, range(n))
    draw = np.random.default_rng(stream_seed(seed, "subsample"))
    return take_rows(problems, np.sort(draw.choice(len(problems), n, replace=False)))


def _imported(
    task: Task,
    found: dict[str, Problems],
    train: int | None,
    test: int | None,
    origin: dict[str, Any],
) -> Dataset:
    """Subsample both splits, without repeats and test solutions that training has seen."""
    how, seed = origin["subsample"], origin["seed"]
    repeats = {}
    for split, problems in found.items():
        first = np.unique(problems.inputs, axis=0, return_index=True)[1]
        repeats[split] = len(problems) - len(first)
        found[split] = take_rows(problems, np.sort(first))
    trained = _subsample(found["train"], train, how, seed)
    known = set(task.symmetry_key(trained.inputs, trained.labels))
    keys = task.symmetry_key(found["test"].inputs, found["test"].labels)
    new = [row for row, key in enumerate(keys) if key not in known]
    if not new:
        raise DataError("every test problem shares its solution with training, up to symmetry")
    tested = _subsample(take_rows(found["test"], new), test, how, seed)
    left_out = {"left_out_of_test": len(keys) - len(new), "repeats_left_out": repeats}
    return Dataset(task, trained, tested, {**origin, **left_out})
