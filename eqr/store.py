"""Content-addressed runs: a result is named by what it depends on and visible only when complete.

A run is a directory ``<kind>-<id>`` with its files and ``manifest.json``. The id hashes the kind,
the configuration (which names the data by its digest) and :data:`eqr.config.SEMANTICS`; commit,
versions, hardware and time are recorded beside it, and a seal over all of the manifest shows when
one of its lines was changed. Work in progress lives under ``partial/`` and is resumed there; the
directory is renamed into place as the last act.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from eqr import CHECKOUT, PROJECT, files
from eqr.config import SEMANTICS
from eqr.files import file_sha256, read_json, write_json
from eqr.settings import UserError, digest

MANIFEST = "manifest.json"
PENDING = ".pending.json"  # kind and configuration of a run that is not complete
RUN_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}")
OTHER = ("data", "downloads", "locks", "partial")  # folders of a store that are not runs


class StoreError(UserError):
    """A stored run that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """A complete, verified run."""

    id: str
    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """The path of one of its files; StoreError where the run has no such file."""
        if name not in self.manifest["files"]:
            raise StoreError(f"{self.path}: has no file {name!r}")
        return self.path / name


@dataclass(frozen=True, slots=True)
class Result:
    """Named arrays, and the run that stores them."""

    run: Run
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def read_arrays(run: Run) -> Result:
    """The arrays of a run that has some, in its one npz file."""
    names = [name for name in run.manifest["files"] if name.endswith(".npz")]
    if len(names) != 1:
        raise StoreError(f"{run.path / MANIFEST}: names {len(names)} files of arrays, not one")
    return Result(run, files.read_arrays(run.file(names[0])))


#: The runs (and studies) that this process has read, with the digest of the data behind each; the
#: last cell of a chapter lists them (:func:`eqr.notebook.provenance`).
USED: dict[str, str] = {}


def default_root() -> Path:
    """``$EQR_STORE``, else ``build/store`` in the project, or ``~/.cache/eqr`` without one.

    A relative one is below the project: it is one store, wherever a command is started.
    """
    home = "build/store" if CHECKOUT else "~/.cache/eqr"
    named = Path(os.path.expanduser(os.environ.get("EQR_STORE") or home))
    if not (CHECKOUT or named.is_absolute()):
        raise StoreError(f"EQR_STORE={named}: must be an absolute path, begin it with /")
    return PROJECT / named


def run_id(kind: str, config: Mapping[str, Any], semantics: int) -> str:
    """``<kind>-<16 hex digits>`` of a configuration under a version of the code's meaning."""
    return f"{kind}-{digest({'config': config, 'semantics': semantics})}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its seal, a digest of all the rest."""
    rest = {k: v for k, v in manifest.items() if k != "seal"}
    return rest | {"seal": digest(rest)}


def files_of(path: Path) -> dict[str, Path]:
    """The files below a run's directory by their relative names, its manifest left out."""
    below = [p for p in sorted(path.rglob("*")) if p.is_file() and files.ours(p, path)]
    return {p.relative_to(path).as_posix(): p for p in below if p != path / MANIFEST}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The state of a run's directory: each fault names the file, the field and the remedy."""

    manifest: dict[str, Any]  # empty where it cannot be read
    faults: tuple[str, ...]  # the run cannot be used
    strays: tuple[str, ...] = ()  # files that do not belong to it


