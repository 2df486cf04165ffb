"""``eqr plan``: which depth, breadth, halting and selection for a target or a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eqr.cli.console import Json, Profile, StoreDir, emit, progress, say, whole_numbers
from eqr.config import EvalConfig, to_dict
from eqr.recipes import load_recipe, recipe_names
from eqr.settings import ConfigError, nearest
from eqr.store import Store, inspect_manifest


def plan_command(
    model: Annotated[
        str, typer.Option("--checkpoint", "-c", help="A model.safetensors file, or a recipe.")
    ],
    target_accuracy: Annotated[
        float | None, typer.Option(help="The cheapest setting for this exact accuracy, as 0.98.")
    ] = None,
    budget_nfe: Annotated[
        float | None, typer.Option(help="The best setting for so many outer iterations a problem.")
    ] = None,
    budget_seconds: Annotated[
        float | None, typer.Option(help="The best setting for so many seconds a problem.")
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
    noise: Annotated[float, typer.Option(min=0, help="With --depth: the noise level (beta).")] = 0,
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
    from eqr import runs as results
    from eqr.analysis import plan_grid
    from eqr.analysis.plan import plan, validate as validated, validation_table
    from eqr.checkpoint import load_model
    from eqr.experiments import evaluated, load_trained

    options = {
        "--target-accuracy": target_accuracy,
        "--budget-nfe": budget_nfe,
        "--budget-seconds": budget_seconds,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(options)}; given: {', '.join(given) or 'none'}")
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise ConfigError(f"--target-accuracy {target_accuracy:g} must lie in (0, 1], as in 0.98")
    budget = budget_nfe if budget_nfe is not None else budget_seconds
    if budget is not None and not 0 < budget < float("inf"):
        raise ConfigError(f"{given[0]} {budget:g} must be a positive number")
    if depth is None and (breadth, noise) != (1, 0):
        raise ConfigError("--breadth and --noise are of a new recording: name its --depth too")
    found = Store(store)
    path = find_model(model, profile, seed, found)
    loaded = load_model(path)
    if depth is not None:
        depths = whole_numbers(depth, "--depth")
        config = EvalConfig(depths, breadth, noise, seed=seed, problems=problems)
        home = results.models(found).get(loaded.sha256)
        if home is None:
            raise ConfigError(f"{path}: only models trained in {found.root} can be recorded there")
        with progress("recording") as bar:
            evaluated(load_trained(found.get(home.name), found), config, found, bar)
    if measure:
        say("measuring, about 2 s")
    rates = plan_grid.measured_rates(loaded.model) if measure else None
    with progress("reading records") as bar:
        grid = plan_grid.stored_grid(loaded, found, rates=rates, least=problems, progress=bar)
    unit = "seconds" if budget_seconds is not None else "nfe"
    answer = plan(grid, budget=budget, target=target_accuracy, unit=unit, seed=seed)
    table = None
    if validate:
        spent = budget if budget is not None else answer.best.nfe
        table = validation_table(validated(grid, [spent], unit=unit, seed=seed))
    if as_json:
        extra = {} if table is None else {"validation": table.reset_index().to_dict("records")[0]}
        emit(answer.to_dict() | extra)
        return
    print(answer)
    if table is not None:
        row = table.iloc[0]
        print(
            f"  validated on {row.splits:.0f} splits into halves: predicted {row.predicted:.1%}, "
            f"obtained {row.obtained:.1%} (uncorrected {row.recorded:.1%}), "
            f"inside the interval {row.coverage:.0%}"
        )


def find_model(text: str, profile: str, seed: int, store: Store) -> Path:
    """The model file that ``text`` names: a path, or a recipe trained in this store.

    Raises:
        ConfigError: neither a file nor a recipe (with the near miss), or a recipe that has not
            been trained in this store.
    """
    if Path(text).is_file():
        return Path(text)
    names = recipe_names(profile)
    if text not in names:
        raise ConfigError(
            f"{text!r} is neither a model file nor a recipe of {profile}; {nearest(text, names)}"
        )
    wanted = to_dict(load_recipe(text, profile, seed=seed), defaults=False)
    for path in store.paths():
        manifest, faults = inspect_manifest(path) if path.name.startswith("train-") else (None, [])
        if manifest and not faults and manifest["config"].get("recipe") == wanted:
            return store.get(path.name).file("model.safetensors")
    raise ConfigError(
        f"{text} (profile {profile}, seed {seed}) has not been trained in {store.root}; "
        f"run `eqr train {text} --profile {profile} --seed {seed}`"
    )
