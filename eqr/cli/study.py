"""``eqr run``: the many-seed studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eqr.cli.console import Device, Json, Profile, StoreDir, emit, pick_device, say
from eqr.settings import ConfigError
from eqr.store import Store


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
        Path | None, typer.Option(help="Folder of the files (default: data/results/PROFILE).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Pay no attention to what the files hold: run it anew.")
    ] = False,
    files: Annotated[
        bool, typer.Option(help="Write the study's files; without them only the store is filled.")
    ] = True,
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
    """Train and evaluate what is missing of a study, then write its table; prints its path.

    What the files in the folder hold already is not run again: name another folder with --out to
    redo a study beside the shipped one, or take --overwrite to put it in its place. Killed, it goes
    on where it was when run again. A study of which only some rows or seeds are complete is written
    too, and says which are missing. With --no-files, for cells on several machines, the path is the
    store's.

    Example: eqr run construction --rows feedforward,act --seeds 0-2 --jobs 2

    Example: eqr run paper-scale --profile paper --rows maze30-fast --device cuda --stop-after 500
    """
    from eqr.studies import run as study_run
    from eqr.studies.results import results_folder
    from eqr.studies.rows import STUDIES, studies_of, study

    if show_list:
        results_folder(profile)  # refuses a profile that there is not
        names = [name] if name else [one.name for one in studies_of(profile)]
        show(names, profile, Store(store), as_json)
        return
    if name is None:
        raise ConfigError(f"which study? One of {', '.join(STUDIES)}; see eqr run --list")
    wanted = study(name)
    chosen = [row.strip() for row in rows.split(",")] if rows is not None else None
    for row in chosen or ():
        wanted.row(row)
    out, runs = out or results_folder(profile), Store(store)
    try:
        meta = study_run.run(
            name,
            profile,
            rows=chosen,
            seeds=seed_list(seeds),
            jobs=jobs,
            store=runs,
            out=out,
            overwrite=overwrite,
            files=files,
            device=pick_device(device),
            stop_after_s=stop_after,
            weights=weights,
        )
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    path = out / f"{name}.csv" if files else runs.root
    missing: dict[str, list[str]] = {}
    for row, seed in meta["missing"]:
        missing.setdefault(row, []).append(str(seed))
    if missing:
        text = "; ".join(f"{row} {' '.join(numbers)}" for row, numbers in missing.items())
        say(f"{len(meta['cells'])} cells complete; missing (row and seeds): {text}")
    if as_json:
        kept = {k: meta[k] for k in ("cells", "missing", "failed")}
        emit({"table" if files else "store": str(path), **kept})
    else:
        print(path)
    if meta["failed"]:
        raise typer.Exit(1)


def show(names: list[str], profile: str, store: Store, as_json: bool) -> None:
    """List studies and their rows with the seeds that the store or the shipped files have."""
    from eqr.studies.cells import cells_of, finished
    from eqr.studies.files import carried
    from eqr.studies.results import results_folder
    from eqr.studies.rows import study

    folder, listed = results_folder(profile), []
    for one in map(study, names):
        written, rows = carried(one.name, profile, folder, store), []
        for row in one.rows:
            done, partial = [], []
            for cell in cells_of(one, profile, [row.name], None):
                kept = [k for k in (written.get(cell), finished(cell, store)) if k]
                if kept:
                    done.append(cell.seed)
                if kept and not any(k.complete for k in kept):
                    partial.append(cell.seed)
            about = {"row": row.name, "title": row.title, "recipe": row.recipe}
            about["paper"] = {p.table: p.value for p in row.paper}
            seeds = len(row.seed_range(profile))
            rows.append(about | {"seeds": seeds, "done": done, "partial": partial})
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
