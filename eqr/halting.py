"""When a trajectory has settled, judged from inside (Table 5; chapter *Adaptive compute*).

A rule is a small frozen object that looks at :class:`Signs`: three numbers a row, none of which
comes from a label or a checker. Its condition must hold in ``patience`` iterations on end, and a
row runs at least ``min_depth`` iterations. :func:`parse_rule` reads rules as text, as in
``residual:1e-3`` or ``stable:8,min_depth=4``.

==============  ==================================================================================
``head:0``      the learned halting head's logit is above ``threshold`` (the paper's ACT)
``residual:t``  the residual is below ``tolerance``; noise β > 0 keeps it above a floor of the size
                of β, and a tolerance under that floor halts nothing
``stable:8``    the decoded answer has not changed
``fixed``       never: every row runs to the depth limit
==============  ==================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from eqr.config import ConfigError, from_dict, near_miss, parse_overrides, to_dict


@dataclass(frozen=True, slots=True)
class Signs:
    """All that a rule may look at, of R rows after one outer iteration."""

    halt: Tensor  # (R,) logit of the halting head
    residual: Tensor  # (R,) root-mean-square change of the latents in this iteration
    unchanged: Tensor  # (R,) bool: the decoded answer is that of the iteration before


class Rule(ABC):
    """A halting rule; ``str(rule)`` is the text that :func:`parse_rule` reads."""

    __slots__ = ()
    name: ClassVar[str]
    lead: ClassVar[str]  # the setting that may follow the colon without its name
    patience: int
    min_depth: int

    @abstractmethod
    def holds(self, signs: Signs) -> Tensor:
        """Whether each row looks settled in this iteration, (R,) bool."""

    def __post_init__(self) -> None:
        for key, value in to_dict(self).items():
            if key in ("patience", "min_depth") and value < 1:
                raise ConfigError(f"halting {self.name}.{key} must be at least 1")
            if not math.isfinite(value):
                raise ConfigError(f"halting {self.name}.{key} must be a finite number")

    def __str__(self) -> str:
        settings = [f"{k}={v!r}" for k, v in to_dict(self, defaults=False).items()]
        lead = [repr(getattr(self, self.lead))] if self.lead else []
        rest = [text for text in settings if not text.startswith(f"{self.lead}=")]
        return ":".join([self.name, ",".join(lead + rest)]) if lead else self.name


@dataclass(frozen=True, slots=True)
class Head(Rule):
    """The halting head's logit is above ``threshold``."""

    name, lead = "head", "threshold"
    threshold: float = 0.0
    patience: int = 1
    min_depth: int = 1

    def holds(self, signs: Signs) -> Tensor:
        return signs.halt > self.threshold


@dataclass(frozen=True, slots=True)
class Residual(Rule):
    """The residual is below ``tolerance``."""

    name, lead = "residual", "tolerance"
    tolerance: float = 1e-2
    patience: int = 1
    min_depth: int = 1

    def __post_init__(self) -> None:
        Rule.__post_init__(self)  # super() does not work in a class with slots
        if self.tolerance <= 0:
            raise ConfigError("halting residual.tolerance must be positive")

    def holds(self, signs: Signs) -> Tensor:
        return signs.residual < self.tolerance


@dataclass(frozen=True, slots=True)
class Stable(Rule):
    """The decoded answer has stayed the same over ``patience`` iterations."""

    name, lead = "stable", "patience"
    patience: int = 8
    min_depth: int = 1

    def holds(self, signs: Signs) -> Tensor:
        return signs.unchanged


@dataclass(frozen=True, slots=True)
class Fixed(Rule):
    """No row halts before the depth limit: the fixed budget that the other rules are held to."""

    name, lead = "fixed", ""
    patience: ClassVar[int] = 1
    min_depth: ClassVar[int] = 1

    def holds(self, signs: Signs) -> Tensor:
        return torch.zeros_like(signs.unchanged)


#: Rules by the name that ``eqr eval --halting`` takes.
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Head, Residual, Stable, Fixed)}


def parse_rule(text: str) -> Rule:
    """``"name"``, ``"name:value"`` or ``"name:value,key=value"`` to a rule.

    >>> parse_rule("residual:1e-3,patience=2")
    Residual(tolerance=0.001, patience=2, min_depth=1)
    >>> str(parse_rule("stable:patience=4"))
    'stable:4'

    Raises:
        ConfigError: an unknown name or setting (with the near miss), or a value it cannot take.
    """
    name, _, rest = text.strip().partition(":")
    if name not in RULES:
        raise ConfigError(f"halting rule {name!r} is not known{near_miss(name, RULES)}")
    kind = RULES[name]
    settings = rest.split(",") if rest else []
    if settings and not fields(kind):
        raise ConfigError(f"halting {text!r}: {name} has no settings")
    if settings and "=" not in settings[0]:
        settings[0] = f"{kind.lead}={settings[0]}"
    values = parse_overrides(settings)
    if len(values) < len(settings):
        raise ConfigError(f"halting {text!r} gives a setting twice")
    return from_dict(kind, values, f"halting {name}")
