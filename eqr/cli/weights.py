"""``eqr import-checkpoint``: official weights and their configuration, from a file or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from eqr import checkpoint
from eqr.cli.console import Json, emit, say
from eqr.data import file_sha256
from eqr.imports import hub
from eqr.imports.weights import import_official, read_official
from eqr.settings import ConfigError

WEIGHTS = (".pth", ".pt")
SETTINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Located:
    """A file that was asked for, and the place that it lies in."""

    text: str  # as it was asked for
    name: str  # in its place: a path of the repository, or the local path
    repository: hub.Repository | None  # None for a local file

    def get(self, name: str | None = None, sha256: str | None = None) -> Path:
        """The file itself, or another one of the same place; of this sha256, if one is given."""
        name = name or self.name
        if self.repository is None:
            if sha256 and Path(name).is_file():
                hub.check_pins({name: sha256}, {name: file_sha256(Path(name))})
            return Path(name)
        if sha256:
            self.repository.pins = {name: sha256}
        return self.repository.fetch(name)

    def origin(self) -> dict[str, Any]:
        """What to record of where it came from."""
        return {"hub": self.repository.origin()} if self.repository else {}

    def settings(self) -> str:
        """The one file beside it that may hold its configuration.

        Of the same name, or else the only one in its folder, or else ``all_config.yaml`` one
        folder up, where the official code looks for it.

        Raises:
            ConfigError: there is none, or there are several.
        """
        folder, stem = PurePosixPath(self.name).parent, PurePosixPath(self.name).stem
        above = folder.parent / "all_config.yaml"
        if self.repository:
            paths = [PurePosixPath(name) for name in sorted(self.repository.files)]
        else:
            above = folder / ".." / "all_config.yaml"
            around = [*sorted(Path(folder).iterdir()), Path(above)]
            paths = [PurePosixPath(path) for path in around if path.is_file()]
        all_ = [path for path in paths if path.suffix in SETTINGS]
        beside = [path for path in all_ if path.parent == folder]
        found = (
            [path for path in beside if path.stem == stem]
            or beside
            or [path for path in all_ if path == above]
        )
        if len(found) == 1:
            return str(found[0])
        there = ", ".join(map(str, found or all_))
        raise ConfigError(
            f"{self.text} stores no configuration; give it with --config FILE ("
            + (f"there is {there})" if there else "no YAML or JSON file lies beside it)")
        )


@contextmanager
def located(text: str, suffixes: Iterable[str], what: str) -> Iterator[Located]:
    """The file that a local path or a source on the hub names.

    Raises:
        HubError: there is none, or it cannot be had.
    """
    source = hub.parse(text, "model")
    if source is None:
        yield Located(text, text, None)
        return
    with hub.opened(source) as repository:
        names = [name for name in repository.files if name.endswith(tuple(suffixes))]
        yield Located(text, hub.pick(source, names, what), repository)


def import_command(
    official: Annotated[
        str,
        typer.Argument(help="A .pth file of the official code, or hf:OWNER/REPO@REVISION/PATH."),
    ],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="Official configuration, JSON or YAML, a file or hf:…; without it, the one stored "
            "in the .pth or else the one beside it."
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="ema (the average) or raw.")] = "ema",
    sha256: Annotated[str | None, typer.Option(help="What the .pth must hash to.")] = None,
    as_json: Json = False,
) -> None:
    """Convert official weights; the file is read without executing any pickle.

    On the hub, @REVISION (a branch, tag or commit) may be left out; hub:eqr-model is short for
    hf:locuslab/EqR-model. The file is checked by size and hash, and the header of what is written
    names commit and sha256. A download that was cut goes on when the same command is run again.
    HF_ENDPOINT names another server.

    Example: eqr import-checkpoint step_50000.pth sudoku.safetensors --config all_config.yaml

    Example: eqr import-checkpoint hf:locuslab/EqR-model/sudoku-extreme/eqr.pth sudoku.safetensors
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"--weights {weights!r} must be ema or raw")
    if out.exists():
        raise checkpoint.CheckpointError(f"{out}: exists already; choose another name")
    pin = hub.parse_pin(sha256) if sha256 else None
    given: dict[str, Any] | None = None
    if config is not None:  # first, since it is small
        with located(config, SETTINGS, "configuration") as found:
            path = found.get()
            given = read_mapping(path, config)
            record = {"file": found.name, "sha256": file_sha256(path), **found.origin()}
    with located(official, WEIGHTS, "checkpoint") as found:
        path = found.get(sha256=pin)
        content = read_official(path)
        if given is None and isinstance(content.get("config"), Mapping):
            record = {"file": found.name}
        elif given is None:
            name = found.settings()
            beside = found.get(name)
            given = read_mapping(beside, name)
            record = {"file": name, "sha256": file_sha256(beside)}
            say(f"configuration: {name}")
        try:
            made = import_official(
                path,
                out,
                given,
                weights,
                content=content,
                origin={**found.origin(), "config": record},
            )
        except ConfigError as error:
            raise ConfigError(f"{record['file']}: {error}") from error
    if as_json:
        emit({"model": str(out), "sha256": made})
    else:
        print(out)


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """A JSON or YAML file as a mapping; ``name`` is what the errors call it."""
    import yaml

    if not path.is_file():
        raise ConfigError(f"{name}: no such file")
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: neither JSON nor YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: must hold a mapping of settings")
    # The reference files keep the settings under "config", beside the tensors' shapes.
    return values.get("config", values) if "seq_len" not in values else values
