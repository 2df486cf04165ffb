"""``eqr study run|list|plan``, the many-seed studies; ``eqr plan`` and ``eqr bench``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from eqr import CHECKOUT
from eqr.cli.console import (
    Device,
    Json,
    Profile,
    Settings,
    StoreDir,
    finite,
    numbers,
    processors,
    progress,
    say,
    show,
    to_text,
    writable,
    write_table,
)
from eqr.settings import ConfigError

ResultsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the results (default: the project's data/results/PROFILE)."),
]
app = typer.Typer(no_args_is_help=True, help="Run, list and plan the many-seed studies.")


@app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="A study; see eqr study list.")],
    profile: Profile = "laptop",
    rows: Annotated[str | None, typer.Option(help="Only these, as in a,b (default: all).")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(callback=numbers, help="As in 0-4 or 0,2 (default: each row's own number)."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, callback=processors, help="Processes of one thread side by side.")
    ] = 1,
    out: ResultsDir = None,
    overwrite: Annotated[
        bool, typer.Option(help="Run cells again that have a file, and replace it.")
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(callback=writable, help="Write all lines of the study as CSV too."),
    ] = None,
    device: Device = "cpu",
    stop_after: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="Leave a cell after so many seconds, to go on."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Put the models beside the files, as float16.")
    ] = False,
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Train and evaluate what is missing of a study; prints the folder of its results.

    Each row and seed is a file there, written when it is complete: copy files to extend a study on
    another machine. What has a file is not run again: name another folder with --out to redo a
    study beside the shipped one, or take --overwrite to put it in its place. Killed, it goes on
    where it was when run again.

    Example: eqr study run campaign --rows feedforward,ri-ni --seeds 0-2 --jobs 2

    Example: eqr study run paper-scale --profile paper --rows maze30-fast --device cuda
    """
    from eqr.studies import results, run as studies

    default = results.results_folder(profile)
    out = out or (default if CHECKOUT else Path("results") / profile)
    chosen = [row.strip() for row in rows.split(",")] if rows is not None else None
    try:
        meta = studies.run(
            name, profile, rows=chosen, seeds=seeds, jobs=jobs, store=store, out=out,
            overwrite=overwrite, device=device, stop_after_s=stop_after, weights=weights,
        )  # fmt: skip
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    if table and meta["cells"]:
        write_table(results.load(name, profile, out).rows, table)
    missing: dict[str, list[str]] = {}
    for row, seed in meta["missing"]:
        missing.setdefault(row, []).append(str(seed))
    if missing:
        text = "; ".join(f"{row} {' '.join(each)}" for row, each in missing.items())
        say(f"{len(meta['cells'])} cells complete; missing (row and seeds): {text}")
    show({"folder": str(out / name), **meta}, str(out / name), as_json)
    if meta["failed"]:
        raise typer.Exit(1)


@app.command("list")
def list_command(
    name: Annotated[str | None, typer.Argument(help="A study (default: all).")] = None,
    profile: Profile = "laptop",
    out: ResultsDir = None,
    as_json: Json = False,
) -> None:
    """Studies, their rows, and how many seeds have a file.

    Example: eqr study list construction
    """
    from eqr.studies.results import results_folder, status
    from eqr.studies.rows import studies_of, study

    listed, lines = [], []
    for one in [study(name)] if name else studies_of(profile):
        rows = status(one, profile, out or results_folder(profile))
        listed.append({"study": one.name, "title": one.title, "tables": one.tables, "rows": rows})
        lines.append(f"{one.name}: {one.title} ({one.tables})")
        for row in rows:
            count = f"{len(row['done'])}/{row['seeds']} seeds"
            if row["partial"]:
                count += f", {len(row['partial'])} without the latest evaluations"
            lines.append(f"  {row['row']:24s} {count}  {row['title']}")
    show(listed, lines, as_json)


@app.command("plan")
def study_plan_command(out: ResultsDir = None, as_json: Json = False) -> None:
    """The best rate of each row by the study tuning, and how many seeds each step of the campaign
    needs, from its first four.

    Both go by the validation problems. The seeds are those for which a t test has power 0.9 at the
    paper's effect, or at 5 points where that is smaller, with the paired spread of the four.

    Example: eqr study plan
    """
    from eqr.studies import contrasts, results

    folder = out or results.results_folder("laptop")
    rates = contrasts.best_rates(results.load("tuning", folder=folder))
    values: dict[str, Any] = {"rates": rates, "steps": []}
    lines = [f"{row:<12} rate {rate:g}" for row, rate in rates.items()]
    if any((folder / "campaign").glob("*.npz")):
        table = contrasts.planned(results.load("campaign", folder=folder))
        values["steps"] = json.loads(table.to_json(orient="records"))
        lines += ["", to_text(table)]
    show(values, lines, as_json)


@app.command("look")
def look_command(
    name: Annotated[str, typer.Argument(help="A study that ships its models.")] = "campaign",
    out: ResultsDir = None,
    store: StoreDir = None,
) -> None:
    """Look at each model of a study that has weights and no look yet: whether its failures settle
    or search, how far its numbers hold, what averaging its weights brings.

    Example: eqr study look campaign
    """
    from eqr.studies import looks
    from eqr.studies.results import results_folder

    folder = out or results_folder("laptop")
    for cell in looks.missing(name, folder):
        looks.look(cell, folder, store)
        say(f"{cell}: looked at")
    print(folder / looks.name_of(name))


