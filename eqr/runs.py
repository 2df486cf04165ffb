"""Stored results: which there are, whether they are intact, how two differ (page *Run it again*).

Everything here reads :class:`eqr.store.Store` and the published results below ``data/results``;
only :func:`repeat` computes, and it writes to a temporary folder.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import torch

from eqr import SHIPPED, checkpoint, evaluate, experiments, select, stats, tables
from eqr.config import SEMANTICS, EvalConfig, recipe_from_dict, to_dict
from eqr.recipes import PROFILES, load_recipe, recipe_names
from eqr.settings import ConfigError, from_dict
from eqr.store import (
    MANIFEST,
    PENDING,
    Run,
    Store,
    StoreError,
    files_of,
    inspect_manifest,
    provenance,
)
from eqr.studies.cells import CellFile, StudyError
from eqr.tasks.shift import Level

RULES = ("average", "converged", "majority", "oracle")

# ------------------------------------------------------------------------------- finding, listing


def find(store: Store, text: str) -> Path:
    """The directory of the run that ``text`` begins, with or without its kind; complete or partial.

    Raises:
        StoreError: no run or several; the message lists the near misses.
    """
    complete = store.paths()
    # A run that is being made again after a fault is in both places: the complete one counts.
    runs = {path.name: path for path in [*store.partial(), *complete]}
    if text in runs:
        return runs[text]
    hits = [
        n for n in runs if text and (n.startswith(text) or n.partition("-")[2].startswith(text))
    ]
    if len(hits) == 1:
        return runs[hits[0]]
    if hits:
        raise StoreError(f"run {text!r} is ambiguous: {', '.join(sorted(hits))}; give more of it")
    if not runs:
        raise StoreError(f"run {text!r} is not known: {store.root} holds no runs")
    near = difflib.get_close_matches(text, runs, n=3, cutoff=0)
    raise StoreError(
        f"run {text!r} is not in {store.root}; did you mean {', '.join(near)}? "
        "`eqr results list` shows all"
    )


def profile_of(recipe: Mapping[str, Any]) -> str | None:
    """The profile whose recipe of that name this is, whatever its seed; None: a changed one."""
    try:
        ours = recipe_from_dict(recipe)
    except ConfigError:
        return None
    for profile in PROFILES:
        if ours.name in recipe_names(profile):
            known = load_recipe(ours.name, profile, seed=ours.seed)
            if known == ours:
                return profile
    return None


def stored_sha256(path: Path) -> str | None:
    """The sha256 that a file's header gives, unverified; None if there is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[checkpoint.FORMAT])["sha256"]
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError):
        return None


def models(store: Store) -> dict[str, Path]:
    """The runs of the store that hold a model, by the sha256 of its weights."""
    found = {stored_sha256(p / "model.safetensors"): p for p in store.paths()}
    return {sha256: path for sha256, path in found.items() if sha256}


def listing(store: Store, kind: str | None = None) -> list[dict[str, Any]]:
    """A row for every run: id, kind, name, profile, seed, finished, seconds, bytes, state.

    ``state`` is ``complete``, ``partial``, or ``damaged`` (its manifest does not hold together);
    the files themselves are not read. Of an evaluation, name and profile are its model's, and
    ``model`` is the run that trained it.
    """
    weights = models(store)
    rows = [_row(path, inspect_manifest(path), weights) for path in store.paths()]
    rows += [_row(path, None, weights) for path in store.partial()]
    return [row for row in rows if kind in (None, row["kind"])]


