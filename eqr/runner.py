"""Execute the chapters and make the book: train, execute, check, build.

A notebook is executed with papermill to a temporary file that is renamed when it is complete, after
its parameter names have been checked (papermill itself only warns). A chapter already executed is
reused when its id matches: the id hashes the notebook, its parameters, the package's source and the
shipped data, since a notebook's result depends on all four.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eqr import book, vendor
from eqr.config import ConfigError, load_recipe, near_miss, recipe_names
from eqr.data import PROJECT, file_sha256
from eqr.store import Store

NOTEBOOKS = PROJECT / "notebooks"
BOOK = PROJECT / "book"

SMOKE = "A smoke build: its models are tiny and have learned nothing; the numbers mean nothing."

Say = Callable[[str], None]


def chapters() -> list[Path]:
    """The chapters' notebooks, by name."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def package_hash() -> str:
    """sha256 over the package's source and recipes, 16 hex digits."""
    total = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.toml")]):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook does not declare.

    Raises:
        ConfigError: names the parameter and the near miss.
    """
    from papermill import inspect_notebook

    if not notebook.is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    known = inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise ConfigError(f"{notebook}: has no parameter {name!r}{near_miss(name, known)}")


def execute(notebook: Path, out: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook with other parameters; ``out`` appears complete or not at all.

    Raises:
        ConfigError: an unknown parameter.
        eqr.book.BookError: a cell failed; the partial notebook is kept beside ``out`` for reading.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    check_parameters(notebook, parameters)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.stem}.partial.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(temporary),
            parameters=dict(parameters),
            cwd=str(PROJECT),
            progress_bar=False,
            log_output=False,
            kernel_name="python3",
        )
    except papermill.PapermillExecutionError as error:
        raise book.BookError(
            f"{notebook.name}: cell {error.exec_count} failed with {error.ename}: {error.evalue}",
            [f"read it in {temporary}"],
        ) from error
    except (DeadKernelError, NoSuchKernel) as error:
        raise book.BookError(f"{notebook.name}: its kernel died or is missing: {error}") from error
    book.check_notebook(temporary)
    temporary.replace(out)
    return out


def chapter(notebook: Path, parameters: Mapping[str, Any], store: Store) -> Path:
    """The executed notebook with these parameters: the stored one, or executed now."""
    manifests = sorted((PROJECT / "data").glob("*/manifest.json"))
    config = {
        "notebook": file_sha256(notebook),
        "parameters": dict(parameters),
        "package": package_hash(),
        "data": [file_sha256(path) for path in manifests],
    }

    def make(directory: Path) -> None:
        execute(notebook, directory / notebook.name, parameters)

    return store.obtain("chapter", config, make).file(notebook.name)


def train_models(profile: str, seed: int, store: Store, jobs: int, say: Say) -> None:
    """Train every recipe of the profile, ``jobs`` processes of one thread side by side.

    Raises:
        eqr.book.BookError: a training process failed.
    """
    recipes = {name: load_recipe(name, profile) for name in recipe_names(profile)}

    def cost(name: str) -> float:
        found = recipes[name]
        values = found.model.layers * found.model.hidden * found.task.seq_len
        return found.train.steps * found.train.batch * values

    def work(name: str) -> None:
        began = time.monotonic()
        command = [sys.executable, "-m", "eqr.cli", "train", name, "--profile", profile]
        command += ["--seed", str(seed), "--store", str(store.root)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            last = ""
            for line in process.stderr:
                last = line.strip() or last
                say(f"  {name}: {line.strip()}")
        if process.returncode:
            raise book.BookError(f"training {name} failed: {last}")
        say(f"  {name}: ready after {time.monotonic() - began:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        # The longest first, so that the last process to end does not start last.
        list(pool.map(work, sorted(recipes, key=cost, reverse=True)))


def make_book(profile: str, *, seed: int, out: Path, jobs: int, say: Say) -> Path:
    """Train, execute, check and build; returns the path of the book's first page.

    Args:
        profile: whose recipes the chapters use.
        seed: of training and evaluation.
        out: build directory; the pages go to ``<out>/<profile>/html``.
        jobs: processes side by side.
        say: gets a line of progress at a time.

    Raises:
        eqr.book.BookError: training, a chapter or the build failed.
        ConfigError: the profile needs a machine that this is not.
    """
    if profile == "paper":
        raise ConfigError(
            "the paper profile trains for GPU hours and is not part of a book build; train its "
            "recipes with `eqr train NAME --profile paper --device cuda`"
        )
    began = time.monotonic()
    # Kernels and training processes inherit these. One thread each: two processes with two threads
    # each on two cores are ten times slower than with one.
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
    store = Store()
    vendor.ensure()  # first, since it may need the network
    say(f"[1/3] models of profile {profile}")
    train_models(profile, seed, store, jobs, say)
    say("[2/3] chapters")

    def work(notebook: Path) -> tuple[str, Path]:
        start = time.monotonic()
        done = chapter(notebook, {"profile": profile, "seed": seed}, store)
        say(f"  {notebook.stem}: ready after {time.monotonic() - start:.0f} s")
        return notebook.stem, done

    with ThreadPoolExecutor(jobs) as pool:
        executed = dict(pool.map(work, chapters()))
    say("[3/3] pages")
    source = book.assemble(
        BOOK, executed, out / profile / "source", SMOKE if profile == "smoke" else ""
    )
    page = book.build_html(source, out / profile / "html")
    book.check_html(page.parent)
    say(f"the book is ready after {time.monotonic() - began:.0f} s:")
    return page.resolve()