def plan_command(
    model: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A model.safetensors file, or a recipe.")
    ],
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="The cheapest setting for this exact accuracy, as 0.98."
        ),
    ] = None,
    budget_nfe: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="The best setting for so many outer iterations a problem."
        ),
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(callback=finite, help="The best setting for so many seconds a problem."),
    ] = None,
    problems: Annotated[
        int | None,
        typer.Option(min=2, help="Leave settings out that were recorded on fewer problems."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure seconds here, now (default: those of the stored runs).")
    ] = False,
    validate: Annotated[
        bool, typer.Option(help="Also plan on halves of the problems and test on the others.")
    ] = False,
    depth: Annotated[
        str | None,
        typer.Option(callback=numbers, help="First record these depths, as in 4,8,16."),
    ] = None,
    breadth: Annotated[int, typer.Option(min=1, help="With --depth: restarts.")] = 1,
    noise: Annotated[
        float, typer.Option(min=0, callback=finite, help="With --depth: the noise level (beta).")
    ] = 0,
    profile: Profile = "laptop",
    seed: Annotated[int, typer.Option(min=0, help="Of a recipe, recording and folds.")] = 0,
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Which depth, breadth, halting and selection rule to run, from the stored records of a model.

    The expected accuracy is cross-fitted (the setting is chosen on other problems than it is
    judged on). Only recorded depths are considered, and every breadth up to the recorded one. Exits
    non-zero only where the records support no answer. Seconds are a problem's share with many
    rows in flight.

    Example: eqr plan -c headroom --target-accuracy 0.85

    Example: eqr plan -c MODEL --budget-nfe 200 --depth 4,8,16 --breadth 16 --validate
    """
    from eqr.analysis import ways as stored
    from eqr.analysis.bench import row_seconds
    from eqr.analysis.plan import plan, validation
    from eqr.checkpoint import load_model
    from eqr.config import EvalConfig

    budgets = {"--budget-nfe": budget_nfe, "--budget-seconds": budget_seconds}
    options = {"--target-accuracy": target_accuracy, **budgets}
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(options)}; given: {', '.join(given) or 'none'}")
    if depth is None and (breadth, noise) != (1, 0):
        raise ConfigError("--breadth and --noise are of a new recording: name its --depth too")
    path = stored.model_file(model, profile, seed, store)
    loaded = load_model(path)
    if depth is not None:
        config = EvalConfig(depth, breadth, noise, seed=seed, problems=problems)
        with progress("recording") as bar:
            stored.record(path, loaded.sha256, config, store, bar)
    if measure:
        say("measuring, about 2 s")
    rates = row_seconds(loaded.model) if measure else None
    runs, layers = stored.stored_runs(loaded.sha256, store), loaded.model.config.layers
    with progress("reading records") as bar:
        ways, notes = stored.read_ways(runs, layers, rates=rates, least=problems, progress=bar)
    unit = "seconds" if budget_seconds is not None else "nfe"
    budget = next((value for value in budgets.values() if value is not None), None)
    answer = plan(ways, budget=budget, target=target_accuracy, unit=unit, seed=seed)
    answer = replace(answer, notes=(*answer.notes, *notes))
    values, lines = answer.to_dict(), [str(answer)]
    if validate:
        values["validation"], line = validation(ways, budget or answer.best.cost(), unit, seed)
        lines.append(f"  {line}")
    show(values, lines, as_json)


BENCHED = ("sudoku6", "sudoku9")  # what `eqr bench` measures unless told


def bench_command(
    recipes: Annotated[list[str] | None, typer.Argument(help="(default: sudoku6 sudoku9)")] = None,
    profile: Profile = "laptop",
    setting: Settings = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Time for each measurement.")
    ] = 5.0,
    growth: Annotated[
        bool, typer.Option("--growth", help="How time grows with depth, breadth, batch and board.")
    ] = False,
    device: Device = "cpu",
    threads: Annotated[
        int, typer.Option(min=1, callback=processors, help="Processor threads.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Training steps and evaluated puzzles a second, beside the machine's matrix-product rate.

    Each recipe is measured twice in one run, operation by operation and compiled; gains are rates
    over those of the former.

    Example: eqr bench --json

    Example: eqr bench sudoku9 --profile paper --set train.batch=4 --set train.dtype=float32

    Example: eqr bench sudoku6 --growth
    """
    import torch

    from eqr.analysis.bench import bench, scaling
    from eqr.cost import require_fits
    from eqr.recipes import load_recipe, parse_overrides

    torch.set_num_threads(threads)
    overrides = parse_overrides(setting or ())
    chosen = [load_recipe(n, profile, overrides=overrides) for n in recipes or BENCHED]
    for recipe in chosen:
        require_fits(recipe, device)
    if growth:
        say(f"measuring, about {24 * seconds:.0f} s a recipe")
        rows = [{"recipe": r.name} | asdict(g) for r in chosen for g in scaling(r, device, seconds)]
    else:
        say(f"measuring, about {6 * seconds:.0f} s a recipe, and up to a minute to compile")
        rows = [row for one in chosen for row in bench(one, device, seconds)]
    lines = []
    for row in rows:
        lines.append(f"{row['recipe']}, {row.get('operator') or row['quantity']}:")
        for key, value in row.items():
            if isinstance(value, float):
                lines.append(f"  {key:32s} {value:12.4g}")
            elif isinstance(value, tuple):
                lines.append(f"  {key:32s} {'  '.join(f'{v:.4g}' for v in value)}")
    show(rows, lines, as_json)
