"""The project's own files agree with each other, and notebooks and pages keep the rules."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eqr.runs import shipped

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))


def bounds(lines: list[str]) -> dict[str, str]:
    """Requirement lines -> canonical name: version bounds in a fixed order."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): ",".join(sorted(map(str, r.specifier))) for r in parsed}


def declared() -> dict[str, str]:
    """The bounds of pyproject.toml: run time, book and test together."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"book", "test", "cluster"}
    # environment.yml and the lock leave `cluster` out: it brings a workflow engine with all its
    # dependencies, which neither the book nor its tests need.
    return bounds([*project["dependencies"], *extras["book"], *extras["test"]])


def locked() -> dict[str, str]:
    """requirements.lock as canonical name -> exact version."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "each line is name==version"
    return {canonicalize_name(name): version for name, version in pins}


def test_environment_lists_what_pyproject_declares() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (section,) = (entry for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-e ." in section["pip"]
    assert bounds([line for line in section["pip"] if line != "-e ."]) == declared()


def test_lock_satisfies_pyproject() -> None:
    pins = locked()
    for name, specifier in declared().items():
        assert name in pins, f"{name} is missing in requirements.lock"
        assert Requirement(f"{name}{specifier}").specifier.contains(pins[name]), name


def test_lock_holds_for_every_platform() -> None:
    for name, version in locked().items():
        assert "+" not in version, f"{name}=={version} has a local suffix"
        assert not name.startswith(("nvidia-", "triton")), f"{name}: torch chooses it"


def test_npm_lock_names_no_other_registry() -> None:
    lock = json.loads((ROOT / "book/package-lock.json").read_text())
    named = {entry.get("resolved", "") for entry in lock["packages"].values()}
    assert all(url.startswith("https://registry.npmjs.org/") for url in named - {""})
    package = json.loads((ROOT / "book/package.json").read_text())
    wanted = package["dependencies"] | package["devDependencies"]
    for name, version in wanted.items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version and entry["integrity"].startswith("sha512-")


def test_citation_has_what_a_reader_needs() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Geng", "Kolter"]
    assert "2605.21488" in json.dumps(paper)


def tracked() -> list[str]:
    """Paths that git tracks."""
    try:
        done = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_top_level_folders() -> None:
    folders = {path.split("/")[0] for path in tracked() if "/" in path}
    if not folders:
        pytest.skip("nothing is tracked yet")
    visible = {folder for folder in folders if not folder.startswith(".")}
    assert visible == {"book", "data", "eqr", "notebooks", "tests"}


def test_chapters_of_the_book_are_the_notebooks() -> None:
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    chapters = [name.removeprefix("chapters/") for name in files if name.startswith("chapters/")]
    assert sorted(chapters) == [path.stem for path in NOTEBOOKS]
    for name in files:
        assert name.startswith("chapters/") or (ROOT / f"book/{name}.md").is_file(), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_stored_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    imports = tagged = 0
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        text = "".join(cell["source"])
        assert cell["outputs"] == [] and cell["execution_count"] is None, text[:80]
        assert len(text.splitlines()) <= 40, f"{text[:60]!r}... is too long"
        code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        tree = ast.walk(ast.parse(code))
        imports += sum(isinstance(node, ast.Import | ast.ImportFrom) for node in tree)
        tagged += "parameters" in cell["metadata"].get("tags", [])
    assert imports <= 14 and tagged == 1


# ![alt](file), and the image and figure directives with their :alt: line.
INLINE_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
DIRECTIVE_IMAGE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?:image|figure)\}\s*(?P<file>\S+)\n(?P<body>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)


def images_without_alt(text: str) -> list[str]:
    """Files of the images in a MyST page that have no alt text."""
    bare = [file for alt, file in INLINE_IMAGE.findall(text) if not alt.strip()]
    for match in DIRECTIVE_IMAGE.finditer(text):
        if not re.search(r"^:alt:[ \t]+\S", match["body"], re.MULTILINE):
            bare.append(match["file"])
    return bare


def test_images_without_alt_are_seen() -> None:
    page = "![](a.png) ![A](b.png)\n```{figure} c.svg\n:name: c\n\nText\n```\n"
    page += ":::{image} d.svg\n:alt: A diagram\n:::\n"
    assert images_without_alt(page) == ["a.png", "c.svg"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_image_has_alt_text(path: Path) -> None:
    assert images_without_alt(path.read_text(encoding="utf-8")) == []


def test_shipped_results_are_sound() -> None:
    results = shipped()
    assert len(results) >= 200, "the cells of the studies that the chapters read"
    assert [fault for faults in results.values() for fault in faults] == []
