"""The kernels of Sudoku: solver, generator and symmetry invariants, compiled with numba.

A digit is one bit and a blank is 0, so that the candidates of a cell are a single ``and`` of three
masks. :class:`eqr.tasks.sudoku.Sudoku` is the interface to all of this.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from eqr.tasks.kernel_random import kernel, mix64, random_below, random_stream, random_unit

LAYOUTS = ("any", "symmetric", "clustered")
SYMMETRIC, CLUSTERED = 1, 2

# --- Solver: singles, then a guess at the cell with the fewest candidates -------------------------


@lru_cache
def geometry(box_height: int, box_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of each unit (3 side, side) and units of each cell (S, 3): rows, columns, boxes."""
    side = box_height * box_width
    row, column = np.divmod(np.arange(side * side), side)
    box = (row // box_height) * box_height + column // box_width
    unit_of = np.stack([row, side + column, 2 * side + box], axis=1)
    units = np.stack([np.flatnonzero((unit_of == unit).any(1)) for unit in range(3 * side)])
    return units, unit_of


@kernel
def _candidates(cell, missing, unit_of):
    return missing[unit_of[cell, 0]] & missing[unit_of[cell, 1]] & missing[unit_of[cell, 2]]


@kernel
def _place(cell, bit, cells, missing, unit_of):
    cells[cell] = bit
    for k in range(3):
        missing[unit_of[cell, k]] ^= bit


@kernel
def _fill_singles(cells, missing, units, unit_of, trail, placed):
    """Place naked and hidden singles until none is left; cells placed go on the trail.

    Returns (length of the trail, False where a cell or a digit is left without a place).
    """
    progress = True
    while progress:
        progress = False
        for cell in range(cells.size):
            if cells[cell] == 0:
                options = _candidates(cell, missing, unit_of)
                if options == 0:
                    return placed, False
                if options & (options - 1) == 0:
                    _place(cell, options, cells, missing, unit_of)
                    trail[placed] = cell
                    placed += 1
                    progress = True
        if progress:
            continue  # naked singles are cheaper: exhaust them first
        for unit in range(units.shape[0]):
            once = twice = 0
            for j in range(units.shape[1]):
                if cells[units[unit, j]] == 0:
                    options = _candidates(units[unit, j], missing, unit_of)
                    twice |= once & options
                    once |= options
            if once != missing[unit]:
                return placed, False
            hidden = once & ~twice
            for j in range(units.shape[1]):
                cell = units[unit, j]
                if hidden != 0 and cells[cell] == 0:
                    bit = _candidates(cell, missing, unit_of) & hidden
                    if bit == 0:
                        continue
                    if bit & (bit - 1) != 0:  # two digits that only this cell could take
                        return placed, False
                    _place(cell, bit, cells, missing, unit_of)
                    trail[placed] = cell
                    placed += 1
                    hidden ^= bit
                    progress = True
    return placed, True


@kernel
def _fewest_candidates(cells, missing, unit_of, stream, shuffle):
    """The blank cell with the fewest candidates (the first or any such), -1 if none is blank."""
    best, fewest, ties = -1, 99, 0
    for cell in range(cells.size):
        if cells[cell] == 0:
            options, count = _candidates(cell, missing, unit_of), 0
            while options != 0 and count <= fewest:
                options &= options - 1
                count += 1
            if count < fewest:
                best, fewest, ties = cell, count, 1
            elif shuffle and count == fewest:
                ties += 1
                if random_below(stream, ties) == 0:
                    best = cell
    return best


@kernel
def search(cells, units, unit_of, first, allowed, limit, budget, stream, shuffle, solution):
    """Depth-first search for up to ``limit`` solutions of ``cells`` (S,) bits, which it restores.

    ``first`` >= 0 branches at that cell first, among the bits ``allowed``. ``shuffle`` draws ties
    and values from ``stream``. Returns (solutions found, or -1 past the budget; values guessed),
    and leaves the first solution in ``solution`` (S,).
    """
    size, side = cells.size, units.shape[1]
    missing = np.full(3 * side, (1 << side) - 1, np.int64)
    for cell in range(size):
        if cells[cell] != 0:
            if _candidates(cell, missing, unit_of) & cells[cell] == 0:
                return 0, 0  # the givens contradict each other
            _place(cell, cells[cell], cells, missing, unit_of)
    trail, placed = np.empty(size, np.int64), 0
    branch_cell, branch_left = np.empty(size, np.int64), np.empty(size, np.int64)
    branch_placed = np.empty(size, np.int64)
    depth = found = guesses = 0
    cell, descend = first, first < 0
    if first >= 0:
        branch_cell[0], branch_placed[0], depth = first, 0, 1
        branch_left[0] = allowed & _candidates(first, missing, unit_of)
    while True:
        if descend:
            placed, sound = _fill_singles(cells, missing, units, unit_of, trail, placed)
            if sound:
                cell = _fewest_candidates(cells, missing, unit_of, stream, shuffle)
                if cell < 0:
                    if found == 0:
                        solution[:] = cells
                    found += 1
                else:
                    branch_cell[depth], branch_placed[depth] = cell, placed
                    branch_left[depth] = _candidates(cell, missing, unit_of)
                    depth += 1
        descend = True
        while depth > 0 and branch_left[depth - 1] == 0:
            depth -= 1
        over = guesses >= budget
        finished = depth == 0 or found == limit or over
        floor = 0 if finished else branch_placed[depth - 1]
        while placed > floor:  # take back what the last guess placed; at the end, everything
            placed -= 1
            _place(trail[placed], cells[trail[placed]], cells, missing, unit_of)
            cells[trail[placed]] = 0
        if finished:
            return (-1 if over and depth > 0 and found < limit else found), guesses
        cell, left = branch_cell[depth - 1], branch_left[depth - 1]
        bit = left & -left
        if shuffle:
            skip = 0
            for other in range(side):
                if left >> other & 1:
                    skip += 1
                    if random_below(stream, skip) == 0:
                        bit = 1 << other
        branch_left[depth - 1] ^= bit
        _place(cell, bit, cells, missing, unit_of)
        trail[placed] = cell
        placed += 1
        guesses += 1


@kernel
def ratings(puzzles, units, unit_of, budget):
    """Guesses spent on each puzzle (n, S) of bits until its solutions are exhausted."""
    ratings, scratch = np.empty(len(puzzles), np.int32), np.empty(puzzles.shape[1], np.int64)
    stream = np.zeros(1, np.uint64)
    for i in range(len(puzzles)):
        ratings[i] = search(puzzles[i], units, unit_of, -1, 0, 2, budget, stream, False, scratch)[1]
    return ratings


# --- Generator: a random full grid, then clues dug out while the solution stays unique ------------


@kernel
def _near_first(order, side, stream):
    """Sort ``order`` (S,) by falling distance from a random cell, with jitter: dug in this order,
    the clues that stay lie near that cell."""
    centre = random_below(stream, order.size)
    distance = np.empty(order.size)
    for i in range(order.size):
        down, right = order[i] // side - centre // side, order[i] % side - centre % side
        distance[i] = -np.sqrt(down * down + right * right) - random_unit(stream)
    order[:] = order[np.argsort(distance)]


@kernel
def _dig(cell, puzzle, solution, units, unit_of, budget, stream, scratch):
    """Take the clue in ``cell`` away unless a second solution would appear: (taken, proven)."""
    puzzle[cell] = 0
    # A second solution would have to differ in this cell: look for one that does.
    others = ((1 << units.shape[1]) - 1) ^ solution[cell]
    found, _guesses = search(
        puzzle, units, unit_of, cell, others, 1, budget, stream, False, scratch
    )
    if found != 0:
        puzzle[cell] = solution[cell]
    return found == 0, found >= 0


@kernel
def generate(
    seed, index, units, unit_of, low, high, minimal, layout, attempts, budget, puzzle, solution
):
    """Fill ``puzzle`` and ``solution`` (S,) bits with problem ``index`` of ``seed``.

    ``layout``: 0 any, 1 point-symmetric, 2 clustered (see :class:`eqr.tasks.sudoku.Sudoku`).
    Returns (clues left or 0 where no attempt reached low .. high, fewest and most clues met).
    """
    stream = random_stream(seed, index)
    size, side = puzzle.size, units.shape[1]
    target = 0 if minimal else low + random_below(stream, high - low + 1)
    order, scratch = np.arange(size), np.empty(size, np.int64)
    fewest, most = size, 0
    for _ in range(attempts):
        puzzle[:] = 0
        found = 0
        while found != 1:  # an unlucky start is dropped: rare, and only on 16 symbols
            found, _guesses = search(
                puzzle, units, unit_of, -1, 0, 1, 4 * size, stream, True, solution
            )
        puzzle[:] = solution
        for i in range(size - 1, 0, -1):
            j = random_below(stream, i + 1)
            order[i], order[j] = order[j], order[i]
        if layout == CLUSTERED:
            _near_first(order, side, stream)
        clues, proven = size, True
        for cell in order:
            if clues == target:
                break
            partner = size - 1 - cell
            pair = layout == SYMMETRIC and partner != cell
            if pair and (partner < cell or clues - 2 < target):
                continue  # seen with its partner, or one clue too many to take
            rest = (puzzle, solution, units, unit_of, budget, stream, scratch)
            taken, sure = _dig(cell, *rest)
            if pair and taken:
                taken, sure = _dig(partner, *rest)
                if not taken:
                    puzzle[cell] = solution[cell]
            proven = proven and sure
            if taken:
                clues -= 2 if pair else 1
        fewest, most = min(fewest, clues), max(most, clues)
        # Once through is enough for minimality: a clue needed among more clues is needed now.
        if (low <= clues <= high and proven) if minimal else clues == target:
            return clues, fewest, most
    return 0, fewest, most


# --- Symmetry invariant ---------------------------------------------------------------------------


@kernel
def _cycle_type(top, bottom):
    """A hash of the cycle type of the permutation that takes row ``top`` (side,) to ``bottom``."""
    side = top.size
    image, seen, total = np.empty(side, np.int64), np.zeros(side, np.bool_), np.uint64(0)
    for j in range(side):
        image[top[j]] = bottom[j]
    for digit in range(side):
        length = 0
        while not seen[digit]:
            seen[digit] = True
            digit = image[digit]
            length += 1
        if length > 0:
            total += mix64(np.uint64(length))
    return mix64(total)


@kernel
def _invariant(grid, given, box_height, box_width):
    """A uint64 that relabelling and the row and column symmetries of ``grid`` (side, side) keep.

    Colour refinement: a row starts from the cycle types between it and the others (within and
    across bands), and rows, columns, digits and boxes then collect the colours of their cells.
    Sums of hashes take the place of sorted multisets.
    """
    side, rounds = len(grid), 3
    colours = np.zeros((4, side), np.uint64)  # of rows, columns, digits, boxes
    types = np.zeros((2, side, side), np.uint64)
    for axis in range(2):
        lines = grid if axis == 0 else grid.T
        depth = box_height if axis == 0 else box_width
        for a in range(side):
            for b in range(a):
                near = np.uint64(1 + (a // depth == b // depth))
                types[axis, a, b] = mix64(_cycle_type(lines[a], lines[b]) + near)
                types[axis, b, a] = types[axis, a, b]
    key = np.uint64(0)
    for _ in range(rounds):
        new = np.zeros((4, side), np.uint64)
        key = np.uint64(0)
        for row in range(side):
            for column in range(side):
                box = (row // box_height) * box_height + column // box_width
                members = (row, column, grid[row, column], box)
                colour = np.uint64(given[row, column])
                for k in range(4):
                    colour = mix64(colour + mix64(colours[k, members[k]] + np.uint64(k)))
                key += colour
                for k in range(4):
                    new[k, members[k]] += colour
        for axis in range(2):
            for a in range(side):
                for b in range(side):
                    if a != b:
                        new[axis, a] += mix64(types[axis, a, b] ^ mix64(colours[axis, b]))
        for k in range(4):
            for a in range(side):
                colours[k, a] = mix64(colours[k, a] + mix64(new[k, a]))
                key += mix64(colours[k, a] + np.uint64(k))
    return mix64(key)


@kernel
def invariants(grids, given, box_height, box_width):
    """Invariants (n,) uint64 of grids (n, side, side) with digits from 0."""
    keys = np.empty(len(grids), np.uint64)
    for i in range(len(grids)):
        keys[i] = _invariant(grids[i], given[i], box_height, box_width)
        if box_height == box_width:  # transposing is a symmetry too
            keys[i] += _invariant(grids[i].T.copy(), given[i].T.copy(), box_height, box_width)
    return keys
