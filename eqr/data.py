"""Data sets on disk: build, verify by hash, load (chapter *The machine*).

A data set is a directory: ``train_inputs.npy``, ``train_labels.npy``, ``train_rating.npy``, the
same for ``test`` and, where there is one, ``validation``, and ``manifest.json`` with the task, how
the problems came about, their numbers, and the sha256 of each array file. No solution of a split is
a symmetric image of one of another. What is chosen is chosen on ``validation``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqr import files, locate
from eqr.config import SEMANTICS, DataConfig, Recipe, recipe_from_dict
from eqr.files import file_sha256, write_json
from eqr.settings import UserError, digest, require_memory
from eqr.streams import stream_seed
from eqr.task import Problems, Task, task_from_dict, task_to_dict

if TYPE_CHECKING:
    from eqr.checkpoint import Checkpoint

ARRAYS = ("inputs", "labels", "rating")
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
FORMAT = "eqr-data-1"

Progress = Callable[[int, int], None]  # (done, of)


class DataError(UserError):
    """A data set that cannot be used; the message names the file, the field and a remedy."""


class NoDataSet(DataError):
    """There is no data set in the directory at all."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training, test and perhaps validation problems of one task."""

    task: Task
    train: Problems
    test: Problems
    origin: dict[str, Any]  # how it came about: seed and sizes, or the file it was imported from
    validation: Problems | None = None

    @property
    def splits(self) -> dict[str, Problems]:
        """The splits there are, by name."""
        there = {split: getattr(self, split) for split in SPLITS}
        return {split: problems for split, problems in there.items() if problems is not None}

    @property
    def digest(self) -> str:
        """Sixteen hex digits over all arrays: what runs record as the data they used."""
        total = hashlib.sha256()
        for problems in self.splits.values():
            for name in ARRAYS:
                total.update(np.ascontiguousarray(getattr(problems, name)).tobytes())
        return total.hexdigest()[:16]


# ------------------------------------------------------------------------------------ building


