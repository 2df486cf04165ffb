"""What the attacks share: how large they are, how one is judged, and how files are damaged.

A case ends in one of two ways: what is read is what it was, or one line names the file and a
remedy. All else is a fault: a traceback, a hang, another number without a word, something lost.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eqr.settings import UserError

FULL = os.environ.get("ATTACK") == "full"
#: Where each test adds a line of counts, for the summary of ``make attack``.
COUNTS = Path(os.environ.get("ATTACK_COUNTS", os.devnull))
GIGABYTE = 2**30


def cases(sample: int, full: int) -> int:
    """How many cases a test runs: a few in ``make test``, many in ``make attack``."""
    return full if FULL else sample


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def bounds(seconds: float = 30, memory: int = 4 * GIGABYTE) -> Iterator[None]:
    """Raise Hang after so many seconds, and give no more memory than that beyond what is used."""

    def ring(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Tally:
    """The outcomes of a test's cases; at its end, none may be a fault."""

    def __init__(self, name: str) -> None:
        self.name, self.counts, self.faults = name, Counter(), []

    def add(self, outcome: str, case: object = "") -> None:
        """Count an outcome: ``same``, ``refused``, or a fault, whose first word is its kind."""
        self.counts[outcome.split(":")[0]] += 1
        if outcome not in ("same", "refused"):
            self.faults.append(f"{outcome}: {case}")

    def judge(self, read: Callable[[], Any], same: Callable[[Any], bool], named: str, case: object):
        """Count how ``read`` ends: as before, refused in words that hold ``named``, or a fault."""
        try:
            with bounds():
                value = read()
            self.add("same" if same(value) else "silent difference", case)
        except (UserError, OSError) as error:
            text = str(error)
            short = len(text) < 2000 and named in text
            self.add("refused" if short else f"unnamed: {text[:300]!r}", case)
        except Hang:
            self.add("hang", case)
        except Exception as error:
            self.add(f"traceback: {type(error).__name__} {error!s:.200}", case)

    def close(self) -> None:
        """Write the counts, and assert that no case was a fault."""
        with COUNTS.open("a") as file:
            file.write(json.dumps({"name": self.name, **self.counts}) + "\n")
        assert not self.faults, "\n".join([*map(str, self.faults[:12]), f"{self.counts}"])


# --- How files are damaged ------------------------------------------------------------------------


def flip(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def empty(content: bytes, draw: random.Random) -> bytes:
    return b""


def zero(content: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(content)), draw.choice((1, 16, 512))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def swap(content: bytes, draw: random.Random) -> bytes:
    size = max(1, min(64, len(content) // 4))
    one, other = sorted(draw.randrange(len(content) - size + 1) for _ in range(2))
    parts = content[one : one + size], content[other : other + size]
    moved = bytearray(content)
    moved[one : one + size], moved[other : other + size] = parts[1], parts[0]
    return bytes(moved)


def twice(content: bytes, draw: random.Random) -> bytes:
    return content + content


def noise(content: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(len(content))


def text(content: bytes, draw: random.Random) -> bytes:
    deep = "[" * 10_000
    return draw.choice(
        (deep, '{"a": ' * 10_000, "a = " + deep, "9" * 6000, '{"a": NaN}', "null", "[]", "{}",
         "a = nan", "\ufeff", "<html></html>", "version https://git-lfs.github.com/spec/v1\n")
    ).encode()  # fmt: skip


DAMAGE = (flip, flip, flip, cut, empty, zero, swap, twice, noise, text)

#: Values that stand where others belong.
HOSTILE = (
    None, True, -1, 0, 1.5, "", "x", "../../etc/passwd", [], [1], {}, {"a": 1}, 10**9, 10**18,
    10**30, 1e308, [["x"]], {"kind": []}, "\x00", "{}", "9" * 5000,
)  # fmt: skip


def mutate(values: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one part of it, at any depth, replaced, removed or renamed."""
    values = copy.deepcopy(values)
    places = list(places_in(values))
    if not places:
        return draw.choice(HOSTILE)
    holder, key = draw.choice(places)
    match draw.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case _:
            holder[key] = copy.deepcopy(draw.choice(HOSTILE))
    return values


def places_in(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = range(len(values)) if isinstance(values, list) else values
    for key in keys if isinstance(values, dict | list) else ():
        yield values, key
        yield from places_in(values[key])


# --- Processes that die ---------------------------------------------------------------------------


def killed(work: Callable[[], Any], after: float) -> bool:
    """Run ``work`` in a process of its own that is killed after some seconds; whether it was."""
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
        finally:
            os._exit(0)
    end = time.monotonic() + after
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, 9)
    os.waitpid(child, 0)
    return True


def strays(folder: Path) -> list[str]:
    """Temporary files and locks that lie in a folder."""
    names = (path.name for path in folder.rglob(".*"))
    return sorted(name for name in names if name.startswith((".part", ".lock", ".tmp")))
