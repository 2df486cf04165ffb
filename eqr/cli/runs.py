"""``eqr results list|show|verify|diff``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqr import SHIPPED
from eqr.cli.console import Device, Json, StoreDir, progress, show

if TYPE_CHECKING:
    from eqr.store import Store

app = typer.Typer(no_args_is_help=True, help="List, show, verify and compare stored runs.")


def opened(folder: Path | None) -> Store:
    """The store of a command that only reads: one that is named must be there."""
    from eqr.store import Store, StoreError

    if folder and not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; name that of a store")
    return Store(folder)


COLUMNS = ("id", "name", "profile", "seed", "finished", "seconds", "bytes", "state")
RunId = Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")]


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Option(help="Only train, eval, chapter, ...")] = None,
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """List the runs of a store, complete, partial and damaged.

    Example: eqr results list --kind train
    """
    from eqr import runs as results
    from eqr.store import StoreError

    source = opened(store)
    rows = results.listing(source, kind)
    if kind and not rows and (kinds := {row["kind"] for row in results.listing(source)}):
        raise StoreError(f"--kind {kind!r}: {source.root} has only {', '.join(sorted(kinds))}")
    shown = [{k: row[k] for k in COLUMNS} for row in rows]
    for row in shown:
        row["seconds"] = None if row["seconds"] is None else f"{row['seconds']:.0f}"
        row["bytes"] = size(row["bytes"])
    show(rows, text(shown) if rows else f"{source.root}: no runs", as_json)


def size(count: int) -> str:
    """A number of bytes for people.

    >>> size(999), size(25_000), size(3_200_000)
    ('999 B', '25 kB', '3.2 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


@app.command("show")
def show_command(run: RunId, store: StoreDir = None, as_json: Json = False) -> None:
    """Configuration, provenance, files and result of a run.

    Example: eqr results show train-47384
    """
    from eqr import runs as results

    source = opened(store)
    values = results.description(source, results.find(source, run))
    lines = [f"{values['id']}  {values['state']}", values["path"]]
    for part in ("config", "provenance"):
        for name, value in results.flat(values[part] or {}, f"{part}.").items():
            lines.append(f"  {name:32s} {json.dumps(value)}")
    for name, file in values["files"].items():
        lines.append(f"  {name:32s} {size(file['bytes']):>8s}  {file['sha256'] or '-'}")
    if "table" in values:
        lines.append(text(values["table"]))
    for kind, row in values.get("last", {}).items():
        numbers = "  ".join(f"{k} {v:.6g}" for k, v in row.items() if isinstance(v, int | float))
        lines.append(f"last {kind}: {numbers}")
    show(values, lines, as_json)


def text(rows: list[dict[str, Any]]) -> str:
    """Rows as a table for people."""
    import pandas as pd

    clean = [{k: "-" if v is None else v for k, v in row.items()} for row in rows]
    return pd.DataFrame(clean).to_string(index=False, float_format=lambda v: f"{v:.4f}")


@app.command("ship")
def ship_command(run: RunId, store: StoreDir = None) -> None:
    """Put a trained model among those of the project (data/models), its weights as float16.

    Example: eqr results ship train-47384
    """
    from eqr import runs as results
    from eqr.store import Store, StoreError

    opened = Store(store)
    wanted = opened.get(results.find(opened, run).name)
    if wanted is None or wanted.manifest["kind"] != "train":
        raise StoreError(f"run {run!r} is no complete training; `eqr results list` shows all")
    print(results.ship(wanted))


@app.command("verify")
def verify_command(
    runs: Annotated[list[str] | None, typer.Argument(help="Ids (default: all runs).")] = None,
    rerun: Annotated[bool, typer.Option(help="Make the store's runs again and compare.")] = False,
    shipped: Annotated[
        Path | None,
        typer.Option(help="Published results, checked where no id is given (default: the book's)."),
    ] = None,
    device: Device = "cpu",
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Check every file of every run, and the manifests; --rerun makes the runs again.

    With --rerun a result must come out equal to the bit where machine and versions are those of the
    run; elsewhere the largest difference is printed and is no error.

    Examples: eqr results verify; eqr results verify train-47384 --rerun
    """
    from eqr import runs as results
    from eqr.experiments import MODELS
    from eqr.store import Store, StoreError, inspect

    source = opened(store)
    # Without ids, the models that the project ships too.
    everything = [*source.paths(), *Store(MODELS).paths()]
    paths = [results.find(source, text) for text in runs] if runs else everything
    if partial := [path.name for path in paths if path.parent.name == "partial"]:
        raise StoreError(f"{', '.join(partial)}: not complete; train to the end before verifying")
    folder = shipped or SHIPPED / "results"
    published = [] if runs else list(results.shipped(folder).items())
    rows = []
    for path in paths:
        looked = inspect(path)
        row: dict[str, Any] = {"run": path.name, "faults": [*looked.faults, *looked.strays]}
        if rerun and not row["faults"] and path.parent == source.root:
            with progress(f"repeating {path.name}") as bar:
                again = results.repeat(source, source.get(path.name), device, bar)
            row["rerun"] = {"verdict": again.verdict, "details": again.details}
            row["rerun"]["elsewhere"] = again.elsewhere
            if again.verdict == "differs" and not again.elsewhere:
                row["faults"] = [f"{path}: made again it differs: {'; '.join(again.details)}"]
        rows.append(row)
        if not as_json:
            show((), report(row), False)
    for name, faults in published:  # there are hundreds: those that are sound are counted only
        rows.append({"run": name, "faults": faults})
        if faults and not as_json:
            show((), report(rows[-1]), False)
    if published and not as_json:
        count = sum(not faults for _, faults in published)
        show((), f"{folder}: {count} of {len(published)} published files sound", False)
    faulty = [row for row in rows if row["faults"]]
    sound = f"{len(rows)} results, all sound; {len(source.partial())} partial runs not looked at"
    show(rows, () if faulty else sound, as_json)
    if faulty:
        first, count = faulty[0]["faults"][0], sum(len(row["faults"]) for row in faulty)
        also = f" (and {count - 1} more, named above)" if count > 1 else ""
        raise StoreError(f"{len(faulty)} of {len(rows)} results are not sound: {first}{also}")


def report(row: dict[str, Any]) -> list[str]:
    """One run's verdict, and its faults, a line each."""
    lines = [f"{row['run']}: {'NOT SOUND' if row['faults'] else 'sound'}"]
    lines += [f"  {fault}" for fault in row["faults"]]
    if again := row.get("rerun"):
        said = "; ".join(again["details"])
        lines.append(f"  made again: {again['verdict']}{': ' + said if said else ''}")
        if again["elsewhere"]:
            lines.append(f"  then | now: {'; '.join(again['elsewhere'])}")
    return lines


@app.command("diff")
def diff_command(one: RunId, other: RunId, store: StoreDir = None, as_json: Json = False) -> None:
    """Differing settings and versions of two runs, and their results side by side.

    Evaluations on the same problems get the paired difference (second minus first) with its 95 %
    interval.

    Example: eqr results diff train-47384 train-78e19
    """
    from eqr import runs as results
    from eqr.store import StoreError

    source = opened(store)
    both = [results.find(source, name) for name in (one, other)]
    if partial := [path.name for path in both if path.parent != source.root]:
        raise StoreError(f"{', '.join(partial)}: not complete; only complete runs are compared")
    values = results.comparison(*(source.get(path.name) for path in both))
    lines = [f"a = {values['runs'][0]}", f"b = {values['runs'][1]}"]
    for part in ("config", "provenance"):
        lines.append(f"{part}: {'equal' if not values[part] else ''}")
        for name, (a, b) in values[part].items():
            lines.append(f"  {name:32s} {json.dumps(a)} | {json.dumps(b)}")
    if isinstance(values["result"], list):
        lines.append(
            text(values["result"]) if values["result"] else "no depth and breadth in common"
        )
    else:
        lines.append(f"result:{' equal' if not values['result'] else ''}")
        for name, (a, b) in values["result"].items():
            lines.append(f"  {name:32s} {json.dumps(a)} | {json.dumps(b)}")
        lines += [f"  weights: {values['weights']}"] if "weights" in values else []
    show(values, lines, as_json)