def _row(path: Path, found: tuple | None, weights: Mapping[str, Path]) -> dict[str, Any]:
    if found is None:
        manifest, state = _pending(path), "partial"
    else:
        manifest, state = found[0] or {}, "damaged" if found[1] else "complete"
    kind = manifest.get("kind") or path.name.partition("-")[0]
    config, done = manifest.get("config") or {}, manifest.get("provenance") or {}
    row = {"id": path.name, "kind": kind, "name": None, "profile": None, "seed": None}
    if kind == "train" and "recipe" in config:
        recipe = config["recipe"]
        row |= {"name": recipe.get("name"), "seed": recipe.get("seed", 0)}
        row["profile"] = profile_of(recipe)
    elif kind == "eval" and "weights" in config:
        row["seed"] = config.get("eval", {}).get("seed", 0)
        if trained := weights.get(config["weights"]):
            model = (inspect_manifest(trained)[0] or {}).get("config", {}).get("recipe", {})
            row |= {"name": model.get("name"), "model": trained.name}
            row["profile"] = profile_of(model)
    elif "parameters" in config:  # a chapter
        notebooks = [name for name in files_of(path) if name.endswith(".ipynb")]
        row["name"] = Path(notebooks[0]).stem if notebooks else None
        row |= {k: config["parameters"].get(k) for k in ("profile", "seed")}
    row["finished"], row["seconds"] = done.get("finished"), done.get("seconds")
    row["bytes"] = sum(file.stat().st_size for file in files_of(path).values())
    return row | {"state": state}


def _pending(path: Path) -> dict[str, Any]:
    """Kind and configuration of a partial run; empty where it was begun by an older version."""
    try:
        return json.loads((path / PENDING).read_text())
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------------------------------- showing


def description(store: Store, path: Path) -> dict[str, Any]:
    """All there is to know about one run: configuration, provenance, files, and its result.

    Raises:
        StoreError: a file of it is missing or altered.
    """
    if path.parent == store.root:
        manifest, state = store.get(path.name).manifest, "complete"
        run = Run(path.name, path, manifest)
    else:
        manifest, state, run = _pending(path), "partial", None
    names = manifest.get("files") or dict.fromkeys(files_of(path))
    files = {
        name: {"bytes": (path / name).stat().st_size, "sha256": sha256}
        for name, sha256 in names.items()
    }
    found = {k: manifest.get(k) for k in ("kind", "config", "semantics", "provenance")}
    found = {"id": path.name, "state": state, "path": str(path), **found, "files": files}
    if (log := last_rows(path)) and (found["kind"] in ("train", None)):
        found["last"] = log
    if run and found["kind"] == "eval":
        found["table"] = result_table(run).to_dict(orient="records")
    return found


def last_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each kind in a training's log; empty where there is no log."""
    rows: dict[str, dict[str, Any]] = {}
    if (path / "log.jsonl").is_file():
        for line in (path / "log.jsonl").read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the torn last line of a killed run
                continue
            rows[row.pop("kind")] = row
    return rows


def breadths_of(kept: evaluate.Records) -> list[int]:
    """The powers of two up to the recorded breadth, and that breadth."""
    breadth = kept.exact.shape[2]
    return sorted({2**k for k in range(breadth.bit_length())} | {breadth})


def result_table(run: Run) -> pd.DataFrame:
    """The table of a stored evaluation at every recorded depth, without the count of layers."""
    kept, config = experiments.read_records(run), evaluation_of(run)
    table = tables.table(
        kept,
        breadths=breadths_of(kept),
        select=RULES,
        layers=1,
        noise=config.noise,
        symmetry=config.symmetry,
        nfe=config.nfe,
    )
    return table.drop(columns="layers")


def evaluation_of(run: Run) -> EvalConfig:
    """The configuration of a stored evaluation."""
    return from_dict(EvalConfig, run.manifest["config"]["eval"], f"{run.path / MANIFEST}: eval")


# -------------------------------------------------------------------------------- shipped results


def shipped(folder: Path = SHIPPED / "results") -> dict[str, list[str]]:
    """The published results below a folder: path of each file -> what is wrong with it."""
    checks = {".npz": CellFile.read, ".safetensors": checkpoint.load_tensors}
    faults: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        faults[str(path)] = []
        try:
            if path.suffix not in checks:
                raise StudyError(f"{path}: is no result of a study; move it elsewhere")
            checks[path.suffix](path)
        except (StudyError, checkpoint.CheckpointError) as error:
            faults[str(path)].append(str(error))
    return faults


# -------------------------------------------------------------------------------------- repeating


@dataclass(frozen=True, slots=True)
class Repeat:
    """How a stored run came out when it was made again."""

    verdict: str  # "equal", "differs" or "skipped"
    details: list[str] = field(default_factory=list)  # what differs, or why it was skipped
    elsewhere: list[str] = field(default_factory=list)  # how machine and versions differ


