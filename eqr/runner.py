"""Execute the chapters and make the book: train, execute, check, build.

A notebook is executed with papermill to a temporary file that is renamed when it is complete, after
its parameter names have been checked (papermill itself only warns). A chapter already executed is
reused when its id matches: the id hashes the notebook, its parameters, the package's source, the
shipped data and the page's scripts, since a notebook's result depends on all five.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eqr import book, graph, pages, site, vendor
from eqr.browser import find_chromium
from eqr.data import PROJECT, file_sha256
from eqr.experiments import trained
from eqr.graph import BOOK, NOTEBOOKS, Job
from eqr.pdf import print_book
from eqr.settings import ConfigError, nearest
from eqr.store import Store, provenance
from eqr.studies.rows import studies_of
from eqr.viewer import page as play

SMOKE = "A smoke build: its models are tiny and have learned nothing; the numbers mean nothing."

#: Where the environment names another backend, as for tests, a chapter would have no pictures.
INLINE = "module://matplotlib_inline.backend_inline"

Say = Callable[[str], None]


def package_hash() -> str:
    """sha256 over the package's source and recipes, 16 hex digits."""
    total = hashlib.sha256()
    root = Path(__file__).parent
    for path in graph.package_files():
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
            raise ConfigError(f"{notebook}: has no parameter {name!r}; {nearest(name, known)}")


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
    used = out.with_name(f".{out.stem}.used").resolve()
    used.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(temporary),
            parameters=dict(parameters),
            cwd=str(PROJECT),
            progress_bar=False,
            log_output=False,
            kernel_name="python3",
            store_widget_state=False,  # a page has no kernel: its widgets would not answer
            # Set there and not here, where another chapter may be running at the same time.
            extra_arguments=[
                "--IPKernelApp.log_level=40",  # errors; it warns that it is reached over TCP
                f"--IPKernelApp.exec_lines=import os; os.environ['EQR_USED'] = {str(used)!r}; "
                f"os.environ['MPLBACKEND'] = {INLINE!r}",
            ],
        )
        book.check_notebook(temporary)
        note_origin(temporary, used)
    except papermill.PapermillExecutionError as error:
        raise book.BookError(
            f"{notebook.name}: cell {error.exec_count} failed with {error.ename}: {error.evalue}",
            [f"read it in {temporary}"],
        ) from error
    except (DeadKernelError, NoSuchKernel) as error:
        raise book.BookError(f"{notebook.name}: its kernel died or is missing: {error}") from error
    finally:
        used.unlink(missing_ok=True)
    temporary.replace(out)
    return out


def note_origin(notebook: Path, used: Path) -> None:
    """Write into a notebook's metadata what it was executed with and what it read from the store.

    Args:
        notebook: executed.
        used: the lines that :func:`eqr.store.note_use` wrote meanwhile.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    lines = used.read_text(encoding="utf-8").splitlines() if used.is_file() else []
    runs = {(run := json.loads(line))["id"]: run for line in lines}
    content["metadata"]["eqr"] = provenance() | {"runs": [runs[key] for key in sorted(runs)]}
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def chapter(notebook: Path, parameters: Mapping[str, Any], store: Store) -> Path:
    """The executed notebook with these parameters: the stored one, or executed now."""
    read = [*graph.manifests(), *graph.records(), *graph.scripts()]
    config = {
        "notebook": file_sha256(notebook),
        "parameters": dict(parameters),
        "package": package_hash(),
        "data": [file_sha256(path) for path in read],
    }

    def make(directory: Path) -> None:
        execute(notebook, directory / notebook.name, parameters)

    return store.obtain("chapter", config, make).file(notebook.name)


def only_chapter(name: str, profile: str, seed: int) -> Path:
    """The executed notebook of one chapter, with its models trained first where they are absent.

    Raises:
        ConfigError: there is no such chapter, or the profile has none.
        eqr.book.BookError: a cell failed.
    """
    refuse_paper(profile)
    if name not in (known := [path.stem for path in graph.chapters()]):
        raise ConfigError(f"--only {name!r} is no chapter; {nearest(name, known)}")
    one_thread()
    return chapter(NOTEBOOKS / f"{name}.ipynb", {"profile": profile, "seed": seed}, Store())


def refuse_paper(profile: str) -> None:
    """ConfigError for the profile that no chapter is run with."""
    if profile == "paper":
        raise ConfigError(
            "the paper profile trains for GPU hours and is not part of a book build; train its "
            "recipes with `eqr train NAME --profile paper --device cuda`"
        )


def one_thread() -> None:
    """One thread for each kernel and training process, which inherit this.

    Two processes with two threads each on two cores are ten times slower than with one.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"


