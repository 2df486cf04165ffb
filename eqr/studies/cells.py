"""One file a study cell: one row of a study with one seed, finished when its file is there.

``<folder>/<study>/<row>-<seed>.npz`` holds a tidy table (a line for each way to evaluate), the
curve of the training, which problems were solved (as bits), and one JSON ``about`` that says where
it comes from, under a sha256 over all of it. A study is extended on another machine by copying
files. :mod:`eqr.studies.run` makes them, :mod:`eqr.studies.results` reads them together.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import checkpoint, experiments
from eqr.config import SEMANTICS, EvalConfig, Recipe, to_dict
from eqr.cost import Cost
from eqr.data import NoDataSet
from eqr.evaluate import Records
from eqr.experiments import EvalResult, Trained
from eqr.files import FileError, parse_json, read_arrays, write_file
from eqr.select import selected
from eqr.settings import ConfigError, UserError
from eqr.store import Run, Store, provenance, run_id
from eqr.studies.rows import Evaluation, Study, study

FORMAT = "eqr-cell-1"
LARGEST_BYTES = 16 * 2**20  # of a file of weights that is shipped


class StudyError(UserError):
    """Results of a study that cannot be used; the message names the file and a remedy."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a study with one seed."""

    study: str
    profile: str
    row: str
    seed: int

    def recipe(self) -> Recipe:
        return study(self.study).row(self.row).build(self.profile, self.seed)

    def evaluations(self) -> tuple[Evaluation, ...]:
        return study(self.study).row(self.row).evaluations(self.profile)

    def path(self, folder: Path) -> Path:
        """Its file among the results in ``folder``; its weights, if shipped, lie beside it."""
        return folder / self.study / f"{self.row}-{self.seed}.npz"

    def train_id(self, store: Store) -> str | None:
        """The id of its training run; None where its data set is not at hand to be hashed."""
        recipe = self.recipe()
        try:
            problems = experiments.dataset(recipe, store)
        except NoDataSet:
            return None
        return store.run_id("train", experiments.train_config(recipe, problems))

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"


def cells_of(
    wanted: Study, profile: str, rows: Iterable[str] | None, seeds: Sequence[int] | None
) -> list[Cell]:
    """The cells asked for; None takes all rows, and each row's own number of seeds.

    Raises:
        ConfigError: the study is not run in the profile, or has no such row.
    """
    if profile not in wanted.profiles:
        raise ConfigError(
            f"study {wanted.name!r} is not run in profile {profile!r}; say --profile "
            f"{' or '.join(wanted.profiles)}"
        )
    chosen = wanted.rows if rows is None else [wanted.row(name) for name in rows]
    return [
        Cell(wanted.name, profile, row.name, seed)
        for row in chosen
        for seed in (seeds if seeds is not None else row.seed_range(profile))
    ]


