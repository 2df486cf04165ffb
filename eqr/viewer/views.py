"""The explorer's pictures as SVG text (chapter *Explore in Jupyter*): board, residuals, plane.

Text is quicker to make than a matplotlib figure, milliseconds instead of a tenth of a second, and
the same text is the picture of the page, where no kernel answers. Colours are those of the book's
figures and never the only cue: an unsure token is smaller too, one that has just changed has a
corner, and restarts that differ from the selected one are dashed and end in a cross.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from eqr.task import Task
from eqr.tasks.drawing import BLUE, INK, VERMILLION
from eqr.viewer.frames import Frame

AMBER = "#E69F00"
GREY, LIGHT = "#595959", "#d9dde1"
FONT = "system-ui, 'Segoe UI', 'Source Sans 3', Roboto, 'DejaVu Sans', sans-serif"
WIDE, NARROW = (900, 356), (440, 512)  # units of a picture alone, and of one of two side by side


@dataclass(frozen=True, slots=True)
class View:
    """What one model has to show."""

    title: str
    task: Task
    inputs: np.ndarray  # (S,) the problem
    frame: Frame | None  # None: nothing is computed yet
    limit: int  # iterations that the axis of the residuals has room for
    verdict: str = ""  # the rule checker's, which no model sees
    origin: str = ""  # the run or the weights that the model comes from


def svg(content: str, width: float, height: float, label: str) -> str:
    """A picture of its own, as wide as there is room; read aloud as ``label``."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}"'
        f' role="img" aria-label="{escape(label)}" font-family="{FONT}"'
        f' style="max-width:100%;height:auto;background:#fff;border-radius:4px">'
        f"<title>{escape(label)}</title>{content}</svg>"
    )


def text(x: float, y: float, words: str, size: float = 12, **more: str) -> str:
    """Words at a place; ``more`` are attributes, an underscore in a name for a hyphen."""
    values = {"fill": INK} | {k.replace("_", "-"): v for k, v in more.items()}
    attributes = "".join(f' {k}="{v}"' for k, v in values.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}"{attributes}>{escape(words)}</text>'
    )


def line(points: np.ndarray, colour: str, width: float = 1.3, dashed: bool = False) -> str:
    """A line through points (K, 2)."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points.tolist())
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width}"'
        f' stroke-linejoin="round"{dash}/>'
    )


def disc(x: float, y: float, radius: float, colour: str, more: str = "") -> str:
    """A filled circle; ``more`` are attributes."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}"{more}/>'


def tip(x: float, y: float, agrees: bool, selected: bool) -> str:
    """The end of a trajectory: a disc, a cross where its answer differs, a ring if selected."""
    if selected:
        return disc(x, y, 5, "#fff", f' stroke="{INK}" stroke-width="2.2"')
    if agrees:
        return disc(x, y, 2.6, BLUE)
    return (
        f'<path d="M{x - 3.2:.1f} {y - 3.2:.1f}l6.4 6.4m0 -6.4l-6.4 6.4" stroke="{VERMILLION}"'
        ' stroke-width="1.8"/>'
    )


# The board


def board(task: Task, inputs: np.ndarray, frame: Frame | None, size: float) -> str:
    """The selected restart's board, ``size`` units wide; the problem alone where there is none.

    Works for any task whose ``format`` has one character a cell: ``#`` is drawn as a wall, ``o`` as
    a dot on the path, ``.`` as nothing, and the others as themselves.
    """
    cell = size / max(task.height, task.width)
    given = task.format(inputs)
    shown, sure, stays, changed = given, np.ones(len(given)), np.zeros(len(given)), False
    if frame:
        best = frame.selected
        shown = task.format(frame.answer[best])
        sure, stays = frame.confidence[best], frame.unchanged[best]
        changed = frame.depth > 1  # at first there is nothing that a token could differ from
    parts = [
        f'<rect width="{cell * task.width:.1f}" height="{cell * task.height:.1f}" fill="#fff"/>'
    ]
    for place in range(task.seq_len):
        row, column = divmod(place, task.width)
        facts = given[place], shown[place], float(sure[place]), int(stays[place]), changed
        parts.append(
            drawn_cell(column * cell, row * cell, cell, *facts, name=(row + 1, column + 1))
        )
    return "".join(parts) + grid(task, cell)


