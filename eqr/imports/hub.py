"""Files of the Hugging Face hub: named, listed, fetched so that a cut download goes on, checked.

Serves ``eqr data import`` and ``eqr import-checkpoint``. ``hf:OWNER/REPO[@REVISION][/PATH]`` names
a file or folder of a repository; all its files are taken at one commit. ``HF_ENDPOINT`` chooses
the server.

``huggingface_hub`` brings the login, the listing and the streaming, and tries again while a command
runs. Its newer versions keep no part of a download for the next command, and none hashes what it
has fetched: both is done here.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eqr.settings import nearest
from eqr.store import Store

Kind = Literal["dataset", "model"]

ALIASES = {
    "sudoku-extreme": "sapientinc/sudoku-extreme",
    "eqr-data": "locuslab/EqR-data",
    "eqr-model": "locuslab/EqR-model",
}
KNOWN: dict[str, Kind] = {
    "sapientinc/sudoku-extreme": "dataset",
    "locuslab/EqR-data": "dataset",
    "locuslab/EqR-model": "model",
}
COMMANDS = {"dataset": "eqr data import", "model": "eqr import-checkpoint"}
SYNTAX = "hf:OWNER/REPO[@REVISION][/PATH]"
_SOURCE = re.compile(
    r"(?P<repo>(?!(datasets|models|spaces)/)[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[^/@]+))?(/(?P<path>.*))?"
)


class HubError(ValueError):
    """A source that cannot be had; the message names it, and the mend."""


@dataclass(frozen=True, slots=True)
class Source:
    """What ``hf:OWNER/REPO[@REVISION][/PATH]`` names.

    >>> parse("hf:locuslab/EqR-model@1f2e/maze-unique/eqr.pth", "model")
    Source(kind='model', repo='locuslab/EqR-model', revision='1f2e', path='maze-unique/eqr.pth')
    >>> str(parse("hub:eqr-data/maze-30x30-unique-1k", "dataset"))
    'hf:locuslab/EqR-data/maze-30x30-unique-1k'
    """

    kind: Kind
    repo: str
    revision: str | None = None  # a branch, tag or commit; None is the default branch
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def parse(text: str, kind: Kind) -> Source | None:
    """The source that ``text`` names on the hub; None where it is a local path.

    Raises:
        HubError: it is meant for the hub and not written as :data:`SYNTAX`.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"\w{2,}", scheme):
        return None
    if scheme == "hub":
        name = re.match(r"[^/@]*", rest)[0]
        if name not in ALIASES:
            raise HubError(
                f"{text}: hub:{name} is not known; {nearest(name, ALIASES)}; or {SYNTAX}"
            )
        rest = ALIASES[name] + rest.removeprefix(name)
    elif scheme != "hf":
        if Path(text).exists():
            return None
        raise HubError(f"{text}: no such file; what is on the hub is written {SYNTAX}")
    found = _SOURCE.fullmatch(rest)
    path = (found["path"] or "").rstrip("/") if found else ""
    if not found or (path and not _plain(path)):
        example = next(f"hf:{repo}" for repo, k in KNOWN.items() if k == kind)
        raise HubError(f"{text}: must be written {SYNTAX}, as in {example}")
    source = Source(kind, found["repo"], found["revision"], path)
    if KNOWN.get(source.repo, kind) != kind:
        holds = KNOWN[source.repo]
        raise HubError(f"{text}: {source.repo} is a {holds} repository: use `{COMMANDS[holds]}`")
    return source


