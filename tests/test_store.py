"""A run is named by what it depends on, visible only when complete, and checked when read."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from eqr import store as stores
from eqr.store import Store, StoreError

CONFIG = {"x": 1, "y": [2, None]}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def visible(store: Store) -> list[str]:
    return sorted(p.name for p in store.root.iterdir() if p.name not in ("locks", "partial"))


def test_a_run_is_invisible_until_complete_and_then_read_not_made_again(store):
    run_id, calls = store.run_id("test", CONFIG), []

    def make(directory: Path) -> None:
        calls.append(directory)
        (directory / "a.txt").write_text("hello")
        assert store.get(run_id) is None and visible(store) == []

    run = store.obtain("test", CONFIG, make)
    assert run.file("a.txt").read_text() == "hello" and visible(store) == [run_id]
    again = store.obtain("test", dict(reversed(CONFIG.items())), make)
    assert again == run == store.get(run_id) and len(calls) == 1
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["config"] == CONFIG and manifest["kind"] == "test"
    assert {"commit", "versions", "hardware", "seconds"} <= manifest["provenance"].keys()
    with pytest.raises(StoreError, match=r"has no file 'b\.txt'"):
        run.file("b.txt")


def test_the_id_depends_on_kind_configuration_and_semantics_alone(store, tmp_path, monkeypatch):
    one = store.run_id("test", CONFIG)
    assert one == Store(tmp_path / "elsewhere").run_id("test", dict(reversed(CONFIG.items())))
    others = {store.run_id("other", CONFIG)}
    others |= {store.run_id("test", CONFIG | {"x": x}) for x in (2, 1.5, "1", None)}
    monkeypatch.setattr(stores, "SEMANTICS", stores.SEMANTICS + 1)
    others |= {store.run_id("test", CONFIG)}
    assert len(others) == 6 and one not in others


def test_a_crash_or_an_early_stop_leaves_no_run_and_is_taken_up_in_the_same_place(store):
    def crash(directory: Path) -> None:
        (directory / "progress").write_text("1")
        raise RuntimeError("power cut")

    def pause(directory: Path) -> bool:
        (directory / "progress").write_text((directory / "progress").read_text() + "2")
        return False

    def finish(directory: Path) -> bool:
        (directory / "result").write_text((directory / "progress").read_text() + "3")
        (directory / "progress").unlink()
        return True

    with pytest.raises(RuntimeError, match="power cut"):
        store.obtain("test", CONFIG, crash)
    assert store.get(store.run_id("test", CONFIG)) is None and visible(store) == []
    assert store.obtain("test", CONFIG, pause) is None and visible(store) == []
    run = store.obtain("test", CONFIG, finish)
    assert run.file("result").read_text() == "123"
    assert set(run.manifest["files"]) == {"result"}
    assert not any((store.root / "partial").iterdir())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "a.txt").write_text("hellO"), r"a\.txt: altered"),
        (lambda run: (run / "a.txt").unlink(), r"a\.txt: missing"),
        (lambda run: (run / "manifest.json").write_text("{"), r"manifest\.json: damaged"),
        (lambda run: (run / "manifest.json").write_text("[]"), r"manifest\.json: damaged"),
        (lambda run: (run / "manifest.json").unlink(), r"manifest\.json: damaged"),
    ],
    ids=["altered", "missing", "cut manifest", "other manifest", "no manifest"],
)
def test_harm_to_a_run_is_named_with_the_mend(store, harm, said):
    run = store.obtain("test", CONFIG, lambda d: (d / "a.txt").write_text("hello") and None)
    harm(run.path)
    with pytest.raises(StoreError, match=f"{said}.*delete"):
        store.get(run.id)
    with pytest.raises(StoreError, match=said):
        store.obtain("test", CONFIG, lambda d: pytest.fail("must not be made over"))


def contend(root: Path, start) -> None:
    """One of several processes that want the same run."""

    def make(directory: Path) -> None:
        with (root / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        (directory / "a.txt").write_text("hello")

    start.wait()
    assert Store(root / "store").obtain("test", CONFIG, make).file("a.txt").read_text() == "hello"


def test_of_several_processes_that_want_a_run_one_makes_it(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [context.Process(target=contend, args=(tmp_path, start)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "made").read_text().splitlines()) == 1


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EQR_STORE", str(tmp_path / "mine"))
    assert Store().root == tmp_path / "mine"
    monkeypatch.delenv("EQR_STORE")
    assert Store().root == stores.PROJECT / "build" / "store"
