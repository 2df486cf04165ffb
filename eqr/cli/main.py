"""The ``eqr`` command: each has an example in its ``--help`` and prints JSON with ``--json``.

Bad input ends in one line on standard error and exit status 1; nothing half-written stays behind.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from eqr import checkpoint, data
from eqr.cli import (
    data as cli_data,
    export as cli_export,
    plan as cli_plan,
    runs as cli_results,
    study as cli_run,
    weights as cli_import,
)
from eqr.cli.console import (
    Device,
    Json,
    Profile,
    Seed,
    Settings,
    StoreDir,
    emit,
    fail,
    pick_device,
    progress,
    say,
    whole_numbers,
)
from eqr.config import EvalConfig, recipe_from_dict
from eqr.imports.hub import HubError
from eqr.parallel import WorldError, joined
from eqr.recipes import load_recipe, parse_overrides, recipe_names
from eqr.settings import ConfigError, ProblemError
from eqr.store import Store, StoreError
from eqr.task import task_to_dict
from eqr.train import Event, TrainingError
from eqr.viewer.onnx import ExportError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Equilibrium Reasoners: build data, train, evaluate, solve, and run studies.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_results.app, name="results")
app.command("run")(cli_run.run_command)
app.command("import-checkpoint")(cli_import.import_command)
app.command("export")(cli_export.export_command)
app.command("plan")(cli_plan.plan_command)

ERRORS = (
    ConfigError,
    StoreError,
    TrainingError,
    ProblemError,
    data.DataError,
    checkpoint.CheckpointError,
    ExportError,
    HubError,
    WorldError,
    OSError,
)


BENCHED = ("sudoku6", "sudoku9")  # what `eqr bench` measures unless told


def main() -> None:
    """Entry point: run a command, and turn its known errors into one line."""
    try:
        app()
    except ERRORS as error:
        rank = os.environ.get("RANK", "0")  # torchrun sets it
        who = "error" if rank == "0" else f"error in process {rank}"
        say(f"{who}: {' '.join(str(error).split())}", "red")
        sys.exit(1)


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a .toml file.")],
    profile: Profile = "laptop",
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the recipe's seed.")] = None,
    setting: Settings = None,
    device: Device = "cpu",
    stop_after: Annotated[
        float | None, typer.Option(min=0, help="Leave after so many seconds, to be resumed.")
    ] = None,
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Train a recipe, or go on with a killed run; prints the path of the model file.

    Under torchrun the processes share each batch, and the result is that of one process up to
    rounding: torchrun --nproc-per-node 2 -m eqr train sudoku6

    Example: eqr train sudoku6 --set train.steps=200
    """
    from eqr.experiments import train_run

    found = load_recipe(recipe, profile, seed=seed, overrides=parse_overrides(setting or ()))
    where = pick_device(device)
    with joined(where) as world, progress(f"training {found.name}", world.rank == 0) as bar:

        def show(event: Event) -> None:
            bar(event.step, found.train.steps)
            if event.kind == "eval" and not as_json:
                exact = {k: v for k, v in event.metrics.items() if k.startswith("exact_")}
                text = "  ".join(f"D={k[6:]}: {v:.1%}" for k, v in exact.items())
                say(f"step {event.step}: {text}")

        try:
            run = train_run(
                found,
                Store(store),
                device=where,
                on_event=show if world.rank == 0 else None,
                on_data=bar,
                stop_after_s=stop_after,
                world=world,
            )
        except KeyboardInterrupt:
            say("stopped; run the same command again to go on from the last checkpoint")
            raise typer.Exit(130) from None
    if world.rank != 0:
        return
    path = str(run.file("model.safetensors")) if run else None
    if as_json:
        emit({"run": run.id if run else None, "model": path, "complete": run is not None})
    elif run:
        print(path)
    else:
        say("stopped early; run the same command again to go on")