def drawn_cell(
    x: float,
    y: float,
    cell: float,
    given: str,
    shown: str,
    sure: float,
    stays: int,
    changed: bool,
    name: tuple[int, int],
) -> str:
    """One cell: its tint, its token, a corner if the token has just changed, its facts as a tip."""
    words = f"row {name[0]}, column {name[1]}: "
    if given not in ".#":
        words, shown, sure, changed = f"{words}{given}, given", given, 1.0, False
    else:
        words += f"{shown}, probability {sure:.2f}, unchanged for {stays}"
    box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
    inside = []
    if given == "#":
        inside.append(f'{box} fill="#444c54"/>')
    tint = 0.55 * (1 - sure)
    inside.append(f'{box} fill="{AMBER}" fill-opacity="{tint:.2f}"/>')
    middle, size = (x + cell / 2, y + cell / 2), cell * (0.34 + 0.24 * sure)
    if shown == "o":
        inside.append(disc(*middle, size / 2.4, BLUE))
    elif shown not in ".#":
        fixed = given not in ".#"
        inside.append(
            text(middle[0], middle[1] + 0.36 * size, shown, size, text_anchor="middle",
                 fill=INK if fixed else BLUE, font_weight="700" if fixed else "400")
        )  # fmt: skip
    elif shown == "#" and given != "#":  # a wall that the model sees where there is none
        inside.append(f'<rect x="{x + cell / 4:.1f}" y="{y + cell / 4:.1f}" width="{cell / 2:.1f}"'
                      f' height="{cell / 2:.1f}" fill="{VERMILLION}"/>')  # fmt: skip
    if changed and stays == 0:
        edge = cell * 0.26
        inside.append(
            f'<path d="M{x + cell - edge:.1f} {y:.1f}h{edge:.1f}v{edge:.1f}z" fill="{VERMILLION}"/>'
        )
    return f"<g><title>{escape(words)}</title>{''.join(inside)}</g>"


def grid(task: Task, cell: float) -> str:
    """The lines between cells; heavier ones around the boxes of a Sudoku."""
    width, height = cell * task.width, cell * task.height
    boxes = getattr(task, "box_width", task.width), getattr(task, "box_height", task.height)
    parts = []
    for steps, box, upright in ((task.width, boxes[0], True), (task.height, boxes[1], False)):
        for k in range(steps + 1):
            at, heavy = k * cell, k % box == 0
            ends = f"M{at:.1f} 0V{height:.1f}" if upright else f"M0 {at:.1f}H{width:.1f}"
            stroke = f'stroke="{INK}" stroke-width="1.8"' if heavy else f'stroke="{LIGHT}"'
            parts.append((heavy, f'<path d="{ends}" {stroke} stroke-linecap="square"/>'))
    return "".join(part for _, part in sorted(parts))  # the heavy ones on top


# The plots


def frame_of(x: float, y: float, width: float, height: float) -> str:
    """Two axes, left and bottom."""
    return (
        f'<path d="M{x:.1f} {y:.1f}V{y + height:.1f}H{x + width:.1f}" fill="none" stroke="{GREY}"'
        ' stroke-width="0.8"/>'
    )


def order(frame: Frame) -> list[int]:
    """Restarts from the least to the most important to see: the selected one is drawn last."""
    return sorted(range(len(frame.agree)), key=lambda b: (b == frame.selected, not frame.agree[b]))


def stroke(frame: Frame, b: int, points: np.ndarray) -> str:
    """One restart's line and tip; ``points`` (K, 2) in units of the picture."""
    chosen, agrees = b == frame.selected, bool(frame.agree[b])
    colour = INK if chosen else BLUE if agrees else VERMILLION
    width = 2.2 if chosen else 1.1
    return line(points, colour, width, not agrees) + tip(*points[-1], agrees, chosen)


