"""The files of a study: what finished cells become in them, and what is taken over from them.

A study's files need no store to be extended: cells that an earlier run has written, and that the
store at hand has not got, are carried over as they are.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import checkpoint
from eqr.config import SEMANTICS, EvalConfig, to_dict
from eqr.data import file_sha256
from eqr.evaluate import Records
from eqr.select import selected
from eqr.settings import ConfigError
from eqr.store import Store, provenance, replace_file
from eqr.studies import results as studies
from eqr.studies.cells import Cell, Done, finished
from eqr.studies.rows import Evaluation, Study, study


def tidy(done: Done) -> pd.DataFrame:
    """The rows of a cell's table."""
    train, parts = done.model.recipe.train, []
    for kind, found in done.evaluated:
        part = found.table(kind.breadths, kind.select)
        part.insert(0, "evaluation", kind.name)
        part["eval_seconds"] = found.run.manifest["provenance"]["seconds"]
        part["eval_run"] = found.run.id
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "row", done.cell.row)
    table.insert(1, "seed", done.cell.seed)
    price = asdict(done.cost)
    del price["layers"]  # the table's own column counts those of the whole rollout
    about = {
        **price,
        "train_steps": train.steps,
        "train_batch": train.batch,
        "train_unroll": train.unroll,
        "train_seconds": done.model.seconds,
        "train_run": done.model.run.id,
    }
    return table.assign(**about)


def outcomes(done: Done) -> dict[str, np.ndarray]:
    """Which problems a cell solved, as bools by ``row/seed/evaluation[/select]``.

    The plain key holds every trajectory, (K, P, B) for K depths, P problems, B restarts; that of a
    selection rule the chosen answers, (K, breadths, P). Average and oracle follow from the former.
    What the evaluation keeps beside (:data:`~eqr.studies.study.KEPT`) has keys of its own:
    ``residual`` float32 (P, B) in float16's precision, ``answer`` uint8 (P, B), ``checked`` bool
    (K, P, B).
    """
    kept = {}
    for kind, found in done.evaluated:
        key, records = f"{done.cell.row}/{done.cell.seed}/{kind.name}", found.records
        kept[key] = records.exact
        for rule in kind.select:
            if rule not in ("average", "oracle"):
                kept[f"{key}/{rule}"] = np.stack(
                    [
                        [selected(records.at(d).first(b), rule)[0] for b in kind.breadths]
                        for d in records.depths.tolist()
                    ]
                ).astype(bool)
        for name in kind.keep:
            kept[f"{key}/{name}"] = kept_array(records, name)
    return kept


def kept_array(records: Records, name: str) -> np.ndarray:
    """One of :data:`eqr.studies.rows.KEPT` of an evaluation."""
    if name == "checked":
        return records.checked
    if name == "residual":
        return coarse(records.residual[-1])
    same = records.answer[-1][:, :, None] == records.answer[-1][:, None, :]  # (P, B, B)
    return same.argmax(2).astype(np.uint8)


