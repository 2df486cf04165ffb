"""Files of the Hugging Face hub, taken at one commit and checked by hash.

Serves ``eqr data import`` and ``eqr import-checkpoint``. ``hf:OWNER/REPO[@REVISION][/PATH]`` names
a file or folder of a repository. ``huggingface_hub`` brings login, download, cache (``HF_HOME``)
and server (``HF_ENDPOINT``); a file that came whole stays in its cache, so that a command that
was cut does not fetch it again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from eqr.data import file_sha256
from eqr.settings import ConfigError, UserError, nearest

Kind = Literal["dataset", "model"]
Suffixes = tuple[str, ...]

#: Short names for the repositories of the paper's data and weights.
ALIASES = {
    "sudoku-extreme": "sapientinc/sudoku-extreme",
    "eqr-data": "locuslab/EqR-data",
    "eqr-model": "locuslab/EqR-model",
}
#: The released weights by their short names: file in ``eqr-model``, and its sha256.
RELEASED = {
    "eqr/sudoku-extreme": (
        "sudoku-extreme/eqr.pth",
        "258b1f0a90003a2db0de0c8df7831683ffce00de295ed4bba15dc8e599920d26",
    ),
    "eqr/maze-unique": (
        "maze-unique/eqr.pth",
        "9cb8ab682519f290c3ec157b5a16829e51afff27773651fbd01a260b8748b138",
    ),
}
SYNTAX = "hf:OWNER/REPO[@REVISION][/PATH]"
_SOURCE = re.compile(
    r"(?P<repo>(?!(datasets|models|spaces)/)[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[^/@]+))?(/(?P<path>.*))?"
)


class HubError(UserError):
    """A file that cannot be had; the message names its source, what is wrong, and a remedy."""


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
    if not colon or not re.fullmatch(r"\w{2,}", scheme) or Path(text).exists():
        return None
    if scheme == "hub":
        name, short = re.match(r"[^/@]*", rest)[0], released(text)
        if short and kind == "model":
            rest = f"{ALIASES['eqr-model']}{rest.removeprefix(short)}/{RELEASED[short][0]}"
        elif name in ALIASES:
            rest = ALIASES[name] + rest.removeprefix(name)
        else:
            name = rest if name == "eqr" else name
            known = nearest(name, [*ALIASES, *(RELEASED if kind == "model" else ())])
            raise HubError(f"{text}: hub:{name} is not known; {known}; or write {SYNTAX}")
    elif scheme != "hf":
        raise HubError(f"{text}: no such file; what is on the hub is written {SYNTAX}")
    match = _SOURCE.fullmatch(rest)
    path = (match["path"] or "").rstrip("/") if match else ""
    if not match or (path and not _stays_below(path)):
        raise HubError(f"{text}: must be written {SYNTAX}, as in hf:{ALIASES['eqr-data']}")
    return Source(kind, match["repo"], match["revision"], path)


def released(text: str) -> str | None:
    """The key in :data:`RELEASED` that ``hub:NAME[@REVISION]`` names, if it does."""
    name = text.removeprefix("hub:").partition("@")[0]
    return name if text.startswith("hub:") and name in RELEASED else None


def _stays_below(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, on every system."""
    return "\\" not in path and ":" not in path and not {"", ".", ".."} & set(path.split("/"))


@dataclass(slots=True)
class Repository:
    """A repository of the hub at one commit."""

    source: Source
    commit: str
    files: dict[str, str | None]  # by path: the sha256 that the hub states, of large files
    fetched: dict[str, str] = field(default_factory=dict)  # by path: the sha256 of what came

    def fetch(self, paths: Iterable[str], pins: Mapping[str, str] | None = None) -> Path:
        """The folder in which these files lie, as they are at this commit.

        Args:
            paths: files of the repository; all others stay where they are.
            pins: the sha256 that files must have, by path.

        Raises:
            HubError: a file is missing, has a name that leaves the folder, cannot be had, or is
                not the one that the hub or a pin names. A damaged file leaves the cache.
        """
        source, paths, pins, api = self.source, list(paths), pins or {}, _api()
        where = {"repo_type": source.kind, "revision": self.commit}
        for path in paths:
            if not _stays_below(path):
                raise HubError(f"{source}: refused, the file name {path!r} leaves its folder")
            if path not in self.files:
                raise HubError(f"{source}: has no file {path}; {nearest(path, self.files)}")
        check_pins(pins, self.files)  # before anything is downloaded
        with _explain(source):
            local = {path: Path(api.hf_hub_download(source.repo, path, **where)) for path in paths}
            verified = api.verify_repo_checksums(source.repo, **where)
        for wrong in verified.mismatches:
            damaged = verified.verified_path / wrong["path"]
            damaged.resolve().unlink()  # the blob that the cache's link leads to
            damaged.unlink(missing_ok=True)
            raise HubError(
                f"{source}: {wrong['path']}: field {wrong['algorithm']} is {wrong['actual']}, and "
                f"the hub states {wrong['expected']}; it was damaged on its way and is deleted, "
                "run the same command again"
            )
        self.fetched |= {path: file_sha256(file) for path, file in local.items()}
        check_pins(pins, self.fetched)
        return verified.verified_path

    def origin(self) -> dict[str, Any]:
        """What to record with anything made from the files fetched: their sha256 by path."""
        files = dict(sorted(self.fetched.items()))
        return {"repository": self.source.repo, "revision": self.commit, "files": files}


