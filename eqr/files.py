"""Files: one reader for what may be damaged, one writer, one lock.

What is read is bounded before memory is taken. What is written appears complete or not at all, in
the place that was named (through symbolic links), and never instead of a stranger's file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import struct
import sys
import time
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError  # from the header of an array
from typing import Any

import numpy as np
from numpy.lib import format as npy

from eqr import SHIPPED
from eqr.settings import ConfigError, UserError, require_memory

DEEPEST = 64  # lists and sections within each other; our own files have six
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path makes one slash of two
#: What systems and editors leave in folders: no file of ours has such a name.
LEFT_BEHIND = re.compile(r"\..*|.*~|#.*#|Thumbs\.db|desktop\.ini|__pycache__", re.IGNORECASE)

#: What the readers of NumPy and zipfile raise for damaged files.
DAMAGE = (
    ValueError, LookupError, TypeError, EOFError, OSError, RuntimeError, MemoryError, SyntaxError,
    OverflowError, AttributeError, zipfile.BadZipFile, zlib.error, struct.error, TokenError,
)  # fmt: skip


class FileError(ConfigError):
    """A file that cannot be read or written; the message names it and a remedy."""


def ours(path: Path, below: Path = Path()) -> bool:
    """Whether no part of a path (``below`` a folder) is what a system or an editor leaves behind.

    >>> ours(Path("runs/log.jsonl")), ours(Path("runs/.DS_Store")), ours(Path(".#x.toml"))
    (True, False, False)
    """
    parts = path.relative_to(below).parts if below.parts else path.parts
    return not any(LEFT_BEHIND.fullmatch(part) for part in parts if part not in ("/", ".."))


# --- Reading --------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    """Hex sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    return sha256(path.read_bytes())


def shipped_file(path: Path) -> Path:
    """A file of the project's ``data``, if it has the sha256 that ``data/SHA256SUMS`` says.

    Raises:
        FileError: it has been changed.
    """
    words = (SHIPPED / "SHA256SUMS").read_text(encoding="utf-8").split()
    known = dict(zip(words[1::2], words[::2], strict=True))
    if known.get(path.relative_to(SHIPPED).as_posix()) != file_sha256(path):
        raise FileError(f"{path}: altered, data/SHA256SUMS has another sha256; restore it")
    return path


def bounded(value: Any, deep: int = 0) -> Any:
    """The value, unless it is nested too deeply or holds a number that no setting can have.

    Raises:
        ValueError: says what it holds.
    """
    if deep > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            bounded(part, deep + 1)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a whole number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} where a number belongs")
    return value


def _parsed(parse: Any, text: str | bytes, **options: Any) -> Any:
    try:
        return bounded(parse(text, **options))
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own limit, and its own advice
            raise ValueError("a whole number of more than 64 bits") from None
        raise


def parse_json(text: str | bytes, **options: Any) -> Any:
    """A JSON value; ValueError for what is none, NaN and infinities, and more than ``bounded``.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    return _parsed(json.loads, text, **options)


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text; ValueError for what is none, and more than ``bounded``."""
    return _parsed(tomllib.loads, text)


def read_json(path: Path, remedy: str = "restore it", **options: Any) -> Any:
    """The value of a JSON file; FileError where it has none."""
    try:
        return parse_json(path.read_bytes(), **options)
    except UserError:  # of one of the options
        raise
    except ValueError as error:
        raise FileError(f"{path}: not valid JSON ({error}); {remedy}") from error