def coarse(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits behind the point: as precise as float16, and packed almost as small.

    Trajectories without noise come to rest at residuals of 1e-7, where float16 has three values.

    >>> float(coarse(np.float32([1.9e-7]))[0]), float(np.float16(1.9e-7))
    (1.8998980522155762e-07, 1.7881393432617188e-07)
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


LARGEST_BYTES = 16 * 2**20  # of a file of weights that is shipped


@dataclass(frozen=True, slots=True)
class Part:
    """What the files hold of one finished cell."""

    cell: Cell
    rows: pd.DataFrame
    outcomes: dict[str, np.ndarray]  # see :func:`outcomes`
    curve: pd.DataFrame  # the held-out accuracies during training; empty where not recorded
    complete: bool  # whether it has the evaluations that its study got later
    runs: dict[str, Any]  # commits, hardware, first and last time of the stored runs behind it


def part_of(done: Done) -> Part:
    """What a finished cell of the store becomes."""
    origins = done.origins()
    runs = {
        "commits": [o["commit"] for o in origins],
        "hardware": [o["hardware"] for o in origins],
        "first": min(o["finished"] for o in origins),
        "last": max(o["finished"] for o in origins),
    }
    return Part(done.cell, tidy(done), outcomes(done), curve_of(done), done.complete, runs)


def curve_of(done: Done) -> pd.DataFrame:
    """Exact accuracy on the first held-out problems at each evaluation during training."""
    log = done.model.log("eval")
    log.insert(0, "row", done.cell.row)
    log.insert(1, "seed", done.cell.seed)
    return log


def described(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as the JSON tells it."""
    kept = {"breadths": list(evaluation.breadths), "select": list(evaluation.select)}
    if evaluation.keep:
        kept["keep"] = list(evaluation.keep)
    if evaluation.level:
        kept["level"] = evaluation.level.named()
    return to_dict(evaluation.config) | kept


def carried(name: str, profile: str, out: Path, store: Store) -> dict[Cell, Part]:
    """The cells of the files in ``out``, by cell; empty where there are no files.

    A cell is taken over only if it is what this version would make: the recipe of its row leads to
    the training run that the table names (which is not asked where the row's data set is not at
    hand), and its evaluations are those of the study. Its ``runs`` are those of the whole file.

    Raises:
        ConfigError: the files are damaged, or hold a cell that this version would make otherwise.
    """
    if not (out / f"{name}.json").exists():
        return {}
    giving_up = "write elsewhere with --out, or give up what the files hold with --overwrite"
    try:
        results = studies.load(name, profile, out)
    except studies.StudyError as error:
        raise ConfigError(f"{error}; {giving_up}") from error
    rows, found = {row.name for row in study(name).rows}, {}
    for row, seed in results.meta["cells"]:
        cell = Cell(name, profile, row, seed)
        mine = results.rows[(results.rows.row == row) & (results.rows.seed == seed)]
        run_id = cell.train_id(store) if row in rows else ""
        if run_id is not None and set(mine.train_run) != {run_id}:
            raise ConfigError(
                f"{out / name}.json: cells holds {cell}, which this version would train "
                f"otherwise; {giving_up}"
            )
        have = [e for e in cell.evaluations() if (mine.evaluation == e.name).any()]
        # What was written before a setting existed has that setting's default.
        told = {k: to_dict(EvalConfig()) | v for k, v in results.meta["evaluations"].items()}
        if changed := [e.name for e in have if told[e.name] != described(e)]:
            raise ConfigError(
                f"{out / name}.json: evaluations.{changed[0]} is not what this version would "
                f"run; {giving_up}"
            )
        keys = [k for k in results.bits if k.startswith(f"{row}/{seed}/")]
        packed = results.meta["shapes"]
        bits = {
            key: results.unpack(key).astype(bool) if key in packed else results.bits[key]
            for key in keys
        }
        complete = len(have) == len(cell.evaluations())
        curve = results.curves
        curve = curve[(curve.row == row) & (curve.seed == seed)]
        found[cell] = Part(cell, mine, bits, curve, complete, results.meta["runs"])
    return found


def write(
    wanted: Study,
    profile: str,
    cells: Sequence[Cell],
    store: Store,
    out: Path,
    failed: dict[str, str],
    before: Mapping[Cell, Part] = {},
) -> dict[str, Any]:
    """Write the study's files from what the store has of ``cells``; returns the JSON's content.

    Each file is replaced in one go, the JSON last, with the hashes of the others.

    Args:
        before: cells to carry over where the store has less of them.
    """
    parts = []
    for cell in cells:
        kept = before.get(cell)
        if not (kept and kept.complete) and (done := finished(cell, store)):
            have = {kind.name for kind, _ in done.evaluated}
            if not kept or have >= set(kept.rows.evaluation):
                kept = part_of(done)
        if kept:
            parts.append(kept)
    have = {part.cell for part in parts}
    empty = pd.DataFrame(columns=["row", "seed", "evaluation"])
    table = pd.concat([p.rows for p in parts], ignore_index=True) if parts else empty
    bits = {key: value for part in parts for key, value in part.outcomes.items()}
    packed = io.BytesIO()
    np.savez_compressed(
        packed, **{k: np.packbits(v) if v.dtype == bool else v for k, v in bits.items()}
    )
    out.mkdir(parents=True, exist_ok=True)
    paths = {k: out / f"{wanted.name}.{k}" for k in ("csv", "curves.csv", "npz", "json")}
    replace_file(paths["csv"], table.to_csv(index=False).encode())
    curves = [part.curve for part in parts if len(part.curve)]
    curves = pd.concat(curves, ignore_index=True) if curves else empty[["row", "seed"]]
    replace_file(paths["curves.csv"], curves.to_csv(index=False).encode())
    replace_file(paths["npz"], packed.getvalue())
    kinds = {e.name: e for row in wanted.rows for e in row.evaluations(profile)}
    files = [path for kind, path in paths.items() if kind != "json"]
    files += [weights_path(part.cell, out) for part in parts]
    meta = {
        "format": studies.FORMAT,
        "study": wanted.name,
        "profile": profile,
        "semantics": SEMANTICS,
        "files": {path.name: file_sha256(path) for path in files if path.is_file()},
        "cells": [[c.row, c.seed] for c in cells if c in have],
        "missing": [[c.row, c.seed] for c in cells if c not in have],
        "partial": [[p.cell.row, p.cell.seed] for p in parts if not p.complete],
        "failed": failed,
        "seeds": sorted({c.seed for c in have}),
        "matched": wanted.matched,
        "rows": {
            row.name: {
                "title": row.title,
                "recipe": row.recipe,
                "overrides": dict(row.overrides),
                "scale": dict(row.scale),
                "paper": [asdict(p) for p in row.paper],
            }
            for row in wanted.rows
        },
        "evaluations": {name: described(e) for name, e in kinds.items()},
        "shapes": {k: list(v.shape) for k, v in bits.items() if v.dtype == bool},
        "runs": {
            "commits": sorted({c for p in parts for c in p.runs["commits"]}),
            "hardware": sorted({h for p in parts for h in p.runs["hardware"]}),
            "first": min((p.runs["first"] for p in parts), default=None),
            "last": max((p.runs["last"] for p in parts), default=None),
        },
        "written": provenance() | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    replace_file(paths["json"], (json.dumps(meta, indent=1) + "\n").encode())
    return meta


def ship_weights(cells: Sequence[Cell], store: Store, out: Path) -> dict[Cell, str]:
    """Put the models of finished cells into ``out`` as float16, half the size.

    The records are those of the float32 weights. Call it before :func:`write`, which lists the
    files and their hashes.

    Returns:
        For each cell the path that was written, or why none was.
    """
    told = {}
    for cell in cells:
        done, path = finished(cell, store), weights_path(cell, out)
        if not done:
            told[cell] = f"{cell}: no weights, this store has not trained it"
            continue
        out.mkdir(parents=True, exist_ok=True)
        source = done.model.run.file("model.safetensors")
        if source.stat().st_size / 2 > LARGEST_BYTES:
            size = source.stat().st_size / 2**21
            told[cell] = f"{cell}: {size:.0f} MiB of weights are too large to be shipped"
            continue
        save_half(source, path)
        told[cell] = str(path)
    return told


def save_half(source: Path, path: Path) -> str:
    """Copy a model file with its weights as float16, half the size; returns the new sha256.

    Its header names the sha256 of the file that it was made from.
    """
    tensors, meta, sha256 = checkpoint.load_tensors(source)
    return checkpoint.save_tensors(
        path, {k: v.half() for k, v in tensors.items()}, meta | {"from": sha256}
    )


def weights_path(cell: Cell, out: Path) -> Path:
    """Where the weights of a cell are shipped."""
    return out / f"{cell.study}-{cell.row}-{cell.seed}.safetensors"
