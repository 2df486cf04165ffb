"""The book and the studies as one graph of jobs: what runs, after what, with which resources.

    train → chapter → book        cell → study

:func:`eqr.runner.make_book` runs the first line on this machine; the `Snakefile` hands both to
Slurm or Kubernetes. Every job is an ``eqr`` command that, once killed, goes on where it was when it
is started again, and that only reads from the store what is complete (page *Run it again*).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eqr.config import Recipe, digest
from eqr.data import PROJECT, file_sha256
from eqr.recipes import PROFILES, load_recipe, read_recipe, recipe_names
from eqr.settings import ConfigError, nearest
from eqr.studies.cells import cells_of
from eqr.studies.rows import studies_of

NOTEBOOKS = PROJECT / "notebooks"
BOOK = PROJECT / "book"

#: What jobs make, in the order in which they can be made.
KINDS = ("train", "chapter", "book", "cell", "study")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job asks a scheduler for."""

    cpus: int
    mem_mb: int
    minutes: int  # a job that is ended after this time goes on when it is started again
    gpus: int = 0


SMALL, MEDIUM, HOURS = Resources(1, 2000, 20), Resources(1, 4000, 60), Resources(1, 4000, 240)

GPU = Resources(8, 32000, 1440, gpus=1)

#: By profile and kind. The processes of the first two profiles have one thread each.
RESOURCES = {
    "smoke": dict.fromkeys(KINDS, SMALL),
    "laptop": {"train": HOURS, "chapter": HOURS, "book": MEDIUM, "cell": HOURS, "study": MEDIUM},
    "paper": {"train": GPU, "cell": GPU, "study": SMALL},
}


@dataclass(frozen=True, slots=True)
class Job:
    """One ``eqr`` command; it prints the path of what it has made."""

    name: str  # "train/sudoku6": its kind, then what it is about
    command: tuple[str, ...]  # what follows ``eqr``
    resources: Resources
    needs: tuple[str, ...] = ()  # names of the jobs that come first
    reads: tuple[Path, ...] = ()  # files whose change makes it due again

    @property
    def kind(self) -> str:
        """What it makes, one of :data:`KINDS`."""
        return self.name.partition("/")[0]

    @property
    def about(self) -> str:
        """The recipe, notebook, cell or study; empty for the book."""
        return self.name.partition("/")[2]

    @property
    def state(self) -> str:
        """A hash of the content of what it reads: another hash, and it is due again."""
        return digest([file_sha256(path) for path in self.reads])


def jobs(profile: str, seed: int = 0, out: Path = Path("build")) -> dict[str, Job]:
    """All jobs of a profile by name, each after those it needs.

    Args:
        profile: the paper profile has trainings and a study: no chapter is run with its recipes.
        seed: of trainings and chapters; cells have their own.
        out: build directory: pages go to ``<out>/<profile>/html``, studies to ``.../studies``.

    Raises:
        ConfigError: an unknown profile.
    """
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is not known; {nearest(profile, PROFILES)}")
    found = training_jobs(profile, seed)
    if profile != "paper":
        found += book_jobs(profile, seed, out)
    found += study_jobs(profile, out)
    return {job.name: job for job in found}


def training_jobs(profile: str, seed: int) -> list[Job]:
    """A job for each recipe that :func:`models` names, the longest first, so that the last to end
    does not start last."""

    def cost(name: str) -> float:
        found = load_recipe(name, profile)
        values = found.model.layers * found.model.hidden * found.task.seq_len
        return found.train.steps * found.train.batch * values

    options = ("--profile", profile, "--seed", str(seed))
    return [
        Job(
            f"train/{name}",
            ("train", name, *options, *on_gpu(load_recipe(name, profile))),
            resources(profile, "train", load_recipe(name, profile)),
            reads=(*read_recipe(name, profile)[1], *meaning()),
        )
        for name in sorted(models(profile), key=cost, reverse=True)
    ]


def on_gpu(recipe: Recipe) -> tuple[str, ...]:
    """The option that puts a job on the GPU: that of recipes in bfloat16, which want one."""
    return ("--device", "cuda") if recipe.train.dtype == "bfloat16" else ()


