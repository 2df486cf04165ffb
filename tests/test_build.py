"""The book is made in three loops; a chapter is executed with known parameters only, and once."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from book.tools import ROOT, build, check
from eqr.notebook import NotebookError, execute
from eqr.recipes import recipe_names
from eqr.settings import ConfigError
from eqr.store import Store
from eqr.studies.rows import studies_of

RUN_PROFILES = sorted((ROOT / "eqr/profiles").glob("*/config.yaml"))
SNAKEMAKE = importlib.util.find_spec("snakemake") is not None


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with a parameters cell (``divisor``, ``place``) and ``cells``."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [nbformat.v4.new_code_cell(text) for text in ('divisor = 1\nplace = ""', *cells)]
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def shown(path: Path) -> str:
    """All that the cells of an executed notebook have put out, as text and HTML."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    return "".join(o.get("text", "") + o.get("data", {}).get("text/html", "") for o in outputs)


# ------------------------------------------------------------------------------ one notebook


def test_unknown_parameters_are_refused_before_anything_runs(tmp_path, monkeypatch):
    source = notebook(tmp_path / "a.ipynb", "1 / divisor")
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("executed"))
    with pytest.raises(ConfigError, match="no parameter 'divsor'; did you mean 'divisor'"):
        execute(source, tmp_path / "out", {"divsor": 2})
    with pytest.raises(ConfigError, match=r"none\.ipynb: no such notebook"):
        execute(tmp_path / "none.ipynb", tmp_path / "out", {})
    with pytest.raises(ConfigError, match="is the notebook itself"):
        execute(source, source, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb"]


def test_a_failing_cell_leaves_nothing_where_the_result_belongs(tmp_path):
    source = notebook(tmp_path / "a.ipynb", "print('before')", "1 / (divisor - 3)")
    before, out = source.read_bytes(), tmp_path / "out" / "a.ipynb"
    with pytest.raises(NotebookError, match="ZeroDivisionError") as error:
        execute(source, out, {"divisor": "3"})
    assert not out.exists() and source.read_bytes() == before
    (partial,) = out.parent.iterdir()
    assert str(partial) in str(error.value), "the message says where to read on"
    assert "before" in partial.read_text()


def test_a_chapter_appears_complete_names_what_it_read_and_is_not_executed_twice(
    tmp_path, monkeypatch, capfd
):
    store = Store(tmp_path / "store")
    run = store.obtain("measure", {"data": "abc"}, lambda folder: (folder / "a").touch())
    source = notebook(
        tmp_path / "chapter.ipynb",
        "from pathlib import Path\nfrom eqr.notebook import provenance\n"
        "from eqr.store import Store\n"
        f"store = Store({str(store.root)!r})\n"
        "assert not any(store.root.glob('chapter-*')), 'seen too early'",
        f"for _ in range(2): store.get({run.id!r})\nprint(60 // divisor)",
        "provenance('chapter', divisor=divisor, place=place)",
    )
    monkeypatch.setattr(build, "state", lambda *places: "one")
    made = []

    def spied(path, out, parameters):
        made.append(parameters)
        return execute(path, out, {"divisor": 4})

    monkeypatch.setattr(build, "execute", spied)
    first = build.executed(source, "smoke", 0, store)
    text = shown(first)
    assert "15\n" in text and text.count(run.id) == 1 and "abc" in text and "torch" in text
    assert "eqr notebook notebooks/chapter.ipynb build/chapter.ipynb -p divisor=4" in text
    assert [p.name for p in first.parent.iterdir() if p.suffix == ".ipynb"] == ["chapter.ipynb"]
    assert build.executed(source, "smoke", 0, store) == first
    assert made == [{"profile": "smoke", "seed": 0}], "it was not executed a second time"
    monkeypatch.setattr(build, "state", lambda *places: "another package, or other data")
    with pytest.raises(NotebookError, match="seen too early"):
        build.executed(source, "smoke", 0, store)
    assert "KeyboardInterrupt" not in capfd.readouterr().err, "a kernel ends without an interrupt"


def test_every_chapter_takes_profile_and_seed_and_ends_with_its_provenance():
    for path in build.chapters():
        assert {"profile", "seed"} <= set(papermill.inspect_notebook(str(path)))
        cells = nbformat.read(path, as_version=4).cells
        names = re.findall(r"^(\w+) = ", cells[1].source, re.MULTILINE)
        call = cells[-1].source.partition("provenance(")[2].split("provenance(")[-1]
        assert f'"{path.stem}"' in call
        assert re.findall(r"(\w+)=\1\b", call) == names, f"{path.stem}: not all of its parameters"


# ------------------------------------------------------------------------------ the three loops


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    """The book's builder with training, execution and pages replaced by notes of their turn."""
    turns = []
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setenv("EQR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(build, "train", lambda name, *_: turns.append(f"train {name}"))

    def executed(path, *_):
        turns.append(f"chapter {path.stem}")
        return path

    def build_pages(source, out, pdf):
        turns.append("pages")
        return out

    monkeypatch.setattr(build, "executed", executed)
    monkeypatch.setattr(build, "build_pages", build_pages)
    monkeypatch.setattr(build, "check_html", lambda html: turns.append("check"))
    monkeypatch.setattr(build, "train_or_load", lambda name, **_: name)
    monkeypatch.setattr(build.viewer, "install", lambda *_: None)
    return turns


def test_models_come_before_chapters_and_chapters_before_pages(rehearsal, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BOOK", tmp_path / "book")
    with pytest.raises(check.BookError, match="run `make vendor`"):
        build.build("smoke", 0, tmp_path, 2, False)
    (tmp_path / "book/_vendor").mkdir(parents=True)
    shutil.copy(ROOT / "book/_config.yml", tmp_path / "book")
    build.build("smoke", 0, tmp_path, 2, False)
    models, chapters = build.models("smoke"), [path.stem for path in build.chapters()]
    assert {"minimal6", "sudoku9"} <= set(models) < set(recipe_names("smoke"))
    assert "maze9-small" not in models, "what only studies build on is left to them"
    assert set(build.viewer.LIVE) <= set(models), "the pages' models are trained"
    wanted = [{f"train {n}" for n in models}, {f"chapter {n}" for n in chapters}]
    assert set(rehearsal[: len(models)]) == wanted[0]
    assert set(rehearsal[len(models) : -2]) == wanted[1] and rehearsal[-2:] == ["pages", "check"]
    notebooks = {p.stem for p in (tmp_path / "smoke/source/chapters").iterdir()}
    assert notebooks == set(chapters)
    # A model that is shipped is not trained, unless that is asked for.
    monkeypatch.setattr(build, "shipped_run", lambda recipe, _: recipe.name == "minimal6")
    for own, trained in ((False, wanted[0] - {"train minimal6"}), (True, wanted[0])):
        rehearsal.clear()
        build.build("smoke", 0, tmp_path, 2, False, own)
        assert {turn for turn in rehearsal if turn.startswith("train")} == trained


def test_a_chapter_needs_the_models_it_names():
    assert build.recipes_named(ROOT / "notebooks/theory.ipynb", "smoke") == ["minimal6"]


def test_what_cannot_be_built_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="'theroy' is no chapter; did you mean 'theory'"):
        build.chapter("theroy", "smoke", 0)
    for refused in (lambda: build.chapter("theory", "paper", 0), lambda: build.build("paper", 0)):
        with pytest.raises(ConfigError, match="GPU hours"):
            refused()
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        build.models("smok")


def test_another_content_is_another_state(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    path = tmp_path / "a" / "recipe.toml"
    path.parent.mkdir()
    states = []
    for text in ("a", "b", "a"):
        path.write_text(text)
        states.append(build.state(tmp_path / "a"))
    assert states[0] == states[2] != states[1]


def test_assemble_makes_a_fresh_tree_and_names_a_missing_chapter(tmp_path, monkeypatch):
    source, out = tmp_path / "book", tmp_path / "build/smoke/source"
    (source / "tools").mkdir(parents=True)
    (source / "index.md").write_text("# Home")
    (source / "_config.yml").write_text("html: {}\nsphinx: {config: {language: en}}")
    monkeypatch.setattr(build, "BOOK", source)
    place = build.pages.Site(address="https://book.example/")
    out.mkdir(parents=True)
    (out / "stale.md").write_text("old")
    chapter = notebook(tmp_path / "a.ipynb")
    assert build.assemble({"settling": chapter}, out, place, "Notice.", pdf=True) == out
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    ours = {"_config.yml", "_extra/.nojekyll", "index.md", "chapters/settling.ipynb"}
    assert files == ours | {"claims.json", "_extra/claims.json"}
    config = yaml.safe_load((out / "_config.yml").read_text())
    assert config["html"] == {"announcement": "Notice.", "baseurl": place.address}
    assert config["sphinx"]["config"]["eqr_pdf"] and config["sphinx"]["config"]["language"] == "en"
    with pytest.raises(check.BookError, match="theory: no file"):
        build.assemble({"theory": tmp_path / "gone.ipynb"}, out, place)


# ------------------------------------------------------------------------------ a cluster


@pytest.mark.parametrize("path", RUN_PROFILES, ids=lambda path: path.parent.name)
def test_run_profiles_let_a_killed_run_go_on(path):
    settings = yaml.safe_load(path.read_text())
    assert settings["rerun-incomplete"] and settings["keep-going"]
    local = path.parent.name == "local"
    assert local or (settings["executor"] == path.parent.name and settings["retries"] > 0)


@pytest.mark.skipif(not SNAKEMAKE, reason="Snakemake is not installed (extra `cluster`)")
class TestSnakemake:
    def dry(self, tmp_path: Path, *words: str) -> str:
        """What a dry run in an empty directory says."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--directory", str(tmp_path), "--cores", "8", "--dry-run", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def test_every_job_of_the_book_and_the_studies_is_there(self, tmp_path):
        said = self.dry(tmp_path, "all", "studies", "--config", "profile=smoke", "seed=3")
        made = re.findall(r"output: build/smoke/flow/(\S+)\.txt", said)
        wanted = {"book", *(f"train/{name}" for name in build.models("smoke"))}
        wanted |= {f"chapter/{path.stem}" for path in build.chapters()}
        for study in studies_of("smoke"):
            wanted |= {f"study/{study.name}"}
            for row in study.rows:
                wanted |= {f"cell/{study.name}/{row.name}/{s}" for s in row.seed_range("smoke")}
        assert sorted(made) == sorted(wanted)

    def test_each_training_of_the_paper_asks_for_a_gpu(self, tmp_path):
        said = self.dry(tmp_path, "--config", "profile=paper")
        assert said.count("gpu=1") == len([n for n in recipe_names("paper") if "night" not in n])
