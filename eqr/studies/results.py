"""Results of the many-seed studies: read, verified, and compared.

    results = load("campaign", "laptop")
    results.summary()
    results.compare(Pick("halting"), Pick("hierarchy"))

A study is the files of its cells (:mod:`eqr.studies.cells`); :mod:`eqr.studies.rows` says what the
rows are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import SHIPPED
from eqr.config import SEMANTICS
from eqr.recipes import PROFILES
from eqr.settings import ConfigError, digest, nearest
from eqr.stats import Difference, mean_interval, paired_difference
from eqr.store import USED
from eqr.studies.cells import Cell, CellFile, StudyError, cells_of
from eqr.studies.rows import Study, study


@dataclass(frozen=True, slots=True)
class Pick:
    """One way to run one row of a study."""

    row: str
    depth: int = 16
    breadth: int = 1
    select: str = "average"
    evaluation: str = "depth"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A mean difference in exact accuracy, with two intervals that answer two questions."""

    seeds: Difference  # would it hold with other seeds? t interval over the seeds' differences
    problems: Difference  # with other problems, for these very models? paired over problems


@dataclass(frozen=True, slots=True)
class Results:
    """A loaded study."""

    study: Study
    rows: pd.DataFrame
    curves: pd.DataFrame  # accuracy during training: row, seed, step, exact_1, exact_2, …
    bits: dict[str, np.ndarray]  # packed outcomes by "row/seed/evaluation[/select]", and the rest
    meta: dict[str, Any]  # cells, missing, evaluations, shapes and hardware
    id: str = ""  # name and a hash of all cells: what figures and claims are traced to

    def problems(self, evaluation: str = "depth") -> int:
        """How many test problems an evaluation has."""
        keys = (key.split("/") for key in self.meta["shapes"])
        key = next(key for key in keys if len(key) == 3 and key[2] == evaluation)
        return self.meta["shapes"]["/".join(key)][1]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Rows and seeds that the study wants and has not got."""
        return [(row, seed) for row, seed in self.meta["missing"]]

    def seeds(self, row: str, evaluation: str | None = None) -> list[int]:
        """The seeds there are of a row, or those with one of its evaluations."""
        self.study.row(row)
        mine = self.rows[self.rows.row == row]
        if evaluation is not None:
            mine = mine[mine.evaluation == evaluation]
        return sorted(mine.seed.unique().tolist())

    def outcomes(self, pick: Pick, seed: int) -> np.ndarray:
        """Exactness of each problem under ``pick``, (P,) in [0, 1]: a share for the average.

        Raises:
            StudyError: there is no such outcome; the message says what there is.
        """
        key = f"{pick.row}/{seed}/{pick.evaluation}"
        if key not in self.bits:
            self.study.row(pick.row)
            there = [k for k in self.bits if k.startswith(f"{pick.row}/") and k.count("/") == 2]
            raise StudyError(f"no outcomes of {key}; of this row there are: {', '.join(there)}")
        kind = self.meta["evaluations"][pick.evaluation]
        for name, have in (("depth", "depths"), ("breadth", "breadths"), ("select", "select")):
            if getattr(pick, name) not in kind[have]:
                raise StudyError(f"{key}: {name} {getattr(pick, name)!r} is not in {kind[have]}")
        k = kind["depths"].index(pick.depth)
        if pick.select in ("average", "oracle"):
            exact = self.unpack(key)[k, :, : pick.breadth].astype(float)
            return exact.mean(1) if pick.select == "average" else exact.max(1)
        return self.unpack(f"{key}/{pick.select}")[k, kind["breadths"].index(pick.breadth)] * 1.0

    def recorded(self, name: str, row: str, seed: int, evaluation: str) -> np.ndarray:
        """What an evaluation records of every trajectory; :func:`eqr.studies.cells.outcomes_of`.

        Raises:
            StudyError: it did not keep that.
        """
        key = f"{row}/{seed}/{evaluation}/{name}"
        if key not in self.bits:
            raise StudyError(f"{key} is not among the records: run it with keep = {name!r}")
        return self.unpack(key).astype(bool) if name == "checked" else self.bits[key]

    def unpack(self, key: str) -> np.ndarray:
        """The bits of one key in their shape, 0 or 1."""
        shape = self.meta["shapes"][key]
        return np.unpackbits(self.bits[key], count=math.prod(shape)).reshape(shape)

    def accuracy(self, pick: Pick) -> Difference:
        """Mean exact accuracy over the seeds, with its 95 % t interval."""
        seeds = self.seeds(pick.row, pick.evaluation)
        return mean_interval([self.outcomes(pick, s).mean() for s in seeds])

    def compare(self, ours: Pick, other: Pick) -> Comparison:
        """``ours − other`` over the seeds that both have, on the same problems.

        Equal seeds share data, and starts and noise of the evaluation, so they are paired.

        Raises:
            StudyError: no seed in common, or not the same problems.
        """
        have = (set(self.seeds(pick.row, pick.evaluation)) for pick in (ours, other))
        seeds = sorted(set.intersection(*have))
        if not seeds:
            raise StudyError(f"{ours.row} and {other.row} have no seed in common")
        one, two = (np.stack([self.outcomes(p, s) for s in seeds]) for p in (ours, other))
        if one.shape != two.shape:
            raise StudyError(
                f"{ours.evaluation} has {one.shape[1]} problems and {other.evaluation} "
                f"{two.shape[1]}; compare evaluations on the same problems"
            )
        return Comparison(
            mean_interval(one.mean(1) - two.mean(1)), paired_difference(one.mean(0), two.mean(0))
        )

    def summary(self) -> pd.DataFrame:
        """One line a row: accuracy at its own depth and breadth 1, beside the paper's figure."""
        lines = []
        for row in self.study.rows:
            mine = self.rows[(self.rows.row == row.name) & (self.rows.evaluation == "depth")]
            mine = mine[mine.depth == row.depth]
            interval = mean_interval(mine.exact.tolist())
            paper = "; ".join(f"{p.value:g} ({p.table})" for p in row.paper)
            lines.append(
                {
                    "row": row.name,
                    "title": row.title,
                    "depth": row.depth,
                    "seeds": interval.n,
                    "exact": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "paper": paper or "–",
                    "parameters": mine.parameters.max(),
                    "train_layers": mine.train_layers.max(),
                    "train_flops": mine.train_flops.max(),
                    "saved_mib": mine.saved_bytes.max() / 2**20,
                    "train_seconds": mine.train_seconds.mean(),
                }
            )
        return pd.DataFrame(lines)


