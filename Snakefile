"""The book and the studies on a cluster: one graph of jobs, each a command of this project.

    snakemake --profile eqr/profiles/local                              the book, laptop profile
    snakemake --profile eqr/profiles/slurm --config profile=smoke       the book, as Slurm jobs
    snakemake --profile eqr/profiles/slurm studies                      the many-seed studies
    snakemake --profile eqr/profiles/slurm --config profile=paper       the paper's trainings, GPUs

What a job makes is in the store, whole or not at all. Snakemake sees a small file for each job,
build/<profile>/flow/<job>.txt, with the path that the command printed; it appears when the command
has succeeded, so that a killed job leaves none, and starting it again goes on where it was.
"""

import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # the project, installed or not

from book.tools import BOOK, NOTEBOOKS, ROOT, build
from eqr.config import SEMANTICS, digest, to_dict
from eqr.recipes import load_recipe, recipe_names
from eqr.studies.cells import cells_of
from eqr.studies.rows import studies_of


def asked_for(profile="laptop", seed=0, out="build"):
    """The profile, seed and folder; any other key of --config is an error."""
    return profile, int(seed), out


PROFILE, SEED, OUT = asked_for(**config)
FLOW = f"build/{PROFILE}/flow"
CELLS = {
    (study.name, cell.row, str(cell.seed)): cell
    for study in studies_of(PROFILE)
    for cell in cells_of(study, PROFILE, None, None)
}
MODELS = recipe_names(PROFILE) if PROFILE == "paper" else build.models(PROFILE)
CHAPTERS = [] if PROFILE == "paper" else [path.stem for path in build.chapters()]

DATA = build.state(*sorted(ROOT.glob("data/*/manifest.json")))

# Of a training or cell of the paper: eight cores, a GPU and a day. One thread does for the rest.
HOURS = {"smoke": 1, "laptop": 4, "paper": 24}[PROFILE]
RUN = f"{sys.executable} -m"
ENDS = "> {output}.part && mv {output}.part {output}"


def cell_of(wildcards):
    return CELLS[wildcards.study, wildcards.row, wildcards.seed]


def recipe_of(wildcards):
    """The recipe that a job trains."""
    if hasattr(wildcards, "name"):
        return load_recipe(wildcards.name, PROFILE, seed=SEED)
    return cell_of(wildcards).recipe()


def on_gpu(wildcards):
    """Recipes in bfloat16 want a GPU."""
    return recipe_of(wildcards).train.dtype == "bfloat16"


def device(wildcards):
    return "--device cuda" if on_gpu(wildcards) else ""


def changed(wildcards):
    """A training or cell is due again when this changes: its recipe, or what any run depends on."""
    return digest([to_dict(recipe_of(wildcards)), SEMANTICS, DATA])


localrules: all, models, chapters, studies


rule all:
    input: [f"{FLOW}/book.txt"] if CHAPTERS else [f"{FLOW}/train/{name}.txt" for name in MODELS]


rule models:
    input: [f"{FLOW}/train/{name}.txt" for name in MODELS]


rule chapters:
    input: [f"{FLOW}/chapter/{name}.txt" for name in CHAPTERS]


rule studies:
    input: [f"{FLOW}/study/{study.name}.txt" for study in studies_of(PROFILE)]


rule train:
    output: f"{FLOW}/train/{{name}}.txt"
    params: device=device, state=changed
    threads: lambda wildcards: 8 if on_gpu(wildcards) else 1
    resources:
        mem_mb=lambda wildcards: 32000 if on_gpu(wildcards) else 4000,
        runtime=60 * HOURS,
        gpu=lambda wildcards: int(on_gpu(wildcards)),
    shell: f"{RUN} eqr train {{wildcards.name}} --profile {PROFILE} --seed {SEED} {{params.device}} {ENDS}"


rule chapter:
    input:
        lambda wildcards: [
            f"{FLOW}/train/{name}.txt"
            for name in build.recipes_named(NOTEBOOKS / f"{wildcards.name}.ipynb", PROFILE)
        ]
    output: f"{FLOW}/chapter/{{name}}.txt"
    params: state=lambda wildcards: build.state(NOTEBOOKS / f"{wildcards.name}.ipynb", *build.READ)
    resources: mem_mb=4000, runtime=60 * HOURS
    shell: f"{RUN} book.tools chapter {{wildcards.name}} --profile {PROFILE} --seed {SEED} {ENDS}"


rule book:
    input: rules.models.input, rules.chapters.input
    output: f"{FLOW}/book.txt"
    params: state=build.state(BOOK)
    resources: mem_mb=4000, runtime=60
    shell: f"{RUN} book.tools build --profile {PROFILE} --seed {SEED} --out {OUT} --jobs 1 {ENDS}"


rule cell:
    output: f"{FLOW}/cell/{{study}}/{{row}}/{{seed}}.txt"
    params: device=device, state=changed
    threads: lambda wildcards: 8 if on_gpu(wildcards) else 1
    resources:
        mem_mb=lambda wildcards: 32000 if on_gpu(wildcards) else 4000,
        runtime=60 * HOURS,
        gpu=lambda wildcards: int(on_gpu(wildcards)),
    shell:
        f"{RUN} eqr study run {{wildcards.study}} --profile {PROFILE} --rows {{wildcards.row}} "
        f"--seeds {{wildcards.seed}} --out {OUT}/{PROFILE}/studies {{params.device}} {ENDS}"


rule study:
    input:
        lambda wildcards: [
            f"{FLOW}/cell/{study}/{row}/{seed}.txt"
            for study, row, seed in CELLS
            if study == wildcards.study
        ]
    output: f"{FLOW}/study/{{study}}.txt"
    resources: mem_mb=4000, runtime=60
    shell: f"{RUN} eqr study run {{wildcards.study}} --profile {PROFILE} --out {OUT}/{PROFILE}/studies {ENDS}"
