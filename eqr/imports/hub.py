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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eqr.data import file_sha256
from eqr.settings import UserError, nearest

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfUri

Kind = Literal["dataset", "model"]

#: What ``hub:NAME[@REVISION][/PATH]`` stands for; the revision goes into the braces.
SHORT: dict[Kind, dict[str, str]] = {
    "dataset": {"sudoku-extreme": "sapientinc/sudoku-extreme{}", "eqr-data": "locuslab/EqR-data{}"},
    "model": {
        "eqr-model": "locuslab/EqR-model{}",
        "eqr/sudoku-extreme": "locuslab/EqR-model{}/sudoku-extreme/eqr.pth",
        "eqr/maze-unique": "locuslab/EqR-model{}/maze-unique/eqr.pth",
    },
}
SYNTAX = "hf:OWNER/REPO[@REVISION][/PATH]"
REMEDY = (
    "check owner, name and revision, the network and HF_ENDPOINT, and for a private repository "
    "the login (`hf auth login`), then run the same command again; or give a local path"
)


class HubError(UserError):
    """A file that cannot be had; the message names its source, what is wrong, and a remedy."""


def parse(text: str, kind: Kind) -> HfUri | None:
    """What ``text`` names on the hub; None where it is a local path.

    >>> parse("hub:eqr-data/maze-30x30-unique-1k", "dataset").to_uri()
    'hf://datasets/locuslab/EqR-data/maze-30x30-unique-1k'

    Raises:
        HubError: it is meant for the hub and not written as :data:`SYNTAX`.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"\w{2,}", scheme) or Path(text).exists():
        return None
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    if scheme == "hub":
        name, revision, path = re.fullmatch(r"((?:eqr/)?[^/@]*)(@[^/]*)?(.*)", rest).groups("")
        if name not in SHORT[kind]:
            raise HubError(f"{text}: hub:{name} is not known; {nearest(name, SHORT[kind])}")
        rest = SHORT[kind][name].format(revision) + path
    elif scheme != "hf":
        raise HubError(f"{text}: no such file; what is on the hub is written {SYNTAX}")
    try:
        return parse_hf_uri(f"hf://{kind}s/{rest.rstrip('/')}")
    except HfUriError as error:
        raise HubError(f"{text}: must be written {SYNTAX} ({error})") from error


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder, here or of a repository at one commit."""

    name: str
    root: Path = Path()  # what it is named from
    origin: dict[str, Any] = field(default_factory=dict)  # what to record of a repository's

    @property
    def path(self) -> Path:
        return self.root / self.name

    def record(self) -> dict[str, Any]:
        """What to record with anything made from this file."""
        hashed = {"file": self.name, "sha256": file_sha256(self.path)}
        return hashed | ({"hub": self.origin} if self.origin else {})


def locate(
    text: str, kind: Kind, group: Callable[[list[str]], Mapping[str, Iterable[str]]], what: str
) -> Place:
    """The place that ``text`` names: a local path as it is, or files of the hub, fetched.

    The path in the source is a candidate, or how the only such one ends: the official repositories
    may keep everything below one more folder. Without a path, the only candidate is meant.

    Args:
        group: the candidates among a repository's files, each with those that it takes.
        what: a candidate is.

    Raises:
        HubError: no or several candidates (it says what there is); a file is missing, has a name
            that leaves the folder, cannot be had, or is not what the hub states. A damaged file
            leaves the cache.
    """
    uri = parse(text, kind)
    if uri is None:
        return Place(text)
    with _explain(uri):
        about = _api().repo_info(uri.id, repo_type=kind, revision=uri.revision, timeout=30)
        files = [file.rfilename for file in about.siblings]
    groups, path, source = group(files), uri.path_in_repo, uri.to_uri()
    ends = [name for name in sorted(groups) if not path or f"/{name}".endswith(f"/{path}")]
    if path not in groups and len(ends) != 1:
        there = f"name one of {', '.join(ends)}" if ends else nearest(path, groups)
        raise HubError(f"{source}: has {len(ends) or 'no'} {what} {path!r}; {there}")
    name = path if path in groups else ends[0]
    where = {"repo_type": kind, "revision": about.sha}
    with _explain(uri):
        for file in groups[name]:
            _api().hf_hub_download(uri.id, file, **where)
        seen = _api().verify_repo_checksums(uri.id, **where)
    root = seen.verified_path
    for wrong in seen.mismatches:
        (root / wrong["path"]).resolve().unlink()  # the blob that the cache's link leads to
        raise HubError(
            f"{source}: {wrong['path']}: field {wrong['algorithm']} is {wrong['actual']}, and the "
            f"hub states {wrong['expected']}; it is deleted, run the same command again"
        )
    hashes = {file: file_sha256(root / file) for file in sorted(groups[name])}
    return Place(name, root, {"repository": uri.id, "revision": about.sha, "files": hashes})


def _api() -> HfApi:
    """The client of the hub; the server is ``$HF_ENDPOINT``, else the public one."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # our one line says it all
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="eqr-book")


@contextlib.contextmanager
def _explain(uri: HfUri) -> Iterator[None]:
    """Turn what can go wrong between here and the hub into one :class:`HubError`."""
    from huggingface_hub import errors

    try:
        yield
    # The bases of its own error are the HTTP library's and OSError.
    except (*errors.HfHubHTTPError.__bases__, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine: no space, no permission
        cause = (isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__) or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise HubError(f"{uri.to_uri()}: {reason}; {REMEDY}") from error


def check_pins(pins: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Raise HubError where a file's sha256 is not the one that its name is pinned to."""
    for name, pin in pins.items():
        if name not in files:
            raise HubError(f"--sha256: {name} is no file that is read; {nearest(name, files)}")
        if (actual := file_sha256(files[name])) != pin.lower():
            raise HubError(
                f"{name}: field sha256 is {actual}, and {pin} is asked for; it is another file: "
                f"correct --sha256 or the source ({SYNTAX} takes a file as it is)"
            )
