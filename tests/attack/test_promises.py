"""What SECURITY.md promises, watched from inside: files written, connections, pickles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eqr import PROJECT

WATCHED = """
import json, os, sys, traceback
seen, watching = {"written": set(), "connected": [], "unpickled": []}, True

def watch(event, args):
    if not watching:
        return
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (1 | 2):  # to write
        seen["written"].add(os.path.realpath(os.fsdecode(args[0])))
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod"):
        if isinstance(args[0], (str, bytes)) or hasattr(args[0], "__fspath__"):
            seen["written"].add(os.path.realpath(os.fsdecode(args[0])))
    elif event in ("os.rename", "os.link", "os.symlink"):
        seen["written"].update(os.path.realpath(os.fsdecode(path)) for path in args[:2])
    elif event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        seen["connected"].append(repr(args)[:200])
    elif event == "pickle.find_class" and not any(
        "/numba/" in frame.filename for frame in traceback.extract_stack()
    ):
        seen["unpickled"].append(repr(args)[:200])

sys.addaudithook(watch)
from eqr.cli.main import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code or 0)
watching = False
json.dump({"codes": codes, **seen, "written": sorted(seen["written"])}, open("seen.json", "w"))
"""

COMMANDS = [
    "train sudoku6 --profile smoke -s train.steps=2",
    "data build set --train 8 --test 4 -s box_height=2 -s box_width=2",
    "data verify set",
    "eval -c m.safetensors --problems 4 --depth 1,2 --out table.csv --plot curve.png",
    "halt -c m.safetensors fixed --problems 4 --depth 2 --out halted.csv",
    "solve -c m.safetensors ......4212......",
    "recipes",
    "results list",
    "results verify",
    "study list construction",
]
#: Beside what is named: the kernels' cache, in the package, and devices.
ALLOWED = (str(PROJECT / "eqr" / "tasks" / "__pycache__"), "/dev/")


@pytest.fixture(scope="module")
def seen(tmp_path_factory, learned) -> dict:
    """What the commands did, in a folder of their own."""
    place = Path(os.path.realpath(tmp_path_factory.mktemp("promises")))
    shutil.copy(learned.path, place / "m.safetensors")
    words = [command.split() for command in COMMANDS]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"EQR_STORE": str(place / "store"), "HOME": str(place / "home")}
    environment |= {"TMPDIR": str(place / "tmp"), "MPLCONFIGDIR": str(place / "tmp" / "mpl")}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # that this process has set for itself
    (place / "tmp").mkdir()
    command = [sys.executable, "-c", WATCHED, json.dumps(words)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "seen.json").read_text()) | {"place": str(place)}


def test_commands_write_only_where_they_are_told(seen, tally):
    assert seen["codes"] == [0] * len(COMMANDS)
    places = tuple(f"{seen['place']}/{name}" for name in ("store", "tmp", "set", "."))
    named = {f"{seen['place']}/{n}" for n in ("table.csv", "curve.png", "halted.csv", "set")}
    for path in seen["written"]:
        parent, name = os.path.split(path)
        beside = parent == seen["place"] and name.startswith((".part.", ".lock."))
        good = path in named or path.startswith((*places, *ALLOWED)) or beside
        good |= path == seen["place"]
        tally.add("same" if good else f"loss: {path} was written")
    left = sorted(path.name for path in Path(seen["place"]).iterdir())
    assert left == sorted(
        [
            "curve.png",
            "halted.csv",
            "m.safetensors",
            "seen.json",
            "set",
            "store",
            "table.csv",
            "tmp",
        ]
    )


def test_commands_ask_no_network_and_execute_no_pickle(seen, tally):
    tally.add(f"network: {seen['connected']}" if seen["connected"] else "same")
    tally.add(f"pickle: {seen['unpickled']}" if seen["unpickled"] else "same")
