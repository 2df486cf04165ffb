"""What the commands share: options, progress bars, JSON output and error lines."""

from __future__ import annotations

import codecs
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eqr import CHECKOUT, PROJECT
from eqr.files import to_json, write_file
from eqr.settings import ConfigError, UserError

if TYPE_CHECKING:
    import pandas as pd

    from eqr.solve import Solution
    from eqr.task import Task

err = Console(stderr=True)

#: What a terminal shows that has no such letter.
STAND_INS = {"–": "-", "—": "-", "×": "x", "β": "beta", "λ": "lambda", "±": "+-", "≤": "<="}
TILDE = re.compile(r"([\w.-]+=)?(~/.*)", re.DOTALL)


def prepare() -> None:
    """Ready the process for a command: its words, its streams, and where it stands.

    Raises:
        ConfigError: it stands in one checkout, and its code lies in another.
    """
    codecs.register_error("stand-ins", stand_ins)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="stand-ins")
    # What a shell leaves to us: a quoted ~/x, and the one in --out=~/x.
    for at, word in enumerate(sys.argv):
        if tilde := TILDE.fullmatch(word):
            sys.argv[at] = (tilde[1] or "") + os.path.expanduser(tilde[2])
    here = Path.cwd()
    for folder in (here, *here.parents) if CHECKOUT else ():
        if (folder / "eqr" / "__init__.py").is_file() and not folder.samefile(PROJECT):
            raise ConfigError(
                f"{folder} is a checkout, but the code that runs is that of {PROJECT}: "
                "run `make venv` in the former, or start in another folder"
            )


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with status 1 and one line for what the user can put right: known errors,
    what the system refuses, and a machine that is too small."""
    try:
        yield
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError | RuntimeError):
            if not isinstance(error, MemoryError) and "memory" not in text:
                raise  # a fault of the program
            text = f"not enough memory ({text:.80}): lower the batch, the breadth or the problems"
        rank = os.environ.get("RANK", "0")  # torchrun sets it
        say(f"error{'' if rank == '0' else f' in process {rank}'}: {text}", "red")
        sys.exit(1)


def stand_ins(error: UnicodeError) -> tuple[str, int]:
    """An error handler of streams: for each letter that they do not have, one that looks like it.

    >>> "β = 0.1, naïve".encode("ascii", "stand-ins") if prepare() is None else ""
    b'beta = 0.1, naive'
    """
    letters = (
        STAND_INS.get(letter)
        or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        for letter in error.object[error.start : error.end]
    )
    return "".join(letter or "?" for letter in letters), error.end


def finite(value: float | None) -> float | None:
    """The value of an option, unless it is NaN or infinite."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{value} is no number that an option can have: give a finite one")
    return value


def at_most_processors(count: int, option: str) -> int:
    """The value of an option that counts threads or processes."""
    most = max(2, os.cpu_count() or 1)
    if count > most:
        raise ConfigError(f"{option} {count} is more than this machine has: at most {most}")
    return count


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
    if not values or not 1 <= values[0] <= values[-1] <= 2**20:
        rule = f"must be whole numbers from 1 to {2**20:,}, as in {option} 1,4,16"
        raise ConfigError(f"{option} {text!r:.60} {rule}")
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
        print(to_json(values))
    else:
        print(text if isinstance(text, str) else "\n".join(text), flush=True)


def report_table(
    table: pd.DataFrame, out: Path | None, as_json: bool, beside: pd.DataFrame | None = None
) -> None:
    """Write a table where it is asked for, and show it, with published numbers below it; on
    standard output (``-``) there is the table alone."""
    if out:
        write_table(table, out)
        if str(out) == "-":
            return
    values, text = table.to_dict(orient="records"), to_text(table)
    if beside is not None:
        values = {"ours": values, "published": beside.to_dict(orient="records")}
        text += "\n\nPublished, in per cent:\n" + (to_text(beside) if len(beside) else "nothing")
    show(values, text, as_json)


TABLE = b",exact,"  # a column of all tables of ours, and the mark of their files


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table as CSV to a file, or for ``-`` to standard output."""
    text = table.to_csv(index=False)
    if str(out) == "-":
        print(text, end="")
    else:
        write_file(out, text.encode(), TABLE)


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