def train_model(job: Job, store: Store, say: Say) -> None:
    """Run a training job of the graph as a process of its own.

    Raises:
        eqr.book.BookError: it failed.
    """
    name, began = job.about, time.monotonic()
    command = [sys.executable, "-m", "eqr", *job.command, "--store", str(store.root)]
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


def recompute(jobs: int, say: Say) -> None:
    """Make the shipped studies of the laptop profile anew, which takes hours.

    Raises:
        eqr.book.BookError: a study failed; what it has made is kept.
    """
    for name in (study.name for study in studies_of("laptop")):
        say(f"  study {name}: hours, unless the store has its runs")
        command = [sys.executable, "-m", "eqr", "run", name, "--overwrite"]
        if subprocess.run([*command, "--jobs", str(jobs)], stdout=subprocess.DEVNULL).returncode:
            raise book.BookError(f"the study {name} failed; start the same command to go on")


def make_book(
    profile: str, *, seed: int, out: Path, jobs: int, say: Say, pdf: bool = False
) -> Path:
    """Train, execute, check and build; returns the path of the book's first page.

    Args:
        profile: whose recipes the chapters use.
        seed: of training and evaluation.
        out: build directory; the pages go to ``<out>/<profile>/html``.
        jobs: processes side by side.
        say: gets a line of progress at a time.
        pdf: print the whole book to ``<out>/<profile>/eqr-book.pdf`` too, and link it.

    Raises:
        eqr.book.BookError: training, a chapter or the build failed, or there is no Chromium.
        ConfigError: the profile needs a machine that this is not.
    """
    refuse_paper(profile)
    began, place = time.monotonic(), site.of_project()
    if pdf:
        find_chromium()  # before the long work
    one_thread()
    store, todo = Store(), graph.jobs(profile, seed, out).values()
    vendor.ensure()  # first, since it may need the network

    def side_by_side(kind: str, work: Callable[[Job], Any]) -> list[Any]:
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, [job for job in todo if job.kind == kind]))

    say(f"[1/3] models of profile {profile}")
    side_by_side("train", lambda job: train_model(job, store, say))
    if os.environ.get("RECOMPUTE") == "1":
        recompute(jobs, say)
    say("[2/3] chapters")

    def work(job: Job) -> tuple[str, Path]:
        start, notebook = time.monotonic(), NOTEBOOKS / f"{job.about}.ipynb"
        done = chapter(notebook, {"profile": profile, "seed": seed}, store)
        say(f"  {notebook.stem}: ready after {time.monotonic() - start:.0f} s")
        return notebook.stem, done

    executed = dict(side_by_side("chapter", work))
    say("[3/3] pages")
    source = book.assemble(
        BOOK, executed, out / profile / "source", SMOKE if profile == "smoke" else ""
    )
    live = {name: trained(name, profile, seed, store) for name in play.LIVE}
    play.install(source / pages.EXTRA / play.PLACE, source / play.HOME, live, profile)
    pages.dress(source, {path.stem: path for path in graph.chapters()}, place, pdf=pdf)
    page = book.build_html(source, out / profile / "html")
    if pdf:
        say("  the whole book as one PDF")
        printed = print_book(page.parent, out / profile / pages.PDF)
        shutil.copy(printed, page.parent / pages.PDF)
    book.check_html(page.parent)
    say(f"the book is ready after {time.monotonic() - began:.0f} s:")
    return page.resolve()
