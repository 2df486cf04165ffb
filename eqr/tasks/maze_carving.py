"""The carvings of :mod:`eqr.tasks.maze`: five ways to a perfect maze, and further walls opened.

They serve the experiments under distribution shift: equal boards and path lengths, another texture.
Each kernel fills ``tokens`` (S,) with walls and a spanning tree of the maze cells, and draws from
``stream`` only. Numba's cache does not notice a change here in ``eqr.tasks.maze``, which calls
these: delete __pycache__ after editing.
"""

from __future__ import annotations

import numpy as np

from eqr.tasks.kernel_random import kernel, random_below

WALL, OPEN = 1, 2
CARVINGS = ("depth-first", "kruskal", "wilson", "prim", "division")  # in the order of ``carve``


@kernel
def _beside(cell, side, height, width):
    """The maze cell above, left, right or below (side 0 .. 3), -1 beyond the border wall.

    The token between two such cells is at the mean of their indices.
    """
    row, column = cell // width // 2, cell % width // 2
    step = (-width, -1, 1, width)[side]
    inside = (row > 0, column > 0, column < (width - 1) // 2 - 1, row < (height - 1) // 2 - 1)[side]
    return cell + 2 * step if inside else -1


@kernel
def _random_cell(height, width, stream):
    row = random_below(stream, (height - 1) // 2)
    column = random_below(stream, (width - 1) // 2)
    return (2 * row + 1) * width + 2 * column + 1


@kernel
def _walls_between(height, width, tokens):
    """The walls of ``tokens`` that part two cells, row by row."""
    walls, found = np.empty(tokens.size, np.int64), 0
    for row in range(1, (height - 1) // 2 * 2):
        for column in range(1, (width - 1) // 2 * 2):
            cell = row * width + column
            if (row + column) % 2 == 1 and tokens[cell] == WALL:
                walls[found] = cell
                found += 1
    return walls[:found]


@kernel
def depth_first(height, width, stream, tokens):
    """Depth first from a random cell, in random order: long winding ways, few dead ends."""
    tokens[:] = WALL
    stack, top = np.empty(tokens.size, np.int64), 1
    stack[0] = _random_cell(height, width, stream)
    tokens[stack[0]] = OPEN
    while top > 0:
        cell, chosen, ties = stack[top - 1], -1, 0
        for side in range(4):
            other = _beside(cell, side, height, width)
            if other >= 0 and tokens[other] == WALL:
                ties += 1
                if random_below(stream, ties) == 0:
                    chosen = other
        if ties == 0:
            top -= 1
            continue
        tokens[(cell + chosen) // 2] = tokens[chosen] = OPEN
        stack[top] = chosen
        top += 1


@kernel
def kruskal(height, width, stream, tokens):
    """Walls in random order; each is opened where its two cells are not yet connected."""
    tokens[:] = WALL
    walls, parent = _walls_between(height, width, tokens), np.arange(tokens.size)
    for i in range(walls.size):
        j = i + random_below(stream, walls.size - i)
        walls[i], walls[j] = walls[j], walls[i]
        step = 1 if walls[i] // width % 2 == 1 else width
        one, other = walls[i] - step, walls[i] + step
        tokens[one] = tokens[other] = OPEN
        while parent[one] != one:
            parent[one] = parent[parent[one]]  # halve the way for the next time
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        if one != other:
            parent[one] = other
            tokens[walls[i]] = OPEN


@kernel
def wilson(height, width, stream, tokens):
    """Loop-erased random walks (Wilson 1996): every perfect maze is equally likely."""
    tokens[:] = WALL
    following = np.empty(tokens.size, np.int64)
    tokens[_random_cell(height, width, stream)] = OPEN
    for row in range(1, (height - 1) // 2 * 2, 2):
        for column in range(1, (width - 1) // 2 * 2, 2):
            begin = cell = row * width + column
            while tokens[cell] == WALL:  # where the walk last left a cell: that erases its loops
                other = -1
                while other < 0:
                    other = _beside(cell, random_below(stream, 4), height, width)
                following[cell] = other
                cell = other
            cell = begin
            while tokens[cell] == WALL:
                tokens[cell] = tokens[(cell + following[cell]) // 2] = OPEN
                cell = following[cell]


@kernel
def prim(height, width, stream, tokens):
    """From a random cell, always through a random wall between maze and rest: many dead ends."""
    tokens[:] = WALL
    near, far = np.empty(2 * tokens.size, np.int64), np.empty(2 * tokens.size, np.int64)
    cell, edges = _random_cell(height, width, stream), 0
    tokens[cell] = OPEN
    while True:
        for side in range(4):
            other = _beside(cell, side, height, width)
            if other >= 0 and tokens[other] == WALL:
                near[edges], far[edges] = cell, other
                edges += 1
        cell = -1
        while cell < 0 and edges > 0:  # edges whose far end was reached meanwhile are dropped
            i = random_below(stream, edges)
            edges -= 1
            if tokens[far[i]] == WALL:
                cell = far[i]
                tokens[cell] = tokens[(near[i] + cell) // 2] = OPEN
            near[i], far[i] = near[edges], far[edges]
        if cell < 0:
            return


@kernel
def division(height, width, stream, tokens):
    """Recursive division: an empty hall is split across its longer side by a wall with one gap,
    and so are its parts, down to corridors one cell wide: long straight walls."""
    rows, columns = (height - 1) // 2, (width - 1) // 2
    tokens[:] = WALL
    for row in range(1, 2 * rows):
        tokens[row * width + 1 : row * width + 2 * columns] = OPEN
    halls, top = np.empty((rows * columns, 4), np.int64), 1  # first row and column, rows, columns
    halls[0] = np.array([0, 0, rows, columns])
    while top > 0:
        top -= 1
        row, column, deep, wide = halls[top]
        if min(deep, wide) < 2:
            continue
        across = deep > wide or (deep == wide and random_below(stream, 2) == 0)
        part = 1 + random_below(stream, (deep if across else wide) - 1)
        gap = random_below(stream, wide if across else deep)
        if across:
            first = 2 * (row + part) * width + 2 * column + 1
            tokens[first : first + 2 * wide - 1] = WALL
            tokens[first + 2 * gap] = OPEN
            halls[top] = np.array([row, column, part, wide])
            halls[top + 1] = np.array([row + part, column, deep - part, wide])
        else:
            first = (2 * row + 1) * width + 2 * (column + part)
            for k in range(2 * deep - 1):
                tokens[first + k * width] = WALL
            tokens[first + 2 * gap * width] = OPEN
            halls[top] = np.array([row, column, deep, part])
            halls[top + 1] = np.array([row, column + part, deep, wide - part])
        top += 2


def carve_numpy(height, width, rng):
    """``depth_first`` with the official builder's draws from a NumPy generator: row and column of
    the first cell, then one of the ways that are left, listed down, up, right, left."""
    tokens = np.full(height * width, WALL, np.uint8)
    row, column = (rng.integers((side - 1) // 2) for side in (height, width))
    stack = [(2 * row + 1) * width + 2 * column + 1]
    tokens[stack] = OPEN
    while stack:
        near = [_beside(stack[-1], side, height, width) for side in (3, 0, 2, 1)]
        ways = [cell for cell in near if cell >= 0 and tokens[cell] == WALL]
        if not ways:
            stack.pop()
            continue
        chosen = ways[rng.integers(len(ways))]
        tokens[(stack[-1] + chosen) // 2] = tokens[chosen] = OPEN
        stack.append(chosen)
    return tokens


@kernel
def carve(which, height, width, stream, tokens):
    """A perfect maze into ``tokens`` (S,) by the carving of number ``which`` in ``CARVINGS``."""
    if which == 0:
        depth_first(height, width, stream, tokens)
    elif which == 1:
        kruskal(height, width, stream, tokens)
    elif which == 2:
        wilson(height, width, stream, tokens)
    elif which == 3:
        prim(height, width, stream, tokens)
    else:
        division(height, width, stream, tokens)


@kernel
def open_walls(height, width, count, stream, tokens):
    """Open ``count`` random walls between two cells; there must be as many."""
    walls = _walls_between(height, width, tokens)
    for i in range(count):
        j = i + random_below(stream, walls.size - i)
        walls[i], walls[j] = walls[j], walls[i]
        tokens[walls[i]] = OPEN


@kernel
def flip_cells(height, width, count, stream, tokens):
    """Turn ``count`` cells within the border from wall to open or back; returns which, (S,) bool.

    There must be as many. The posts between four walls count too, and so may become open.
    """
    deep, wide = (height - 1) // 2 * 2 - 1, (width - 1) // 2 * 2 - 1
    flipped, inner = np.zeros(tokens.size, np.bool_), np.arange(deep * wide)
    for i in range(count):
        j = i + random_below(stream, inner.size - i)
        inner[i], inner[j] = inner[j], inner[i]
        cell = (1 + inner[i] // wide) * width + 1 + inner[i] % wide
        tokens[cell] = OPEN if tokens[cell] == WALL else WALL
        flipped[cell] = True
    return flipped
