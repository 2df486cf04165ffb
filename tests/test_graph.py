"""The graph of jobs is whole and acyclic; the book's builder and Snakemake both follow it."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from eqr import graph, runner
from eqr.cli import main as cli
from eqr.data import PROJECT
from eqr.recipes import PROFILES, recipe_names
from eqr.settings import ConfigError
from eqr.studies.rows import studies_of

RUN_PROFILES = sorted((PROJECT / "eqr/profiles").glob("*/config.yaml"))
SNAKEMAKE = importlib.util.find_spec("snakemake") is not None


@pytest.mark.parametrize("profile", PROFILES)
class TestGraph:
    def test_every_job_comes_after_those_it_needs(self, profile: str) -> None:
        done: set[str] = set()
        for name, job in graph.jobs(profile).items():
            assert name == job.name and job.kind in graph.KINDS
            assert set(job.needs) <= done, f"{name} comes before what it needs, or in a circle"
            done.add(name)

    def test_nothing_is_left_out(self, profile: str) -> None:
        wanted = {f"train/{name}" for name in graph.models(profile)}
        if profile == "paper":
            assert graph.models(profile) == recipe_names(profile)
        else:  # what chapters name, and not what only studies build on
            trained = set(graph.models(profile))
            assert {"headroom", "sudoku9"} <= trained < set(recipe_names(profile))
            assert "maze9-small" not in trained
        if profile != "paper":
            wanted |= {f"chapter/{p.stem}" for p in (PROJECT / "notebooks").glob("*.ipynb")}
            wanted |= {"book"}
        for study in studies_of(profile):
            wanted |= {f"study/{study.name}"}
            for row in study.rows:
                wanted |= {f"cell/{study.name}/{row.name}/{s}" for s in row.seed_range(profile)}
        assert set(graph.jobs(profile)) == wanted

    def test_every_job_says_what_it_takes(self, profile: str) -> None:
        for job in graph.jobs(profile).values():
            asks = job.resources
            assert min(asks.cpus, asks.mem_mb, asks.minutes) > 0
            gpu = profile == "paper" and job.kind != "study" and "night" not in job.name
            assert (asks.gpus > 0) == gpu == ("cuda" in job.command)

    def test_every_command_is_one_of_ours(self, profile: str, monkeypatch) -> None:
        """Its options parse; what it would do is replaced by nothing."""
        calls: list[dict] = []

        def spied(function):
            return functools.wraps(function)(lambda **values: calls.append(values))

        for command in cli.app.registered_commands:
            if command.callback.__name__ in ("train_command", "book_command", "run_command"):
                monkeypatch.setattr(command, "callback", spied(command.callback))
        eqr = typer.main.get_command(cli.app)
        jobs = graph.jobs(profile, seed=3).values()
        for job in jobs:
            eqr.main(list(job.command), standalone_mode=False)
        assert [values["profile"] for values in calls] == [profile] * len(jobs)

    def test_a_jobs_state_follows_the_files_it_reads(self, profile: str) -> None:
        for job in graph.jobs(profile).values():
            assert job.reads or job.kind == "study", "a study's files depend on its cells alone"
            assert all(path.is_file() for path in job.reads)


def test_another_content_is_another_state(tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    states = []
    for text in ("a", "b", "a"):
        path.write_text(text)
        states.append(graph.Job("train/x", ("train",), graph.SMALL, reads=(path,)).state)
    assert states[0] == states[2] != states[1]


def test_a_chapter_needs_the_models_it_names() -> None:
    jobs = graph.jobs("smoke")
    assert jobs["chapter/theory"].needs == ("train/headroom",)
    assert set(jobs["book"].needs) == {n for n, j in jobs.items() if j.kind in ("train", "chapter")}


def test_seed_and_profile_reach_the_commands() -> None:
    jobs = graph.jobs("smoke", seed=7, out=Path("elsewhere"))
    assert jobs["train/headroom"].command == (
        *("train", "headroom", "--profile", "smoke", "--seed", "7"),
    )
    assert "elsewhere" in jobs["book"].command
    assert jobs["study/shaping"].command[-1] == str(Path("elsewhere/smoke/studies"))
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        graph.jobs("smok")


def test_the_builder_follows_the_graph(tmp_path, monkeypatch) -> None:
    """`make book` runs the same jobs, none before those it needs are complete."""
    events = []
    jobs = graph.jobs("smoke")
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setenv("EQR_STORE", str(tmp_path))

    def train(job, store, say):
        events.append(("begin", job.name))
        events.append(("end", job.name))

    def chapter(notebook, parameters, store):
        assert parameters == {"profile": "smoke", "seed": 0}
        events.append(("begin", f"chapter/{notebook.stem}"))
        events.append(("end", f"chapter/{notebook.stem}"))
        return notebook

    monkeypatch.setattr(runner.vendor, "ensure", lambda: None)
    monkeypatch.setattr(runner, "train_model", train)
    monkeypatch.setattr(runner, "chapter", chapter)
    monkeypatch.setattr(runner.book, "assemble", lambda *_: events.append(("begin", "book")))
    monkeypatch.setattr(runner, "trained", lambda name, *_: name)
    live = []
    monkeypatch.setattr(runner.play, "install", lambda _, models, __: live.extend(models))
    monkeypatch.setattr(runner.pages, "dress", lambda *_, **__: None)
    monkeypatch.setattr(runner.book, "build_html", lambda _, out: out / "index.html")
    monkeypatch.setattr(runner.book, "check_html", lambda _: None)
    lines = []
    runner.make_book("smoke", seed=0, out=tmp_path, jobs=2, say=lines.append)
    begun = [name for what, name in events if what == "begin"]
    assert sorted(begun) == sorted({"book", *jobs["book"].needs})
    assert {f"train/{name}" for name in live} <= set(begun), "the pages' models are trained"
    for name in begun:
        before = events[: events.index(("begin", name))]
        assert {("end", need) for need in jobs[name].needs} <= set(before), name
    assert [line for line in lines if line[0] == "["] == [
        *("[1/3] models of profile smoke", "[2/3] chapters", "[3/3] pages")
    ]


def test_one_chapter_alone(monkeypatch, tmp_path) -> None:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setenv("EQR_STORE", str(tmp_path))
    monkeypatch.setattr(runner, "chapter", lambda notebook, *rest: (notebook, rest[0]))
    found, parameters = runner.only_chapter("theory", "smoke", 2)
    assert found.name == "theory.ipynb" and parameters == {"profile": "smoke", "seed": 2}
    with pytest.raises(ConfigError, match="'theroy' is no chapter; did you mean 'theory'"):
        runner.only_chapter("theroy", "smoke", 0)
    with pytest.raises(ConfigError, match="GPU hours"):
        runner.only_chapter("theory", "paper", 0)


@pytest.mark.parametrize("path", RUN_PROFILES, ids=lambda path: path.parent.name)
def test_run_profiles_let_a_killed_run_go_on(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert settings["rerun-incomplete"] and settings["keep-going"]
    local = path.parent.name == "local"
    assert local or (settings["executor"] == path.parent.name and settings["retries"] > 0)


def test_there_is_a_run_profile_for_each_way() -> None:
    assert [path.parent.name for path in RUN_PROFILES] == ["kubernetes", "local", "slurm"]


@pytest.mark.skipif(not SNAKEMAKE, reason="Snakemake is not installed (extra `cluster`)")
class TestSnakemake:
    def dry(self, tmp_path: Path, *words: str) -> str:
        """What a dry run in an empty directory says."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
        command += ["--directory", str(tmp_path), "--cores", "2", "--dry-run", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def test_lists_the_same_jobs(self, tmp_path) -> None:
        told = self.dry(tmp_path, "all", "studies", "--config", "profile=smoke")
        made = re.findall(r"output: build/smoke/flow/(\S+)\.txt", told)
        assert sorted(made) == sorted(graph.jobs("smoke"))

    def test_asks_for_a_gpu_for_each_training_of_the_paper(self, tmp_path) -> None:
        told = self.dry(tmp_path, "--config", "profile=paper")
        assert told.count("gpu=1") == len(recipe_names("paper"))