def read_toml(path: Path, remedy: str = "correct it") -> dict[str, Any]:
    """The values of a TOML file, with or without a byte order mark; FileError where it is none."""
    try:
        return parse_toml(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise FileError(f"{path}: not valid TOML ({error}); {remedy}") from error


def parse_array(content: bytes) -> np.ndarray:
    """The array of an npy file's content, which must be as long as its header says.

    Raises:
        ValueError: it is damaged, or holds Python objects.
    """
    stream = io.BytesIO(content)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, _, dtype = readers[npy.read_magic(stream)](stream)
    except DAMAGE as error:
        raise ValueError(f"no header of an array: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if size != there or any(length < 0 for length in shape):
        raise ValueError(f"its header says {size:,} bytes of {shape}, and {there:,} are there")
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


def read_array(path: Path, remedy: str = "restore it") -> np.ndarray:
    """The array of an npy file; FileError where it has none."""
    try:
        return parse_array(path.read_bytes())
    except ValueError as error:
        raise FileError(f"{path}: not a readable array ({error}); {remedy}") from error


def read_whole(path: Path, remedy: str = "restore it") -> np.ndarray:
    """An npy file's whole numbers as int64, in whatever order of bytes; whole floats are taken.

    Raises:
        FileError: it has no array, or one of anything else.
    """
    array = read_array(path, remedy)
    if array.dtype.kind not in "iuf" or not array.ndim:
        what = f"an array of {array.dtype} and shape {array.shape}"
        raise FileError(f"{path}: holds {what}, not whole numbers; {remedy}")
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64)
    if (whole != array).any():  # what is cut, NaN, and what int64 cannot hold
        raise FileError(f"{path}: holds {array[whole != array].flat[0]}; {remedy}")
    return whole


def read_arrays(path: Path, remedy: str = "restore it") -> dict[str, np.ndarray]:
    """The arrays of an npz file by name.

    Raises:
        FileError: it is damaged, or larger than memory.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            require_memory(sum(one.file_size for one in members), str(path), remedy)
            named = ((one.filename.removesuffix(".npy"), archive.read(one)) for one in members)
            return {name: parse_array(stored) for name, stored in named}
    except DAMAGE as error:
        if isinstance(error, UserError):
            raise
        raise FileError(f"{path}: damaged ({error}); {remedy}") from error


# --- Writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says into a FileError that names ``path`` and a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space, then start again" if full else "choose another place"
        why = error.strerror or str(error)
        raise FileError(f"{path}: cannot be written ({why}); {remedy}") from error


def target(path: Path, mark: bytes = b"", folder: bool = False) -> Path:
    """Where a file (or ``folder``) that is to be written lies: local, links followed.

    Args:
        mark: what every file of the kind has in it. An existing file without it is a stranger's.

    Raises:
        FileError: it is not local, a folder instead of a file, or a stranger's.
    """
    if REMOTE.match(str(path)):
        raise FileError(f"{path}: only local paths can be written; copy it there afterwards")
    with writing(path):
        real = Path(os.path.realpath(path))
        if real.is_dir() and not folder:
            raise FileError(f"{path}: is a folder; name a file in it")
        there = b""
        if mark and real.is_file():
            with real.open("rb") as file:
                there = file.read(2**16)
        if there and mark not in there:
            raise FileError(
                f"{path}: exists, and is not what this command writes; name another file"
            )
    return real


def write_file(path: Path, content: bytes, mark: bytes = b"") -> None:
    """Write a file, and its folder, so that it is on the disk whole or not at all.

    A device or a pipe is written to, never replaced. ``mark`` as for :func:`target`.
    """
    real = target(path, mark)
    with writing(path):
        if real.exists() and not real.is_file():
            real.write_bytes(content)
            return
        with beside(real) as temporary:
            temporary.write_bytes(content)
            sync(temporary)
            temporary.replace(real)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all."""
    write_file(path, f"{to_json(values, indent=1)}\n".encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it is on the disk when this returns."""
    with writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


def to_json(values: Any, **options: Any) -> str:
    """JSON text; what is not a number (NaN, infinities) is null, since JSON has no word for it."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [clean(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(values), allow_nan=False, **options)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name in the folder of ``path`` that is this process's until the block ends; what has that
    name then, or had it from a killed process, is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if len(os.fsencode(name)) > 240:  # of 255
        name = sha256(os.fsencode(name))[:16] + path.suffix
    temporary = path.with_name(f".part.{name}")  # with the same ending
    with lock(path.with_name(f".lock.{name}"), path):
        remove(temporary)
        try:
            yield temporary
        finally:
            remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder ``new`` in the place of ``path``, in one step, and remove what was there."""
    for file in new.rglob("*"):
        sync(file)
    sync(new)
    if path.exists() and not _exchange(new, path):
        # No such call here (macOS, some file systems): the old folder stays under a name that
        # readers of the folder are told of.
        aside = set_aside(path)
        remove(aside)
        path.rename(aside)
        new.rename(path)
        remove(aside)
    elif not path.exists():
        new.rename(path)
    sync(path.parent)


def set_aside(path: Path) -> Path:
    """Where the old folder is while a new one takes its place."""
    real = Path(os.path.realpath(path))  # "." has no name
    return real.parent / f".{real.name}.old"


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux); whether that could be done."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call) and not call(here, os.fsencode(one), here, os.fsencode(other), exchange)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Some file systems (SMB, FUSE) cannot do so for a folder; that is no fault of the file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise
    finally:
        os.close(descriptor)


# --- Two at once ----------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(path: Path, what: object) -> Iterator[None]:
    """Let one process at a time into the block; the others say for whom they wait.

    The kernel frees the lock of a process that ends in any way. The file says who has it, and goes
    with it.

    Args:
        what: is worked on, for the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = _open_lock(path)
        try:
            _acquire(descriptor, what)
            # Who had the lock removes the file: then this is no longer the one that others open.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        with contextlib.suppress(OSError):  # of another user: his file can be locked, not written
            os.truncate(path, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():  # the folder is read-only
            raise
        return os.open(path, os.O_RDONLY)


def _acquire(descriptor: int, what: object) -> None:
    try:
        for _ in range(50):  # a second: who waits for a moment only needs no message
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
        owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        sys.stderr.write(f"waiting for {owner}, which works on {what}\n")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
        # Some clusters mount their disks without locks: nothing could ever be written there.
        sys.stderr.write(f"{what}: this file system has no locks; start one process at a time\n")
