"""The plots of the book, in one style: colour-blind-safe, with intervals, units and a trace.

Every function draws on the axes it is given; :func:`finish` adds the footer that names the runs a
figure was made from. Colours are never the only cue: lines differ in marker or dash too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from eqr.analysis.bench import Bench
from eqr.config import Recipe
from eqr.experiments import Trained
from eqr.files import write_file
from eqr.layers import swiglu_width
from eqr.solve import Solution
from eqr.store import Result, Run, commit
from eqr.studies.results import Pick, Results
from eqr.task import Task

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
PALETTE = "colorblind"


def set_style() -> None:
    """Apply the book's style to all figures of this process."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.titlesize": "medium",
            "legend.frameon": False,
        }
    )


def finish(
    fig: Figure,
    runs: Sequence[Run | Trained | Result | Results | Bench],
    *,
    profile: str,
    n: int | str | None = None,
    noise: float | None = None,
    seed: int | None = None,
    data: str | None = None,
) -> Figure:
    """Write the trace below a figure: profile, β, n, seed, runs, commit and data; returns it."""
    studies = [run.id for run in runs if isinstance(run, Results)]
    runs = [run for run in runs if not isinstance(run, Results)]
    stored = [run if isinstance(run, Run) else run.run for run in runs]
    used = dict.fromkeys(run.manifest["config"].get("data", "") for run in stored)
    data = data or " ".join(filter(None, used)) or None
    facts = {"profile": profile, "β": noise, "n": n, "seed": seed, "data": data}
    parts = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in facts.items()
        if v is not None
    ]
    parts += [f"commit {commit()}"]
    lines = [" · ".join(parts)]
    ids = [*(run.id for run in stored), *studies]
    lines += [" · ".join(ids[i : i + 3]) for i in range(0, len(ids), 3)]
    size = 0.8 * fig.get_figwidth()  # about 8 points once scaled to the width of a page
    fig.supxlabel("\n".join(lines), fontsize=size, color="0.4", x=0.01, ha="left")
    return fig