def repeat(
    store: Store,
    run: Run,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Repeat:
    """Make a stored training or evaluation again in a temporary folder and compare the results.

    On the machine and with the versions that the run was made with, all must be equal to the bit;
    elsewhere the differences are for the reader to judge.

    Raises:
        ConfigError, DataError, TrainingError: the run cannot be made again.
    """
    kind, config = run.manifest["kind"], run.manifest["config"]
    then = run.manifest["provenance"]
    if run.manifest["semantics"] != SEMANTICS:
        old = run.manifest["semantics"]
        return Repeat("skipped", [f"made with semantics {old}; this version has {SEMANTICS}"])
    if kind not in ("train", "eval"):
        return Repeat("skipped", [f"runs of kind {kind!r} are not repeated"])
    trained = None
    if kind == "eval":
        path = models(store).get(config["weights"])
        if path is None:
            return Repeat("skipped", [f"its model {config['weights'][:16]} is not in {store.root}"])
        trained = experiments.load_trained(store.get(path.name), store)
    threads = torch.get_num_threads()
    torch.set_num_threads(then.get("threads", threads))
    try:
        elsewhere = differences(
            then, provenance(), ("versions", "hardware", "threads", "processes")
        )
        with tempfile.TemporaryDirectory(prefix="eqr-repeat-") as folder:
            other = Store(Path(folder))
            if trained:
                level = Level("stored", **config["level"]) if "level" in config else None
                config_of_run = evaluation_of(run)
                again = experiments.evaluate_or_load(
                    trained, config_of_run, other, progress, level
                ).run
                details = compare_records(run, again)
            else:
                recipe = recipe_from_dict(config["recipe"], f"{run.path / MANIFEST}: recipe")
                again = experiments.train_run(
                    recipe,
                    other,
                    device=device,
                    on_event=progress and (lambda e: progress(e.step, recipe.train.steps)),
                )
                details = compare_trainings(run, again)
            fused = [experiments.timing(r).get("fused", False) for r in (run, again)]
            if fused[0] != fused[1]:
                elsewhere.append(f"fused: {fused[0]} | {fused[1]}")
            ours, theirs = config["data"], again.manifest["config"]["data"]
            if ours != theirs:
                details.insert(0, f"data: {ours} then, {theirs} now")
    finally:
        torch.set_num_threads(threads)
    return Repeat("differs" if details else "equal", details, elsewhere)


def differences(one: Mapping, other: Mapping, keys: tuple[str, ...] | None = None) -> list[str]:
    """``name: a | b`` for every value that two nested mappings do not share."""
    one, other = flat(one), flat(other)
    names = [k for k in [*one, *(k for k in other if k not in one)]]
    if keys:
        names = [k for k in names if k.split(".")[0] in keys]
    gone = "(not set)"
    return [
        f"{k}: {one.get(k, gone)} | {other.get(k, gone)}"
        for k in names
        if one.get(k, gone) != other.get(k, gone)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> flat({"a": {"b": 1, "c": [2]}})
    {'a.b': 1, 'a.c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def compare_records(one: Run, other: Run) -> list[str]:
    """What differs between the records of two evaluations of the same shape."""
    a, b = experiments.read_records(one), experiments.read_records(other)
    details = []
    for spec in fields(a):
        x, y = getattr(a, spec.name), getattr(b, spec.name)
        if x is None and y is None:
            continue  # not asked for
        if x.shape != y.shape:
            details.append(f"{spec.name}: shape {x.shape} | {y.shape}")
        elif not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
            count = f"{spec.name}: {int((x != y).sum())} of {x.size} values differ"
            size = np.abs(x - y).max() if x.dtype.kind == "f" else None
            details.append(count if size is None else f"{count}, by at most {size:.3g}")
    return details


def compare_trainings(one: Run, other: Run) -> list[str]:
    """What differs between weights and logs of two trainings."""
    details = []
    weights = [checkpoint.load_tensors(r.file("model.safetensors"))[0] for r in (one, other)]
    if gap := largest_difference(*weights):
        details.append(f"model.safetensors: {gap}")
    logs = [run.file("log.jsonl").read_bytes().splitlines() for run in (one, other)]
    if logs[0] != logs[1]:
        unequal = sum(a != b for a, b in zip(*logs, strict=False)) + abs(
            len(logs[0]) - len(logs[1])
        )
        details.append(f"log.jsonl: {unequal} of {max(map(len, logs))} rows differ")
    return details


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str:
    """In words, by how much two sets of tensors differ; empty where they are equal to the bit."""
    shapes = [{k: tuple(v.shape) for k, v in tensors.items()} for tensors in (one, other)]
    if shapes[0] != shapes[1]:
        return "the tensors have other names or shapes"
    gaps = {k: (one[k].double() - other[k].double()).abs().max().item() for k in one}
    name = max(gaps, key=gaps.__getitem__)
    if gaps[name] == 0:
        return ""
    return f"weights differ by at most {gaps[name]:.3g} (in {name})"


# -------------------------------------------------------------------------------------- comparing


def comparison(one: Run, other: Run) -> dict[str, Any]:
    """How two runs of one kind differ in configuration, versions and result.

    Returns:
        ``config``, ``provenance``: {name: [a, b]} of what differs; ``result``: for trainings
        {name: [a, b]} of the last held-out row and ``weights`` in words, for evaluations the rows
        of :func:`paired_rows`, else {file: [sha256, sha256]}.

    Raises:
        StoreError: the runs are of two kinds.
    """
    kinds = [run.manifest["kind"] for run in (one, other)]
    if kinds[0] != kinds[1]:
        raise StoreError(f"{one.id} and {other.id} are of two kinds: nothing to compare")
    found: dict[str, Any] = {
        "runs": [one.id, other.id],
        "config": _unequal(full_config(one), full_config(other)),
        "provenance": _unequal(*(run.manifest["provenance"] for run in (one, other))),
    }
    if kinds[0] == "train":
        rows = [last_rows(run.path) for run in (one, other)]
        names = list(dict.fromkeys([*rows[0].get("eval", {}), *rows[1].get("eval", {})]))
        found["result"] = {k: [row.get("eval", {}).get(k) for row in rows] for k in names}
        loaded = [checkpoint.load_tensors(r.file("model.safetensors"))[0] for r in (one, other)]
        found["weights"] = largest_difference(*loaded) or "equal to the bit"
    elif kinds[0] == "eval":
        found["result"] = paired_rows(one, other)
    else:
        files = [run.manifest["files"] for run in (one, other)]
        found["result"] = _unequal(*files)
    return found


def full_config(run: Run) -> dict[str, Any]:
    """A run's configuration with the settings that its id leaves out because they are usual."""
    config = dict(run.manifest["config"])
    where = str(run.path / MANIFEST)
    if "recipe" in config:
        config["recipe"] = to_dict(recipe_from_dict(config["recipe"], f"{where}: recipe"))
    if "eval" in config:
        config["eval"] = to_dict(evaluation_of(run))
    return config


def _unequal(one: Mapping, other: Mapping) -> dict[str, list]:
    one, other = flat(one), flat(other)
    names = dict.fromkeys([*one, *other])
    return {k: [one.get(k), other.get(k)] for k in names if one.get(k) != other.get(k)}


def paired_rows(one: Run, other: Run) -> list[dict[str, Any]]:
    """Two evaluations side by side at the depths, breadths and rules that both have.

    ``difference`` (the second minus the first) with its 95 % interval is given where both were run
    on the same problems, else None.
    """
    kept = [experiments.read_records(run) for run in (one, other)]
    depths = sorted(set(kept[0].depths.tolist()) & set(kept[1].depths.tolist()))
    breadths = sorted(set(breadths_of(kept[0])) & set(breadths_of(kept[1])))
    same = one.manifest["config"]["data"] == other.manifest["config"]["data"]
    same = same and kept[0].exact.shape[1] == kept[1].exact.shape[1]
    rows = []
    for depth in depths:
        for breadth in breadths:
            for rule in RULES:
                exact = [select.selected(k.at(depth).first(breadth), rule)[0] for k in kept]
                row = {"depth": depth, "breadth": breadth, "select": rule}
                row |= {"a": float(exact[0].mean()), "b": float(exact[1].mean())}
                row |= dict.fromkeys(("difference", "low", "high"))
                if same:
                    gap = stats.paired_difference(exact[1], exact[0])
                    row |= {"difference": gap.mean, "low": gap.low, "high": gap.high}
                rows.append(row)
    return rows