def build(task: Task, config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Generate a data set whose splits share no solution up to symmetry.

    Problems are generated in turn and grouped by :meth:`Task.symmetry_key`. The groups of a first
    pool are dealt to the splits, whole groups at a time; later problems follow their group, and a
    group not seen before goes to the split that is further from full. A split never holds the same
    problem twice.

    Raises:
        ProblemError: the task cannot be generated.
        DataError: too few essentially different problems to fill the splits.
    """
    wanted = {s: getattr(config, s) for s in SPLITS if getattr(config, s)}
    require_memory(
        8 * task.seq_len * sum(wanted.values()), "the data set", "ask for fewer problems"
    )
    parts: dict[str, list[Problems]] = {split: [] for split in wanted}
    count = dict.fromkeys(wanted, 0)
    side: dict[bytes, str] = {}  # group -> split
    seen: set[bytes] = set()
    seed = stream_seed(config.seed, "problems")
    # A small first pool could hold one group only, by chance.
    chunk, start, idle = max(64, sum(wanted.values())), 0, 0
    while count != wanted:
        pool = task.generate(chunk, seed, start)
        start += chunk
        keys = task.symmetry_key(pool.inputs, pool.labels)
        if not side:
            side = _deal(keys, config, wanted)
        rows: dict[str, list[int]] = {split: [] for split in wanted}
        for row, key in enumerate(keys):
            missing = {s: wanted[s] - count[s] - len(rows[s]) for s in wanted}
            split = side.setdefault(key, max(wanted, key=missing.__getitem__))
            problem = pool.inputs[row].tobytes()
            if missing[split] > 0 and problem not in seen:
                seen.add(problem)
                rows[split].append(row)
        for split in wanted:
            parts[split].append(take_rows(pool, rows[split]))
            count[split] += len(rows[split])
        idle = 0 if any(rows.values()) else idle + 1
        if idle == 20:
            there = ", ".join(f"{n} {split}" for split, n in count.items())
            raise DataError(
                f"no further problems after {start} tries ({there}): ask for fewer, or for a "
                "larger board"
            )
        chunk = max(64, chunk // 4)
        if progress:
            progress(sum(count.values()), sum(wanted.values()))
    origin = {"kind": "generated", "seed": config.seed, **wanted}
    return Dataset(task, origin=origin, **{split: join(own) for split, own in parts.items()})


def _deal(keys: list[bytes], config: DataConfig, wanted: dict[str, int]) -> dict[bytes, str]:
    """Assign whole groups to the splits, in random order, in proportion to what they want."""
    groups = sorted(set(keys))
    if len(groups) < len(wanted):
        raise DataError(
            f"the problems are symmetric images of {len(groups)}, too few for {len(wanted)} splits"
        )
    order = np.random.default_rng(stream_seed(config.seed, "split")).permutation(len(groups))
    size = Counter(keys)
    side: dict[bytes, str] = {}
    filled = dict.fromkeys(wanted, 0)
    for index in order:
        key = groups[index]
        split = max(wanted, key=lambda s: 1 - filled[s] / wanted[s])
        side[key] = split
        filled[split] += size[key]
    return side


def take_rows(problems: Problems, rows: Iterable[int]) -> Problems:
    """The problems at the given indices, in their order."""
    index = np.asarray(list(rows), dtype=np.int64)
    return Problems(*(getattr(problems, name)[index] for name in ARRAYS))


def join(parts: list[Problems]) -> Problems:
    """The problems of all parts, one after the other."""
    return Problems(*(np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS))


# ------------------------------------------------------------------------------------- on disk


def refuse_existing(directory: Path, overwrite: bool) -> None:
    """Raise DataError where a data set may not be written: only another one is ever replaced."""
    if not files.target(directory, folder=True).exists():
        return
    if not overwrite:
        raise DataError(f"{directory}: exists already; choose another or pass --overwrite")
    if not (directory / MANIFEST).is_file():
        raise DataError(f"{directory}: exists and is not a data set; choose another name")


def save(dataset: Dataset, directory: Path, *, overwrite: bool = False) -> Path:
    """Write a data set; the directory appears complete or not at all.

    Raises:
        DataError: the directory exists and ``overwrite`` is not set.
    """
    directory = files.target(directory, folder=True)
    refuse_existing(directory, overwrite)
    with files.writing(directory), files.beside(directory) as temporary:
        temporary.mkdir()
        written = {}
        for split, problems in dataset.splits.items():
            for name in ARRAYS:
                path = temporary / f"{split}_{name}.npy"
                np.save(path, getattr(problems, name), allow_pickle=False)
                written[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "format": FORMAT,
            "task": task_to_dict(dataset.task),
            "origin": dataset.origin,
            "sizes": {split: len(problems) for split, problems in dataset.splits.items()},
            "digest": dataset.digest,
            "files": written,
        }
        manifest["seal"] = digest(manifest)  # of all the above
        write_json(temporary / MANIFEST, manifest)
        refuse_existing(directory, overwrite)  # another process may have written it meanwhile
        files.replace_folder(temporary, directory)
    return directory


def load(directory: Path) -> Dataset:
    """Read and verify a data set.

    Raises:
        DataError: a file is missing, truncated or altered; the message names it.
    """
    directory = Path(directory)
    path, aside = directory / MANIFEST, files.set_aside(directory)
    if not path.is_file():
        told = f"an old one lies in {aside}: rename it" if aside.exists() else "build or import it"
        raise NoDataSet(
            f"{directory}: no data set here ({MANIFEST} is missing); {told} first, see "
            "`eqr data --help` and, for a recipe's, the comment at its top"
        )
    try:
        manifest = files.read_json(path)
        seal = manifest.pop("seal")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, wanted {FORMAT!r}")
        if digest(manifest) != seal:
            raise ValueError("altered, it does not match its seal")
        listed = {name: about["sha256"] for name, about in manifest["files"].items()}
        sizes, origin = dict(manifest["sizes"]), dict(manifest["origin"])
        task = task_from_dict(manifest["task"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); build or import the data set anew") from error
    splits = {}
    for split in SPLITS if "validation" in sizes else ("train", "test"):
        arrays = {}
        for name in ARRAYS:
            file = directory / f"{split}_{name}.npy"
            if not file.is_file():
                raise DataError(f"{file}: missing; build or import the data set anew")
            if file_sha256(file) != listed.get(file.name):
                raise DataError(f"{file}: altered or truncated, its sha256 differs; restore it")
            array = arrays[name] = files.read_array(file)
            board = () if name == "rating" else (task.seq_len,)
            if array.shape[:1] != (sizes.get(split),) or not len(array):
                raise DataError(f"{path}: sizes.{split} does not match {file.name}; restore it")
            if array.shape[1:] != board:
                raise DataError(f"{path}: task does not fit {file.name}; restore it")
            if board and (array.dtype != np.uint8 or array.max() >= task.vocab_size):
                raise DataError(f"{file}: holds what is no token of the task; restore it")
        splits[split] = Problems(**arrays)
    dataset = Dataset(task, origin=origin, **splits)
    if dataset.digest != manifest.get("digest"):
        raise DataError(f"{path}: digest does not match the arrays; restore it")
    return dataset


def verify(directory: Path) -> dict[str, Any]:
    """Load a data set and test its content against the task's rules.

    Returns the findings: sizes, digest, the task's remarks; and by names with an underscore the
    numbers of faults: wrong labels, repeated problems, problems with several answers (unless they
    were asked for), solutions that the splits share up to symmetry. Raises DataError where
    :func:`load` does.
    """
    dataset = load(directory)
    task, keys, remarks = dataset.task, {}, dataset.task.remarks(dataset.splits)
    findings: dict[str, Any] = {"task": task_to_dict(task), "digest": dataset.digest}
    for split, problems in dataset.splits.items():
        inputs, labels = problems.inputs, problems.labels
        keys[split] = task.symmetry_key(inputs, labels)
        findings[split] = len(problems)
        findings[f"{split}_wrong_labels"] = int((~task.check(inputs, labels)).sum())
        findings[f"{split}_repeated"] = len(problems) - len(np.unique(inputs, axis=0))
        ambiguous = task.ambiguous(inputs)
        if "ambiguous" in dataset.origin:
            remarks[f"{split} problems have several answers"] = ambiguous
        else:
            findings[f"{split}_ambiguous"] = ambiguous
    for one, other in itertools.combinations(keys, 2):
        shared = set(keys[one]) & set(keys[other])
        findings[f"{other}_shares_solution_with_{one}"] = sum(key in shared for key in keys[other])
    return findings | {"remarks": remarks}


def faults(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The findings of :func:`verify`, empty where it raises, and in words all that is wrong."""
    try:
        findings = verify(directory)
    except UserError as error:
        return {}, [str(error)]
    wrong = {name: count for name, count in findings.items() if "_" in name and count}
    return findings, [f"{directory}: {name} {count}" for name, count in wrong.items()]


def for_recipe(recipe: Recipe, cache: Path, progress: Progress | None = None) -> Dataset:
    """The data set a recipe asks for: read from its source, or generated once and kept in cache.

    Raises:
        DataError: the source does not hold the recipe's task or enough problems.
    """
    config = recipe.data
    if config.source == "generate":
        sizes = [getattr(config, split) for split in SPLITS]
        named = [task_to_dict(recipe.task), *sizes, config.seed]
        directory = cache / digest([*named, SEMANTICS])
        if not directory.exists():
            built = build(recipe.task, config, progress)
            try:
                save(built, directory)
            except (DataError, OSError):
                if not directory.exists():  # otherwise another process was faster
                    raise
        return load(directory)
    directory = locate(config.source)
    dataset = load(directory)
    if dataset.task != recipe.task:
        raise DataError(
            f"{directory}: holds {task_to_dict(dataset.task)}, but the recipe's task is "
            f"{task_to_dict(recipe.task)}; change data.source or [task]"
        )
    taken = {}
    if config.digest not in ("", dataset.digest):
        raise DataError(
            f"{directory}: digest {dataset.digest}, but data.digest = {config.digest}: other "
            "problems than the recipe's; build or import them as its comment says"
        )
    for split in SPLITS:
        problems, count = dataset.splits.get(split, ()), getattr(config, split)
        if len(problems) < count:
            raise DataError(
                f"{directory}: has {len(problems)} {split} problems, but data.{split} = {count}; "
                "lower it"
            )
        if count:
            taken[split] = take_rows(problems, range(count))
    return Dataset(dataset.task, origin=dataset.origin, **taken)


def trained_on(recipe: Recipe, cache: Path, digest: str | None) -> Dataset:
    """The data set of a recipe; DataError where it has another ``digest`` than that of the data
    which a model was trained on."""
    problems = for_recipe(recipe, cache)
    if digest not in (None, problems.digest):
        raise DataError(
            f"{recipe.data.source}: digest {problems.digest}, but the model was trained on "
            f"{digest}: restore that data set, or name another one with --data"
        )
    return problems


def for_model(loaded: Checkpoint, model: Path, directory: Path | None, cache: Path) -> Dataset:
    """The data set in a directory, or the one that the model of this file was trained with.

    Raises:
        DataError: the model does not say, or the problems do not fit it.
    """
    if directory is None:
        if "recipe" not in loaded.meta:
            raise DataError(f"{model}: says not what it was trained on; name it with --data")
        recipe = recipe_from_dict(loaded.meta["recipe"], str(model))
        return trained_on(recipe, cache, loaded.meta.get("data"))
    asked = load(directory)
    if not loaded.task.same_board(asked.task):
        raise DataError(
            f"{directory}: its problems are {task_to_dict(asked.task)}, which does not fit "
            f"{model}, made for {task_to_dict(loaded.task)}; name another with --data"
        )
    return asked