def log2_axis(ax: Axes, values: Sequence[int]) -> None:
    """A base-2 logarithmic x axis with a tick at each of ``values``."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")


def accuracy_curve(
    ax: Axes, table: pd.DataFrame, x: str, label: str, index: int = 0, dashed: bool = False
) -> None:
    """Exact accuracy against column ``x`` of a tidy table, with its 95 % band."""
    table = table.sort_values(x)
    color = sns.color_palette(PALETTE)[index % 10]
    ax.plot(
        table[x],
        table.exact,
        marker=MARKERS[index % len(MARKERS)],
        linestyle="--" if dashed else "-",
        color=color,
        label=label,
    )
    ax.fill_between(table[x], table.low, table.high, color=color, alpha=0.15, linewidth=0)
    ax.set(ylabel="exact accuracy", ylim=(-0.02, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def boards(task: Task, solution: Solution, depths: Sequence[int], label=None) -> Figure:
    """The decoded board after each of ``depths`` outer iterations; unsettled cells are tinted.

    A cell's tint is one minus the probability the model gives its token.
    """
    fig, axes = plt.subplots(1, len(depths), figsize=(2.3 * len(depths), 2.9))
    for ax, depth in zip(np.atleast_1d(axes), depths, strict=True):
        task.draw(
            ax,
            solution.inputs,
            answer=solution.answers[depth - 1],
            label=label,
            settled=solution.confidence[depth - 1],
        )
        ax.set_title(f"D = {depth}\nrms {solution.residuals[depth - 1]:.3f}", fontsize=9)
    return fig


def residual_traces(ax: Axes, residuals: np.ndarray, right: np.ndarray | None = None) -> None:
    """Rms of each restart, (D, B), by iteration; ``right`` (B,) splits the colours."""
    right = np.ones(residuals.shape[1], bool) if right is None else right
    colors = sns.color_palette(PALETTE)
    names = {True: "ends in the right answer", False: "ends in a wrong answer"}
    for ok in (True, False):
        for trace in residuals[:, right == ok].T:
            ax.plot(
                np.arange(1, len(trace) + 1),
                trace,
                color=colors[0 if ok else 3],
                linestyle="-" if ok else "--",
                alpha=0.7,
                linewidth=1.2,
                label=names[ok],
            )
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(handles.values(), handles.keys(), fontsize="small")
    ax.set(xlabel="outer iteration", ylabel="rms change of the latents", yscale="log")


def latent_paths(ax: Axes, plane: np.ndarray, right: np.ndarray) -> None:
    """Paths of restarts in a plane, (D, B, 2), with a dot at the end of each; ``right`` (B,)."""
    colors = sns.color_palette(PALETTE)
    for path, ok in zip(plane.transpose(1, 0, 2), right, strict=True):
        style = {"color": colors[0 if ok else 3], "linestyle": "-" if ok else "--"}
        ax.plot(*path.T, alpha=0.6, linewidth=1.2, **style)
        ax.plot(*path[-1], "o" if ok else "s", color=style["color"], markersize=7, mec="white")
    ax.set(xlabel="first main axis (thousandths)", ylabel="second main axis", aspect="equal")


def answer_colours(answer: np.ndarray, right: np.ndarray) -> np.ndarray:
    """An RGB colour (n, 3) for each of the answers (n,): blue where right, wrong ones brown and the
    darker the more frequent."""
    wrong, counts = np.unique(answer[~right], return_counts=True)
    rank = {number: k for k, number in enumerate(wrong[np.argsort(-counts, kind="stable")])}
    blue, browns = sns.color_palette(PALETTE)[0], sns.color_palette("YlOrBr", 8)[::-1]
    pairs = zip(answer, right, strict=True)
    return np.array([blue if ok else browns[min(rank[one], 7)] for one, ok in pairs])


def study_dots(ax: Axes, study: Results, rows: Sequence[str]) -> None:
    """Accuracy of rows of a study, one line a row: seeds, mean with t interval, paper's value."""
    for place, name in enumerate(rows):
        row = study.study.row(name)
        pick = Pick(name, row.depth)
        values = [study.outcomes(pick, seed).mean() for seed in study.seeds(name)]
        ax.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markersize=5)
        accuracy = study.accuracy(pick)
        half = np.nan_to_num(accuracy.high - accuracy.mean)
        ax.errorbar(accuracy.mean, place, xerr=half, fmt="k|", markersize=12, capsize=3)
        for figure in row.paper[:1]:
            ax.plot(figure.value / 100, place, "D", color="C1", markerfacecolor="none")
    ax.set_yticks(range(len(rows)), [study.study.row(name).title for name in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="exact accuracy", xlim=(-0.02, 1.02))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_accuracy(table: pd.DataFrame, path: Path) -> None:
    """Accuracy against depth, a line for each breadth and selection, as a picture."""
    set_style()
    fig, ax = plt.subplots()
    for index, ((breadth, select), part) in enumerate(table.groupby(["breadth", "select"])):
        accuracy_curve(ax, part, "depth", f"B = {breadth}, {select}", index)
    log2_axis(ax, sorted(table.depth.unique()))
    ax.set(xlabel="depth: outer iterations")
    ax.legend()
    picture = io.BytesIO()
    fig.savefig(picture, format=path.suffix[1:] or "png")
    write_file(path, picture.getvalue())


# --- The architecture, as a drawing ---------------------------------------------------------------

WARM = "var(--eqr-warm, #b4511d)"


def _text(x: float, y: float, line: str, color: str = "currentColor", size: int = 14) -> str:
    """A centred line; ``_L`` in it is a subscript."""
    low = '<tspan dy="4" font-size="11">\\1</tspan><tspan dy="-4">\u200b</tspan>'
    line = re.sub(r"_(\w)", low, escape(line))
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" stroke="none">{line}</text>'


def _box(y: float, *lines: str, x: float = 40, width: float = 220, dash: str = "") -> str:
    """A box from ``y`` on, as high as its lines want."""
    words = "".join(_text(x + width / 2, y + 19 + 18 * k, line) for k, line in enumerate(lines))
    size = f'width="{width}" height="{11 + 18 * len(lines)}"'
    return f'<rect x="{x}" y="{y}" {size} rx="5" stroke-dasharray="{dash}"/>{words}'


def _arrow(path: str, color: str = "currentColor") -> str:
    return f'<path d="{path}" stroke="{color}" marker-end="url(#eqr-tip)"/>'


def _panel(title: str, parts: Sequence[str], height: int = 400) -> str:
    return (
        f'<svg viewBox="0 0 300 {height}" role="img" aria-label="{escape(title)}" fill="none" '
        'stroke="currentColor" stroke-width="1.3" text-anchor="middle" '
        'style="flex: 1 1 14.5rem; max-width: 22rem">'
        '<defs><marker id="eqr-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8Z" fill="currentColor" '
        'stroke="none"/></marker></defs>'
        f'<g font-weight="600">{_text(150, 16, title, size=15)}</g>{"".join(parts)}</svg>'
    )


def architecture(recipe: Recipe) -> Any:
    """The machine of a recipe in three panels: the update, an outer iteration, and what is around.

    Inline SVG in the colours of the page, light or dark; the panels stand below each other where a
    screen is narrow.
    """
    from IPython.display import HTML

    config, train, tokens = recipe.model, recipe.train, recipe.task.seq_len + recipe.model.prefix
    mixer = ("token mixer: SwiGLU", f"over {tokens} cells, width {swiglu_width(tokens, config)}")
    if config.mixer == "attention":
        turned = {"none": "no positions", "1d": "RoPE", "2d": "RoPE in 2-D"}
        mixer = ("token mixer: attention", f"{config.heads} heads, {turned[config.rope]}")
    channels = f"over {config.hidden} channels, width {swiglu_width(config.hidden, config)}"
    blend = ["λ z + (1 − λ) h + β ε", f"λ = {config.damping:g}, β = {config.noise:g}"]
    if not (config.damping or config.noise):
        blend = ["h: no damping, no noise"]
    skip = '<path d="M150 79H24V{0}H38" marker-end="url(#eqr-tip)"/>'
    update = [
        _box(34, "h = z + u"),
        '<rect x="12" y="70" width="276" height="243" rx="8" stroke-dasharray="4 4"/>',
        _text(252, 87, f"{config.blocks} block{'s' * (config.blocks > 1)}", WARM, 13),
        *(_arrow(f"M150 {a}V{b}") for a, b in ((63, 96), (145, 163), (193, 218), (267, 281))),
        _box(98, *mixer), skip.format(179), _box(165, "+, then RMSNorm"),
        _box(220, "SwiGLU", channels), '<path d="M150 204H24V297H38" marker-end="url(#eqr-tip)"/>',
        _box(283, "+, then RMSNorm"), _arrow("M150 312V338"), _box(340, *blend),
    ]  # fmt: skip
    inner = [f"{config.low_cycles} times", "z_L ← F(z_L, z_H + e)"]
    if not config.hierarchical:
        inner = [f"{config.low_cycles} times", "z ← F(z, e)"]
    cycles = f"{config.high_cycles} cycle{'s' * (config.high_cycles > 1)}"
    state = "z_H" if config.hierarchical else "z"
    count = config.grad_cycles
    gradient = f"gradient: last {f'{count} cycles' if count > 1 else 'cycle'} only"
    iteration = [
        _box(34, "e = √d · embedding of x"), _arrow("M150 63V106"),
        '<rect x="12" y="78" width="276" height="150" rx="8" stroke-dasharray="4 4"/>',
        _text(252, 95, cycles, WARM, 13), _box(108, *inner),
        *([_arrow("M150 155V178"), _box(180, "z_H ← F(z_H, z_L)")] if config.hierarchical else []),
        '<path d="M260 195H278V131H264" marker-end="url(#eqr-tip)"/>',
        _text(150, 246, gradient, WARM, 13),
        _arrow("M150 252V280"), _arrow("M150 264H52V280"), _arrow("M150 264H248V280"),
        _box(282, "answer", f"W {state}", x=104, width=92),
        _box(282, "residual", "z − f(z)", x=4, width=92),
        _box(282, "halt?", f"w {state}, cell 1", x=204, width=92),
        _text(150, 366, f"{config.layers} layers an iteration"),
    ]  # fmt: skip
    stop = f"a row leaves when halt? > 0, or after {train.halt_max}"
    if train.halting != "learned":
        stop = f"a row leaves after {train.halt_max} iterations"
    around = [
        _text(52, 42, "training", WARM), _box(54, "f", x=8, width=40),
        _box(54, "loss", x=82, width=60), _box(54, "step", x=176, width=56),
        _arrow("M48 68H80"), _arrow("M142 68H174"),
        '<path d="M204 83V104H28V86" marker-end="url(#eqr-tip)"/>',
        _text(116, 120, "state detached: the next iteration", size=13),
        _text(150, 142, stop, size=13),
        '<path d="M8 160H292" stroke-dasharray="2 4"/>', _text(36, 184, "test", WARM),
        _text(168, 184, "breadth B: other starts →", size=13),
        *(f'<circle cx="{70 + 50 * b}" cy="{206 + 38 * d}" r="6"/>'
          for b in range(5) for d in range(4)),
        *(_arrow(f"M{70 + 50 * b} {212 + 38 * d}V{237 + 38 * d}")
          for b in range(5) for d in range(3)),
        '<g transform="rotate(-90 30 262)">', _text(30, 266, "← depth D", size=13), "</g>",
        *(f'<path d="M{70 + 50 * b} 326L170 346" opacity="0.5"/>' for b in range(5)),
        _box(348, "select: the smallest residual", x=50, width=240),
    ]  # fmt: skip
    panels = [
        _panel("The update F(z, u)", update),
        _panel("One outer iteration f (1 NFE)", iteration),
        _panel("Around it", around),
    ]
    style = "display: flex; flex-wrap: wrap; gap: 1rem; justify-content: center"
    return HTML(f'<div class="eqr-drawing" style="{style}">{"".join(panels)}</div>')