def traces(frame: Frame | None, limit: int, width: float, height: float) -> str:
    """Residual of every restart against the iteration, on a logarithmic axis."""
    left, top, right, bottom = 42, 22, width - 10, height - 34
    parts = [text(0, 10, "residual of every restart", 12, font_weight="600")]
    parts.append(frame_of(left, top, right - left, bottom - top))
    parts.append(
        text((left + right) / 2, height - 4, "iteration", 11, fill=GREY, text_anchor="middle")
    )
    ticks = sorted({1, max(1, limit // 2), limit})
    across = lambda k: left + 6 + (right - left - 12) * (k - 1) / max(1, limit - 1)  # noqa: E731
    for k in ticks:
        parts.append(text(across(k), bottom + 14, str(k), 11, fill=GREY, text_anchor="middle"))
    if frame is None:
        return "".join(parts)
    gaps = np.log10(np.maximum(frame.residuals, 1e-8))
    low, high = math.floor(gaps.min()), max(math.ceil(gaps.max()), math.floor(gaps.min()) + 1)
    scale = (bottom - top - 6) / (high - low)
    for power in range(low, high + 1, max(1, (high - low + 3) // 4)):
        y = bottom - (power - low) * scale
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{LIGHT}" stroke-width="0.8"/>')
        name = f"{10.0**power:g}" if power > -4 else f"1e{power}"
        parts.append(text(left - 5, y + 4, name, 11, fill=GREY, text_anchor="end"))
    x = np.array([across(k) for k in range(1, len(gaps) + 1)])
    for b in order(frame):
        parts.append(stroke(frame, b, np.stack((x, bottom - (gaps[:, b] - low) * scale), 1)))
    return "".join(parts)


def plane(frame: Frame | None, width: float, height: float) -> str:
    """The way of every restart's state through the plane of their principal axes."""
    left, top, right, bottom = 8, 22, width - 8, height - 34
    parts = [text(0, 10, "states, in their principal plane", 12, font_weight="600")]
    parts.append(
        f'<rect x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        f' fill="none" stroke="{LIGHT}"/>'
    )
    if frame is None:
        return "".join(parts)
    words = f"{frame.explained:.0%} of the variance; start: small dot"
    parts.append(text((left + right) / 2, height - 18, words, 11, fill=GREY, text_anchor="middle"))
    lows, highs = frame.plane.min((0, 1)), frame.plane.max((0, 1))
    room = np.array([right - left - 24, bottom - top - 24])
    scale = float((room / np.maximum(highs - lows, 1e-9)).min())  # one for both axes: no distortion
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    spots = centre + (frame.plane - (lows + highs) / 2) * scale * np.array([1, -1])
    for b in order(frame):
        x, y = spots[0, b]
        parts.append(disc(x, y, 1.8, GREY))
        parts.append(stroke(frame, b, spots[:, b]))
    return "".join(parts)


def legend(frame: Frame, x: float, y: float) -> str:
    """The three kinds of line, with their numbers, from left to right."""
    other = int((~frame.agree).sum())
    kinds = [(INK, 2.2, False, True, True, "selected"),
             (BLUE, 1.1, False, True, False, f"same answer ({len(frame.agree) - 1 - other})"),
             (VERMILLION, 1.1, True, False, False, f"another ({other})")]  # fmt: skip
    parts = []
    for colour, width, dashed, agrees, chosen, words in kinds:
        parts.append(line(np.array([[x, y], [x + 22, y]]), colour, width, dashed))
        parts.append(tip(x + 22, y, agrees, chosen) + text(x + 32, y + 4, words, 11, fill=GREY))
        x += 44 + 5.9 * len(words)
    return "".join(parts)


# Whole pictures


def facts(frame: Frame | None, limit: int) -> list[str]:
    """What the picture shows, in words."""
    if frame is None:
        return [f"iteration 0 of {limit}"]
    best, count = frame.selected, len(frame.agree)
    unsure = int((frame.confidence[best] < 0.9).sum())
    return [
        f"iteration {frame.depth} of {limit}",
        f"residual {frame.residuals[-1, best]:.2g}",
        f"cells below probability 0.9: {unsure}",
        f"{int(frame.agree.sum())} of {count} restarts agree",
    ]


def describe(view: View) -> str:
    """A picture in words, for those who do not see it: the facts, then the board row by row."""
    task, frame, inputs = view.task, view.frame, np.asarray(view.inputs)
    shown = task.format(inputs)
    if frame:
        answer = task.format(frame.answer[frame.selected])
        shown = "".join(a if g == "." else g for g, a in zip(shown, answer, strict=True))
    rows = [shown[k : k + task.width] for k in range(0, len(shown), task.width)]
    which = f"; restart {frame.selected + 1} selected" if frame else ""
    words = [f"{view.title}: {'; '.join(facts(frame, view.limit))}{which}"]
    words += [f"by the rules: {view.verdict}"] if view.verdict else []
    return f"{'; '.join(words)}; board {' / '.join(rows)}"


def picture(view: View, wide: bool) -> tuple[str, tuple[int, int]]:
    """Board, residuals and plane of one model, and the size in units; ``wide`` in one row."""
    frame, limit = view.frame, view.limit
    told, drawn = facts(frame, limit), (view.task, view.inputs, frame)
    parts = [text(12, 24, view.title, 15, font_weight="650")]
    verdict = f"by the rules: {view.verdict}" if view.verdict else ""
    if wide:
        (width, height), at = WIDE, (322, 344)
        parts.append(text(width - 12, 24, " · ".join(told), 12, text_anchor="end", fill=GREY))
        parts.append(text(width - 12, 348, verdict, 11, text_anchor="end", fill=GREY))
        parts.append(text(14, 346, view.origin, 10, fill=GREY))
        places = [(board(*drawn, 280), 14, 46), (traces(frame, limit, 270, 280), 322, 46)]
        places.append((plane(frame, 276, 280), 614, 46))
    else:
        (width, height), at = NARROW, (18, 500)
        places = [(board(*drawn, 218), 14, 40), (traces(frame, limit, 206, 210), 8, 278)]
        places.append((plane(frame, 212, 210), 222, 278))
        parts.append(text(width - 8, 24, view.origin, 10, text_anchor="end", fill=GREY))
        told = [*told, "", *verdict.replace(": ", ":\n").replace("; ", "\n").splitlines()]
        parts += [text(248, 60 + 20 * k, words, 12, fill=GREY) for k, words in enumerate(told)]
    parts += [f'<g transform="translate({x} {y})">{part}</g>' for part, x, y in places]
    if frame:
        parts.append(legend(frame, *at))
    return "".join(parts), (width, height)


def pictures(views: Sequence[View]) -> str:
    """One SVG with one model, or with several side by side."""
    parts, x, height = [], 0, 0
    for view in views:
        part, size = picture(view, wide=len(views) == 1)
        parts.append(f'<g transform="translate({x} 0)">{part}</g>')
        x, height = x + size[0] + 20, size[1]
    return svg("".join(parts), x - 20, height, ". ".join(map(describe, views)))
