"""Data sets on disk: build, import, verify by hash, load (chapter *The tasks and their data*).

A data set is a directory: ``train_inputs.npy``, ``train_labels.npy``, ``train_rating.npy``, the
same for ``test``, and ``manifest.json`` with the task, how the problems came about, their numbers,
and the sha256 of each array file. No test solution is a symmetric image of a training solution.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqr.config import DataConfig, Recipe, digest
from eqr.streams import stream_seed
from eqr.sudoku import Sudoku
from eqr.task import ProblemError, Problems, Task, task_from_dict, task_to_dict

PROJECT = Path(__file__).parents[1]
ARRAYS = ("inputs", "labels", "rating")
SPLITS = ("train", "test")
MANIFEST = "manifest.json"
FORMAT = "eqr-data-1"

Progress = Callable[[int, int], None]  # (done, of)


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, the field and the mend."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and test problems of one task."""

    task: Task
    train: Problems
    test: Problems
    origin: dict[str, Any]  # how it came about: seed and sizes, or the file it was imported from

    @property
    def digest(self) -> str:
        """Sixteen hex digits over all arrays: what runs record as the data they used."""
        total = hashlib.sha256()
        for split in SPLITS:
            for name in ARRAYS:
                total.update(np.ascontiguousarray(getattr(getattr(self, split), name)).tobytes())
        return total.hexdigest()[:16]


# ------------------------------------------------------------------------------------ building


