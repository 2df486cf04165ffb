"""Equilibrium Reasoners, checked: tasks, operator, training, rollouts, selection and their records.

The core, in the order of an evening's reading: ``streams`` (where every random draw comes from),
``task`` and ``data`` (what a problem is), ``config``, ``model`` and its ``layers`` (the operator),
``optim`` and ``train``, ``checkpoint``, ``rollout`` (depth and breadth), ``select``, ``evaluate``
and ``solve``. Around it: ``tasks``, ``analysis``, ``studies``, ``viewer``, ``imports``, ``cli``.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

PROJECT = Path(__file__).parents[1]
CHECKOUT = (PROJECT / "pyproject.toml").is_file()  # else the package was installed by itself
SHIPPED = PROJECT / ("data" if CHECKOUT else "eqr_data")  # data sets, and results of the studies


def locate(path: str | Path) -> Path:
    """Where a file or folder lies that may be named as from the project, as ``data/sudoku6``."""
    path = Path(os.path.expanduser(path))
    if path.is_absolute() or path.exists():
        return path
    return SHIPPED.joinpath(*path.parts[1:]) if path.parts[0] == "data" else PROJECT / path