# --- What a cell's file holds ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellFile:
    """The content of a cell's file."""

    table: pd.DataFrame  # row, seed, evaluation, those of eqr.experiments.table, costs, runs
    curve: pd.DataFrame  # held-out accuracy during training: row, seed, step, exact_1, exact_2, …
    outcomes: dict[str, np.ndarray]  # see :func:`outcomes_of`; bools as bits
    about: dict[str, Any]
    sha256: str  # of all of it

    @classmethod
    def of(
        cls,
        cell: Cell,
        model: Trained,
        results: Sequence[tuple[Evaluation, EvalResult]],
        price: Cost,
    ) -> CellFile:
        """Of a trained model and its evaluations."""
        origins = [run.manifest["provenance"] for run in (model.run, *(e.run for _, e in results))]
        about = {
            "format": FORMAT,
            **{name: getattr(cell, name) for name in ("study", "profile", "row", "seed")},
            "semantics": SEMANTICS,
            "train_run": model.run.id,
            "evaluations": {kind.name: described(kind) for kind, _ in results},
            "runs": {
                "commits": sorted({origin["commit"] for origin in origins}),
                "hardware": sorted({origin["hardware"] for origin in origins}),
                "first": min(origin["finished"] for origin in origins),
                "last": max(origin["finished"] for origin in origins),
            },
            "written": provenance(),
        }
        curve = model.log("eval")
        curve.insert(0, "row", cell.row)
        curve.insert(1, "seed", cell.seed)
        outcomes: dict[str, np.ndarray] = {}
        for kind, one in results:
            outcomes |= outcomes_of(kind, one.records)
        return cls.packed(table_of(cell, model, results, price), curve, outcomes, about)

    @classmethod
    def packed(
        cls,
        table: pd.DataFrame,
        curve: pd.DataFrame,
        outcomes: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
    ) -> CellFile:
        """With outcomes that are bools packed into bits, their shapes in ``about``."""
        shapes = {k: list(v.shape) for k, v in outcomes.items() if v.dtype == bool}
        about = {**about, "shapes": shapes}
        bits = {k: np.packbits(v) if v.dtype == bool else v for k, v in outcomes.items()}
        return cls(table, curve, bits, about, hashed(arrays_of(table, curve, bits), about))

    def write(self, path: Path) -> None:
        """Write the file; it appears complete or not at all."""
        arrays, content = arrays_of(self.table, self.curve, self.outcomes), io.BytesIO()
        about = {"about": np.array(json.dumps(self.about)), "sha256": np.array(self.sha256)}
        np.savez_compressed(content, **arrays, **about)
        write_file(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> CellFile:
        """Read and verify a file.

        Raises:
            StudyError: it is absent, damaged or altered.
        """
        remedy = "restore it, or delete it and run its study again"
        try:
            arrays = read_arrays(path, remedy)
            about, sha256 = parse_json(str(arrays.pop("about"))), str(arrays.pop("sha256"))
            parts: dict[str, dict[str, np.ndarray]] = {"table": {}, "curve": {}, "outcomes": {}}
            for name, values in arrays.items():
                part, _, key = name.partition("/")
                parts[part][key] = values
            if hashed(arrays, about) != sha256:
                raise StudyError(f"{path}: altered, its content has another sha256; {remedy}")
            own = [f"{about['row']}-{about['seed']}", about["study"]]
            if own != [path.stem, path.parent.name]:
                raise StudyError(f"{path}: holds {own[1]}/{own[0]}; give it that name again")
            table, curve = (pd.DataFrame(parts[name]) for name in ("table", "curve"))
        except FileNotFoundError as error:
            raise StudyError(f"{path}: absent; {remedy}") from error
        except FileError as error:
            raise StudyError(str(error)) from error
        except StudyError:
            raise
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StudyError(f"{path}: damaged ({error}); {remedy}") from error
        return cls(table, curve, parts["outcomes"], about, sha256)


def arrays_of(
    table: pd.DataFrame, curve: pd.DataFrame, outcomes: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of a file by name: a column each of table and curve, and the outcomes."""
    arrays = {}
    for part, frame in (("table", table), ("curve", curve)):
        for name, values in frame.items():
            numeric = pd.api.types.is_numeric_dtype(values.dtype)
            arrays[f"{part}/{name}"] = np.array(values.tolist(), None if numeric else str)
    return arrays | {f"outcomes/{name}": values for name, values in outcomes.items()}


def hashed(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """sha256 over ``about`` and the arrays' names, dtypes, shapes and bytes."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        total.update(f"{name}|{values.dtype.str}|{values.shape}|".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def described(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON."""
    values = {"breadths": list(evaluation.breadths), "select": list(evaluation.select)}
    if evaluation.keep:
        values["keep"] = list(evaluation.keep)
    if evaluation.level:
        values["level"] = evaluation.level.named()
    return to_dict(evaluation.config) | values


def table_of(
    cell: Cell, model: Trained, results: Sequence[tuple[Evaluation, EvalResult]], price: Cost
) -> pd.DataFrame:
    """The tidy table of a cell."""
    train, parts = model.recipe.train, []
    for kind, one in results:
        part = one.table(kind.breadths, kind.select)
        part.insert(0, "evaluation", kind.name)
        part["eval_seconds"] = one.run.manifest["provenance"]["seconds"]
        part["eval_run"] = one.run.id
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "row", cell.row)
    table.insert(1, "seed", cell.seed)
    costs = asdict(price)
    del costs["layers"]  # the table's own column counts those of the whole rollout
    steps = {f"train_{name}": getattr(train, name) for name in ("steps", "batch", "unroll")}
    rest = {"train_seconds": model.seconds, "train_run": model.run.id}
    return table.assign(**costs, **steps, **rest)


def outcomes_of(kind: Evaluation, records: Records) -> dict[str, np.ndarray]:
    """Which problems were solved, as bools by ``evaluation[/select]``.

    The plain key holds every trajectory, (K, P, B) for K depths, P problems, B restarts; that of a
    selection rule the chosen answers, (K, breadths, P). Average and oracle follow from the former.
    What the evaluation keeps beside (:data:`~eqr.studies.study.KEPT`) has keys of its own:
    ``residual`` float32 (P, B) in float16's precision, ``answer`` uint8 (P, B), ``checked`` bool
    (K, P, B).
    """
    outcomes = {kind.name: records.exact}
    for rule in kind.select:
        if rule not in ("average", "oracle"):
            at = [records.at(depth) for depth in records.depths.tolist()]
            chosen = [[selected(o.first(b), rule)[0] for b in kind.breadths] for o in at]
            outcomes[f"{kind.name}/{rule}"] = np.array(chosen, bool)
    beside = {
        "residual": lambda: coarse(records.residual[-1]),
        "checked": lambda: records.checked,
        "answer": lambda: first_alike(records.answer[-1]),
    }
    return outcomes | {f"{kind.name}/{name}": beside[name]() for name in kind.keep}


def first_alike(answers: np.ndarray) -> np.ndarray:
    """Which restart of each problem was the first with the same answer (P, B), uint8."""
    return (answers[:, :, None] == answers[:, None, :]).argmax(2).astype(np.uint8)


def coarse(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits behind the point: as precise as float16, and packed almost as small.

    Trajectories without noise come to rest at residuals of 1e-7, where float16 has three values.

    >>> float(coarse(np.float32([1.9e-7]))[0]), float(np.float16(1.9e-7))
    (1.8998980522155762e-07, 1.7881393432617188e-07)
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


# --- Whether a cell is finished -------------------------------------------------------------------


def finished(cell: Cell, folder: Path, store: Store) -> bool:
    """Whether a cell's file is there and has every evaluation of its row.

    Raises:
        ConfigError: the file is damaged, or this version would make it otherwise.
    """
    path = cell.path(folder)
    if not path.exists():
        return False
    giving_up = "move it elsewhere, write elsewhere with --out, or replace it with --overwrite"
    try:
        there = CellFile.read(path).about
    except StudyError as error:
        raise ConfigError(f"{error}; or replace it with --overwrite") from error
    run_id = cell.train_id(store)
    differs = run_id is not None and there["train_run"] != run_id
    if differs or there["semantics"] != SEMANTICS:
        raise ConfigError(f"{path}: this version would train {cell} otherwise; {giving_up}")
    for kind in cell.evaluations():
        # What was written before a setting existed has that setting's default.
        stored = there["evaluations"].get(kind.name)
        if stored is not None and to_dict(EvalConfig()) | stored != described(kind):
            raise ConfigError(
                f"{path}: evaluation {kind.name} is not what this version would run; {giving_up}"
            )
    return {kind.name for kind in cell.evaluations()} <= set(there["evaluations"])


@dataclass(frozen=True, slots=True)
class Shipped(Trained):
    """A model from the weights that lie beside a cell's file, which knows of its training."""

    file: CellFile

    @property
    def seconds(self) -> float:
        return float(self.file.table.train_seconds[0])

    def log(self, kind: str) -> pd.DataFrame:
        return self.file.curve.drop(columns=["row", "seed"])  # all that a cell keeps of it


def shipped_model(cell: Cell, folder: Path, store: Store, device: str = "cpu") -> Shipped:
    """The model of a cell as it is shipped, with float16 weights.

    Raises:
        StudyError: it is not, or this version would train it otherwise.
    """
    path = cell.path(folder)
    weights, recipe = path.with_suffix(".safetensors"), cell.recipe()
    command = f"eqr study run {cell.study} --rows {cell.row} --seeds {cell.seed} --weights"
    if not (weights.exists() and path.exists()):
        raise StudyError(f"{weights}: absent; run `{command}`")
    file = CellFile.read(path)
    if cell.train_id(store) not in (None, file.about["train_run"]):
        raise StudyError(f"{path}: this version would train {cell} otherwise; run `{command}` anew")
    ran = file.about["runs"]
    origin = {"commit": ran["commits"][0], "hardware": ran["hardware"][0], "finished": ran["first"]}
    run = Run(file.about["train_run"], path, {"provenance": origin})
    model = checkpoint.load_model(weights, device)
    return Shipped(run, recipe, experiments.dataset(recipe, store), model, file)


def ship_weights(source: Path, path: Path) -> str:
    """Copy a model file with its weights as float16, half the size; returns a line about it.

    The records of the study are those of the float32 weights, whose sha256 the new header names.
    """
    if source.stat().st_size / 2 > LARGEST_BYTES:
        return f"{source.stat().st_size / 2**21:.0f} MiB of weights are too large to be shipped"
    tensors, meta, sha256 = checkpoint.load_tensors(source)
    half = {name: values.half() for name, values in tensors.items()}
    checkpoint.save_tensors(path, half, meta | {"from": sha256})
    return f"weights in {path}"


def check_result(path: Path) -> None:
    """Raise where a file is no intact result, or weights are not those of the cell beside them."""
    if path.suffix == ".npz":
        CellFile.read(path)
    elif path.suffix == ".safetensors":
        meta, beside = checkpoint.load_tensors(path)[1], path.with_suffix(".npz")
        about = CellFile.read(beside).about
        own = run_id("train", {name: meta.get(name) for name in ("recipe", "data")}, SEMANTICS)
        # Earlier versions wrote other headers.
        if about["semantics"] == SEMANTICS and own != about["train_run"]:
            raise StudyError(f"{path}: are not the weights of {beside.name}; restore both")
    else:
        raise StudyError(f"{path}: is no result of a study; move it elsewhere")
