"""Damaged files of every kind that is read: as before, or one line that names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import DAMAGE, Tally, cases, mutate

from eqr import PROJECT, SHIPPED, data, experiments, runs
from eqr.checkpoint import load_model, load_tensors, save_tensors
from eqr.config import EvalConfig
from eqr.experiments import evaluate_or_load, load_trained, read_result
from eqr.files import shipped_file
from eqr.notebook import own_parameters
from eqr.protocol import load_protocol
from eqr.recipes import load_recipe
from eqr.settings import digest
from eqr.store import Store, sealed
from eqr.studies.cells import CellFile
from eqr.tasks import miniarc_source


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one lies, and how it is read."""

    path: Path
    read: Callable[[], Any]
    sealed: bool = True  # what is read is as before, or refused; a source may say something else


def content(value: Any) -> str:
    """All that was read, as text, to be compared."""
    if isinstance(value, data.Dataset):
        return f"{value.digest} {value.task} {value.origin}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tobytes()!r}"
    if isinstance(value, dict):
        return str({key: content(part) for key, part in value.items()})
    return str(value)


def kinds(folder: Path, make_recipe, problems, learned) -> dict[str, Kind]:
    """Each kind of file once, made in ``folder``."""
    there = data.save(problems, folder / "set")
    model = shutil.copy(learned.path, folder / "model.safetensors")
    store = Store(folder / "store")
    run = experiments.train_run(make_recipe(train={"steps": 4}), store)
    trained = load_trained(run, store)
    scored = evaluate_or_load(trained, EvalConfig((1, 2), problems=8), store).run
    cell = next((SHIPPED / "results/laptop/tuning").glob("*.npz"))
    kept = folder / cell.parent.name / cell.name
    kept.parent.mkdir()
    shutil.copy(cell, kept)
    notebook = Path(shutil.copy(PROJECT / "notebooks/machine.ipynb", folder))
    recipe = folder / "own.toml"
    recipe.write_text('base = "sudoku6"\nseed = 3\n[train]\nsteps = 10\nlr = 1e-3\n')
    tasks = Path(shutil.copy(miniarc_source.SHIPPED, folder / "tasks.json"))

    def of_run(made, *parts: str) -> dict[str, Kind]:
        def read() -> Any:
            got = store.get(made.id)
            log = load_trained(got, store).log("log").to_csv() if "log.jsonl" in parts else ""
            table = read_result(got).table([1], ["average"]).to_csv() if scored is made else log
            return got.manifest, table, runs.timing(got) if hasattr(runs, "timing") else ""

        return {f"{made.manifest['kind']} {name}": Kind(made.path / name, read) for name in parts}

    def of_cell() -> str:
        read = CellFile.read(kept)
        return f"{read.about} {content(read.outcomes)} {read.table.to_csv()} {read.curve.to_csv()}"

    def of_model() -> str:
        loaded = load_model(model)
        weights = {k: v.numpy() for k, v in loaded.model.state_dict().items()}
        return f"{loaded.sha256} {loaded.meta} {content(weights)}"

    set_files = ("manifest.json", "train_inputs.npy", "test_labels.npy", "train_rating.npy")
    return {
        **{f"data set {n}": Kind(there / n, lambda: data.load(there)) for n in set_files},
        "model": Kind(Path(model), of_model),
        **of_run(run, "manifest.json", "log.jsonl", "model.safetensors", "timing.json"),
        **of_run(scored, "manifest.json", "records.npz"),
        "cell": Kind(kept, of_cell),
        "notebook": Kind(notebook, lambda: own_parameters(notebook), sealed=False),
        "recipe": Kind(recipe, lambda: load_recipe(str(recipe)), sealed=False),
        "tasks": Kind(tasks, lambda: len(miniarc_source.read_rules(tasks)), sealed=False),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_recipe, problems, learned) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("corpus"), make_recipe, problems, learned)


