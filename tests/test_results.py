"""Stored results: listed, shown, compared; any change to them is noticed and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eqr import PROJECT, checkpoint, experiments, runs as results
from eqr.config import EvalConfig
from eqr.store import Store, StoreError, sealed


@pytest.fixture(scope="module")
def filled(make_recipe, tmp_path_factory) -> Store:
    """Two trainings, an evaluation of each, a chapter, and a training that is not complete."""
    store = Store(tmp_path_factory.mktemp("filled") / "store")
    for seed in (0, 1):
        recipe = make_recipe(seed, train={"steps": 8, "eval_every": 8})
        run = experiments.train_run(recipe, store)
        trained = experiments.load_trained(run, store)
        experiments.evaluate_or_load(trained, EvalConfig((1, 2), breadth=3, noise=0.01), store)
    experiments.train_run(make_recipe(2), store, stop_after_s=0.0)
    parameters = {"profile": "smoke", "seed": 5}
    store.obtain(
        "chapter",
        {"parameters": parameters},
        lambda folder: (folder / "depth.ipynb").write_text("{}") and None,
    )
    return store


@pytest.fixture
def store(filled, tmp_path) -> Store:
    """A copy to do harm to."""
    shutil.copytree(filled.root, tmp_path / "store", dirs_exist_ok=True)
    return Store(tmp_path / "store")


def ids(store: Store, kind: str) -> list[str]:
    return [path.name for path in store.paths() if path.name.startswith(kind)]


def test_list_tells_what_each_run_is(eqr, store):
    rows = json.loads(eqr("results", "list", "--json").out)
    assert [row["kind"] for row in rows] == ["chapter", "eval", "eval", "train", "train", "train"]
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["partial"]
    chapter, evaluation, train, partial = rows[0], rows[1], rows[3], rows[5]
    assert (chapter["name"], chapter["profile"], chapter["seed"]) == ("depth", "smoke", 5)
    assert evaluation["name"] == "tiny" and evaluation["model"] in ids(store, "train")
    assert train["name"] == "tiny" and train["profile"] is None, "tiny is no recipe of a profile"
    assert train["finished"].endswith("Z") and train["bytes"] > 1000 and train["seconds"] > 0
    assert (partial["name"], partial["seed"], partial["finished"]) == ("tiny", 2, None)
    text = eqr("results", "list", "--kind", "eval").out
    assert len(text.splitlines()) == 3 and all(name in text for name in ids(store, "eval"))
    done = eqr("results", "list", "--kind", "evil")
    assert done.code == 1 and "has only chapter, eval, train" in done.err


def test_the_profile_of_a_recipe_is_known_where_it_was_not_changed():
    from eqr.config import to_dict
    from eqr.recipes import load_recipe

    for profile in ("smoke", "laptop"):
        recipe = load_recipe("sudoku6", profile, seed=7)
        assert results.profile_of(to_dict(recipe, defaults=False)) == profile
        assert results.profile_of(to_dict(recipe)) == profile
    changed = load_recipe("sudoku6", "smoke", overrides={"train.steps": 3})
    assert results.profile_of(to_dict(changed)) is None


def test_show_takes_the_beginning_of_an_id_and_gives_the_result(eqr, store):
    train, evaluation = ids(store, "train")[0], ids(store, "eval")[0]
    found = json.loads(eqr("results", "show", train.partition("-")[2][:6], "--json").out)
    assert found["id"] == train and found["state"] == "complete"
    assert found["last"]["eval"]["step"] == 8 and "exact_4" in found["last"]["eval"]
    assert found["provenance"]["versions"]["torch"] and found["config"]["recipe"]["name"] == "tiny"
    for name, file in found["files"].items():
        raw = (store.root / train / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    text = eqr("results", "show", train).out
    assert all(word in text for word in ("recipe.train.steps", "hardware", "last eval: step 8"))
    found = json.loads(eqr("results", "show", evaluation, "--json").out)
    kept = experiments.read_result(store.get(evaluation)).records
    assert found["table"][0]["exact"] == kept.exact[0, :, 0].mean() and len(found["table"]) == 24
    assert {row["breadth"] for row in found["table"]} == {1, 2, 3}
    partial = eqr("results", "show", store.partial()[0].name)
    assert "partial" in partial.out and "resume.safetensors" in partial.out


def test_an_ambiguous_or_unknown_id_lists_the_near_misses(eqr, store):
    done = eqr("results", "show", "train")
    assert done.code == 1 and all(name in done.err for name in ids(store, "train"))
    name = ids(store, "train")[0]
    done = eqr("results", "show", name[:-1] + "x")
    assert done.code == 1 and f"did you mean {name}" in done.err
    done = eqr("results", "verify", store.partial()[0].name)
    assert done.code == 1 and "not complete" in done.err


def reseal(path, **values) -> None:
    """Change a manifest as one who knows how it is sealed."""
    manifest = json.loads(path.read_text()) | values
    path.write_text(json.dumps(sealed(manifest)))


def test_verify_names_every_fault_and_goes_on(eqr, store, tmp_path):
    eqr("results", "verify", "--shipped", tmp_path / "absent").refused("absent: no such folder")
    eqr("results", "verify", "--store", tmp_path / "absent").refused("absent: no such folder")
    nowhere = ("--shipped", tmp_path / "nowhere")
    nowhere[1].mkdir()
    done = eqr("results", "verify", *nowhere)
    count = 5 + len(Store(experiments.MODELS).paths())  # with the models that are shipped
    assert done.code == 0 and f"{count} results, all sound" in done.out
    (chapter,), evals, trains = (ids(store, kind) for kind in ("chapter", "eval", "train"))
    (store.root / evals[0] / "records.npz").unlink()
    (store.root / evals[1] / "extra.txt").write_text("mine")
    log = store.root / trains[0] / "log.jsonl"
    log.write_text(log.read_text().replace("loss", "lose", 1))
    reseal(store.root / trains[1] / "manifest.json", config={"recipe": {}, "data": ""})
    (store.root / chapter).rename(store.root / "chapter-renamed")
    done = eqr("results", "verify", *nowhere)
    faults = [line.strip() for line in done.out.splitlines() if line.startswith("  ")]
    assert done.code == 1 and len(faults) == 5
    assert f"5 of {count} results are not sound" in done.err and len(done.err.splitlines()) == 1
    wanted = [
        (f"chapter-renamed/manifest.json: field id says that it belongs to {chapter}", "rename"),
        (f"{evals[0]}/records.npz: missing", "delete"),
        (f"{evals[1]}/extra.txt: not part of the run", "move it"),
        (f"{trains[0]}/log.jsonl: altered", "delete"),
        (f"{trains[1]}/manifest.json: altered: kind, config", "delete"),
    ]
    for fault, (said, mend) in zip(faults, wanted, strict=True):
        assert said in fault and mend in fault
    rows = json.loads(eqr("results", "verify", *nowhere, "--json").out)
    assert sorted(len(row["faults"]) for row in rows) == [0] * (count - 5) + [1] * 5
    states = {row["id"]: row["state"] for row in json.loads(eqr("results", "list", "--json").out)}
    assert states[trains[1]] == states["chapter-renamed"] == "damaged"
    (store.root / trains[1] / "manifest.json").unlink()
    done = eqr("results", "verify", trains[1])
    assert done.code == 1 and f"{trains[1]}/manifest.json: damaged" in done.err
    assert eqr("results", "show", trains[0]).code == 1


def test_shipped_results_are_checked_against_their_own_hashes(eqr, store, tmp_path):
    folder = tmp_path / "results" / "laptop" / "shaping"
    folder.mkdir(parents=True)
    whole = sorted((PROJECT / "data/results/laptop/shaping").glob("trm-*.npz"))[:3]
    files = [Path(shutil.copy(path, folder)) for path in whole]
    words = ("results", "verify", "--shipped", tmp_path / "results")
    done = eqr(*words)
    assert done.code == 0 and "3 of 3 published files sound" in done.out
    with np.load(files[0]) as members:
        values = dict(members)
    values["table/exact"] = values["table/exact"] + 0.1
    np.savez_compressed(files[0], **values)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    (folder / "other.csv").write_text("")
    done = eqr(*words)
    said = (f"{files[0]}: altered", f"{files[1]}: damaged", "other.csv: is no result of a study")
    assert done.code == 1 and all(word in done.out for word in said)


def test_rerun_gives_the_same_bits_and_names_what_does_not(eqr, store):
    done = eqr("results", "verify", "--rerun", ids(store, "train")[0], *ids(store, "eval"))
    assert done.code == 0 and done.out.count("made again: equal") == 3, done.out + done.err
    done = eqr("results", "verify", "--rerun", ids(store, "chapter")[0])
    assert done.code == 0 and "skipped: runs of kind 'chapter' are not repeated" in done.out

    # Weights that this recipe does not lead to, under a manifest that is in order.
    name = ids(store, "train")[0]
    file = store.root / name / "model.safetensors"
    tensors, meta, _ = checkpoint.load_tensors(file)
    tensors["halt_head.bias"] += 0.25
    checkpoint.save_tensors(file, tensors, meta)
    path = store.root / name / "manifest.json"
    hashes = json.loads(path.read_text())["files"]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    reseal(path, files=hashes | {"model.safetensors": sha256})
    done = eqr("results", "verify", "--rerun", name)
    assert done.code == 1 and "weights differ by at most 0.25 (in halt_head.bias)" in done.err
    old = json.loads(path.read_text())["provenance"]
    versions = old["versions"] | {"torch": "1.0"}
    reseal(path, provenance=old | {"versions": versions})
    done = eqr("results", "verify", "--rerun", name)
    assert done.code == 0 and "made again: differs" in done.out, "another version may differ"
    assert "versions.torch: 1.0 | " in done.out
    (evaluation,) = [
        row["id"]
        for row in results.listing(store, "eval")
        if not row.get("model")  # its model is no longer in the store
    ]
    done = eqr("results", "verify", "--rerun", evaluation)
    assert done.code == 0 and "is not in" in done.out and "skipped" in done.out


def test_diff_shows_settings_and_paired_results(eqr, store):
    trains, evals = ids(store, "train"), ids(store, "eval")
    found = json.loads(eqr("results", "diff", *trains, "--json").out)
    assert list(found["config"]) == ["recipe.seed"] and "differ by at most" in found["weights"]
    assert "exact_4" in found["result"] and "versions.torch" not in found["provenance"]
    assert "recipe.seed" in eqr("results", "diff", *trains).out
    same = json.loads(eqr("results", "diff", trains[0], trains[0], "--json").out)
    assert not same["config"] and same["weights"] == "equal to the bit"
    found = json.loads(eqr("results", "diff", *evals, "--json").out)
    assert list(found["config"]) == ["weights"] and len(found["result"]) == 24
    kept = [experiments.read_result(store.get(name)).records for name in evals]
    for row in found["result"]:
        assert row["difference"] == pytest.approx(row["b"] - row["a"])
        assert row["low"] < row["difference"] < row["high"]
        if row["select"] == "average" and row["breadth"] == 3:
            depth = int(np.flatnonzero(kept[0].depths == row["depth"])[0])
            assert row["b"] == pytest.approx(kept[1].exact[depth].mean())
    assert "difference" in eqr("results", "diff", *evals).out
    done = eqr("results", "diff", trains[0], evals[0])
    assert done.code == 1 and "of two kinds" in done.err


def test_evaluations_of_other_problems_are_not_paired(store):
    one = store.get(ids(store, "eval")[0])
    path = results.models(store)[one.manifest["config"]["weights"]]
    trained = experiments.load_trained(store.get(path.name), store)
    few = experiments.evaluate_or_load(
        trained, EvalConfig((2, 4), breadth=2, problems=8), store
    ).run
    rows = results.paired_rows(one, few)
    assert {row["depth"] for row in rows} == {2} and {row["breadth"] for row in rows} == {1, 2}
    assert all(row["difference"] is None for row in rows)
    with pytest.raises(StoreError, match="two kinds"):
        results.comparison(one, store.get(path.name))


def test_a_shipped_model_is_its_run_with_half_the_bytes_and_is_what_chapters_read(
    make_recipe, filled, tmp_path, monkeypatch
):
    run = filled.get(ids(filled, "train")[0])
    shipped = Store(results.ship(run, tmp_path / "models").parent).get(run.id)
    assert shipped.manifest["config"] == run.manifest["config"]
    sizes = [r.file("model.safetensors").stat().st_size for r in (run, shipped)]
    assert sizes[1] < 0.8 * sizes[0]
    there = {r.path: experiments.load_trained(r, filled) for r in (run, shipped)}
    one, two = there.values()
    assert one.log("eval").equals(two.log("eval"))
    assert one.checkpoint.sha256 != two.checkpoint.sha256, "measurements tell them apart"
    seed = one.recipe.seed
    monkeypatch.setattr(experiments, "MODELS", tmp_path / "models")
    monkeypatch.setattr(experiments, "load_recipe", lambda *_, **__: make_recipe(
        seed, train={"steps": 8, "eval_every": 8}))  # fmt: skip
    for wanted, path in ((True, shipped.path), (False, run.path)):
        assert experiments.train_or_load("tiny", store=filled, shipped=wanted).run.path == path
    (shipped.path / "log.jsonl").write_text("")
    with pytest.raises(StoreError, match=r"log\.jsonl: altered"):
        experiments.train_or_load("tiny", store=filled)
