"""What comes in and goes out: data sets (``eqr data``), official weights, ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqr.cli.console import Json, Profile, Seed, Settings, progress, say, show
from eqr.config import DataConfig
from eqr.recipes import load_recipe, pairs, parse_overrides
from eqr.settings import ConfigError
from eqr.task import task_to_dict

if TYPE_CHECKING:
    from eqr.data import Dataset

app = typer.Typer(no_args_is_help=True, help="Build, import and verify data sets.")


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    kind: Annotated[
        str | None, typer.Option(help="sudoku, maze, maze-unique or miniarc (default: sudoku).")
    ] = None,
    setting: Settings = None,
    recipe: Annotated[str | None, typer.Option(help="Take task and sizes from a recipe.")] = None,
    profile: Profile = "laptop",
    train: Annotated[int | None, typer.Option(min=1, help="Problems (default: 1000).")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Problems (default: 512).")] = None,
    validation: Annotated[int | None, typer.Option(min=0, help="Problems (default: 0).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="(default: 0).")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Json = False,
) -> None:
    """Generate a data set whose splits share no solution up to symmetry.

    Example: eqr data build build/six -s box_height=2 -s box_width=3 -s clues_min=9 -s clues_max=10

    Shifts of Sudoku: -s layout=symmetric or clustered, -s rating_min=1, -s rating_max=9. Of mazes:
    -s carving=kruskal, wilson, prim or division, -s unique=true with loops, -s flips=2.

    Example: eqr data build build/prim --kind maze -s height=9 -s width=9 -s carving=prim

    The paper's own mazes, as their builder makes them with its sizes and seed (1000, 1000, 42):

    Example: eqr data build build/maze-unique --kind maze-unique
    """
    from eqr import data
    from eqr.imports import datasets

    if recipe:
        if kind or setting:
            raise ConfigError("--recipe brings its own task: leave out --kind and --set")
        made = load_recipe(recipe, profile)
        task, config = made.task, made.data
    else:
        task = datasets.named_task(kind or "sudoku", parse_overrides(setting or ()))
        config = DataConfig()
    if kind == datasets.MAZE_UNIQUE:
        config = DataConfig(train=1000, test=1000, seed=42)
    given = {"train": train, "test": test, "validation": validation, "seed": seed}
    config = replace(config, **{k: v for k, v in given.items() if v is not None})
    data.refuse_existing(out, overwrite)
    with progress("generating") as bar:
        if kind == datasets.MAZE_UNIQUE:
            built = datasets.build_official(task, config)
        else:
            built = data.build(task, config, bar)
    data.save(built, out, overwrite=overwrite)
    report(out, built, as_json)


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(help="A directory or file, hf:OWNER/REPO@REVISION/FOLDER, or maze-unique."),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    kind: Annotated[
        str | None, typer.Option(help="Task of arrays or JSON tasks (default: sudoku).")
    ] = None,
    setting: Settings = None,
    train: Annotated[int, typer.Option(min=0, help="Training problems to keep; 0: all.")] = 1000,
    test: Annotated[int, typer.Option(min=0, help="Test problems to keep; 0: all.")] = 0,
    subsample: Annotated[str, typer.Option(help="random (seeded) or first.")] = "random",
    seed: Seed = 0,
    columns: Annotated[
        str | None, typer.Option(help="Of CSV files, as question=quizzes,answer=solutions.")
    ] = None,
    allow_ambiguous: Annotated[
        bool, typer.Option("--allow-ambiguous", help="Take questions with several answers too.")
    ] = False,
    sha256: Annotated[
        list[str] | None,
        typer.Option(help="What a file must hash to, as train.csv=HEX; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Json = False,
) -> None:
    """Import Sudoku-Extreme CSV files, official npy arrays, or JSON tasks, from disk or the hub.

    A folder with train.csv and test.csv is read as CSV, of any task that is written one sign a
    cell; one with train/all__inputs.npy as arrays. With --kind miniarc, a JSON file is read, or a
    folder with one for each task, in training and evaluation as ARC has them or not; from disk
    only. Questions with several answers are counted, and refused without --allow-ambiguous.
    On the hub, @REVISION (a branch, tag or commit) and /FOLDER may be left out; hub:sudoku-extreme
    and hub:eqr-data are short for hf:sapientinc/sudoku-extreme and hf:locuslab/EqR-data. Only what
    is read is fetched, at one commit, and checked by hash; the manifest names commit and sha256.
    Files that came whole stay in the cache of the hub (HF_HOME), so that the same command run
    again goes on after them. HF_ENDPOINT names another server.

    maze-unique is the paper's own mazes from the hub; with --kind maze-unique they come from the
    source given, an .npz archive too. Either way their files must have the known sha256.

    Example: eqr data import hub:sudoku-extreme build/extreme --test 2048

    Example: eqr data import maze-unique build/maze-unique

    Example: eqr data import hf:sapientinc/sudoku-extreme@COMMIT build/extreme

    Example: eqr data import data/miniarc/tasks.json build/arc --kind miniarc --train 0
    """
    from eqr import data
    from eqr.imports import datasets

    data.refuse_existing(out, overwrite)
    imported = datasets.import_set(
        source, kind, parse_overrides(setting or ()), dict(pairs(sha256 or ())),
        train=train or None, test=test or None, subsample=subsample, seed=seed,
        columns=dict(pairs(columns.split(",") if columns else ())),
        allow_ambiguous=allow_ambiguous,
    )  # fmt: skip
    data.save(imported, out, overwrite=overwrite)
    report(out, imported, as_json)


def report(out: Path, built: Dataset, as_json: bool) -> None:
    """Say what a data command has written."""
    left_out, ambiguous = (built.origin.get(k) for k in ("left_out_of_test", "ambiguous"))
    values = {
        "path": str(out),
        "task": task_to_dict(built.task),
        "train": len(built.train),
        "test": len(built.test),
        "validation": len(built.validation or ()),
        "digest": built.digest,
        "left_out_of_test": left_out or 0,
        "ambiguous": ambiguous or {},
    }
    sizes = [f"{len(own)} {split}" for split, own in built.splits.items()]
    lines = [f"{out}: {', '.join(sizes)} problems"]
    if left_out:
        lines.append(f"  {left_out} test problems left out: solution seen in training")
    for split, count in values["ambiguous"].items():
        lines.append(f"  {count} {split} problems have several answers")
    show(values, [*lines, f"  digest {built.digest}"], as_json)


@app.command("verify")
def verify_command(
    directories: Annotated[list[Path], typer.Argument(help="Data set directories.")],
    as_json: Json = False,
) -> None:
    """Check hashes, labels, repeats, and that no two splits share a solution (up to symmetry).

    Example: eqr data verify data/sudoku6 data/maze9
    """
    from eqr import data

    results = {str(path): data.faults(path) for path in directories}
    lines = []
    for path, (values, faults) in results.items():
        sizes = " + ".join(str(values[split]) for split in data.SPLITS if split in values)
        lines.append(f"{path}: {sizes} problems, sound" if not faults else f"{path}: NOT SOUND")
        lines += [f"  {fault}" for fault in faults]
        lines += [f"  {count} {what}" for what, count in values.get("remarks", {}).items() if count]
    show({path: values | {"faults": faults} for path, (values, faults) in results.items()},
         lines, as_json)  # fmt: skip
    if every := [fault for _, faults in results.values() for fault in faults]:
        raise data.DataError("; ".join(every))


def import_checkpoint(
    official: Annotated[
        str,
        typer.Argument(
            help="hub:eqr/sudoku-extreme or hub:eqr/maze-unique, the released weights; or a .pth "
            "file of the official code, here or as hf:OWNER/REPO@REVISION/PATH."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="The safetensors file to write (default: named as the weights)."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Official configuration, JSON or YAML, a file or hf:…; without it, the one stored "
            "in the .pth or else the one beside it."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="ema (the average) or raw; without it, the average if there is one."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="What the .pth must hash to.")] = None,
    as_json: Json = False,
) -> None:
    """Convert official weights of an EqR or a TRM; the file is read without executing any pickle.

    On the hub, @REVISION (a branch, tag or commit) may be left out; hub:eqr-model is short for
    hf:locuslab/EqR-model. The file is checked by hash, and the header of what is written names
    commit and sha256. HF_ENDPOINT names another server, HF_HOME the cache.

    Example: eqr import-checkpoint hub:eqr/sudoku-extreme

    Example: eqr import-checkpoint step_50000.pth sudoku.safetensors --config all_config.yaml

    Example: eqr import-checkpoint hf:locuslab/EqR-model/sudoku-extreme/eqr.pth sudoku.safetensors
    """
    from eqr.imports.weights import convert

    path, made = convert(official, out, config, weights, sha256)
    about, model = made.meta["imported"], made.model.config
    family = "TRM" if model.init == "fixed" else "EqR"
    kind = {"ema": "averaged", "raw": "raw"}[about["weights"]]
    say(f"configuration: {about['config']['file']}")
    say(
        f"{family}: {model.init} starts, damping {model.damping:g}, noise {model.noise:g}, "
        f"{kind} weights"
    )
    values = {"model": str(path), "sha256": made.sha256, "family": family}
    values |= {"config": about["config"]["file"], "weights": about["weights"]}
    show(values, values["model"], as_json)


SIDE = b'"tokens_low"'  # in each file that describes an exported model, and in few others


def export_command(
    model: Annotated[Path, typer.Argument(help="A model.safetensors file.")],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write, such as model.onnx.")],
    as_json: Json = False,
) -> None:
    """Write one outer iteration as ONNX: latents, problem, noise, beta and damping in; the next
    latents, logits, halting logit and residual out, for any number of rows.

    It is compared with PyTorch before anything is written. A JSON file of the same name says
    what shapes it wants, how trajectories start, and what the tokens are.

    Example: eqr export $MODEL sudoku6.onnx
    """
    from eqr.checkpoint import load_model
    from eqr.files import target, write_json
    from eqr.viewer.onnx import INPUTS, OUTPUTS, describe, export

    if out.suffix != ".onnx":
        raise ConfigError(f"{out}: the file to write must end in .onnx")
    side = out.with_suffix(".json")
    for path, mark in ((out, b"eqr-book"), (side, SIDE)):
        target(path, mark)
    loaded = load_model(model)
    meta = {"weights": loaded.sha256, "source": loaded.meta}
    made = export(loaded.model, out, meta)
    about = describe(loaded.model, loaded.task) | meta | {"inputs": INPUTS, "outputs": OUTPUTS}
    write_json(side, about)
    values: dict[str, Any] = {"onnx": str(out), "json": str(side)}
    show(values | {"bytes": made.size, "difference": made.difference}, str(out), as_json)
