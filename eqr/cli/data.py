"""``eqr data build|import|verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from eqr import data
from eqr.cli.console import Json, Profile, Seed, Settings, emit, progress
from eqr.config import DataConfig
from eqr.imports import datasets as data_import, hub
from eqr.recipes import load_recipe, parse_overrides
from eqr.settings import ConfigError
from eqr.task import task_from_dict, task_to_dict

app = typer.Typer(no_args_is_help=True, help="Build, import and verify data sets.")


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    kind: Annotated[
        str | None, typer.Option(help="sudoku, maze or miniarc (default: sudoku).")
    ] = None,
    setting: Settings = None,
    recipe: Annotated[str | None, typer.Option(help="Take task and sizes from a recipe.")] = None,
    profile: Profile = "laptop",
    train: Annotated[int | None, typer.Option(min=1, help="Problems (default: 1000).")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Problems (default: 512).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="(default: 0).")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Json = False,
) -> None:
    """Generate a data set whose splits share no solution up to symmetry.

    Example: eqr data build build/six -s box_height=2 -s box_width=3 -s clues_min=9 -s clues_max=10

    Shifts of Sudoku: -s layout=symmetric or clustered, -s rating_min=1, -s rating_max=9. Of mazes:
    -s carving=kruskal, wilson, prim or division, -s unique=true with loops, -s flips=2.

    Example: eqr data build build/prim --kind maze -s height=9 -s width=9 -s carving=prim
    """
    if recipe:
        if kind or setting:
            raise ConfigError("--recipe brings its own task: leave out --kind and --set")
        found = load_recipe(recipe, profile)
        task, config = found.task, found.data
    else:
        task = task_from_dict({"kind": kind or "sudoku", **parse_overrides(setting or ())})
        config = DataConfig()
    given = {"train": train, "test": test, "seed": seed}
    config = replace(config, **{k: v for k, v in given.items() if v is not None})
    data.refuse_existing(out, overwrite)
    with progress("generating") as bar:
        built = data.build(task, config, bar)
    data.save(built, out, overwrite=overwrite)
    report_data(out, built, as_json)


@app.command("import")
def import_command(
    source: Annotated[
        str, typer.Argument(help="A directory or file, or hf:OWNER/REPO@REVISION/FOLDER.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    kind: Annotated[str, typer.Option(help="Task of npy arrays or JSON tasks.")] = "sudoku",
    setting: Settings = None,
    train: Annotated[int, typer.Option(min=0, help="Training problems to keep; 0: all.")] = 1000,
    test: Annotated[int, typer.Option(min=0, help="Test problems to keep; 0: all.")] = 0,
    subsample: Annotated[str, typer.Option(help="random (seeded) or first.")] = "random",
    seed: Seed = 0,
    sha256: Annotated[
        list[str] | None,
        typer.Option(help="What a file must hash to, as train.csv=HEX; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Json = False,
) -> None:
    """Import Sudoku-Extreme CSV files, official npy arrays, or JSON tasks, from disk or the hub.

    With --kind miniarc, a JSON file or a folder with one for each task is read, from disk only. A
    folder with train.csv and test.csv is read as CSV, one with train/all__inputs.npy as arrays.
    On the hub, @REVISION (a branch, tag or commit) and /FOLDER may be left out; hub:sudoku-extreme
    and hub:eqr-data are short for hf:sapientinc/sudoku-extreme and hf:locuslab/EqR-data. Only what
    is read is fetched, at one commit, and checked by size and hash; the manifest names commit and
    sha256. A download that was cut goes on when the same command is run again. HF_ENDPOINT names
    another server.

    Example: eqr data import hub:sudoku-extreme build/extreme --test 2048

    Example: eqr data import hf:locuslab/EqR-data/maze-30x30-unique-1k build/maze30 --kind maze

    Example: eqr data import hf:sapientinc/sudoku-extreme@COMMIT build/extreme

    Example: eqr data import data/miniarc/tasks.json build/arc --kind miniarc --train 0
    """
    data.refuse_existing(out, overwrite)
    sizes = {"train": train or None, "test": test or None, "subsample": subsample, "seed": seed}
    task = task_from_dict({"kind": kind, **parse_overrides(setting or ())})
    pins = {}
    for text in sha256 or ():
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--sha256 {text!r} must be FILE=HEX, as in --sha256 train.csv=…")
        pins[name] = hub.parse_pin(value)
    with data_import.located(source, pins) as (directory, origin):
        imported = data_import.read(directory, task, **sizes)
        imported = replace(imported, origin=imported.origin | origin)
        data.save(imported, out, overwrite=overwrite)
    report_data(out, imported, as_json)


def report_data(out: Path, built: data.Dataset, as_json: bool) -> None:
    """Say what a data command has written."""
    values = {
        "path": str(out),
        "task": task_to_dict(built.task),
        "train": len(built.train),
        "test": len(built.test),
        "digest": built.digest,
        "left_out_of_test": built.origin.get("left_out_of_test", 0),
    }
    if as_json:
        emit(values)
        return
    print(f"{out}: {values['train']} training and {values['test']} test problems")
    if values["left_out_of_test"]:
        print(f"  {values['left_out_of_test']} test problems left out: solution seen in training")
    print(f"  digest {built.digest}")


@app.command("verify")
def verify_command(
    directories: Annotated[list[Path], typer.Argument(help="Data set directories.")],
    as_json: Json = False,
) -> None:
    """Check hashes, labels, repeats, and that no test solution was trained on (up to symmetry).

    Example: eqr data verify data/sudoku6 data/maze9
    """
    findings = {str(path): data.verify(path) for path in directories}
    faults = {
        path: {k: v for k, v in found.items() if v and ("_" in k)}
        for path, found in findings.items()
    }
    if as_json:
        emit(findings)
    else:
        for path, found in findings.items():
            verdict = f"NOT SOUND {faults[path]}" if faults[path] else "sound"
            print(f"{path}: {found['train']} + {found['test']} problems, {verdict}")
    if any(faults.values()):
        raise data.DataError("; ".join(f"{p}: {f}" for p, f in faults.items() if f))