def open_repository(source: Source) -> Repository:
    """A repository at the commit that its revision names now.

    Raises:
        HubError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub.hf_api import RepoFile

    api, where = _api(), {"repo_type": source.kind}
    with _explain(source):
        commit = api.repo_info(source.repo, revision=source.revision, timeout=30, **where).sha
        tree = list(api.list_repo_tree(source.repo, recursive=True, revision=commit, **where))
    entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    files = {entry.path: entry.lfs["sha256"] if entry.lfs else None for entry in entries}
    return Repository(source, commit, files)


def _api() -> Any:
    """The client of the hub; the server is ``$HF_ENDPOINT``, else the public one."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # our one line says it all
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="eqr-book")


def pick(source: Source, candidates: Iterable[str], what: str) -> str:
    """The candidate that the source's path names.

    That is the path itself, or else the one candidate that ends in it: the official repositories
    may keep everything below one more folder. A source without a path means the only candidate.

    Raises:
        HubError: none or several; the message says what there is.
    """
    names = sorted(candidates)
    if source.path in names:
        return source.path
    ends = [name for name in names if not source.path or name.endswith(f"/{source.path}")]
    if len(ends) == 1:
        return ends[0]
    if not names:
        raise HubError(f"{source}: this repository has no {what}")
    if ends:
        raise HubError(f"{source}: name the {what}: {', '.join(ends)}")
    raise HubError(f"{source}: has no {what} {source.path!r}; {nearest(source.path, names)}")


def parse_pin(text: str) -> str:
    """A sha256 as the option ``--sha256`` takes it; HubError where it is none."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise HubError(f"--sha256 {text!r} must be 64 hexadecimal digits")
    return text.lower()


def parse_pins(texts: Iterable[str]) -> dict[str, str]:
    """The sha256 of several files, each as ``FILE=HEX``; HubError where one is not."""
    pins = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise HubError(f"--sha256 {text!r} must be FILE=HEX, as in --sha256 train.csv=…")
        pins[name] = parse_pin(value)
    return pins


def check_pins(pins: Mapping[str, str], hashes: Mapping[str, str | None]) -> None:
    """Raise HubError where a file's sha256 (None: not known yet) is not the one it is pinned to."""
    for name, pin in pins.items():
        if hashes[name] not in (pin, None):
            raise HubError(
                f"{name}: field sha256 is {hashes[name]}, and {pin} is asked for; it is another "
                f"file: correct --sha256 or the source ({SYNTAX} takes a file as it is)"
            )


def locate(text: str, suffixes: Suffixes, what: str) -> tuple[str, Repository | None]:
    """The name of a file, and the repository that it lies in: None for a local path."""
    source = parse(text, "model")
    if source is None:
        return text, None
    repository = open_repository(source)
    names = [name for name in repository.files if name.endswith(suffixes)]
    return pick(source, names, what), repository


def fetch(name: str, repository: Repository | None, sha256: str | None = None) -> Path:
    """The file itself, of this sha256 if one is given."""
    pins = {name: sha256} if sha256 else {}
    if repository:
        return repository.fetch([name], pins) / name
    if pins and Path(name).is_file():
        check_pins(pins, {name: file_sha256(Path(name))})
    return Path(name)


def beside(official: str, name: str, repository: Repository | None, suffixes: Suffixes) -> str:
    """The one file beside the weights that may hold their configuration.

    Of the same name, or else the only one in their folder, or else ``all_config.yaml`` one folder
    up, where the official code looks for it.
    """
    folder, stem = PurePosixPath(name).parent, PurePosixPath(name).stem
    above = folder.parent / "all_config.yaml" if repository else folder / ".." / "all_config.yaml"
    around = [above] if Path(above).is_file() else []
    names = repository.files if repository else [*Path(folder).iterdir(), *around]
    paths = [PurePosixPath(path) for path in sorted(map(str, names))]
    paths = [path for path in paths if path.suffix in suffixes]
    beside = [path for path in paths if path.parent == folder]
    alike = [path for path in beside if path.stem == stem]
    choice = alike or beside or [path for path in paths if path == above]
    if len(choice) == 1:
        return str(choice[0])
    there = ", ".join(map(str, choice or paths))
    raise ConfigError(
        f"{official} stores no configuration; give it with --config FILE ("
        + (f"there is {there})" if there else "no YAML or JSON file lies beside it)")
    )


@contextlib.contextmanager
def _explain(source: Source) -> Iterator[None]:
    """Turn what can go wrong between here and the hub into one :class:`HubError`."""
    from huggingface_hub import errors

    try:
        yield
    # The base of its own error is the HTTP library's: httpx2 now, another one in older versions.
    except (*errors.HfHubHTTPError.__bases__, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine: no space, no permission
        hidden = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__
        reason = " ".join(f"{type(hidden or error).__name__}: {hidden or error}".split())
        refused = getattr(getattr(hidden or error, "response", None), "status_code", 500) < 500
        remedy = (
            "check owner, name and revision; for a private repository log in with `hf auth login`, "
            "or set HF_TOKEN"
            if refused
            else "check the network and HF_ENDPOINT and run the same command again, or download "
            "the file elsewhere and give the local path"
        )
        raise HubError(f"{source}: {reason}; {remedy}") from error