@app.command("eval")
def eval_command(
    model: Annotated[Path, typer.Option("--checkpoint", "-c", help="A model.safetensors file.")],
    depth: Annotated[str, typer.Option(help="Outer iterations, as in 1,4,16.")] = "16",
    breadth: Annotated[str, typer.Option(help="Restarts, as in 1,8,32.")] = "1",
    select: Annotated[
        str,
        typer.Option(
            help="average, converged, majority, margin, halt, first_to_halt, majority2, oracle."
        ),
    ] = "average,converged,majority,oracle",
    noise: Annotated[float, typer.Option(min=0, help="The noise level (beta) of rollouts.")] = 0.0,
    symmetry: Annotated[
        bool,
        typer.Option(
            "--symmetry",
            help="Restarts after the first solve images of the problem under random symmetries of "
            "the task (relabelled, permuted, turned), and undo them on their answers.",
        ),
    ] = False,
    window: Annotated[int, typer.Option(min=1, help="Iterations the residual averages.")] = 3,
    halting: Annotated[
        list[str] | None,
        typer.Option(
            help="Let rows go once settled: residual:1e-3, stable:8, head:0, or fixed, each up to "
            "the largest depth and breadth; repeatable. Prints accuracy, average NFE and seconds."
        ),
    ] = None,
    first_settled: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --halting: no further restart once one settled below this residual."
        ),
    ] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="The first so many.")] = None,
    dataset: Annotated[
        Path | None, typer.Option("--data", help="A data set (default: the one trained with).")
    ] = None,
    seed: Seed = 0,
    rows: Annotated[int, typer.Option(min=1, help="Trajectories in flight.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    device: Device = "cpu",
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Accuracy against depth and breadth as one tidy table with 95 % Wilson intervals.

    Under torchrun the processes share the problems, and the table is that of one process to the
    last bit: torchrun --nproc-per-node 2 -m eqr eval -c MODEL

    Example: eqr eval -c MODEL --depth 1,2,4,8,16,32,64 --breadth 1,8,32 --noise 0.01

    Example: eqr eval -c MODEL --breadth 1,8,32 --symmetry

    Example: eqr eval -c MODEL --depth 1024 --halting residual:1e-3 --halting fixed
    """
    from eqr import evaluate, tables
    from eqr.halting import halting_records, parse_rule
    from eqr.select import check_selections

    depths, breadths = whole_numbers(depth, "--depth"), whole_numbers(breadth, "--breadth")
    rules = [name.strip() for name in select.split(",")]
    config = EvalConfig(depths, breadths[-1], noise, window, seed, problems, symmetry)
    check_selections(rules, "--select")
    if out and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    stops = {str(rule): rule for rule in map(parse_rule, halting or ())}
    if first_settled is not None and not stops:
        raise ConfigError("--first-settled needs a --halting rule, as in --halting residual:1e-3")
    if symmetry and stops:
        raise ConfigError("--symmetry and --halting do not go together: leave one out")
    where = pick_device(device)
    with joined(where) as world, progress("evaluating", world.rank == 0) as bar:
        if stops and world.world_size > 1:
            raise ConfigError("--halting runs in one process: leave torchrun out")
        loaded = checkpoint.load_model(model, where)
        found = evaluation_data(loaded, model, dataset, Store(store))
        runs = loaded.model, found.test.inputs, found.test.labels, config
        if stops:
            halted = {
                text: halting_records(
                    *runs, rule, first_settled=first_settled, rows=rows, progress=bar
                )
                for text, rule in stops.items()
            }
            table = tables.halting_table(halted, select=rules, limit=depths[-1], noise=noise)
        else:
            kept = evaluate.records(*runs, task=found.task, rows=rows, progress=bar, world=world)
            table = tables.table(
                kept,
                breadths=breadths,
                select=rules,
                layers=loaded.model.config.layers,
                noise=noise,
                symmetry=symmetry,
            )
    if world.rank != 0:
        return
    if out:
        temporary = out.with_name(f".{out.name}.tmp")
        table.to_csv(temporary, index=False)
        temporary.replace(out)
    if as_json:
        emit(table.to_dict(orient="records"))
    else:
        print(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))


def evaluation_data(
    loaded: checkpoint.Checkpoint, model: Path, directory: Path | None, store: Store
) -> data.Dataset:
    """The data set asked for, or the one the checkpoint was trained with."""
    if directory is None:
        if "recipe" not in loaded.meta:
            raise data.DataError(f"{model}: says not what it was trained on; name it with --data")
        return data.for_recipe(
            recipe_from_dict(loaded.meta["recipe"], str(model)), store.root / "data"
        )
    found = data.load(directory)
    ours, theirs = loaded.task, found.task
    if not ours.same_board(theirs):
        raise data.DataError(
            f"{directory}: its problems are {task_to_dict(theirs)}, which does not fit {model}, "
            f"made for {task_to_dict(ours)}"
        )
    return found


@app.command("solve")
def solve_command(
    puzzle: Annotated[str, typer.Argument(help="A puzzle string, or - to read one a line.")],
    model: Annotated[Path, typer.Option("--checkpoint", "-c", help="A model.safetensors file.")],
    depth: Annotated[int, typer.Option(min=1, help="Outer iterations.")] = 32,
    breadth: Annotated[int, typer.Option(min=1, help="Restarts.")] = 1,
    noise: Annotated[float, typer.Option(min=0, help="The noise level (beta).")] = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Residual that counts as settled.")
    ] = 0.02,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Solve puzzles: the board, the residual of each iteration, and whether it converged.

    The answer is the restart with the smallest residual. "converged" says that the dynamics have
    settled; "valid" is the rule checker's verdict, which the model never sees.

    Example: eqr solve -c MODEL 1..4........2....
    """
    from eqr.solve import solve

    loaded = checkpoint.load_model(model)
    lines = sys.stdin.read().splitlines() if puzzle == "-" else [puzzle]
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            problems.append(loaded.task.parse(line.strip("\r\n")))
        except ProblemError as error:
            where = f"line {number}: " if puzzle == "-" else ""
            raise ProblemError(f"{where}{error}") from error
    if not problems:
        raise ProblemError("no puzzle given: standard input was empty")
    for tokens in problems:
        found = solve(
            loaded.model,
            loaded.task,
            tokens,
            depth=depth,
            breadth=breadth,
            noise=noise,
            tolerance=tolerance,
            seed=seed,
        )
        if as_json:
            emit(found.to_dict(loaded.task))
        else:
            print(found.describe(loaded.task))


@app.command("bench")
def bench_command(
    recipes: Annotated[list[str] | None, typer.Argument(help="(default: sudoku6 sudoku9)")] = None,
    profile: Profile = "laptop",
    setting: Settings = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 5.0,
    growth: Annotated[
        bool, typer.Option("--growth", help="How time grows with depth, breadth, batch and board.")
    ] = False,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    as_json: Json = False,
) -> None:
    """Training steps and evaluated puzzles a second, beside the machine's matrix-product rate.

    Each recipe is measured twice in one run, operation by operation and compiled; gains are rates
    over those of the former.

    Example: eqr bench --json

    Example: eqr bench sudoku9 --profile paper --set train.batch=4 --set train.dtype=float32

    Example: eqr bench sudoku6 --growth
    """
    from eqr.analysis.bench import bench, scaling

    torch.set_num_threads(threads)
    where = pick_device(device)
    overrides = parse_overrides(setting or ())
    found = [load_recipe(n, profile, overrides=overrides) for n in recipes or BENCHED]
    if growth:
        say(f"measuring, about {24 * seconds:.0f} s a recipe")
        rows = [{"recipe": r.name} | asdict(g) for r in found for g in scaling(r, where, seconds)]
    else:
        say(f"measuring, about {6 * seconds:.0f} s a recipe, and up to a minute to compile")
        rows = [row for one in found for row in bench(one, where, seconds)]
    if as_json:
        emit(rows)
        return
    for row in rows:
        print(f"{row['recipe']}, {row.get('operator') or row['quantity']}:")
        for key, value in row.items():
            if isinstance(value, float):
                print(f"  {key:32s} {value:12.4g}")
            elif isinstance(value, tuple):
                print(f"  {key:32s} {'  '.join(f'{v:.4g}' for v in value)}")


@app.command("recipes")
def recipes_command(profile: Profile = "laptop", as_json: Json = False) -> None:
    """List the recipes of a profile.

    Example: eqr recipes --profile paper
    """
    rows = []
    for name in recipe_names(profile):
        found = load_recipe(name, profile)
        task = ", ".join(f"{k}={v}" for k, v in task_to_dict(found.task).items() if v)
        rows.append({"name": name, "steps": found.train.steps, "task": task})
    if as_json:
        emit(rows)
    else:
        for row in rows:
            print(f"{row['name']:20s} {row['steps']:7d} steps  {row['task']}")


@app.command("notebook")
def notebook_command(
    notebook: Annotated[Path, typer.Argument(help="A notebook of notebooks/.")],
    out: Annotated[Path, typer.Argument(help="The executed copy to write.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Execute a chapter with other parameters; unknown names are refused before it starts.

    Example: eqr notebook notebooks/depth_breadth.ipynb out.ipynb -p profile=smoke -p noise=0.5
    """
    from eqr.notebook import NotebookError, execute

    try:
        execute(notebook, out, parse_overrides(parameter or ()))
    except NotebookError as error:
        fail(error)
    if as_json:
        emit({"notebook": str(out)})
    else:
        print(out)


if __name__ == "__main__":
    main()
