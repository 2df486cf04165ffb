"""The book and the studies on a cluster: the jobs of eqr/graph.py, each one an `eqr` command.

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

sys.path.insert(0, workflow.basedir)  # the package beside this file, installed or not

from eqr import graph


def asked_for(profile="laptop", seed=0, out="build"):
    """The profile and its jobs; any other key of --config is an error."""
    return profile, graph.jobs(profile, seed, Path(out))


PROFILE, JOBS = asked_for(**config)


def marker(name):
    return f"build/{PROFILE}/flow/{name}.txt"


def made(*kinds):
    return [marker(job.name) for job in JOBS.values() if job.kind in kinds]


localrules: all, models, chapters, studies


rule all:
    input: made("book") or made("train")


rule models:
    input: made("train")


rule chapters:
    input: made("chapter")


rule studies:
    input: made("study")


for kind, asks in graph.RESOURCES[PROFILE].items():
    gpus = dict(gpu=asks.gpus, gpu_manufacturer="nvidia") if asks.gpus else {}

    rule:
        name: kind
        wildcard_constraints: job=rf"{kind}(/.+)?"
        input: lambda wildcards: [marker(name) for name in JOBS[wildcards.job].needs]
        output: marker("{job}")
        params:
            command=lambda wildcards: " ".join(JOBS[wildcards.job].command),
            state=lambda wildcards: JOBS[wildcards.job].state,  # changed: due again
        threads: asks.cpus
        resources: mem_mb=asks.mem_mb, runtime=asks.minutes, **gpus
        shell: "{sys.executable} -m eqr {params.command} > {output}.part && mv {output}.part {output}"
