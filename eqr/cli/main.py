"""The ``eqr`` command: each has an example in its ``--help`` and prints JSON with ``--json``.

Bad input ends in one line on standard error and exit status 1; nothing half-written stays behind.
What costs time to import is imported by the command that uses it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqr.cli import data as cli_data, runs as cli_runs, study as cli_study
from eqr.cli.console import (
    Device,
    Json,
    ModelFile,
    Numbers,
    OwnTask,
    Profile,
    Seed,
    Settings,
    StoreDir,
    finite,
    one_line,
    prepare,
    progress,
    report_table,
    rules,
    say,
    show,
    writable,
)
from eqr.settings import ConfigError, ProblemError

if TYPE_CHECKING:
    import pandas as pd

    from eqr.train import Event

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Equilibrium Reasoners: build data, train, evaluate, solve, and run studies.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_runs.app, name="results")
app.add_typer(cli_study.app, name="study")
app.command("plan")(cli_study.plan_command)
app.command("bench")(cli_study.bench_command)
app.command("import-checkpoint")(cli_data.import_checkpoint)
app.command("export")(cli_data.export_command)


def main() -> None:
    """Entry point: run a command, and turn its known errors into one line."""
    with one_line():
        prepare()
        app()


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a .toml file.")],
    profile: Profile = "laptop",
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the recipe's seed.")] = None,
    setting: Settings = None,
    device: Device = "cpu",
    stop_after: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="Leave after so many seconds, to be resumed."),
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
    from eqr.parallel import joined
    from eqr.recipes import load_recipe, parse_overrides

    chosen = load_recipe(recipe, profile, seed=seed, overrides=parse_overrides(setting or ()))
    with joined(device) as world, progress(f"training {chosen.name}", world.rank == 0) as bar:

        def report(event: Event) -> None:
            bar(event.step, chosen.train.steps)
            if event.kind == "eval" and not as_json:
                exact = {k: v for k, v in event.metrics.items() if k.startswith("exact_")}
                text = "  ".join(f"D={k[6:]}: {v:.1%}" for k, v in exact.items())
                say(f"step {event.step}: {text}")

        try:
            run = train_run(
                chosen, store, device=device, on_event=report if world.rank == 0 else None,
                on_data=bar, stop_after_s=stop_after, world=world,
            )  # fmt: skip
        except KeyboardInterrupt:
            say("stopped; run the same command again to go on from the last checkpoint")
            raise typer.Exit(130) from None
    if world.rank != 0:
        return
    if run is None:
        say("stopped early; run the same command again to go on")
    path = str(run.file("model.safetensors")) if run else None
    values = {"run": run.id if run else None, "model": path, "complete": run is not None}
    show(values, path or (), as_json)


Noise = Annotated[
    float, typer.Option(min=0, callback=finite, help="The noise level (beta) of rollouts.")
]
Select = Annotated[
    str,
    typer.Option(
        callback=rules,
        help="Of average, converged, logits, majority, margin, halt, first_to_halt, majority2, "
        "oracle.",
    ),
]
Window = Annotated[int, typer.Option(min=1, help="Iterations the residual averages.")]
Problems = Annotated[int | None, typer.Option(min=1, help="The first so many.")]
DataDir = Annotated[
    Path | None, typer.Option("--data", help="A data set (default: the one trained with).")
]
Rows = Annotated[int, typer.Option(min=1, help="Trajectories in flight.")]
Out = Annotated[Path | None, typer.Option(callback=writable, help="Write the table as CSV.")]
FIXED_BY_PROTOCOL = ("depth", "breadth", "select", "noise", "symmetry", "window")
ALL_RULES = "average,converged,majority,oracle"


@app.command("eval")
def eval_command(
    context: typer.Context,
    model: ModelFile,
    depth: Numbers = "16",
    breadth: Numbers = "1",
    select: Select = ALL_RULES,
    noise: Noise = 0.0,
    protocol: Annotated[
        str | None,
        typer.Option(help="paper-16-1, paper-64-1, paper-64-128 or official-smoke."),
    ] = None,
    symmetry: Annotated[
        bool,
        typer.Option(
            "--symmetry",
            help="Restarts after the first solve images of the problem under random symmetries of "
            "the task (relabelled, permuted, turned), and undo them on their answers.",
        ),
    ] = False,
    window: Window = 3,
    problems: Problems = None,
    dataset: DataDir = None,
    seed: Seed = 0,
    rows: Rows = 256,
    out: Out = None,
    plot: Annotated[
        Path | None,
        typer.Option(callback=writable, help="Draw accuracy against depth, as .png, .svg or .pdf."),
    ] = None,
    task: OwnTask = None,
    device: Device = "cpu",
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Accuracy against depth and breadth as one tidy table with 95 % Wilson intervals.

    A protocol stands for the paper's depth, breadth, noise and rules; the published numbers follow
    the table. Under torchrun the processes share the problems, and the table is that of one process
    to the last bit: torchrun --nproc-per-node 2 -m eqr eval -c MODEL

    Example: eqr eval -c MODEL --depth 1,2,4,8,16,32,64 --breadth 1,8,32 --noise 0.01

    Example: eqr eval -c MODEL --breadth 1,8,32 --symmetry

    Example: eqr eval -c MODEL --protocol paper-16-1
    """
    from dataclasses import replace

    from eqr import data, evaluate, experiments
    from eqr.checkpoint import load_model
    from eqr.config import EvalConfig
    from eqr.parallel import joined
    from eqr.protocol import load_protocol, over_seeds, published_beside
    from eqr.tasks.shift import perturbed

    fixed = load_protocol(protocol) if protocol is not None else None
    for option in FIXED_BY_PROTOCOL if fixed else ():
        if context.get_parameter_source(option).name == "COMMANDLINE":
            what = f"--protocol {protocol} says what --{option} is"
            raise ConfigError(f"{what}: leave one of them out")
    config = EvalConfig(depth, breadth[-1], noise, window, seed, problems, symmetry)
    breadths, chosen = ((fixed.breadth,), fixed.select) if fixed else (breadth, select)
    with joined(device) as world, progress("evaluating", world.rank == 0) as bar:
        loaded = load_model(model, device)
        asked = data.for_model(loaded, model, dataset, store.root / "data")
        if fixed:
            config = fixed.config(asked.task.kind, seed, problems)

        def evaluated(seed: int) -> pd.DataFrame:
            own = replace(config, seed=seed)
            records = evaluate.records(
                perturbed(loaded.model, own), asked.test.inputs, asked.test.labels, own,
                task=asked.task, rows=rows, progress=bar, world=world,
            )  # fmt: skip
            return experiments.table(records, own, breadths, chosen, loaded.model.config.layers)

        table = over_seeds(fixed, seed, evaluated) if fixed else evaluated(seed)
    if world.rank == 0:
        if plot:
            from eqr.analysis.figures import draw_accuracy

            draw_accuracy(table, plot)
        beside = published_beside(fixed, asked.task) if fixed else None
        report_table(table, out, as_json, beside)


