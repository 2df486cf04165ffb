"""``eqr run``: the many-seed studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eqr.cli.console import Device, Json, Profile, StoreDir, emit, pick_device, say
from eqr.settings import ConfigError
from eqr.store import Store, replace_file


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
            seeds |= set(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        seeds = set()
    if not seeds:
        raise ConfigError(f"--seeds {text!r} must be whole numbers from 0, as in --seeds 0-4")
    return sorted(seeds)


def run_command(
    name: Annotated[str | None, typer.Argument(help="A study; see --list.")] = None,
    profile: Profile = "laptop",
    rows: Annotated[str | None, typer.Option(help="Only these, as in a,b (default: all).")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="As in 0-4 or 0,2 (default: each row's own number).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of one thread side by side.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results (default: data/results/PROFILE).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Run cells again that have a file, and replace it.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Write all lines of the study as CSV too.")
    ] = None,
    device: Device = "cpu",
    stop_after: Annotated[
        float | None, typer.Option(min=0, help="Leave a cell after so many seconds, to go on.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Put the models beside the files, as float16.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Studies, rows, what is done.")] = False,
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Train and evaluate what is missing of a study; prints the folder of its results.

    Each row and seed is a file there, written when it is complete: copy files to extend a study on
    another machine. What has a file is not run again: name another folder with --out to redo a
    study beside the shipped one, or take --overwrite to put it in its place. Killed, it goes on
    where it was when run again.

    Example: eqr run construction --rows feedforward,act --seeds 0-2 --jobs 2

    Example: eqr run paper-scale --profile paper --rows maze30-fast --device cuda --stop-after 500
    """
    from eqr.studies import results as study_results, run as study_run
    from eqr.studies.rows import STUDIES, studies_of, study

    out = out or study_results.results_folder(profile)  # refuses a profile that there is not
    if show_list:
        show([name] if name else [s.name for s in studies_of(profile)], profile, out, as_json)
        return
    if name is None:
        raise ConfigError(f"which study? One of {', '.join(STUDIES)}; see eqr run --list")
    wanted = study(name)
    chosen = [row.strip() for row in rows.split(",")] if rows is not None else None
    for row in chosen or ():
        wanted.row(row)
    try:
        meta = study_run.run(
            name,
            profile,
            rows=chosen,
            seeds=seed_list(seeds),
            jobs=jobs,
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
        content = study_results.load(name, profile, out).rows.to_csv(index=False)
        replace_file(table, content.encode())
    missing: dict[str, list[str]] = {}
    for row, seed in meta["missing"]:
        missing.setdefault(row, []).append(str(seed))
    if missing:
        text = "; ".join(f"{row} {' '.join(numbers)}" for row, numbers in missing.items())
        say(f"{len(meta['cells'])} cells complete; missing (row and seeds): {text}")
    if as_json:
        emit({"folder": str(out / name), **meta})
    else:
        print(out / name)
    if meta["failed"]:
        raise typer.Exit(1)


def show(names: list[str], profile: str, folder: Path, as_json: bool) -> None:
    """List studies and their rows with the seeds that have a file in ``folder``."""
    from eqr.studies.cells import CellFile, cells_of
    from eqr.studies.rows import study

    listed = []
    for one in map(study, names):
        rows = []
        for row in one.rows:
            cells = cells_of(one, profile, [row.name], None)
            there = {c.seed: c.path(folder) for c in cells if c.path(folder).exists()}
            kinds = {kind.name for kind in row.evaluations(profile)}
            have = {s: set(CellFile.read(p).about["evaluations"]) for s, p in there.items()}
            about = {"row": row.name, "title": row.title, "recipe": row.recipe}
            about["paper"] = {p.table: p.value for p in row.paper}
            partial = [seed for seed, names in have.items() if not kinds <= names]
            rows.append(about | {"seeds": len(cells), "done": list(there), "partial": partial})
        listed.append({"study": one.name, "title": one.title, "tables": one.tables, "rows": rows})
    if as_json:
        emit(listed)
        return
    for one in listed:
        print(f"{one['study']}: {one['title']} ({one['tables']})")
        for row in one["rows"]:
            count = f"{len(row['done'])}/{row['seeds']} seeds"
            if row["partial"]:
                count += f", {len(row['partial'])} without the latest evaluations"
            print(f"  {row['row']:24s} {count}  {row['title']}")