def results_folder(profile: str) -> Path:
    """Where the results of a profile are shipped."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} has no studies; {nearest(profile, PROFILES)}")
    return SHIPPED / "results" / profile


def status(wanted: Study, profile: str, folder: Path) -> list[dict[str, Any]]:
    """How far each row of a study is: its ``seeds``, those ``done``, and ``partial``, those whose
    files lack an evaluation."""
    rows = []
    for row in wanted.rows:
        cells = cells_of(wanted, profile, [row.name], None)
        kinds = {kind.name for kind in row.evaluations(profile)}
        have = {
            cell.seed: {*CellFile.read(path).about["evaluations"]}
            for cell in cells
            if (path := cell.path(folder)).exists()
        }
        about = {"row": row.name, "title": row.title, "recipe": row.recipe, "seeds": len(cells)}
        about["paper"] = {p.table: p.value for p in row.paper}
        about |= {
            "done": [*have],
            "partial": [s for s, names in have.items() if not kinds <= names],
        }
        rows.append(about)
    return rows


def shipped(name: str, profile: str = "laptop") -> Results | None:
    """The shipped results of a study, verified; None where none are there: it has not been run.

    Raises:
        StudyError: they are there and altered.
    """
    return load(name, profile) if (results_folder(profile) / study(name).name).is_dir() else None


def load(name: str, profile: str = "laptop", folder: Path | None = None) -> Results:
    """Read all cells of a study that there are, and verify them.

    Args:
        name: of the study.
        profile: ``smoke``, ``laptop`` or ``paper``, of those that the study is run in.
        folder: where its results lie; None takes the shipped ones.

    Raises:
        StudyError: there are none, or a file is altered or of another study; the message names it.
    """
    wanted, folder = study(name), Path(folder or results_folder(profile))
    remedy = f"run `eqr study run {name} --profile {profile}` to make it"
    order = {row.name: k for k, row in enumerate(wanted.rows)}
    read: dict[Cell, CellFile] = {}
    for path in (folder / name).glob("*.npz"):
        cell = CellFile.read(path)
        about = cell.about
        if (about["study"], about["profile"]) != (name, profile):
            raise StudyError(f"{path}: is not of study {name!r}, profile {profile!r}; {remedy}")
        if about["semantics"] > SEMANTICS:
            raise StudyError(f"{path}: made by a newer version of this package; update it")
        if about["row"] in order:
            read[Cell(name, profile, about["row"], about["seed"])] = cell
    if not read:
        raise StudyError(f"{folder / name}: no results there; {remedy}")
    cells = sorted(read, key=lambda cell: (order[cell.row], cell.seed))
    files = [read[cell] for cell in cells]
    # Records stay readable when training changes, but what was trained otherwise is not averaged.
    semantics = sorted({file.about["semantics"] for file in files})
    if len(semantics) > 1:
        raise StudyError(
            f"{folder / name}: cells of semantics {' and '.join(map(str, semantics))}, which were "
            "trained differently, lie together; move those of one of them elsewhere"
        )
    own = [f"{cell.row}/{cell.seed}" for cell in cells]
    planned = cells_of(wanted, profile, None, None)
    meta = {
        "semantics": semantics[0],
        "cells": [[cell.row, cell.seed] for cell in cells],
        "missing": [[cell.row, cell.seed] for cell in planned if cell not in read],
        "evaluations": {k: v for file in files for k, v in file.about["evaluations"].items()},
        "shapes": {
            f"{place}/{key}": shape
            for place, file in zip(own, files, strict=True)
            for key, shape in file.about["shapes"].items()
        },
        "hardware": sorted({name for file in files for name in file.about["runs"]["hardware"]}),
    }
    bits = {
        f"{place}/{key}": values
        for place, file in zip(own, files, strict=True)
        for key, values in file.outcomes.items()
    }
    rows = pd.concat([file.table for file in files], ignore_index=True)
    curves = pd.concat([file.curve for file in files], ignore_index=True)
    results_id = f"{name}-{digest([file.sha256 for file in files])[:12]}"
    older = f" (semantics {semantics[0]})" if semantics[0] != SEMANTICS else ""
    USED[results_id + older] = ""  # pages say so of what this version would train otherwise
    return Results(wanted, rows, curves, bits, meta, results_id)