@app.command("halt")
def halt_command(
    model: ModelFile,
    halting: Annotated[
        list[str],
        typer.Argument(
            metavar="RULES...",
            help="residual:1e-3, stable:8, head:0 or fixed (the whole budget).",
        ),
    ],
    depth: Annotated[int, typer.Option(min=1, help="The most outer iterations.")] = 64,
    breadth: Annotated[int, typer.Option(min=1, help="Restarts.")] = 1,
    select: Select = ALL_RULES,
    noise: Noise = 0.0,
    window: Window = 3,
    first_settled: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="No further restart once one settled below this residual."
        ),
    ] = None,
    problems: Problems = None,
    dataset: DataDir = None,
    seed: Seed = 0,
    rows: Rows = 256,
    out: Out = None,
    task: OwnTask = None,
    device: Device = "cpu",
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Let each trajectory go once it has settled: accuracy, mean NFE and seconds of halting rules.

    Example: eqr halt -c MODEL residual:1e-3 fixed --depth 1024
    """
    from eqr import data, experiments
    from eqr.checkpoint import load_model
    from eqr.config import EvalConfig
    from eqr.halting import halting_records, parse_rule

    stops = {str(rule): rule for rule in map(parse_rule, halting)}
    config = EvalConfig((depth,), breadth, noise, window, seed, problems)
    loaded = load_model(model, device)
    test = data.for_model(loaded, model, dataset, store.root / "data").test
    given = loaded.model, test.inputs, test.labels, config
    with progress("evaluating") as bar:
        options = {"first_settled": first_settled, "rows": rows, "progress": bar}
        halted = {text: halting_records(*given, rule, **options) for text, rule in stops.items()}
    report_table(experiments.halting_table(halted, config, select), out, as_json)


@app.command("solve")
def solve_command(
    puzzle: Annotated[str, typer.Argument(help="A puzzle string, or - to read one a line.")],
    model: ModelFile,
    depth: Annotated[int, typer.Option(min=1, help="Outer iterations.")] = 32,
    breadth: Annotated[int, typer.Option(min=1, help="Restarts.")] = 1,
    noise: Noise = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0, callback=finite, help="Residual that counts as settled.")
    ] = 0.02,
    seed: Seed = 0,
    task: OwnTask = None,
    as_json: Json = False,
) -> None:
    """Solve puzzles: the board, the residual of each iteration, and whether it converged.

    The answer is the restart with the smallest residual. "converged" says that the dynamics have
    settled; "valid" is the rule checker's verdict, which the model never sees.

    Example: eqr solve -c MODEL 1..4........2....
    """
    from eqr.checkpoint import load_model
    from eqr.config import EvalConfig
    from eqr.solve import solve

    loaded = load_model(model)
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
    EvalConfig((depth,), breadth, noise, seed=seed)  # refuses what cannot be
    for tokens in problems:
        solution = solve(
            loaded.model, loaded.task, tokens, depth=depth, breadth=breadth, noise=noise,
            tolerance=tolerance, seed=seed,
        )  # fmt: skip
        show(solution.to_dict(loaded.task), solution.text(loaded.task), as_json)


@app.command("recipes")
def recipes_command(profile: Profile = "laptop", as_json: Json = False) -> None:
    """List the recipes of a profile.

    Example: eqr recipes --profile paper
    """
    from eqr.recipes import load_recipe, recipe_names
    from eqr.task import task_to_dict

    rows: list[dict[str, Any]] = []
    for name in recipe_names(profile):
        recipe = load_recipe(name, profile)
        task = ", ".join(f"{k}={v}" for k, v in task_to_dict(recipe.task).items() if v)
        rows.append({"name": name, "steps": recipe.train.steps, "task": task})
    lines = [f"{row['name']:20s} {row['steps']:7d} steps  {row['task']}" for row in rows]
    show(rows, lines, as_json)


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

    Example: eqr notebook notebooks/depth.ipynb out.ipynb -p profile=smoke -p limit=32
    """
    from eqr.notebook import execute
    from eqr.recipes import pairs

    execute(notebook, out, dict(pairs(parameter or ())))
    show({"notebook": str(out)}, str(out), as_json)


if __name__ == "__main__":
    main()