def build(task: Task, config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Generate a data set whose two splits share no solution up to symmetry.

    Problems are generated in turn and grouped by :meth:`Task.symmetry_key`. The groups of a first
    pool are dealt to the splits, whole groups at a time; later problems follow their group, and a
    group not seen before goes to the split that is further from full. A split never holds the same
    problem twice.

    Raises:
        ProblemError: the task cannot be generated.
        DataError: too few essentially different problems to fill both splits.
    """
    wanted = {"train": config.train, "test": config.test}
    found: dict[str, list[Problems]] = {split: [] for split in SPLITS}
    count = dict.fromkeys(SPLITS, 0)
    side: dict[bytes, str] = {}  # group -> split
    seen: set[bytes] = set()
    seed = stream_seed(config.seed, "problems")
    chunk, start, idle = config.train + config.test, 0, 0
    while any(count[split] < wanted[split] for split in SPLITS):
        pool = task.generate(chunk, seed, start)
        start += chunk
        keys = task.symmetry_key(pool.inputs, pool.labels)
        if not side:
            side = _deal(keys, config, wanted)
        rows: dict[str, list[int]] = {split: [] for split in SPLITS}
        for row, key in enumerate(keys):
            missing = {s: wanted[s] - count[s] - len(rows[s]) for s in SPLITS}
            split = side.setdefault(key, max(SPLITS, key=missing.__getitem__))
            problem = pool.inputs[row].tobytes()
            if missing[split] > 0 and problem not in seen:
                seen.add(problem)
                rows[split].append(row)
        for split in SPLITS:
            found[split].append(_rows(pool, rows[split]))
            count[split] += len(rows[split])
        idle = 0 if any(rows.values()) else idle + 1
        if idle == 20:
            raise DataError(
                f"no further problems after {start} tries ({count['train']} train, "
                f"{count['test']} test): ask for fewer, or for a larger board"
            )
        chunk = max(64, chunk // 4)
        if progress:
            progress(sum(count.values()), sum(wanted.values()))
    origin = {"kind": "generated", "seed": config.seed, **wanted}
    return Dataset(task, _join(found["train"]), _join(found["test"]), origin)


def _deal(keys: list[bytes], config: DataConfig, wanted: dict[str, int]) -> dict[bytes, str]:
    """Assign whole groups to the splits, in random order, in proportion to what they want."""
    groups = sorted(set(keys))
    if len(groups) < 2:
        raise DataError("all problems are symmetric images of one: train and test would overlap")
    order = np.random.default_rng(stream_seed(config.seed, "split")).permutation(len(groups))
    size = {key: 0 for key in groups}
    for key in keys:
        size[key] += 1
    side: dict[bytes, str] = {}
    filled = dict.fromkeys(SPLITS, 0)
    for index in order:
        key = groups[index]
        split = max(SPLITS, key=lambda s: 1 - filled[s] / wanted[s])
        side[key] = split
        filled[split] += size[key]
    return side


def _rows(problems: Problems, rows: Iterable[int]) -> Problems:
    index = np.asarray(list(rows), dtype=np.int64)
    return Problems(*(getattr(problems, name)[index] for name in ARRAYS))


def _join(parts: list[Problems]) -> Problems:
    return Problems(*(np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS))


# ------------------------------------------------------------------------------------- on disk


def save(dataset: Dataset, directory: Path, *, overwrite: bool = False) -> Path:
    """Write a data set; the directory appears complete or not at all.

    Raises:
        DataError: the directory exists and ``overwrite`` is not set.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise DataError(f"{directory}: exists already; choose another or pass --overwrite")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        files = {}
        for split in SPLITS:
            for name in ARRAYS:
                path = temporary / f"{split}_{name}.npy"
                np.save(path, getattr(getattr(dataset, split), name), allow_pickle=False)
                files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "format": FORMAT,
            "task": task_to_dict(dataset.task),
            "origin": dataset.origin,
            "sizes": {split: len(getattr(dataset, split)) for split in SPLITS},
            "digest": dataset.digest,
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def load(directory: Path) -> Dataset:
    """Read and verify a data set.

    Raises:
        DataError: a file is missing, truncated or altered; the message names it.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"{directory}: no data set here ({MANIFEST} is missing)")
    try:
        manifest = json.loads(path.read_text())
        files, sizes = manifest["files"], manifest["sizes"]
        task = task_from_dict(manifest["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); build or import the data set anew") from error
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: format {manifest.get('format')!r}, wanted {FORMAT!r}")
    splits = {}
    for split in SPLITS:
        arrays = {}
        for name in ARRAYS:
            file = directory / f"{split}_{name}.npy"
            if not file.is_file():
                raise DataError(f"{file}: missing; build or import the data set anew")
            if _sha256(file) != files.get(file.name, {}).get("sha256"):
                raise DataError(f"{file}: altered or truncated, its sha256 differs; restore it")
            arrays[name] = np.load(file, allow_pickle=False)
            if len(arrays[name]) != sizes.get(split):
                raise DataError(f"{path}: sizes.{split} does not match {file.name}; restore it")
        if arrays["inputs"].shape[1] != task.seq_len:
            raise DataError(f"{path}: task does not fit {split}_inputs.npy; restore it")
        splits[split] = Problems(**arrays)
    dataset = Dataset(task, splits["train"], splits["test"], manifest["origin"])
    if dataset.digest != manifest.get("digest"):
        raise DataError(f"{path}: digest does not match the arrays; restore it")
    return dataset


def verify(directory: Path) -> dict[str, Any]:
    """Load a data set and test its content against the task's rules.

    Returns the findings: sizes, digest, wrong labels, repeated problems, solutions that the splits
    share up to symmetry. Raises DataError where :func:`load` does.
    """
    dataset = load(directory)
    task, keys = dataset.task, {}
    findings: dict[str, Any] = {"task": task_to_dict(task), "digest": dataset.digest}
    for split in SPLITS:
        problems = getattr(dataset, split)
        keys[split] = task.symmetry_key(problems.inputs, problems.labels)
        findings[split] = len(problems)
        findings[f"{split}_wrong_labels"] = int(
            (~task.check(problems.inputs, problems.labels)).sum()
        )
        findings[f"{split}_repeated"] = len(problems) - len(np.unique(problems.inputs, axis=0))
    shared = set(keys["train"]) & set(keys["test"])
    findings["test_shares_solution_with_train"] = sum(key in shared for key in keys["test"])
    return findings


def for_recipe(recipe: Recipe, cache: Path, progress: Progress | None = None) -> Dataset:
    """The data set a recipe asks for: read from its source, or generated once and kept in cache.

    Raises:
        DataError: the source does not hold the recipe's task or enough problems.
    """
    config = recipe.data
    if config.source == "generate":
        name = digest([task_to_dict(recipe.task), config.train, config.test, config.seed])
        directory = cache / name
        if not directory.exists():
            save(build(recipe.task, config, progress), directory)
        return load(directory)
    directory = Path(config.source)
    if not directory.is_absolute() and not directory.exists():
        directory = PROJECT / directory
    dataset = load(directory)
    if dataset.task != recipe.task:
        raise DataError(
            f"{directory}: holds {task_to_dict(dataset.task)}, but the recipe's task is "
            f"{task_to_dict(recipe.task)}; change data.source or [task]"
        )
    for split in SPLITS:
        if len(getattr(dataset, split)) < getattr(config, split):
            raise DataError(
                f"{directory}: has {len(getattr(dataset, split))} {split} problems, but "
                f"data.{split} = {getattr(config, split)}; lower it"
            )
    train, test = (_rows(getattr(dataset, s), range(getattr(config, s))) for s in SPLITS)
    return Dataset(dataset.task, train, test, dataset.origin)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------- importing

HUB_CSV = "sapientinc/sudoku-extreme"
HUB_NPY = "locuslab/EqR-data"


def import_sudoku_csv(
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
    found = {}
    for split in SPLITS:
        problems = _read_sudoku_csv(Path(source) / f"{split}.csv", task)
        found[split] = _subsample(problems, {"train": train, "test": test}[split], subsample, seed)
    origin = {"kind": "csv", "source": str(Path(source).name), "subsample": subsample, "seed": seed}
    return _disjoint(task, found, origin)


def import_npy(
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
    while it trains. Arguments and errors as :func:`import_sudoku_csv`.
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
            if arrays[name].min() < 0 or arrays[name].max() >= task.vocab_size:
                raise DataError(f"{path}: tokens outside 0..{task.vocab_size - 1}")
        rows = np.arange(len(arrays["inputs"]))
        groups = Path(source) / split / "all__group_indices.npy"
        if groups.is_file():
            rows = _load_npy(groups)[:-1].astype(np.int64)
        inputs, labels = (arrays[n][rows].astype(np.uint8) for n in ("inputs", "labels"))
        wrong = ~task.check(inputs, labels)
        if wrong.any():
            raise DataError(
                f"{Path(source) / split}: the label of problem {int(np.argmax(wrong))} breaks the "
                f"rules of {task.kind}; {int(wrong.sum())} such"
            )
        problems = Problems(inputs, labels, np.zeros(len(inputs), np.int32))
        found[split] = _subsample(problems, {"train": train, "test": test}[split], subsample, seed)
    origin = {"kind": "npy", "source": str(Path(source).name), "subsample": subsample, "seed": seed}
    return _disjoint(task, found, origin)


def download(repo: str, files: Iterable[str], directory: Path) -> Path:
    """Fetch files of a data set repository from the Hugging Face hub into ``directory``.

    Raises:
        DataError: the hub cannot be reached or does not have the file.
    """
    from huggingface_hub import hf_hub_download  # only needed here, and slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for name in files:
        try:
            hf_hub_download(repo, name, repo_type="dataset", local_dir=directory)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"{repo}/{name}: cannot be downloaded ({reason}); check the network, or download "
                "it elsewhere and give the local path"
            ) from error
    return directory


def _read_sudoku_csv(path: Path, task: Sudoku) -> Problems:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns = ["source", "question", "answer", "rating"]
    inputs, labels, rating = [], [], []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise DataError(f"{path}: columns {reader.fieldnames}, expected {','.join(columns)}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            for field, target in (("question", inputs), ("answer", labels)):
                text = row[field] or ""
                if len(text) != task.seq_len:
                    raise DataError(
                        f"{where}: {field} has {len(text)} characters, expected {task.seq_len}"
                    )
                codes = np.frombuffer(text.replace(".", "0").encode("latin-1", "replace"), np.uint8)
                if ((codes < ord("0")) | (codes > ord("9"))).any():
                    raise DataError(f"{where}: {field} may hold only digits and '.'")
                target.append(codes - ord("0") + 1)
            if not (row["rating"] or "").isdigit():
                raise DataError(f"{where}: rating {row['rating']!r} is not a whole number")
            rating.append(min(int(row["rating"]), np.iinfo(np.int32).max))
    if not inputs:
        raise DataError(f"{path}: holds no puzzles")
    problems = Problems(
        np.stack(inputs).astype(np.uint8),
        np.stack(labels).astype(np.uint8),
        np.asarray(rating, np.int32),
    )
    wrong = ~task.check(problems.inputs, problems.labels)
    if wrong.any():
        line = int(np.argmax(wrong)) + 2
        raise DataError(f"{path}, line {line}: answer does not solve question; mend or remove it")
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
        return _rows(problems, range(n))
    draw = np.random.default_rng(stream_seed(seed, "subsample"))
    return _rows(problems, np.sort(draw.choice(len(problems), n, replace=False)))


def _disjoint(task: Task, found: dict[str, Problems], origin: dict[str, Any]) -> Dataset:
    """A data set of both splits, less the test problems whose solution training has seen."""
    trained = set(task.symmetry_key(found["train"].inputs, found["train"].labels))
    test = found["test"]
    keys = task.symmetry_key(test.inputs, test.labels)
    kept = [row for row, key in enumerate(keys) if key not in trained]
    if not kept:
        raise DataError("every test problem shares its solution with training, up to symmetry")
    origin = {**origin, "left_out_of_test": len(test) - len(kept)}
    return Dataset(task, found["train"], _rows(test, kept), origin)


__all__ = ["DataError", "Dataset", "ProblemError", "build", "for_recipe", "load", "save", "verify"]
