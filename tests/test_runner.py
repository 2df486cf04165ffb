"""A chapter is executed with known parameters only, appears when it is complete, and once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import papermill
import pytest

from eqr import graph, runner
from eqr.book import BookError
from eqr.settings import ConfigError
from eqr.store import Store


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with a parameters cell (``divisor``, ``place``) and ``cells``."""
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    book.cells = [nbformat.v4.new_code_cell(text) for text in ('divisor = 1\nplace = ""', *cells)]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)
    return path


@pytest.fixture
def environment(monkeypatch):
    """Execution sets thread counts for its kernels; put back what was there."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def test_unknown_parameters_are_refused_before_anything_runs(tmp_path, monkeypatch):
    source = notebook(tmp_path / "a.ipynb", "1 / divisor")
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("executed"))
    runner.check_parameters(source, {"divisor": 2, "place": "x"})
    for check in (runner.check_parameters, lambda n, p: runner.execute(n, tmp_path / "out", p)):
        with pytest.raises(ConfigError, match="no parameter 'divsor'; did you mean 'divisor'"):
            check(source, {"divsor": 2})
        with pytest.raises(ConfigError, match=r"none\.ipynb: no such notebook"):
            check(tmp_path / "none.ipynb", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb"]


def test_a_failing_cell_leaves_nothing_where_the_result_belongs(tmp_path, environment):
    source = notebook(tmp_path / "a.ipynb", "print('before')", "1 / divisor")
    before, out = source.read_bytes(), tmp_path / "out" / "a.ipynb"
    with pytest.raises(BookError, match="ZeroDivisionError") as error:
        runner.execute(source, out, {"divisor": 0})
    assert not out.exists() and source.read_bytes() == before
    (partial,) = out.parent.iterdir()
    assert str(partial) in str(error.value), "the message says where to read on"
    assert "before" in partial.read_text()


def test_a_chapter_appears_complete_with_its_parameters_and_is_not_executed_twice(
    tmp_path, environment, monkeypatch
):
    source = notebook(
        tmp_path / "a.ipynb",
        "from pathlib import Path\nassert not any(Path(place).glob('chapter-*')), 'seen too early'",
        "print(60 // divisor)",
    )
    store = Store(tmp_path / "store")
    parameters = {"divisor": 4, "place": str(store.root)}
    done = runner.chapter(source, parameters, store)
    cells = json.loads(done.read_text())["cells"]
    outputs = [out.get("text", "") for c in cells for out in c.get("outputs", ())]
    assert "15" in "".join(map("".join, outputs))
    assert [p.name for p in done.parent.iterdir() if p.suffix == ".ipynb"] == ["a.ipynb"]
    made = []
    monkeypatch.setattr(runner, "execute", lambda *words: made.append(words))
    assert runner.chapter(source, parameters, store) == done and not made
    monkeypatch.setattr(runner, "package_hash", lambda: "another version of the package")
    with pytest.raises(Exception, match=r"a\.ipynb"):
        runner.chapter(source, parameters, store)  # the stand-in makes no file
    assert len(made) == 1, "another package, another result"


def test_every_chapter_takes_profile_and_seed():
    """What ``eqr book`` passes to each of them."""
    assert graph.chapters()
    for path in graph.chapters():
        runner.check_parameters(path, {"profile": "smoke", "seed": 0})


def test_a_notebook_notes_what_it_read_from_the_store(tmp_path, environment):
    """Runs by name, each once, with versions and commit; the notes of others are not mixed in."""
    store = Store(tmp_path / "store")
    run = store.obtain("measure", {"data": "abc"}, lambda folder: (folder / "a").touch())
    read = f"from eqr.store import Store\nfor _ in range(2): Store({str(store.root)!r}).get(place)"
    source = notebook(tmp_path / "a.ipynb", read)
    out = runner.execute(source, tmp_path / "out" / "a.ipynb", {"place": run.id})
    noted = nbformat.read(out, as_version=4).metadata["eqr"]
    assert noted["runs"] == [{"id": run.id, "data": "abc"}]
    assert {"python", "torch", "numpy"} <= set(noted["versions"]) and noted["commit"]
    assert [path.name for path in out.parent.iterdir()] == ["a.ipynb"], "no notes are left"
    assert "EQR_USED" not in os.environ

    failing = notebook(tmp_path / "b.ipynb", read, "1 / 0")
    with pytest.raises(BookError):
        runner.execute(failing, tmp_path / "out" / "b.ipynb", {"place": run.id})
    assert not list(out.parent.glob(".*")), "nor by one that failed"
