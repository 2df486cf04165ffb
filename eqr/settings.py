"""Checked settings: frozen dataclasses whose fields pydantic verifies, and messages that help.

Everything that a user can set wrongly (a recipe, an option, a task's field) is refused in one line
that names the setting and a fix.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError

T = TypeVar("T")


class UserError(ValueError):
    """Something that the user can put right; one line that names file, field and a remedy."""


class ProblemError(UserError):
    """A bad problem or an impossible request for one."""


class SizeError(UserError):
    """More than this machine can hold; the message says how much, and what to lower."""


class ConfigError(ProblemError):
    """A setting that cannot be used; the message names it and suggests a fix.

    ``field`` is the setting's name where the message begins with it, so that whoever reads it from
    a file can say in which section it stands.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose fields pydantic checks: no unknown name, no text for a
    number, no infinity. Whatever is wrong is a :class:`ConfigError` of one line.

    A class may name its ``section``, with which messages begin.
    """
    strict = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    cls = pydantic.dataclasses.dataclass(frozen=True, config=strict)(cls)
    checked = cls.__init__

    @functools.wraps(checked)
    def __init__(self, *values: Any, **named: Any) -> None:
        try:
            checked(self, *values, **named)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, getattr(cls, "section", ""))) from None

    cls.__init__ = __init__
    return cls


def require(condition: bool, field: str, rule: str) -> None:
    """Raise ConfigError ``"field rule"`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{field} {rule}", field)


def explain(error: ValidationError, cls: type, where: str) -> str:
    """The first thing that is wrong with settings of ``cls``: its dotted name, and a fix."""
    names = [field.name for field in fields(cls)]
    # A misspelt name often leaves another one missing: then the spelling is what to say.
    first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
    place = [names[k] if type(k) is int and not i else str(k) for i, k in enumerate(first["loc"])]
    path, value = ".".join(filter(None, [where, *place])), f"{first['input']!r:.60}"
    match first["type"]:
        case "unexpected_keyword_argument":
            return f"{path} is not a known setting; {nearest(place[-1], names)}"
        case "missing":
            return f"{path} is missing; add it"
        case "value_error":
            cause = first["ctx"]["error"]
            return f"{path}.{cause}" if path and getattr(cause, "field", "") else str(cause)
        case "literal_error":
            expected = first["ctx"]["expected"]
            near = difflib.get_close_matches(str(first["input"]), expected.split("'"), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{path} = {value} must be one of {expected}{hint}"
    return f"{path} = {value} {first['msg'].replace('Input should', 'must')}"


def memory() -> int:
    """Bytes of memory of this machine, or those that a container may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return whole


def require_memory(needed: float, what: str, remedy: str, there: int | None = None) -> None:
    """SizeError where ``what`` needs more bytes than ``there`` are (None: of this machine)."""
    there = memory() if there is None else there
    if needed > there:
        sizes = f"{needed / 1e9:,.1f} GB of memory, and there are {there / 1e9:,.1f}"
        raise SizeError(f"{what} needs about {sizes}: {remedy}")


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build settings from a mapping; messages name them as ``where.key``.

    Raises:
        ConfigError: an unknown, missing or unusable setting.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r:.60} must be a section of settings")
    made = object.__new__(cls)
    try:
        cls.__init__.__wrapped__(made, **values)  # by pydantic, to name the place ourselves
    except ValidationError as error:
        raise ConfigError(explain(error, cls, where)) from None
    return made


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error message: the near miss, or all that is known."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def digest(value: Any) -> str:
    """The first 16 hex digits of the sha256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