def inspect(path: Path, contents: bool = True) -> Inspection:
    """Check a run's directory: manifest, id, seal, and (``contents``) every file of it."""
    anew, where = f"delete {path} to make it anew", path / MANIFEST
    try:
        manifest = read_json(where)
        named, listed = str(manifest["id"]), dict(manifest["files"].items())
        for part in ("config", "provenance"):
            dict(manifest[part].items())
        computed = run_id(manifest["kind"], manifest["config"], manifest["semantics"])
        unsealed = manifest["seal"] != sealed(manifest)["seal"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        return Inspection({}, (f"{where}: damaged ({reason}); {anew}",))
    faults = []
    if computed != named:
        what = (
            f"altered: kind, config and semantics hash to {computed:.60}, and its id is {named:.60}"
        )
        faults.append(f"{where}: {what}; {anew}")
    elif unsealed:
        faults.append(f"{where}: altered, field seal does not match the rest; {anew}")
    elif named != path.name:
        faults.append(f"{where}: field id says that it belongs to {named:.60}; rename {path} back")
    there = files_of(path) if contents else {}
    for name, sha256 in listed.items() if contents else ():
        if name not in there:
            faults.append(f"{path / name}: missing; {anew}")
        elif file_sha256(there[name]) != sha256:
            faults.append(f"{path / name}: altered, its sha256 differs; {anew}")
    remedy = "not part of the run (its manifest does not name it); move it elsewhere"
    strays = tuple(f"{path / name}: {remedy}" for name in there if name not in listed)
    return Inspection(manifest, tuple(faults), strays)


class Store:
    """The runs below one directory."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root else default_root()

    def run_id(self, kind: str, config: Mapping[str, Any]) -> str:
        """``<kind>-<16 hex digits>`` of a configuration."""
        return run_id(kind, config, SEMANTICS)

    def paths(self) -> list[Path]:
        """The directories of all complete runs, damaged and renamed ones too, by name."""
        if not self.root.is_dir():
            return []
        below = [p for p in self.root.iterdir() if p.is_dir() and p.name not in OTHER]
        return sorted(p for p in below if RUN_NAME.fullmatch(p.name) or (p / MANIFEST).exists())

    def partial(self) -> list[Path]:
        """The directories of runs that were begun and are not complete."""
        folder = self.root / "partial"
        return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def get(self, run_id: str) -> Run | None:
        """The run if it is complete, every file of it verified; None if there is none.

        Raises:
            StoreError: the manifest or a file of the run is missing or altered; it is named.
        """
        path = self.root / run_id
        if not path.is_dir():
            return None
        state = inspect(path)
        if state.faults:
            raise StoreError(state.faults[0])
        USED[run_id] = str(state.manifest["config"].get("data", ""))
        return Run(run_id, path, state.manifest)

    def obtain(
        self,
        kind: str,
        config: Mapping[str, Any],
        make: Callable[[Path], bool | None],
        scratch: Sequence[str] = (),
    ) -> Run | None:
        """The run of this configuration; made by ``make(directory)`` unless it is there already.

        ``make`` gets a directory that outlives a crash, so that it can resume; it returns False to
        say that it stopped early and wants to go on another time (then the result is None). Of two
        processes that want the same run, one makes it and the other waits. Files named in
        ``scratch``, and those whose names begin with a dot, are not part of the run; they go once
        it is complete.

        A process killed at any moment leaves either no run or a whole one: the manifest is written
        when all files are on the disk, and the directory is renamed when the manifest is.
        """
        run_id = self.run_id(kind, config)
        if run := self.get(run_id):  # without a lock: a store may be someone else's
            return run
        with self.lock(run_id):
            if run := self.get(run_id):
                return run
            work = self.root / "partial" / run_id
            work.mkdir(parents=True, exist_ok=True)
            whole = inspect(work).faults == ()  # killed between the manifest and the renaming
            if not whole:
                (work / MANIFEST).unlink(missing_ok=True)
                about = {"id": run_id, "kind": kind, "config": dict(config)}
                write_json(work / PENDING, about)
                began = time.time()
                if make(work) is False:
                    return None
                for left in work.rglob(".*"):  # of a process killed while it wrote
                    if left.is_file() and left.name != PENDING:
                        left.unlink()
                made = {k: p for k, p in files_of(work).items() if k not in scratch}
                for path in made.values():
                    files.sync(path)
                manifest = about | {
                    "semantics": SEMANTICS,
                    "files": {name: file_sha256(path) for name, path in made.items()},
                    "provenance": provenance()
                    | {"finished": _utc(), "seconds": time.time() - began},
                }
                write_json(work / MANIFEST, sealed(manifest))
            for name in (*scratch, PENDING):
                (work / name).unlink(missing_ok=True)
            for folder in [*(p for p in work.rglob("*") if p.is_dir()), work]:
                files.sync(folder)
            os.replace(work, self.root / run_id)
            files.sync(self.root)
            return self.get(run_id)

    def arrays(
        self,
        kind: str,
        config: Mapping[str, Any],
        compute: Callable[[Path], Mapping[str, np.ndarray]],
        name: str = "arrays.npz",
    ) -> Result:
        """The arrays of this configuration; computed unless the store has them.

        Args:
            compute: gets the run's directory, for files beside the arrays.
            name: of the file that holds them.
        """

        def make(directory: Path) -> None:
            arrays = {key: np.asarray(value) for key, value in compute(directory).items()}
            with files.writing(directory / name):
                np.savez_compressed(directory / name, **arrays)

        return read_arrays(self.obtain(kind, config, make))

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Let one process at a time into the block; the others wait."""
        return files.lock(self.root / "locks" / name, name)


def git(*words: str) -> str:
    """What a git command says of the project's working tree; empty where that is no checkout."""
    # A repository that the project merely lies in is not asked, nor one that git's own variables
    # name (they are set while a hook runs).
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    own |= {"GIT_CEILING_DIRECTORIES": str(PROJECT.resolve().parent)}
    given = {"cwd": PROJECT, "env": own, "capture_output": True, "check": True}
    try:
        return subprocess.run(["git", *words], encoding="utf-8", **given).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> str:
    """The commit of the project's working tree, ``+`` where it has changes; or ``unknown``."""
    head = git("rev-parse", "--short=10", "HEAD")
    return head + ("+" if git("status", "--short") else "") if head else "unknown"


def provenance() -> dict[str, Any]:
    """Commit, versions and hardware of this process."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy", "eqr-book"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    cuda = torch.cuda.is_available()
    return {
        "commit": commit(),
        "versions": versions,
        "hardware": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "processes": processes(),
    }


def processes() -> int:
    """How many processes work together (see :mod:`eqr.parallel`)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def processor() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
