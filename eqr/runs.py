"""Stored results: which there are, whether they are intact, how two differ (page *Run it again*).

Everything here reads :class:`eqr.store.Store` and the published results below ``data/results``;
only :func:`repeat` computes, and it writes to a temporary folder.
"""

from __future__ import annotations

import difflib
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from eqr import SHIPPED, checkpoint, experiments
from eqr.config import SEMANTICS, recipe_from_dict, to_dict
from eqr.evaluate import Records
from eqr.experiments import read_result
from eqr.files import file_sha256, ours, parse_json, read_json, shipped_file, write_file, write_json
from eqr.recipes import PROFILES, load_recipe, recipe_names
from eqr.run_folder import RAW
from eqr.select import selected
from eqr.settings import ConfigError, UserError
from eqr.stats import paired_difference
from eqr.store import (
    MANIFEST,
    PENDING,
    Run,
    Store,
    StoreError,
    files_of,
    inspect,
    provenance,
    read_arrays,
    sealed,
)
from eqr.studies.cells import check_result, ship_weights
from eqr.tasks.shift import Level

RULES = ("average", "converged", "majority", "oracle")

# ------------------------------------------------------------------------------- finding, listing


def find(store: Store, text: str, *, complete: bool = False) -> Path:
    """The directory of the run that ``text`` begins, with or without its kind; complete or partial.

    Raises:
        StoreError: no run or several (the message lists the near misses), or only a partial one
            where a complete one is asked for.
    """
    # A run that is being made again after a fault is in both places: the complete one counts.
    runs = {path.name: path for path in [*store.partial(), *store.paths()]}
    parts = {name: (name, name.partition("-")[2]) for name in runs if text}
    begun = [name for name, own in parts.items() if any(part.startswith(text) for part in own)]
    hits = [text] if text in runs else begun
    if len(hits) == 1:
        if complete and runs[hits[0]].parent != store.root:
            raise StoreError(f"{hits[0]}: not complete; train to the end first")
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
    known = (p for p in PROFILES if ours.name in recipe_names(p))
    return next((p for p in known if load_recipe(ours.name, p, seed=ours.seed) == ours), None)


def stored_sha256(path: Path) -> str | None:
    """The sha256 that a file's header gives, unverified; None if there is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return str(parse_json((file.metadata() or {})[checkpoint.FORMAT])["sha256"])
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError):
        return None


def models(store: Store) -> dict[str, Path]:
    """The runs of the store that hold a model, by the sha256 of its weights."""
    paths = {stored_sha256(p / "model.safetensors"): p for p in store.paths()}
    return {sha256: path for sha256, path in paths.items() if sha256}


def listing(store: Store, kind: str | None = None) -> list[dict[str, Any]]:
    """A row for every run: id, kind, name, profile, seed, finished, seconds, bytes, state.

    ``state`` is ``complete``, ``partial``, or ``damaged`` (its manifest does not hold together);
    the files themselves are not read. Of an evaluation, name and profile are its model's, and
    ``model`` is the run that trained it.
    """
    weights, rows = models(store), []
    for path in store.paths():
        looked = inspect(path, contents=False)
        state = "damaged" if looked.faults else "complete"
        rows.append(_row(path, looked.manifest, state, weights))
    rows += [_row(path, _pending(path), "partial", weights) for path in store.partial()]
    kinds = {row["kind"] for row in rows}
    if kind and kinds and kind not in kinds:
        raise StoreError(f"--kind {kind!r}: {store.root} has only {', '.join(sorted(kinds))}")
    return [row for row in rows if kind in (None, row["kind"])]


def _row(
    path: Path, manifest: Mapping[str, Any], state: str, weights: Mapping[str, Path]
) -> dict[str, Any]:
    config, done = section(manifest, "config"), section(manifest, "provenance")
    kind, own = str(manifest.get("kind") or path.name.partition("-")[0]), files_of(path)
    row = {"id": path.name, "kind": kind, "name": None, "profile": None, "seed": None}
    recipe = section(config, "recipe") if kind == "train" else {}
    if kind == "eval" and "weights" in config:
        row["seed"] = section(config, "eval").get("seed", 0)
        if trained := weights.get(str(config["weights"])):
            recipe = section(section(inspect(trained, False).manifest, "config"), "recipe")
            row["model"] = trained.name
    elif "parameters" in config:  # a chapter
        row["name"] = next((Path(name).stem for name in own if name.endswith(".ipynb")), None)
        row |= {k: section(config, "parameters").get(k) for k in ("profile", "seed")}
    if recipe:
        row |= {"name": recipe.get("name"), "profile": profile_of(recipe)}
        row["seed"] = recipe.get("seed", 0) if kind == "train" else row["seed"]
    row |= {"finished": done.get("finished"), "seconds": done.get("seconds"), "state": state}
    return row | {"bytes": sum(file.stat().st_size for file in own.values())}


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a manifest that may be damaged; empty where it is none."""
    return part if isinstance(part := values.get(name), Mapping) else {}


