"""``eqr study run|list|plan``, the many-seed studies; ``eqr plan`` and ``eqr bench``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqr import CHECKOUT
from eqr.cli.console import (
    Device,
    Json,
    Profile,
    Settings,
    StoreDir,
    at_most_processors,
    finite,
    pick_device,
    progress,
    say,
    show,
    whole_numbers,
    write_table,
)
from eqr.settings import ConfigError, nearest

if TYPE_CHECKING:
    from eqr.store import Store

ResultsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the results (default: the project's data/results/PROFILE)."),
]
app = typer.Typer(no_args_is_help=True, help="Run, list and plan the many-seed studies.")


def seed_list(text: str | None) -> list[int] | None:
    """``"0-2,7"`` to ``[0, 1, 2, 7]``; None stays None.

    >>> seed_list("0-2,7")
    [0, 1, 2, 7]
    """
    if text is None:
        return None
    seeds: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            ends = int(first), int(last if dash else first) + 1
            if ends[1] - ends[0] > 10_000 or ends[1] > 2**63:
                raise ConfigError(f"--seeds {part:.40}: at most 10,000 at a time, as in 0-9999")
            seeds |= set(range(*ends))
    except ConfigError:
        raise
    except ValueError:
        seeds = set()
    if not seeds:
        raise ConfigError(f"--seeds {text!r} must be whole numbers from 0, as in --seeds 0-4")
    return sorted(seeds)


@app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="A study; see eqr study list.")],
    profile: Profile = "laptop",
    rows: Annotated[str | None, typer.Option(help="Only these, as in a,b (default: all).")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="As in 0-4 or 0,2 (default: each row's own number).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of one thread side by side.")] = 1,
    out: ResultsDir = None,
    overwrite: Annotated[
        bool, typer.Option(help="Run cells again that have a file, and replace it.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Write all lines of the study as CSV too.")
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
    from eqr.store import Store
    from eqr.studies import results, run as studies
    from eqr.studies.rows import study

    wanted, default = study(name), results.results_folder(profile)
    out = out or (default if CHECKOUT else Path("results") / profile)
    chosen = [row.strip() for row in rows.split(",")] if rows is not None else None
    for row in chosen or ():
        wanted.row(row)
    try:
        meta = studies.run(
            name,
            profile,
            rows=chosen,
            seeds=seed_list(seeds),
            jobs=at_most_processors(jobs, "--jobs"),
            store=Store(store),
            out=out,
            overwrite=overwrite,
            device=pick_device(device),
            stop_after_s=stop_after,
            weights=weights,
        )
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    if table and meta["cells"]:
        write_table(results.load(name, profile, out).rows, table)
    missing: dict[str, list[str]] = {}
    for row, seed in meta["missing"]:
        missing.setdefault(row, []).append(str(seed))
    if missing:
        text = "; ".join(f"{row} {' '.join(numbers)}" for row, numbers in missing.items())
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
    from eqr.studies.cells import CellFile, cells_of
    from eqr.studies.results import results_folder
    from eqr.studies.rows import studies_of, study

    folder, listed, lines = out or results_folder(profile), [], []
    for one in [study(name)] if name else studies_of(profile):
        rows = []
        lines.append(f"{one.name}: {one.title} ({one.tables})")
        for row in one.rows:
            cells = cells_of(one, profile, [row.name], None)
            there = {c.seed: c.path(folder) for c in cells if c.path(folder).exists()}
            kinds = {kind.name for kind in row.evaluations(profile)}
            have = {s: set(CellFile.read(p).about["evaluations"]) for s, p in there.items()}
            partial = [seed for seed, names in have.items() if not kinds <= names]
            about = {"row": row.name, "title": row.title, "recipe": row.recipe}
            about["paper"] = {p.table: p.value for p in row.paper}
            rows.append(about | {"seeds": len(cells), "done": list(there), "partial": partial})
            count = f"{len(there)}/{len(cells)} seeds"
            count += f", {len(partial)} without the latest evaluations" * bool(partial)
            lines.append(f"  {row.name:24s} {count}  {row.title}")
        listed.append({"study": one.name, "title": one.title, "tables": one.tables, "rows": rows})
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
        lines += ["", table.to_string(index=False, float_format="{:.3f}".format)]
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
    from eqr.store import Store
    from eqr.studies import looks
    from eqr.studies.results import results_folder

    folder = out or results_folder("laptop")
    for cell in looks.missing(name, folder):
        looks.look(cell, folder, Store(store))
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
        str | None, typer.Option(help="First record these depths, as in 4,8,16, in the store.")
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
    from eqr import runs
    from eqr.analysis.bench import row_seconds
    from eqr.analysis.plan import plan, validate as validated
    from eqr.analysis.ways import read_ways, stored_runs
    from eqr.checkpoint import load_model
    from eqr.config import EvalConfig
    from eqr.experiments import evaluate_or_load, load_trained
    from eqr.store import Store

    options = {
        "--target-accuracy": target_accuracy,
        "--budget-nfe": budget_nfe,
        "--budget-seconds": budget_seconds,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(options)}; given: {', '.join(given) or 'none'}")
    budget = budget_nfe if budget_nfe is not None else budget_seconds
    if depth is None and (breadth, noise) != (1, 0):
        raise ConfigError("--breadth and --noise are of a new recording: name its --depth too")
    opened = Store(store)
    path = find_model(model, profile, seed, opened)
    loaded = load_model(path)
    if depth is not None:
        depths = whole_numbers(depth, "--depth")
        config = EvalConfig(depths, breadth, noise, seed=seed, problems=problems)
        home = runs.models(opened).get(loaded.sha256)
        if home is None:
            raise ConfigError(f"{path}: only models trained in {opened.root} can be recorded there")
        with progress("recording") as bar:
            evaluate_or_load(load_trained(opened.get(home.name), opened), config, opened, bar)
    if measure:
        say("measuring, about 2 s")
    rates = row_seconds(loaded.model) if measure else None
    stored, layers = stored_runs(loaded.sha256, opened), loaded.model.config.layers
    with progress("reading records") as bar:
        ways, notes = read_ways(stored, layers, rates=rates, least=problems, progress=bar)
    unit = "seconds" if budget_seconds is not None else "nfe"
    answer = plan(ways, budget=budget, target=target_accuracy, unit=unit, seed=seed)
    answer = replace(answer, notes=(*answer.notes, *notes))
    values, lines = answer.to_dict(), [str(answer)]
    if validate:
        spent = budget if budget is not None else answer.best.cost()
        trials = validated(ways, [spent], unit=unit, seed=seed).drop(columns="split")
        mean = trials.mean()
        values |= {"validation": mean.to_dict() | {"splits": len(trials)}}
        lines.append(
            f"  validated on {len(trials)} splits into halves: predicted {mean.predicted:.1%}, "
            f"obtained {mean.obtained:.1%} (uncorrected {mean.recorded:.1%}), "
            f"inside the interval {mean.covered:.0%}"
        )
    show(values, lines, as_json)


def find_model(text: str, profile: str, seed: int, store: Store) -> Path:
    """The model file that ``text`` names: a path, or a recipe trained in this store.

    Raises:
        ConfigError: neither a file nor a recipe (with the near miss), or a recipe that has not
            been trained in this store.
    """
    from eqr.config import to_dict
    from eqr.recipes import load_recipe, recipe_names
    from eqr.store import inspect

    if Path(text).is_file():
        return Path(text)
    names = recipe_names(profile)
    if text not in names:
        raise ConfigError(
            f"{text!r} is neither a model file nor a recipe of {profile}; {nearest(text, names)}"
        )
    wanted = to_dict(load_recipe(text, profile, seed=seed), defaults=False)
    for path in store.paths():
        looked = inspect(path, contents=False)
        if not looked.faults and looked.manifest["config"].get("recipe") == wanted:
            return store.get(path.name).file("model.safetensors")
    raise ConfigError(
        f"{text} (profile {profile}, seed {seed}) has not been trained in {store.root}; "
        f"run `eqr train {text} --profile {profile} --seed {seed}`"
    )


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
    import torch

    from eqr.analysis.bench import bench, scaling
    from eqr.cost import require_fits
    from eqr.recipes import load_recipe, parse_overrides

    torch.set_num_threads(at_most_processors(threads, "--threads"))
    where = pick_device(device)
    overrides = parse_overrides(setting or ())
    chosen = [load_recipe(n, profile, overrides=overrides) for n in recipes or BENCHED]
    for recipe in chosen:
        require_fits(recipe, where)
    if growth:
        say(f"measuring, about {24 * seconds:.0f} s a recipe")
        rows = [{"recipe": r.name} | asdict(g) for r in chosen for g in scaling(r, where, seconds)]
    else:
        say(f"measuring, about {6 * seconds:.0f} s a recipe, and up to a minute to compile")
        rows = [row for one in chosen for row in bench(one, where, seconds)]
    lines = []
    for row in rows:
        lines.append(f"{row['recipe']}, {row.get('operator') or row['quantity']}:")
        for key, value in row.items():
            if isinstance(value, float):
                lines.append(f"  {key:32s} {value:12.4g}")
            elif isinstance(value, tuple):
                lines.append(f"  {key:32s} {'  '.join(f'{v:.4g}' for v in value)}")
    show(rows, lines, as_json)