def _plain(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, on every system."""
    return "\\" not in path and ":" not in path and not {"", ".", ".."} & set(path.split("/"))


@dataclass(frozen=True, slots=True)
class Remote:
    """What the hub says about a file."""

    size: int  # bytes
    sha256: str | None  # where it is stored with LFS, as large files are
    blob: str  # git's own hash, of a file that is not


@dataclass(slots=True)
class Repository:
    """A repository at one commit, and a folder for what is fetched from it."""

    source: Source
    commit: str
    files: dict[str, Remote]  # by path
    folder: Path
    pins: Mapping[str, str] = field(default_factory=dict)  # path -> the sha256 it must have
    fetched: dict[str, str] = field(default_factory=dict)  # path -> sha256

    def fetch(self, path: str) -> Path:
        """The file as it is at this commit: of the right size and hash, or an error.

        What was fetched before is kept and its rest asked for (`huggingface_hub` writes in steps of
        10 MB, and a cut loses what came since the last). Content that turns out to be wrong is
        deleted.

        Raises:
            HubError: the connection broke, or size or hash differ.
        """
        wanted, target = self.files[path], self.folder / path
        if not _plain(path):
            raise HubError(f"{self.source}: refused, the file name {path!r} leaves its folder")
        self._check_pin(path, wanted.sha256)
        fault, sha256 = _check(target, wanted) if target.is_file() else ("missing", "")
        self.fetched[path] = self._download(path, wanted, target) if fault else sha256
        self._check_pin(path, self.fetched[path])
        return target

    def _download(self, path: str, wanted: Remote, target: Path) -> str:
        """Fetch a file, or the rest of it, and return its sha256; it gets its name once checked."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        part = target.with_name(f"{target.name}.{(wanted.sha256 or wanted.blob)[:16]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        there = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(part.parent).free
        if wanted.size - there > free:
            raise HubError(
                f"{self.source}: {path} needs {wanted.size - there} bytes more and "
                f"{part.parent} has {free} free; make room, or set EQR_STORE to another disk"
            )
        server = endpoint()
        where = {"repo_type": self.source.kind, "revision": self.commit, "endpoint": server}
        # Compressed on its way, a file could not be continued in its middle.
        headers = build_hf_headers(library_name="eqr-book") | {"Accept-Encoding": "identity"}
        with _one_line(self.source, server, path, part), part.open("ab") as file:
            if there < wanted.size:
                url = hf_hub_url(self.source.repo, path, **where)
                http_get(url, file, resume_size=there, headers=headers, displayed_filename=path)
        fault, sha256 = _check(part, wanted)
        if fault:
            part.unlink()
            raise HubError(
                f"{self.source}: {path}: field {fault}; it was damaged on its way and is deleted, "
                "run the same command again"
            )
        part.replace(target)
        return sha256

    def _check_pin(self, path: str, sha256: str | None) -> None:
        check_pins({path: self.pins[path]} if path in self.pins else {}, {path: sha256})

    def discard(self) -> None:
        """Delete what was fetched, and older parts of it."""
        for path in map(self.folder.joinpath, self.fetched):
            for file in (path, *path.parent.glob(f"{glob.escape(path.name)}.*.part")):
                file.unlink(missing_ok=True)
            for folder in path.relative_to(self.folder).parents:
                with contextlib.suppress(OSError):  # holds something else
                    (self.folder / folder).rmdir()

    def origin(self) -> dict[str, Any]:
        """What to record with anything made from the files fetched."""
        found = {"repository": self.source.repo, "revision": self.commit}
        return {**found, "files": dict(sorted(self.fetched.items()))}  # sha256 by path


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Repository]:
    """A repository at the commit that its revision names now.

    What is fetched lies in the store, and is deleted when the block ends without an error: until
    then, the same command run again goes on where it was.

    Raises:
        HubError: there is no such repository or revision, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile

    huggingface_hub.logging.set_verbosity_error()  # our one line says it all
    server = endpoint()
    api = huggingface_hub.HfApi(endpoint=server)
    with _one_line(source, server):
        where = {"repo_type": source.kind, "revision": source.revision}
        commit = api.repo_info(source.repo, timeout=30, **where).sha
        entries = list(
            api.list_repo_tree(source.repo, recursive=True, **where | {"revision": commit})
        )
    files = {
        entry.path: Remote(entry.size, entry.lfs["sha256"] if entry.lfs else None, entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    store = Store()
    name = f"{source.kind}s--{source.repo.replace('/', '--')}"
    with store.lock(f"download-{name}"):
        folder = store.root / "downloads" / name
        repository = Repository(source, commit, files, folder)
        yield repository
        repository.discard()


def endpoint() -> str:
    """The server: ``$HF_ENDPOINT``, else the public hub."""
    from huggingface_hub import constants

    found = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if not re.match(r"https?://[^/]", found):
        raise HubError(f"HF_ENDPOINT={found}: must begin with https:// or http://")
    return found


def pick(source: Source, candidates: Iterable[str], what: str) -> str:
    """The candidate that the source's path names.

    That is the path itself, or else the one candidate that ends in it: the official repositories
    may keep everything below one more folder. A source without a path means the only candidate.

    Raises:
        HubError: none or several; the message says what there is.
    """
    found = sorted(candidates)
    if source.path in found:
        return source.path
    ends = [path for path in found if not source.path or path.endswith(f"/{source.path}")]
    if len(ends) == 1:
        return ends[0]
    if not found:
        raise HubError(f"{source}: this repository has no {what}")
    if not source.path or ends:
        known = ", ".join(ends)
        raise HubError(f"{source}: name the {what}: {known}")
    raise HubError(f"{source}: has no {what} {source.path!r}; {nearest(source.path, found)}")


def parse_pin(text: str) -> str:
    """A sha256 as the option ``--sha256`` takes it; HubError where it is none."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise HubError(f"--sha256 {text!r} must be 64 hexadecimal digits")
    return text.lower()


def check_pins(pins: Mapping[str, str], found: Mapping[str, str | None]) -> None:
    """Raise HubError where a file's sha256 (None: not known yet) is not the one it is pinned to."""
    for name, wanted in pins.items():
        if found[name] not in (wanted, None):
            raise HubError(
                f"{name}: field sha256 is {found[name]}, and --sha256 asks for {wanted}; it is "
                "another file: mend the option or the source"
            )


def hashes(path: Path) -> tuple[str, str]:
    """sha256 of a file, and the hash that git gives it (sha1 over its size and content)."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def _check(path: Path, wanted: Remote) -> tuple[str | None, str]:
    """What is wrong with a file, as ``size is 3, and the hub says 4``, or None; and its sha256."""
    sha256, blob = hashes(path)
    pairs = [("size", path.stat().st_size, wanted.size), ("sha256", sha256, wanted.sha256)]
    if wanted.sha256 is None:
        pairs[1] = ("oid (git's hash)", blob, wanted.blob)
    for name, found, said in pairs:
        if found != said:
            return f"{name} is {found}, and the hub says {said}", sha256
    return None, sha256


@contextlib.contextmanager
def _one_line(
    source: Source, server: str, path: str | None = None, part: Path | None = None
) -> Iterator[None]:
    """Turn what can go wrong between here and the hub into one :class:`HubError`."""
    from huggingface_hub import errors

    # Its own error has the HTTP library's for a base: httpx2 now, requests in older versions.
    failures = (*errors.HfHubHTTPError.__bases__, OSError)
    what = f"{source}: {path}" if path else str(source)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except failures as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine: no space, no permission
        code = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            why = f"is open only to those who were granted access ({code}); {login}"
        elif isinstance(error, errors.RepositoryNotFoundError):
            known = [repo for repo, kind in KNOWN.items() if kind == source.kind]
            near = f"; {nearest(source.repo, known)}" if source.repo not in known else ""
            why = (
                f"there is no {source.kind} repository {source.repo}, or it is not public ({code})"
                f"{near}; for a private one {login}"
            )
        elif isinstance(error, errors.RevisionNotFoundError):
            why = (
                f"the repository has no revision {source.revision!r} ({code}); "
                "name a branch, tag or commit of it after the @"
            )
        elif isinstance(error, errors.OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE forbids to ask the hub; unset it"
        elif code:
            why = f"the hub at {server} answered {code}"
            why += f"; {login}" if code in (401, 403) else "; try again later"
        elif part is not None and part.is_file():
            kept = part.stat().st_size
            why = (
                f"the connection to {server} broke off ({type(error).__name__}), {kept} bytes are "
                "kept; run the same command again to go on"
            )
        else:
            why = (
                f"the hub at {server} cannot be reached ({type(error).__name__}); check the "
                "network, or download the file elsewhere and give the local path"
            )
        raise HubError(f"{what}: {why}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{what}: {error}; write {SYNTAX}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if path:
            raise  # no answer was read
        raise HubError(
            f"{what}: {server} does not answer as a hub does; check HF_ENDPOINT"
        ) from error