def _pending(path: Path) -> dict[str, Any]:
    """Kind and configuration of a partial run; empty where it was begun by an older version."""
    try:
        return dict(read_json(path / PENDING))
    except (OSError, ValueError, TypeError):
        return {}


# ---------------------------------------------------------------------------------------- showing


def description(store: Store, path: Path) -> dict[str, Any]:
    """All there is to know about one run: configuration, provenance, files, and its result.

    Raises:
        StoreError: a file of it is missing or altered.
    """
    run = store.get(path.name) if path.parent == store.root else None
    manifest = run.manifest if run else _pending(path)
    names = manifest.get("files") or dict.fromkeys(files_of(path))
    sizes = {n: {"bytes": (path / n).stat().st_size, "sha256": h} for n, h in names.items()}
    values = {"id": path.name, "state": "complete" if run else "partial", "path": str(path)}
    values |= {k: manifest.get(k) for k in ("kind", "config", "semantics", "provenance")}
    values["files"] = sizes
    if (log := last_rows(path)) and values["kind"] in ("train", None):
        values["last"] = log
    if run and values["kind"] == "eval":
        result = read_result(run)
        table = result.table(breadths_of(result.records), RULES)
        values["table"] = table.to_dict(orient="records")
    return values


def last_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each kind in a training's log; empty where there is no log."""
    rows: dict[str, dict[str, Any]] = {}
    if (path / "log.jsonl").is_file():
        for line in (path / "log.jsonl").read_bytes().splitlines():
            try:
                row = parse_json(line)
                rows[row.pop("kind")] = row
            except (ValueError, LookupError, TypeError, AttributeError):  # torn, in a killed run
                continue
    return rows


def breadths_of(records: Records) -> list[int]:
    """The powers of two up to the recorded breadth, and that breadth."""
    breadth = records.exact.shape[2]
    return sorted({2**k for k in range(breadth.bit_length())} | {breadth})


# -------------------------------------------------------------------------------- shipped results


def shipped(folder: Path = SHIPPED / "results") -> dict[str, list[str]]:
    """The published results below a folder: path of each file -> what is wrong with it."""
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; name that of the results")
    there = [p for p in folder.rglob("*") if p.is_file() and ours(p, folder)]
    checks = dict.fromkeys(sorted(there), check_result)
    if folder == SHIPPED / "results":
        other = SHIPPED / "miniarc" / "tasks.json", SHIPPED / "registry" / "results.csv"
        checks |= dict.fromkeys(other, shipped_file)
    faults: dict[str, list[str]] = {}
    for path, check in checks.items():
        faults[str(path)] = []
        try:
            check(path)
        except (UserError, OSError) as error:
            faults[str(path)].append(str(error))
    return faults


def ship(run: Run, folder: Path = experiments.MODELS) -> Path:
    """Copy a trained model, as float16 and with its log, into a store that the project ships.

    It is that run still, by its id: trained from the same recipe and data. Its weights' sha256 is
    another, so what is measured on them never passes for a measurement of the float32 weights.
    """
    target = folder / run.id
    for name in run.manifest["files"]:
        if name == RAW:
            continue
        if name.endswith(".safetensors"):
            ship_weights(run.file(name), target / name)
        else:
            write_file(target / name, run.file(name).read_bytes())
    hashes = {name: file_sha256(path) for name, path in files_of(target).items()}
    write_json(target / MANIFEST, sealed(run.manifest | {"files": hashes}))
    return target


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
    then, semantics = run.manifest["provenance"], run.manifest["semantics"]
    if semantics != SEMANTICS:
        what = f"made with semantics {semantics}; this version has {SEMANTICS}"
        return Repeat("skipped", [what])
    if kind not in ("train", "eval"):
        return Repeat("skipped", [f"runs of kind {kind!r} are not repeated"])
    if kind == "eval":
        path = models(store).get(config["weights"])
        if path is None:
            return Repeat("skipped", [f"its model {config['weights'][:16]} is not in {store.root}"])
        model = experiments.load_trained(store.get(path.name), store)
    threads = torch.get_num_threads()
    torch.set_num_threads(then.get("threads", threads))
    try:
        with tempfile.TemporaryDirectory(prefix="eqr-repeat-") as folder:
            other = Store(Path(folder))
            if kind == "eval":
                level = Level("stored", **config["level"]) if "level" in config else None
                asked = read_result(run).config
                again = experiments.evaluate_or_load(model, asked, other, progress, level).run
            else:
                recipe = recipe_from_dict(config["recipe"], f"{run.path / MANIFEST}: recipe")
                show = progress and (lambda event: progress(event.step, recipe.train.steps))
                again = experiments.train_run(recipe, other, device=device, on_event=show)
            details = compared(run, again)
            now, parts = provenance(), ("versions", "hardware", "threads", "processes")
            fused = [{"fused": experiments.timing(r).get("fused", False)} for r in (run, again)]
            sides = [{k: p[k] for k in parts if k in p} for p in (then, now)]
            elsewhere = unequal(sides[0] | fused[0], sides[1] | fused[1])
            if data := unequal(*({"data": r.manifest["config"]["data"]} for r in (run, again))):
                details.insert(0, "data: {} then, {} now".format(*data["data"]))
    finally:
        torch.set_num_threads(threads)
    lines = [f"{name}: {a} | {b}" for name, (a, b) in elsewhere.items()]
    return Repeat("differs" if details else "equal", details, lines)


