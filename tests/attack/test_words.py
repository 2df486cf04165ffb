"""Random command lines: each works, or is refused in one line; nothing that was there is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import papermill
import pytest
import typer
from harness import Hang, bounds, cases, strays

from eqr import PROJECT, data, experiments
from eqr.cli import main as cli
from eqr.config import EvalConfig
from eqr.experiments import evaluate_or_load, load_trained
from eqr.files import file_sha256
from eqr.store import Store

WHOLE = ("1", "2", "3", "8", "0", "-1", "007", "1.5", "x", "", "1e3", "1000000000", "9" * 20,
         "9" * 5000, "nan", "٣", "1,2", "2,1,4", "1-3", ",", "0x10", " 4 ")  # fmt: skip
REAL = ("0", "0.5", "1e-3", "2", "-1", "nan", "inf", "-inf", "1e308", "1e999", "x", "", ".5", "1,5")
TEXT = ("sudoku6", "headroom", "average", "oracle,majority", "paper-16-1", "residual:1e-3", "fixed",
        "stable:2", "head:0", "stable:-1", "residual:nan", "cpu", "cuda", "auto", "smoke", "laptop",
        "Smoke", "sudoku", "maze", "miniarc", "x", "", "../..", "é", "[/bold]", "{x}", "$(id)",
        "a=b", "=", "\x1b[31m", "hf:", "9" * 3000, "train", "eval", "campaign", "random", "first",
        "train.csv=00", "my.py:Task", "none.py:X", "os:path")  # fmt: skip
SETTINGS = (
    "train.steps=2", "train.batch=2000000000", "train.lr=nan", "train.lr=1e999", "model.hidden=8",
    "model.hidden=99999999999999999999", "model.blocks=1000000000", "model.heads=1000000000",
    "model.width_multiple=1000000000", "model.high_cycles=1000000000", "train.unroll=16",
    "model.expansion=1e308", "width=1000000000", "height=1000000000", "box_height=2",
    "box_width=1000000000", "data.train=1000000000", "data.source=none", "data.source=~/x",
    "task.kind=maze", "task=1", "task.kind=[]", "train=[]", "x", "=", "a.b.c=1", "train.steps=1=2",
    "train.steps=1\nseed=4", "train.steps=" + "[" * 5000, "train.steps=" + "9" * 5000, "seed=-1",
    "name=[1]", "train.optimizer=adm", "model.init=[1]", "clues_min=1", "rating_min=-1",
    "carving=prim", "path_min=1000000000", "unique=true", "loops=1e9", "demonstrations=100",
    "model.prefix=1000000000", "train.starts=1000000000", "train.eval_depth=1000000000",
)  # fmt: skip
PUZZLES = ("1" * 16, "." * 16, "1..4........2...", "", "x", "1" * 17, "0" * 36, "\ufeff....",
           "😀" * 16, "-" * 16, "1 2 3", "\x00", "{}", "9" * 5000)  # fmt: skip
#: Slow, or of other hands: they have cases of their own.
LEFT_OUT = {"bench", "export", "import-checkpoint", "study run", "results ship", "study plan"}
#: What keeps a random case small; a later word wins over an earlier one.
SMALL = {
    "train": ["--profile", "smoke", "--stop-after", "0", "-s", "train.steps=2"],
    "eval": ["--problems", "4", "--depth", "1,2"],
    "halt": ["--problems", "4", "--depth", "2"],
    "solve": ["--depth", "2"],
    "data build": ["--train", "4", "--test", "2", "-s", "box_height=2", "-s", "box_width=2"],
}
#: Values that would be work, not nonsense, and take longer than a case may.
LONG = {("train", "profile"), ("train", "stop_after"), ("data build", "recipe")}


@pytest.fixture
def there(tmp_path, monkeypatch, make_recipe, learned, problems) -> Path:
    """A folder to stand in, with a model, a data set, a store and a notebook below ``own``."""
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(learned.path, own / "model.safetensors")
    data.save(problems, own / "set")
    store = Store(own / "store")
    run = experiments.train_run(make_recipe(train={"steps": 2}), store)
    evaluate_or_load(load_trained(run, store), EvalConfig((1,), problems=4), store)
    shutil.copy(PROJECT / "notebooks/machine.ipynb", own)
    (own / "results").mkdir()
    (own / "thesis.csv").write_text("years,of,work\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(papermill, "execute_notebook", lambda a, b, **_: Path(b).write_text("{}"))
    return own


PLACES = (
    "own/model.safetensors", "own/set", "own/store", "own/machine.ipynb", "own/thesis.csv", "own",
    "new.csv", "new.png", "out", "o ut/x y.csv", "a{b}.csv", "none/x.csv", "", ".", "/dev/null",
    "-", "s3://bucket/x", "~/x", "new.ipynb", "n" * 300, "é.csv", "/proc/x",
    "own/set/manifest.json", "own/results",
)  # fmt: skip


def value(draw: random.Random, kind: str, name: str) -> str:
    """A value for a parameter of the command line, as often sense as nonsense."""
    if name == "setting":
        pool = SETTINGS
    elif name == "puzzle":
        pool = (*PUZZLES, "-")
    elif name == "parameter":
        pool = ("profile=smoke", "checked=3", "checked=0", "checked=" + "9" * 99, *SETTINGS)
    elif name in ("depth", "breadth", "seeds") or "int" in kind:
        pool = WHOLE
    elif "float" in kind:
        pool = REAL
    else:
        pool = PLACES if "Path" in kind else (*TEXT, draw.choice(PLACES))
    return draw.choice(pool[:4] if draw.random() < 0.6 else pool)


def commands() -> dict[str, Any]:
    """Every command by its words."""
    named = {}
    for name, command in typer.main.get_command(cli.app).commands.items():
        below = getattr(command, "commands", {"": command})
        named |= {f"{name} {part}".strip(): one for part, one in below.items()}
    return {name: one for name, one in named.items() if name not in LEFT_OUT}


def line(draw: random.Random, name: str, command: Any) -> list[str]:
    """A random command line."""
    words = [*name.split(), *SMALL.get(name, ())]
    for one in command.params:
        if one.name == "help" or (name, one.name) in LONG:
            continue
        if one.name == "model" and draw.random() < 0.9:
            given = "own/model.safetensors"
        elif one.name == "store" and draw.random() < 0.6:
            given = "own/store"
        elif one.name == "shipped":
            given = draw.choice(("own/results", "none"))
        else:
            given = value(draw, str(one.type_descriptor.annotation), one.name)
        if one.param_type_name == "argument":
            words.append(given)
        elif one.required or one.name == "shipped" or draw.random() < 0.2:
            words.append(one.opts[0])
            words += [] if one.is_flag else [given]
    if "--overwrite" in words:  # which is there to lose what it names
        words = ["out" if word == "own/set" else word for word in words]
    return [word for word in words if "\x00" not in word]


def digests(folder: Path) -> dict[str, str]:
    """What lies in a folder; new runs of the store may come, but nothing may change or go."""
    return {str(p): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_random_command_lines_work_or_are_refused_in_one_line(eqr, there, tally, draw):
    known, before = commands(), digests(there)
    monkeypatched = {"EQR_STORE": str(there.parent / "store")}
    os.environ |= monkeypatched
    for _ in range(cases(60, int(os.environ.get("N", 800)))):
        name = draw.choice(list(known))
        words = line(draw, name, known[name])
        stdin = "\n".join(draw.choices(PUZZLES, k=3))
        case = json.dumps(words)[:600]
        try:
            with bounds(40):
                done = eqr(*words, stdin=stdin)
        except Hang:
            tally.add("hang", case)
            continue
        except Exception as error:
            tally.add(f"traceback: {type(error).__name__} {error!s:.200}", case)
            continue
        errors = [text for text in done.err.splitlines() if text.startswith("error: ")]
        if done.code not in (0, 1, 2) or (done.code == 1 and len(errors) != 1):
            tally.add(f"unclear: {done.code} {done.err[:300]!r}", case)
        elif lost := {k for k, v in before.items() if digests(there).get(k) != v}:
            tally.add(f"loss: {sorted(lost)[:3]}", case)
            before = digests(there)
        elif left := strays(there.parent):
            tally.add(f"stray: {left}", case)
        else:
            tally.add("refused" if done.code else "same")
