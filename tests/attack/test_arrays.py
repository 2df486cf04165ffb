"""Random arrays, as files of others hold them: read as they are, or refused by name."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from harness import DAMAGE, cases

from eqr.files import read_array, read_arrays
from eqr.imports import datasets
from eqr.tasks.sudoku import Sudoku

TASK = Sudoku(2, 3)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def odd(tokens: np.ndarray, draw: random.Random) -> np.ndarray:
    """An array that is like ``tokens`` in some way."""
    kind = draw.choice(
        ("<i8", ">i4", ">u2", "<f4", ">f8", "half", "complex64", "U1", "S2", "datetime64[D]",
         "timedelta64[s]", "bool", "object", "struct", "void", "shift", "fraction", "tiny", "nan",
         "inf", "0-d", "1-d", "3-d", "empty", "no rows", "no columns", "fortran", "negative",
         "large", "broadcast", "float16", "longdouble", "uint64")
    )  # fmt: skip
    values = tokens.astype(float)
    made = {
        "half": lambda: values / 2,
        "object": lambda: tokens.astype(object),
        "struct": lambda: np.zeros(tokens.shape, [("a", "u1"), ("b", "f4")]),
        "void": lambda: np.zeros(tokens.shape, "V3"),
        "shift": lambda: values + draw.choice((0.4, 1e-12, -0.5)),
        "fraction": lambda: np.where(values > 2, values, 1.5),
        "tiny": lambda: values * np.finfo(float).tiny,
        "nan": lambda: np.where(values > 2, values, np.nan),
        "inf": lambda: np.where(values > 2, values, np.inf),
        "0-d": lambda: np.array(1),
        "1-d": lambda: tokens.ravel(),
        "3-d": lambda: tokens.reshape(-1, 6, 6),
        "empty": lambda: np.zeros(0),
        "no rows": lambda: tokens[:0],
        "no columns": lambda: tokens[:, :0],
        "fortran": lambda: np.asfortranarray(tokens),
        "negative": lambda: tokens.astype(int) - draw.choice((1, 300)),
        "large": lambda: tokens.astype(np.int64) + draw.choice((256, 2**32, 2**62)),
        "broadcast": lambda: np.broadcast_to(tokens[:1], (40, 36)),
    }
    with np.errstate(all="ignore"):
        return made[kind]() if kind in made else tokens.astype(kind)


def test_an_array_is_read_as_it_was_written_or_refused(tally, draw, tmp_path):
    tokens, path = TASK.generate(6, seed=1).inputs, tmp_path / "a.npy"
    for number in range(cases(30, 200)):
        array = odd(tokens, draw)
        content = npy(array)
        if number % 2:
            content = draw.choice(DAMAGE)(content, draw)
        path.write_bytes(content)
        # Damage to values is for the hash.
        tally.judge(
            lambda: read_array(path),
            lambda read, array=array, damaged=number % 2: (
                damaged or np.array_equal(read, array, equal_nan=array.dtype.kind in "fc")
            ),
            "a.npy",
            f"{array.dtype} {array.shape} {number}",
        )


def test_an_archive_with_a_false_size_takes_no_memory(tmp_path, tally, draw):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(10**6), b=np.arange(5))
    whole = path.read_bytes()
    for number in range(cases(20, 150)):
        path.write_bytes(DAMAGE[number % len(DAMAGE)](whole, draw))
        same = lambda read: read["a"].sum() == 0 and read["b"].tolist() == [0, 1, 2, 3, 4]  # noqa: E731
        tally.judge(lambda: read_arrays(path), same, "a.npz", number)


@pytest.mark.parametrize("place", ["train/all__inputs.npy", "test/all__labels.npy"])
def test_odd_arrays_of_others_are_imported_as_they_are_or_refused(place, tmp_path, tally, draw):
    made = TASK.generate(12, seed=1)
    for part, rows in (("train", slice(0, 6)), ("test", slice(6, 12))):
        (tmp_path / part).mkdir()
        for name in ("inputs", "labels"):
            np.save(tmp_path / part / f"all__{name}.npy", getattr(made, name)[rows])
    before = datasets.read(tmp_path, TASK, train=None).digest
    path = tmp_path / place
    tokens = np.load(path)
    for _ in range(cases(30, 200)):
        array = odd(tokens, draw)
        path.write_bytes(npy(array))
        tally.judge(
            lambda: datasets.read(tmp_path, TASK, train=None),
            lambda read: read.digest == before,
            tmp_path.name,
            f"{array.dtype} {array.shape} {array.ravel()[:3]}",
        )
