"""Installed as a wheel, without the project's folder, all but the book works from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eqr import PROJECT
from eqr.recipes import recipe_names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The unpacked wheel of a copy of what git has, as a folder to import from."""
    work = tmp_path_factory.mktemp("wheel")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT, text=True).split("\0")
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (work / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (work / "copy" / name).write_bytes((PROJECT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(work)]
    subprocess.run([*command, str(work / "copy")], check=True)
    (made,) = work.glob("*.whl")
    zipfile.ZipFile(made).extractall(work / "site")
    return work / "site"


@pytest.fixture
def elsewhere(wheel, tmp_path):
    """Runs Python in an empty folder, with the wheel's package and no other."""

    def run(*words: object) -> str:
        names = {"PYTHONPATH": str(wheel), "EQR_STORE": str(tmp_path / "store")}
        names["HOME"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=os.environ | names,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_package_finds_its_own_files(elsewhere, wheel):
    """Recipes with the data sets that they name, shipped results, scripts and cluster profiles."""
    code = """if True:
    import json
    from pathlib import Path
    import eqr
    from eqr import data, recipes
    from eqr.store import Store
    from eqr.studies.results import load
    from eqr.viewer.explorer import Explorer
    found = {}
    for name in recipes.recipe_names("laptop"):
        recipe = recipes.load_recipe(name)
        if recipe.data.source != "generate":
            found[name] = len(data.for_recipe(recipe, Path("cache")).test)
    print(json.dumps({"file": eqr.__file__, "data": found, "rows": len(load("shaping").rows),
                      "store": str(Store().root)}))
    """
    found = json.loads(elsewhere("-c", code))
    assert found["file"].startswith(str(wheel)) and found["rows"] > 1000
    assert set(found["data"]) <= set(recipe_names("laptop")) and len(found["data"]) >= 5


def test_commands_work_in_any_folder(elsewhere, tmp_path):
    assert "study" in elsewhere("-m", "eqr", "--help")
    elsewhere("-m", "eqr", "results", "verify")
    assert "construction" in elsewhere("-m", "eqr", "study", "list")
    model = elsewhere("-m", "eqr", "train", "sudoku6", "--profile", "smoke").strip()
    assert model.startswith(str(tmp_path / "store"))
    words = ("-c", model, "--depth", 2, "--problems", 4, "--plot", "accuracy.png")
    assert "exact" in elsewhere("-m", "eqr", "eval", *words)
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    puzzle = "3.2........6..54.............42.13.."
    assert "residual" in elsewhere("-m", "eqr", "solve", "-c", model, puzzle)
    words = ("fast", "--profile", "smoke", "--rows", "baseline", "--seeds", 0)
    folder = elsewhere("-m", "eqr", "study", "run", *words).strip()
    assert (tmp_path / folder / "baseline-0.npz").is_file(), "not among the package's files"
