"""What publishes the book names only what exists, and every chapter can be started elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from book.tools import pages
from eqr import __version__
from eqr.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / ".github/workflows/book.yml"
NOTEBOOK = ROOT / "notebooks/settling.ipynb"
SITE = pages.Site("https://github.com/owner/name", "https://book.example/", "1" * 40, "1" * 10)


def steps() -> list[dict]:
    """The steps of all jobs of the workflow."""
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_workflow_has_minimal_rights_and_one_run_at_a_time():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"contents": "write"}
    assert jobs["publish"]["needs"] == "test" and "main" in jobs["publish"]["if"]
    assert "github.ref" in workflow["concurrency"]["group"]
    assert workflow["env"]["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu")


def test_workflow_runs_only_targets_and_files_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    commands = [step["run"] for step in steps() if "run" in step]
    asked = {name for text in commands for name in re.findall(r"\bmake ([a-z]+)", text)}
    assert asked and asked <= targets
    assert any(".ci/run" in text for text in commands) and (ROOT / ".ci/run").is_file()
    assert any("git push --quiet --force" in text and pages.BRANCH in text for text in commands)
    # Caches are keyed by the content that they are made from.
    keys = " ".join(step["with"]["key"] for step in steps() if "cache" in step.get("uses", ""))
    named = set(re.findall(r"'([^' ]+[*.a-z]+)'", keys))
    assert {"requirements.lock", "eqr/**", "notebooks/*.ipynb", "book/package-lock.json"} <= named
    assert all(list(ROOT.glob(pattern)) for pattern in named)


def test_read_the_docs_builds_the_smoke_book():
    settings = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert "make book PROFILE=smoke" in settings["build"]["commands"][0]
    assert "build/smoke/html" in settings["build"]["commands"][-1]


def test_versions_agree():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert declared == __version__ == zenodo["version"] == citation["version"]
    assert zenodo["title"] == citation["title"] and zenodo["license"] == citation["license"]
    assert "2605.21488" in zenodo["related_identifiers"][0]["identifier"]


def test_binder_installs_the_lock_and_files_that_exist():
    binder = ROOT / ".binder"
    lines = (binder / "requirements.txt").read_text().splitlines()
    (lock,) = (line.removeprefix("-r ") for line in lines if line.startswith("-r "))
    assert (binder / lock).resolve() == ROOT / "requirements.lock"
    assert any("whl/cpu" in line for line in lines)
    assert (binder / "runtime.txt").read_text().strip() == "python-3.11"
    script = binder / "postBuild"
    assert subprocess.run(["bash", "-n", script]).returncode == 0 and os.access(script, os.X_OK)
    for name in re.findall(r"\b(?:data|notebooks|eqr)/\S+", script.read_text()):
        assert (ROOT / name).exists() or name == "data/", name


# ------------------------------------------------------------------------------- addresses


def project(path: Path, urls: str = "") -> Path:
    """A pyproject.toml with addresses."""
    path.write_text(f'[project]\nname = "x"\n{urls}')
    return path


def test_the_address_stands_in_one_place_and_builders_replace_it(tmp_path):
    path = project(tmp_path / "p.toml")
    site = pages.of_project({}, path)
    assert (site.repository, site.address, site.launchers("plan")) == ("", "", {})
    project(path, "[project.urls]\nRepository = 'https://codeberg.org/a/b'\n")
    site = pages.of_project({}, path)
    assert site.repository == "https://codeberg.org/a/b"
    assert site.launchers("plan") == {}, "Colab opens what is on GitHub"
    urls = "[project.urls]\nRepository = 'https://github.com/a/b.git'\nHomepage = 'https://a.b/c'\n"
    site = pages.of_project({}, project(path, urls))
    assert (site.slug, site.address) == ("a/b", "https://a.b/c/")
    site = pages.of_project({"GITHUB_REPOSITORY": "me/fork", "EQR_SITE_URL": "https://x.y/"}, path)
    assert (site.slug, site.address) == ("me/fork", "https://x.y/")
    text = " ".join(site.launchers("plan").values())
    assert "github/me/fork/blob/gh-pages/colab/plan.ipynb" in text
    assert re.search(r"mybinder.org/v2/gh/me/fork/\w+\?urlpath=lab/tree/notebooks%2Fplan", text)


def test_what_is_no_address_is_refused_with_its_place(tmp_path):
    path = project(tmp_path / "p.toml", "[project.urls]\nRepository = 'github.com/a/b'\n")
    with pytest.raises(ConfigError, match=r"Repository: 'github.com/a/b' is no address; write"):
        pages.of_project({}, path)


# ------------------------------------------------------------------------------- notebooks


def test_every_notebook_has_a_sound_copy_for_colab(tmp_path):
    notebooks = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    pages.write_notebooks(notebooks, tmp_path / "nowhere", pages.Site())
    assert [path.name for path in (tmp_path / "nowhere").iterdir()] == ["notebooks"]
    pages.write_notebooks(notebooks, tmp_path, SITE)
    for name, path in notebooks.items():
        copy = nbformat.read(tmp_path / f"colab/{name}.ipynb", as_version=4)
        nbformat.validate(copy)
        source = nbformat.read(path, as_version=4)
        assert copy.cells[1:] == source.cells, "the rest is the chapter"
        assert SITE.revision in copy.cells[0].source and SITE.repository in copy.cells[0].source
        assert json.loads((tmp_path / f"notebooks/{name}.ipynb").read_text()) == json.loads(
            path.read_text()
        )


def test_the_install_cell_fetches_the_revision_of_the_page(tmp_path, monkeypatch):
    """With a local repository in GitHub's place, and pip replaced by a note of its words."""

    package = tmp_path / "origin/eqr_stub"
    package.mkdir(parents=True)

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.check_output(command, cwd=package.parent, text=True).strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    for mark in ("old", "new"):
        (package / "__init__.py").write_text(f"mark = {mark!r}")
        git("add", ".")
        git("commit", "--quiet", "-m", mark)
    revision = git("rev-parse", "HEAD~1")

    where = pages.Site(f"file://{tmp_path}/origin", "", revision)
    (tmp_path / "pip.py").write_text("import sys; open('pip.txt', 'w').write(repr(sys.argv[1:]))")
    monkeypatch.setattr(pages.Site, "slug", "owner/name")
    pages.write_notebooks({"settling": NOTEBOOK}, tmp_path, where)
    copy = json.loads((tmp_path / "colab/settling.ipynb").read_text())
    code = "".join(copy["cells"][0]["source"])
    code += "\nimport eqr_stub\nassert eqr_stub.mark == 'old'"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for _ in range(2):  # a second run of the cell finds the folder there
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    assert str(tmp_path / "eqr-book") in (tmp_path / "pip.txt").read_text()