def resources(profile: str, kind: str, recipe: Recipe) -> Resources:
    """What a job about a recipe asks for: no GPU for those that run on a processor."""
    asked = RESOURCES[profile][kind]
    return asked if on_gpu(recipe) or not asked.gpus else HOURS


def book_jobs(profile: str, seed: int, out: Path) -> list[Job]:
    """A job for each chapter, and the book."""
    options = ("--profile", profile, "--seed", str(seed))
    done = [
        Job(
            f"chapter/{path.stem}",
            ("book", "--only", path.stem, *options),
            RESOURCES[profile]["chapter"],
            needs=tuple(f"train/{name}" for name in recipes_named(path, profile)),
            reads=(path, *package_files(), *manifests(), *records(), *scripts()),
        )
        for path in chapters()
    ]
    made = (BOOK / "_vendor", BOOK / "_build")
    pages = sorted(
        p
        for p in BOOK.rglob("[!.]*")
        if p.is_file() and not any(p.is_relative_to(folder) for folder in made)
    )
    book = Job(
        "book",
        ("book", *options, "--out", str(out), "--jobs", "1"),
        RESOURCES[profile]["book"],
        needs=tuple(f"train/{name}" for name in models(profile)) + tuple(job.name for job in done),
        reads=tuple(pages),
    )
    return [*done, book]


def study_jobs(profile: str, out: Path) -> list[Job]:
    """A job for each cell of each study, and one that writes the study's files."""
    found = []
    for study in studies_of(profile):
        common = ("run", study.name, "--profile", profile)
        cells = [
            Job(
                f"cell/{study.name}/{cell.row}/{cell.seed}",
                (
                    *common,
                    "--rows",
                    cell.row,
                    "--seeds",
                    str(cell.seed),
                    "--no-files",
                    *on_gpu(cell.recipe()),
                ),
                resources(profile, "cell", cell.recipe()),
                reads=(
                    *read_recipe(study.row(cell.row).recipe, profile)[1],
                    Path(__file__).parent / "studies" / "rows.py",
                    *meaning(),
                ),
            )
            for cell in cells_of(study, profile, None, None)
        ]
        table = Job(
            f"study/{study.name}",
            (*common, "--out", str(out / profile / "studies")),
            RESOURCES[profile]["study"],
            needs=tuple(job.name for job in cells),
        )
        found += [*cells, table]
    return found


def chapters() -> list[Path]:
    """The chapters' notebooks, by name."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def recipes_named(notebook: Path, profile: str) -> list[str]:
    """The recipes of the profile that a notebook's code names.

    One that is missed costs time and nothing else: the chapter trains it, or waits for it.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return [name for name in recipe_names(profile) if f'"{name}"' in code or f"'{name}'" in code]


def models(profile: str) -> list[str]:
    """The recipes that are trained for a profile: those that chapters name, for the book, and all
    of the paper's. Others, which only studies build on, are left to the studies."""
    if profile == "paper":
        return recipe_names(profile)
    named = {name for path in chapters() for name in recipes_named(path, profile)}
    return [name for name in recipe_names(profile) if name in named]


def package_files() -> list[Path]:
    """The package's source and recipes: what a chapter's result depends on."""
    root = Path(__file__).parent
    return sorted([*root.rglob("*.py"), *root.rglob("*.toml")])


def manifests() -> list[Path]:
    """The manifests of the shipped data, which hold its hashes."""
    return sorted((PROJECT / "data").glob("*/manifest.json"))


def records() -> list[Path]:
    """The shipped results of the studies, which chapters read; each holds its files' hashes."""
    return sorted((PROJECT / "data" / "results").glob("*/*.json"))


def scripts() -> list[Path]:
    """The page's scripts, which the outputs of chapters hold (:mod:`eqr.viewer.page`)."""
    return sorted((Path(__file__).parent / "viewer" / "static").iterdir())


def meaning() -> list[Path]:
    """What every run's id depends on beside its recipe: ``SEMANTICS``, and the shipped data."""
    return [Path(__file__).parent / "config.py", *manifests()]
