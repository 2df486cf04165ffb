"""Attacks run with a seed of their own; ``make attack`` ends with the counts of all of them."""

from __future__ import annotations

import json
import os
import random
from collections import Counter

import harness
import pytest


@pytest.fixture
def draw(request) -> random.Random:
    """The draws of a test: the same every time, unless ``ATTACK_SEED`` names others."""
    return random.Random(f"{os.environ.get('ATTACK_SEED', 0)} {request.node.name}")


@pytest.fixture
def tally(request):
    """Counts the outcomes of a test, and fails it at its end where one was a fault."""
    counted = harness.Tally(request.node.name)
    yield counted
    counted.close()


def pytest_terminal_summary(terminalreporter) -> None:
    if hasattr(terminalreporter.config, "workerinput") or not harness.COUNTS.is_file():
        return
    total: Counter[str] = Counter()
    for line in harness.COUNTS.read_text().splitlines():
        total.update({k: v for k, v in json.loads(line).items() if k != "name"})
    kills = total.pop("killed", 0)
    faults = sum(count for name, count in total.items() if name not in ("same", "refused"))
    terminalreporter.write_line(
        f"attack: {sum(total.values())} cases and {kills} kills: "
        + ", ".join(f"{count} {name}" for name, count in total.items())
        + ("" if faults else "; no traceback, no hang, no silent difference, nothing lost")
    )
