"""Make the book in three loops: the models, the chapters, the pages.

What is there already is not made again: a model or an executed chapter is a run of the store, named
by what it depends on; a chapter's id hashes its parameters and all that it reads (:func:`state`).
Nothing needs a network. The ``Snakefile`` hands the same commands to a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import papermill
import typer
import yaml

from book.tools import BOOK, NOTEBOOKS, ROOT, pages
from book.tools.check import BookError, check_html
from book.tools.pdf import find_chromium, print_book
from eqr.cli.console import Profile, Seed, say
from eqr.experiments import shipped_run, train_or_load
from eqr.files import file_sha256, lock, ours, read_json, replace_folder, write_json
from eqr.notebook import execute
from eqr.recipes import load_recipe, recipe_names
from eqr.settings import ConfigError, UserError, digest, nearest
from eqr.store import Store
from eqr.studies.claims import claims_of
from eqr.viewer import page as viewer

SMOKE = "A smoke build: its models are tiny and have learned nothing; the numbers mean nothing."
TOC = BOOK / "_toc.yml"
READ = (ROOT / "eqr", ROOT / "data")  # what every chapter reads, beside itself
EXTRA = "_extra"  # folder of the assembled source whose content goes to the root of the pages

# Version 1 has no `python -m jupyter_book`, and its script need not be on the PATH.
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"

WARNING = re.compile(r"\b(WARNING|ERROR|SEVERE|CRITICAL):")

app = typer.Typer(help="Build the book.", pretty_exceptions_enable=False, add_completion=False)


def main() -> None:
    """Entry point: run a command, and turn its known errors into a message."""
    # One thread for each kernel and training process, which inherit this: two processes with two
    # threads each on two cores are ten times slower than with one.
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
    try:
        app()
    except (BookError, UserError, OSError) as error:
        say(f"error: {error}", "red")
        sys.exit(1)


@app.command()
def build(
    profile: Profile = "laptop",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Pages go to OUT/PROFILE/html.")] = Path("build"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    pdf: Annotated[bool, typer.Option("--pdf", help="Print it as one PDF too.")] = False,
    own: Annotated[
        bool, typer.Option("--train", help="Train all models here.")
    ] = False,
) -> None:
    """Train what is not shipped, execute the chapters, build the pages; print where they are."""
    began, site, store = time.monotonic(), pages.of_project(), Store()
    recipes = {name: load_recipe(name, profile, seed=seed) for name in models(profile)}
    names = [n for n, recipe in recipes.items() if own or not shipped_run(recipe, store)]
    if pdf:
        find_chromium()  # before the long work
    if not (BOOK / "_vendor").is_dir():
        raise BookError("The scripts of the pages are not there: run `make vendor`, once.")
    with ThreadPoolExecutor(jobs) as pool:
        say(f"[1/3] models of profile {profile}")
        list(pool.map(lambda name: train(name, profile, seed), names))
        say("[2/3] chapters")
        paths = pool.map(lambda path: executed(path, profile, seed, store, own), chapters())
        notebooks = {path.stem: path for path in paths}
    say("[3/3] pages")
    notice = SMOKE if profile == "smoke" else ""
    wanted = partial(train_or_load, profile=profile, seed=seed, store=store, shipped=not own)
    with lock(out / profile / ".lock", f"the pages in {out / profile}"):
        source = assemble(notebooks, out / profile / "source", site, notice, pdf)
        live = {name: wanted(name) for name in viewer.LIVE}
        viewer.install(source / EXTRA / viewer.PLACE, source / viewer.HOME, live, profile)
        pages.write_notebooks({p.stem: p for p in chapters()}, source / EXTRA, site)
        html = build_pages(source, out / profile / "html", pdf)
        check_html(html)
    say(f"the book is ready after {time.monotonic() - began:.0f} s:")
    print((html / "index.html").resolve())


@app.command()
def chapter(name: str, profile: Profile = "laptop", seed: Seed = 0) -> None:
    """Execute one chapter, its models trained first where they are absent; print its path."""
    known = {path.stem: path for path in chapters()}
    if name not in known:
        raise ConfigError(f"{name!r} is no chapter; {nearest(name, known)}")
    models(profile)  # refuses a profile without chapters
    print(executed(known[name], profile, seed, Store()))


def chapters() -> list[Path]:
    """The notebooks that the table of contents names, by name; what else lies there is not ours."""
    named = re.findall(r"file: chapters/(\w+)", TOC.read_text(encoding="utf-8"))
    return [NOTEBOOKS / f"{name}.ipynb" for name in sorted(named)]


def models(profile: str) -> list[str]:
    """The recipes that chapters name, the longest training first: it should not start last.

    Raises:
        ConfigError: the profile has no chapters; the message says what to do with its recipes.
    """
    if profile == "paper":
        raise ConfigError(
            "the paper profile trains for GPU hours and is not part of a book build; train its "
            "recipes with `eqr train NAME --profile paper --device cuda`"
        )
    named = {name for path in chapters() for name in recipes_named(path, profile)}

    def values(name: str) -> int:
        """That a training goes through, about."""
        recipe = load_recipe(name, profile)
        width = recipe.model.layers * recipe.model.hidden * recipe.task.seq_len
        return recipe.train.steps * recipe.train.batch * width

    return sorted(sorted(named), key=values, reverse=True)


def recipes_named(notebook: Path, profile: str) -> list[str]:
    """The recipes of the profile that a notebook's code names.

    One that is missed costs time and nothing else: the chapter trains it, or waits for it.
    """
    cells = read_json(notebook)["cells"]
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return [name for name in recipe_names(profile) if f'"{name}"' in code or f"'{name}'" in code]


def train(name: str, profile: str, seed: int) -> None:
    """Train a recipe in a process of its own; BookError where that failed."""
    began, last = time.monotonic(), ""
    command = [sys.executable, "-m", "eqr", "train", name, "--profile", profile]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--seed", str(seed)], cwd=ROOT, **streams) as process:
        for line in process.stderr:
            last = line.strip() or last
            say(f"  {name}: {line.strip()}")
    if process.returncode:
        raise BookError(f"training {name} failed: {last}")
    say(f"  {name}: ready after {time.monotonic() - began:.0f} s")


def executed(notebook: Path, profile: str, seed: int, store: Store, own: bool = False) -> Path:
    """The executed notebook of a chapter: the stored one, or executed now.

    Args:
        own: tell a chapter that runs models to take those trained here, not the shipped ones.
    """
    began, parameters = time.monotonic(), {"profile": profile, "seed": seed}
    if own and "train" in papermill.inspect_notebook(str(notebook)):
        parameters["train"] = True

    def make(directory: Path) -> None:
        execute(notebook, directory / notebook.name, parameters)

    run = store.obtain("chapter", {"parameters": parameters, "state": state(notebook, *READ)}, make)
    say(f"  {notebook.stem}: ready after {time.monotonic() - began:.0f} s")
    return run.file(notebook.name)


def state(*places: Path) -> str:
    """A hash of files, and of all that are in folders, save what is fetched or made there."""
    made = {"_vendor", "_build", "cache"}
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    names = sorted(path.relative_to(ROOT) for path in files if ours(path, ROOT))
    names = [name for name in names if not made & set(name.parts)]
    return digest([(name.as_posix(), file_sha256(ROOT / name)) for name in names])


def assemble(
    notebooks: Mapping[str, Path], out: Path, site: pages.Site, notice: str = "", pdf: bool = False
) -> Path:
    """Make a fresh source tree: the pages of the book and executed notebooks.

    Args:
        notebooks: name as in `_toc.yml` (``"settling"``) -> executed notebook.
        out: the tree to make; an old one there is removed.
        site: where the book is published.
        notice: a line above every page, or nothing.
        pdf: whether the pages will have the whole book as a PDF.

    Raises:
        BookError: a notebook is missing.
    """
    if missing := [f"{n}: no file {path}" for n, path in notebooks.items() if not path.is_file()]:
        raise BookError("Chapters without an executed notebook:", missing)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(
        BOOK, out, ignore=shutil.ignore_patterns("tools", "_build", "pack*.json", ".*", "*~")
    )
    for folder in ("chapters", EXTRA):
        (out / folder).mkdir()
    for name, path in notebooks.items():
        shutil.copy(path, out / "chapters" / f"{name}.ipynb")
    for folder in (out, out / EXTRA):
        write_json(folder / pages.CLAIMS, claims_of(notebooks.values()))
    # Pages served by GitHub would otherwise lose every folder whose name begins with _.
    (out / EXTRA / ".nojekyll").touch()
    config = yaml.safe_load((out / "_config.yml").read_text(encoding="utf-8"))
    config["html"]["announcement"] = notice
    config["html"]["baseurl"] = site.address
    config["sphinx"]["config"] |= {"eqr_site": asdict(site), "eqr_pdf": pdf}
    (out / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return out


def build_pages(source: Path, out: Path, pdf: bool = False) -> Path:
    """Build the pages of ``source`` into ``out``, and the PDF among and beside them.

    Always from clean: Sphinx repeats a page's warnings only when it reads that page again, so a
    second build after a failed one would pass. BookError where it failed or warned.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".html-", dir=out.parent) as work:
        html = sphinx(source, Path(work), "html")
        if pdf:
            say("  the whole book as one PDF")
            printed = print_book(sphinx(source, Path(work), "singlehtml"), out.parent / pages.PDF)
            shutil.copy(printed, html / pages.PDF)
        replace_folder(html, out)
    return out


def sphinx(source: Path, work: Path, builder: str) -> Path:
    """Run one of Sphinx's builders, warnings being errors; the folder that it has made."""
    flags = ["--path-output", str(work), "--builder", "custom", "--custom-builder", builder]
    flags += ["-W", "--keep-going"]
    done = subprocess.run(
        [sys.executable, "-c", JUPYTER_BOOK, "build", str(source.resolve()), *flags],
        cwd=ROOT,  # where `book.tools.sphinx_ext` is imported from
        env=os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    made = work / "_build" / builder
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(f"{source.resolve()}{os.sep}", "")
    faults = [line for line in said.splitlines() if WARNING.search(line)]
    if done.returncode != 0 or faults or not (made / "index.html").is_file():
        # A crash prints no warning: then its last words are the best there is.
        last_words = [line for line in said.splitlines() if line.strip()][-15:]
        raise BookError(f"jupyter-book could not build {source}:", faults or last_words)
    return made
