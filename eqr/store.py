"""Content-addressed runs: a result is named by what it depends on and visible only when complete.

A run is a directory ``<kind>-<id>`` with its files and ``manifest.json``. The id hashes the kind,
the configuration (which names the data by its digest) and :data:`eqr.config.SEMANTICS`; commit,
versions, hardware and time are recorded beside it. Work in progress lives under ``partial/`` and is
resumed there; the directory is renamed into place as the last act.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from eqr.config import SEMANTICS, digest
from eqr.data import PROJECT, file_sha256

MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A stored run that cannot be used; the message names the file and the mend."""


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


def default_root() -> Path:
    """``$EQR_STORE``, else ``build/store`` in the project."""
    return Path(os.environ.get("EQR_STORE") or PROJECT / "build" / "store")


class Store:
    """The runs below one directory."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root else default_root()

    def run_id(self, kind: str, config: Mapping[str, Any]) -> str:
        """``<kind>-<16 hex digits>`` of a configuration."""
        return f"{kind}-{digest({'config': config, 'semantics': SEMANTICS})}"

    def get(self, run_id: str) -> Run | None:
        """The run if it is complete, every file of it verified; None if there is none.

        Raises:
            StoreError: a file of the run is missing or altered; the message names it.
        """
        path = self.root / run_id
        if not path.is_dir():
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            files = dict(manifest["files"])
            if manifest["id"] != run_id:
                raise ValueError(f"it belongs to {manifest['id']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path / MANIFEST}: damaged ({error}); delete {path} to make it anew"
            ) from error
        for name, sha256 in files.items():
            if not (path / name).is_file():
                raise StoreError(f"{path / name}: missing; delete {path} to make the run anew")
            if file_sha256(path / name) != sha256:
                raise StoreError(f"{path / name}: altered; delete {path} to make the run anew")
        return Run(run_id, path, manifest)

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
        ``scratch`` are not part of the run; they go once it is complete.
        """
        run_id = self.run_id(kind, config)
        with self._lock(run_id):
            if run := self.get(run_id):
                return run
            work = self.root / "partial" / run_id
            work.mkdir(parents=True, exist_ok=True)
            began = time.time()
            if make(work) is False:
                return None
            for left in work.glob(".*.tmp"):  # of a process killed while it wrote
                left.unlink()
            files = {p.name: file_sha256(p) for p in sorted(work.iterdir()) if p.is_file()}
            manifest = {
                "id": run_id,
                "kind": kind,
                "config": dict(config),
                "semantics": SEMANTICS,
                "files": {k: v for k, v in files.items() if k not in (MANIFEST, *scratch)},
                "provenance": provenance() | {"finished": _utc(), "seconds": time.time() - began},
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            for path in [*work.iterdir(), work]:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            os.replace(work, self.root / run_id)
            for name in scratch:
                (self.root / run_id / name).unlink(missing_ok=True)
            return self.get(run_id)

    @contextlib.contextmanager
    def _lock(self, run_id: str) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / run_id).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the kernel when the process ends
            yield


def commit() -> str:
    """The commit of the project's working tree, ``+`` where it has changes; or ``unknown``."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--short") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
