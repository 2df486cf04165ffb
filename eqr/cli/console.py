"""What the commands share: options, progress bars, JSON output and error lines."""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eqr import CHECKOUT, PROJECT
from eqr.files import target, to_json, write_file
from eqr.settings import ConfigError, UserError

if TYPE_CHECKING:
    import pandas as pd

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


@contextlib.contextmanager
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


# --- What options give: each is refused or turned into what the command uses before it runs -------


def finite(value: float | None) -> float | None:
    """The value of an option, unless it is NaN or infinite."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{value} is no number that an option can have: give a finite one")
    return value


def processors(param: typer.CallbackParam, count: int) -> int:
    """The value of an option that counts threads or processes."""
    most = max(2, os.cpu_count() or 1)
    if count > most:
        raise ConfigError(f"--{param.name} {count} is more than this machine has: at most {most}")
    return count


def load_own_task(reference: str | None) -> str | None:
    """Run the file that ``--task`` names, so that its task is known; ConfigError as it is."""
    if reference:
        from eqr.recipes import load_task

        load_task(reference, Path())
    return reference


def open_store(path: str | None) -> Any:
    """The store of a folder (typer looks up the types of what it calls, and would import that)."""
    from eqr.store import Store

    return Store(path and Path(path))


def existing_store(path: str | None) -> Any:
    """The store of a command that only reads: one that is named must be there."""
    from eqr.store import StoreError

    if path and not Path(path).is_dir():
        raise StoreError(f"--store {path}: no such folder; name that of a store")
    return open_store(path)


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


def numbers(param: typer.CallbackParam, text: str | None) -> tuple[int, ...] | None:
    """``"16,1-4"`` as (1, 2, 3, 4, 16): whole numbers from 1, or from 0 if they are seeds."""
    if text is None:
        return None
    least, most = (0, 2**63 - 1) if param.name == "seeds" else (1, 2**20)
    values: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not least <= first <= last <= most or last - first >= 10_000:
            rule = f"whole numbers from {least} to {most:,}, 10,000 at most, as in 1,4-6"
            raise ConfigError(f"--{param.name} {text!r:.60} must be {rule}")
        values |= {*range(first, last + 1)}
    return tuple(sorted(values))


def rules(text: str) -> list[str]:
    """The selection rules of ``--select``; ConfigError where one is not known."""
    from eqr.select import check_selections

    names = [name.strip() for name in text.split(",")]
    check_selections(names, "--select")
    return names


def writable(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before any work is done; ``-`` is no file."""
    if path is None or (str(path) == "-" and param.name != "plot"):
        return path
    option = f"--{param.name} {path}"
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent}; make it or name another")
    if param.name == "plot" and path.suffix not in PICTURES:
        raise ConfigError(f"{option}: its name must end in {', '.join(PICTURES)}")
    target(path, PICTURES[path.suffix] if param.name == "plot" else TABLE)
    return path


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Profile = Annotated[str, typer.Option(help="smoke, laptop or paper.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random stream.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Replace a setting, as key=value; repeatable."),
]
STORE = {
    "metavar": "DIRECTORY",
    "help": "Where runs are kept (default: $EQR_STORE or build/store).",
}
StoreDir = Annotated[str | None, typer.Option(callback=open_store, **STORE)]
OldStore = Annotated[str | None, typer.Option(callback=existing_store, **STORE)]
Device = Annotated[str, typer.Option(callback=pick_device, help="cpu, cuda, mps or auto.")]
ModelFile = Annotated[Path, typer.Option("--checkpoint", "-c", help="A model.safetensors file.")]
OwnTask = Annotated[
    str | None,
    typer.Option(
        "--task", callback=load_own_task,
        help="Your own file that defines the model's task, as my_task.py:MyTask.",
    ),
]  # fmt: skip
Numbers = Annotated[str, typer.Option(callback=numbers, help="As in 1,4,16 or 1-4.")]
PICTURES = {".png": b"PNG", ".svg": b"<svg", ".pdf": b"%PDF"}  # with the mark of such files
TABLE = b",exact,"  # a column of all tables of ours, and the mark of their files


# --- What commands print --------------------------------------------------------------------------


def say(line: str, style: str | None = None) -> None:
    """A line for people, on standard error, taken literally."""
    err.print(line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


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


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table as CSV to a file, or for ``-`` to standard output."""
    text = table.to_csv(index=False)
    if str(out) == "-":
        print(text, end="")
    else:
        write_file(out, text.encode(), TABLE)


def to_text(table: pd.DataFrame | list[dict[str, Any]]) -> str:
    """A table for a terminal; ``-`` for None."""
    import pandas as pd

    if isinstance(table, list):
        clean = [{k: "-" if v is None else v for k, v in row.items()} for row in table]
        table = pd.DataFrame(clean)
    return table.to_string(index=False, float_format=lambda v: f"{v:.4f}")


@contextlib.contextmanager
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
