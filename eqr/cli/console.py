"""What the commands share: options, progress bars, JSON output and error lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eqr.settings import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from eqr.solve import Solution
    from eqr.task import Task

err = Console(stderr=True)


def load_own_task(reference: str | None) -> str | None:
    """Run the file that ``--task`` names, so that its task is known; ConfigError as it is."""
    if reference:
        from eqr.recipes import load_task

        load_task(reference, Path())
    return reference


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Profile = Annotated[str, typer.Option(help="smoke, laptop or paper.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random stream.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Replace a setting, as key=value; repeatable."),
]
StoreDir = Annotated[
    Path | None, typer.Option(help="Where runs are kept (default: $EQR_STORE or build/store).")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
ModelFile = Annotated[Path, typer.Option("--checkpoint", "-c", help="A model.safetensors file.")]
OwnTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        callback=load_own_task,
        help="Your own file that defines the model's task, as my_task.py:MyTask.",
    ),
]


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """What an option gives as ``"1,2,4"``, as a rising tuple of whole numbers from 1.

    >>> whole_numbers("16,4", "--depth")
    (4, 16)
    """
    try:
        values = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        values = ()
    if not values or values[0] < 1:
        raise ConfigError(f"{option} {text!r} must be whole numbers from 1, as in {option} 1,4,16")
    return values


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """What an option gives as ``name=value``, several times; ConfigError where it does not."""
    parts = {text: text.rpartition("=") for text in texts}
    if wrong := [text for text, (name, _, value) in parts.items() if not name or not value]:
        raise ConfigError(f"{option} {wrong[0]!r} must look like name=value")
    return {name.strip(): value.strip() for name, _, value in parts.values()}


def pick_device(name: str) -> str:
    """A device that is there; ``auto`` takes the best."""
    import torch

    known = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    known["cpu"] = True
    if name == "auto":
        return next(kind for kind, here in known.items() if here)
    if not known.get(name):
        there = ", ".join(k for k, v in known.items() if v)
        raise ConfigError(f"--device {name} is not available here; available: {there}")
    return name


def say(line: str, style: str | None = None) -> None:
    """A line for people, on standard error, taken literally."""
    err.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def leave_out(context: typer.Context, options: Iterable[str], because: str) -> None:
    """ConfigError where the user gave one of the options, which have no effect ``because``."""
    for option in options:
        if context.get_parameter_source(option).name == "COMMANDLINE":
            raise ConfigError(f"{because} says what --{option} is: leave one of them out")


def show(values: Any, text: str | Iterable[str], as_json: bool) -> None:
    """A command's result on standard output: as one JSON value, or as text for people."""
    if as_json:
        print(json.dumps(values))
    else:
        print(text if isinstance(text, str) else "\n".join(text), flush=True)


def report_table(
    table: pd.DataFrame, out: Path | None, as_json: bool, beside: pd.DataFrame | None = None
) -> None:
    """Write a table where it is asked for, and show it, with published numbers below it."""
    from eqr.files import write_file

    if out:
        write_file(out, table.to_csv(index=False).encode())
    values, text = table.to_dict(orient="records"), to_text(table)
    if beside is not None:
        values = {"ours": values, "published": beside.to_dict(orient="records")}
        text += "\n\nPublished, in per cent:\n" + (to_text(beside) if len(beside) else "nothing")
    show(values, text, as_json)


def to_text(table: pd.DataFrame) -> str:
    """A table for a terminal."""
    return table.to_string(index=False, float_format=lambda v: f"{v:.4f}")


def show_solution(solution: Solution, task: Task, as_json: bool) -> None:
    """Board, residuals and verdict of one problem."""
    values = {
        "problem": task.format(solution.inputs),
        "answer": task.format(solution.answer),
        "converged": solution.converged,
        "valid": solution.valid,
        "restart": solution.restart,
        "residuals": [float(f"{r:.6g}") for r in solution.residuals],
    }
    shown = "  ".join(f"{d}: {r:.4f}" for d, r in enumerate(solution.residuals, 1))
    settled = "converged" if solution.converged else "NOT converged"
    valid = "valid" if solution.valid else "NOT valid"
    text = (
        f"{task.render(solution.answer)}\n"
        f"residual by iteration  {shown}\n"
        f"{settled} (residual {solution.residuals[-1]:.4f}), answer {valid} {task.judged}\n"
        f"{values['answer']}"
    )
    show(values, text, as_json)


@contextmanager
def progress(label: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; call it with (done, of). Silent without a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=err, transient=True, disable=not (shown and err.is_terminal)
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
