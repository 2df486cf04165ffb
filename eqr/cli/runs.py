"""``eqr results list|show|verify|diff``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from eqr import SHIPPED
from eqr.cli.console import Device, Json, OldStore, progress, show, to_text

app = typer.Typer(no_args_is_help=True, help="List, show, verify and compare stored runs.")


COLUMNS = ("id", "name", "profile", "seed", "finished", "seconds", "bytes", "state")
RunId = Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")]


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Option(help="Only train, eval, chapter, ...")] = None,
    store: OldStore = None,
    as_json: Json = False,
) -> None:
    """List the runs of a store, complete, partial and damaged.

    Example: eqr results list --kind train
    """
    from eqr import runs as results

    rows = results.listing(store, kind)
    shown = [{k: row[k] for k in COLUMNS} | {"bytes": decimal(row["bytes"])} for row in rows]
    for row in shown:
        row["seconds"] = None if row["seconds"] is None else f"{row['seconds']:.0f}"
    show(rows, to_text(shown) if rows else f"{store.root}: no runs", as_json)


@app.command("show")
def show_command(run: RunId, store: OldStore = None, as_json: Json = False) -> None:
    """Configuration, provenance, files and result of a run.

    Example: eqr results show train-47384
    """
    from eqr import runs as results

    values = results.description(store, results.find(store, run))
    lines = [f"{values['id']}  {values['state']}", values["path"]]
    for part in ("config", "provenance"):
        for name, value in results.flat(values[part] or {}, f"{part}.").items():
            lines.append(f"  {name:32s} {json.dumps(value)}")
    for name, file in values["files"].items():
        lines.append(f"  {name:32s} {decimal(file['bytes']):>8s}  {file['sha256'] or '-'}")
    if "table" in values:
        lines.append(to_text(values["table"]))
    for kind, row in values.get("last", {}).items():
        numbers = "  ".join(f"{k} {v:.6g}" for k, v in row.items() if isinstance(v, int | float))
        lines.append(f"last {kind}: {numbers}")
    show(values, lines, as_json)


@app.command("ship")
def ship_command(run: RunId, store: OldStore = None) -> None:
    """Put a trained model among those of the project (data/models), its weights as float16.

    Example: eqr results ship train-47384
    """
    from eqr import runs as results
    from eqr.store import StoreError

    wanted = store.get(results.find(store, run, complete=True).name)
    if wanted.manifest["kind"] != "train":
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
    store: OldStore = None,
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

    # Without ids, the models that the project ships too.
    everything = [*store.paths(), *Store(MODELS).paths()]
    paths = [results.find(store, text, complete=True) for text in runs] if runs else everything
    folder = shipped or SHIPPED / "results"
    published = [] if runs else list(results.shipped(folder).items())
    rows = []
    for path in paths:
        looked = inspect(path)
        row: dict[str, Any] = {"run": path.name, "faults": [*looked.faults, *looked.strays]}
        if rerun and not row["faults"] and path.parent == store.root:
            with progress(f"repeating {path.name}") as bar:
                again = results.repeat(store, store.get(path.name), device, bar)
            row["rerun"] = asdict(again)
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
    sound = f"{len(rows)} results, all sound; {len(store.partial())} partial runs not looked at"
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
def diff_command(one: RunId, other: RunId, store: OldStore = None, as_json: Json = False) -> None:
    """Differing settings and versions of two runs, and their results side by side.

    Evaluations on the same problems get the paired difference (second minus first) with its 95 %
    interval.

    Example: eqr results diff train-47384 train-78e19
    """
    from eqr import runs as results

    both = [results.find(store, name, complete=True).name for name in (one, other)]
    values = results.comparison(*map(store.get, both))
    result = values["result"]
    lines = [f"{sign} = {run}" for sign, run in zip("ab", values["runs"], strict=True)]
    for part in ("config", "provenance"):
        lines += differences(part, values[part])
    if isinstance(result, list):
        lines.append(to_text(result) if result else "no depth and breadth in common")
    else:
        lines += differences("result", result)
        lines += [f"  weights: {values['weights']}"] if "weights" in values else []
    show(values, lines, as_json)


def differences(part: str, values: Mapping[str, Any]) -> list[str]:
    """What differs in a part of two runs, a line each."""
    pairs = [f"  {name:32s} {json.dumps(a)} | {json.dumps(b)}" for name, (a, b) in values.items()]
    return [f"{part}:{'' if pairs else ' equal'}", *pairs]