def unequal(one: Mapping, other: Mapping) -> dict[str, list]:
    """``{name: [a, b]}`` of every value that two nested mappings do not share, by dotted name."""
    one, other = flat(one), flat(other)
    names = dict.fromkeys([*one, *other])
    return {k: [one.get(k), other.get(k)] for k in names if one.get(k) != other.get(k)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> flat({"a": {"b": 1, "c": [2]}})
    {'a.b': 1, 'a.c': [2]}
    """
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves


def compared(one: Run, other: Run) -> list[str]:
    """What differs between two runs of one kind: their arrays or weights, and a training's log."""
    if one.manifest["kind"] == "eval":
        return array_differences(*(read_arrays(run).arrays for run in (one, other)))
    gap, details = weight_gap(one, other), []
    if gap:
        details.append(f"model.safetensors: {gap}")
    logs = [run.file("log.jsonl").read_bytes().splitlines() for run in (one, other)]
    if logs[0] != logs[1]:
        pairs = itertools.zip_longest(*logs)
        rows = f"{sum(a != b for a, b in pairs)} of {max(map(len, logs))} rows differ"
        details.append(f"log.jsonl: {rows}")
    return details


def array_differences(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> list[str]:
    """In words, what differs between arrays of the same names."""
    details = []
    for name in one:
        a, b = one[name], other[name]
        if a.shape != b.shape:
            details.append(f"{name}: shape {a.shape} | {b.shape}")
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            size = f", by at most {np.abs(a - b).max():.3g}" if a.dtype.kind == "f" else ""
            details.append(f"{name}: {int((a != b).sum())} of {a.size} values differ{size}")
    return details


def weight_gap(one: Run, other: Run) -> str:
    """In words, by how much the weights of two trainings differ; empty where they are equal."""
    a, b = (checkpoint.load_tensors(run.file("model.safetensors"))[0] for run in (one, other))
    if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        return "the tensors have other names or shapes"
    gaps = {k: (a[k].double() - b[k].double()).abs().max().item() for k in a}
    name = max(gaps, key=gaps.__getitem__)
    return f"weights differ by at most {gaps[name]:.3g} (in {name})" if gaps[name] else ""


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
    values: dict[str, Any] = {
        "runs": [one.id, other.id],
        "config": unequal(full_config(one), full_config(other)),
        "provenance": unequal(*(run.manifest["provenance"] for run in (one, other))),
    }
    if kinds[0] == "train":
        rows = [last_rows(run.path).get("eval", {}) for run in (one, other)]
        names = dict.fromkeys([*rows[0], *rows[1]])
        values["result"] = {name: [row.get(name) for row in rows] for name in names}
        return values | {"weights": weight_gap(one, other) or "equal to the bit"}
    if kinds[0] == "eval":
        return values | {"result": paired_rows(one, other)}
    return values | {"result": unequal(*(run.manifest["files"] for run in (one, other)))}


def full_config(run: Run) -> dict[str, Any]:
    """A run's configuration with the settings that its id leaves out because they are usual."""
    config = dict(run.manifest["config"])
    where = str(run.path / MANIFEST)
    if "recipe" in config:
        config["recipe"] = to_dict(recipe_from_dict(config["recipe"], f"{where}: recipe"))
    if "eval" in config:
        config["eval"] = to_dict(read_result(run).config)
    return config


def paired_rows(one: Run, other: Run) -> list[dict[str, Any]]:
    """Two evaluations side by side at the depths, breadths and rules that both have.

    ``difference`` (the second minus the first) with its 95 % interval is given where both were run
    on the same problems, else None.
    """
    both = [read_result(run).records for run in (one, other)]
    depths = sorted(set(both[0].depths.tolist()) & set(both[1].depths.tolist()))
    breadths = sorted(set(breadths_of(both[0])) & set(breadths_of(both[1])))
    configs = [run.manifest["config"] for run in (one, other)]
    asked = [(c["data"], c.get("level"), c["eval"].get("split", "test")) for c in configs]
    same = asked[0] == asked[1] and both[0].exact.shape[1] == both[1].exact.shape[1]
    rows = []
    for depth, breadth, rule in itertools.product(depths, breadths, RULES):
        a, b = (selected(records.at(depth).first(breadth), rule)[0] for records in both)
        row = {"depth": depth, "breadth": breadth, "select": rule}
        row |= {"a": float(a.mean()), "b": float(b.mean())}
        gap = paired_difference(b, a) if same else None
        gaps = {"difference": "mean", "low": "low", "high": "high"}
        rows.append(row | {k: gap and getattr(gap, name) for k, name in gaps.items()})
    return rows