KINDS = [
    *(f"data set {n}" for n in ("manifest.json", "train_inputs.npy", "test_labels.npy",
                                "train_rating.npy")),
    *(f"train {n}" for n in ("manifest.json", "log.jsonl", "model.safetensors", "timing.json")),
    *("eval manifest.json", "eval records.npz", "model", "cell", "notebook", "recipe", "tasks"),
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_as_before_or_named(name, corpus, tally, draw):
    kind, whole = corpus[name], corpus[name].path.read_bytes()
    before = content(kind.read())
    try:
        for number in range(cases(10, 70)):
            damage = DAMAGE[number % len(DAMAGE)]
            kind.path.write_bytes(damage(whole, draw))
            tally.judge(
                kind.read,
                lambda value: not kind.sealed or content(value) == before,
                kind.path.name,
                f"{name}, {damage.__name__} {number}",
            )
    finally:
        kind.path.write_bytes(whole)
    assert content(kind.read()) == before


def judge_mutations(path: Path, read, seal, tally: Tally, draw: random.Random, n: int) -> None:
    """JSON with hostile values in it, sealed anew by one who knows how: any end but a crash."""
    whole = path.read_bytes()
    try:
        for number in range(n):
            values = seal(mutate(json.loads(whole), draw))
            path.write_text(json.dumps(values))
            tally.judge(read, lambda _: True, "", f"{path.name}, {number}: {values!s:.1500}")
    finally:
        path.write_bytes(whole)


def test_hostile_values_in_manifests_are_refused(corpus, tally, draw):
    def seal_set(values: Any) -> Any:
        if isinstance(values, dict):
            values.pop("seal", None)
            values["seal"] = digest(values)
        return values

    def seal_run(values: Any) -> Any:
        return sealed(values) if isinstance(values, dict) and draw.random() < 0.8 else values

    for name, seal in (("data set", seal_set), ("train", seal_run), ("eval", seal_run)):
        kind = corpus[f"{name} manifest.json"]
        judge_mutations(kind.path, kind.read, seal, tally, draw, cases(15, 150))
    store = Store(corpus["train manifest.json"].path.parents[1])
    listed = corpus["train manifest.json"].path
    judge_mutations(listed, lambda: runs.listing(store), seal_run, tally, draw, cases(10, 60))


def test_hostile_headers_of_weights_are_refused_before_memory_is_taken(corpus, tally, draw):
    path = corpus["model"].path
    tensors, meta, _ = load_tensors(path)
    other = path.with_name("other.safetensors")
    large = {"width_multiple": 10**9, "heads": 10**9, "hidden": 10**9, "blocks": 10**9}
    made = [meta | {"model": meta["model"] | {k: v}} for k, v in large.items()]
    made += [meta | {"task": meta["task"] | {"box_height": 10**9}}, meta | {"recipe": None}]
    made += [mutate(meta, draw) for _ in range(cases(10, 100))]
    for number, values in enumerate(made):
        other.unlink(missing_ok=True)
        save_tensors(other, tensors, values if isinstance(values, dict) else {"a": values})
        case = f"header {number}: {values!s:.800}"
        tally.judge(lambda: load_model(other), lambda _: True, other.name, case)


def test_hostile_values_in_sources_are_refused(corpus, tally, draw, tmp_path):
    notebook, tasks = corpus["notebook"].path, corpus["tasks"].path
    same = lambda values: values  # noqa: E731
    judge_mutations(notebook, corpus["notebook"].read, same, tally, draw, cases(15, 120))
    small = tmp_path / "tasks.json"
    small.write_text(json.dumps(dict(list(json.loads(tasks.read_text()).items())[:3])))
    read = lambda: miniarc_source.read_rules(small)  # noqa: E731
    judge_mutations(small, read, same, tally, draw, cases(15, 120))


def test_shipped_files_are_as_their_hashes_say(tally, monkeypatch, tmp_path, draw):
    for name in ("SHA256SUMS", "miniarc/tasks.json", "registry/results.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SHIPPED / name, tmp_path / name)
    monkeypatch.setattr("eqr.files.SHIPPED", tmp_path)
    for name in ("miniarc/tasks.json", "registry/results.csv"):
        path = tmp_path / name
        whole = path.read_bytes()
        for number in range(cases(8, 40)):
            damaged = DAMAGE[number % len(DAMAGE)](whole, draw)
            path.write_bytes(damaged)
            tally.judge(
                lambda path=path: shipped_file(path),
                lambda _, same=damaged == whole: same,
                path.name,
                f"{name} {number}",
            )
        path.write_bytes(whole)


def test_protocols_are_those_of_the_package():
    assert load_protocol("paper-16-1").depth == 16
