"""A run is named by what it depends on, visible only when complete, and checked when read."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from eqr import store as stores
from eqr.store import Store, StoreError, inspect

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
        (directory / ".tmpBxVrUS").write_text("half a file, as safetensors leaves it when killed")
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


def edit(run: Path, **values) -> None:
    """Change fields of a manifest by hand."""
    manifest = json.loads((run / "manifest.json").read_text()) | values
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "a.txt").write_text("hellO"), r"a\.txt: altered"),
        (lambda run: (run / "a.txt").unlink(), r"a\.txt: missing"),
        (lambda run: (run / "manifest.json").write_text("{"), r"manifest\.json: damaged"),
        (lambda run: (run / "manifest.json").write_text("[]"), r"manifest\.json: damaged"),
        (lambda run: (run / "manifest.json").unlink(), r"manifest\.json: damaged"),
        (lambda run: edit(run, config={"x": 2}), r"manifest\.json: altered: kind, config and sem"),
        (lambda run: edit(run, semantics=7), r"manifest\.json: altered: kind, config and semant"),
        (lambda run: edit(run, files={}), r"manifest\.json: altered, field seal"),
        (lambda run: edit(run, provenance={}), r"manifest\.json: altered, field seal"),
        (lambda run: edit(run, seal=None), r"manifest\.json: altered, field seal"),
        (lambda run: edit(run, files=None), r"manifest\.json: damaged"),
    ],
    ids=[
        *("altered", "missing", "cut manifest", "other manifest", "no manifest", "other config"),
        *("other semantics", "files left out", "no provenance", "no seal", "no files"),
    ],
)
def test_harm_to_a_run_is_named_with_its_remedy(store, harm, said):
    run = store.obtain("test", CONFIG, lambda d: (d / "a.txt").write_text("hello") and None)
    harm(run.path)
    with pytest.raises(StoreError, match=f"{said}.*delete"):
        store.get(run.id)
    with pytest.raises(StoreError, match=said):
        store.obtain("test", CONFIG, lambda d: pytest.fail("must not be made over"))


def test_strays_and_a_renamed_run_are_seen(store):
    run = store.obtain("test", CONFIG, lambda d: (d / "a.txt").write_text("hello") and None)
    assert inspect(run.path).faults == inspect(run.path).strays == ()
    (run.path / "sub").mkdir()
    (run.path / "sub" / "note").write_text("mine")
    (stray,) = inspect(run.path).strays
    assert str(run.path / "sub" / "note") in stray
    assert store.get(run.id), "a stray does not make the run useless"
    other = run.path.with_name("test-0123456789abcdef")
    run.path.rename(other)
    (fault,) = inspect(other).faults
    assert f"belongs to {run.id}; rename" in fault and store.paths() == [other]


def test_a_run_killed_between_its_manifest_and_its_renaming_is_not_made_again(store, monkeypatch):
    def make(directory: Path) -> None:
        (directory / "a.txt").write_text("hello")
        (directory / "resume").write_text("scratch")

    real = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent == store.root:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(stores.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.obtain("test", CONFIG, make, scratch=["resume"])
    monkeypatch.undo()
    assert visible(store) == []
    run = store.obtain("test", CONFIG, lambda d: pytest.fail("was complete"), scratch=["resume"])
    assert sorted(p.name for p in run.path.iterdir()) == ["a.txt", "manifest.json"]
    assert inspect(run.path).faults == inspect(run.path).strays == ()


def produce(root: Path, count: int) -> None:
    """Make runs of several files, bit by bit; each goes on where a killed process left it."""

    def make_of(number: int):
        def make(directory: Path) -> None:
            for step in range(number % 4, 8):
                name = f".tmp{random.randrange(10**6)}"
                with (directory / name).open("w") as file:
                    for _ in range(20):
                        file.write(f"{number} {step}\n")
                        file.flush()
                        time.sleep(0.0002)
                (directory / name).rename(directory / f"part{step % 3}")
                (directory / "resume").write_text(str(step))

        return make

    for number in range(count):
        Store(root).obtain("test", {"number": number}, make_of(number), scratch=["resume"])


@pytest.mark.slow
def test_every_visible_run_is_whole_after_kills_at_random_moments(store):
    context, count = multiprocessing.get_context("fork"), 40
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    for _ in range(5):
        process = context.Process(target=produce, args=(store.root, count))
        process.start()
        time.sleep(moments.uniform(0.01, 0.6))
        process.kill()
        process.join(120)
        for path in store.paths():
            assert inspect(path).faults == inspect(path).strays == (), path
    produce(store.root, count)
    assert len(store.paths()) == count and not store.partial()
    for path in store.paths():
        number = store.get(path.name).manifest["config"]["number"]
        assert (path / "part1").read_text() == f"{number} 7\n" * 20
        assert {p.name for p in path.iterdir()} == {"manifest.json", "part0", "part1", "part2"}


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
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "made").read_text().splitlines()) == 1


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EQR_STORE", str(tmp_path / "mine"))
    assert Store().root == tmp_path / "mine"
    monkeypatch.delenv("EQR_STORE")
    assert Store().root == stores.PROJECT / "build" / "store"
