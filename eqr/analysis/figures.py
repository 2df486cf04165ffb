"""The plots of the book, in one style: colour-blind-safe, with intervals, units and a trace.

Every function draws on the axes it is given; :func:`finish` adds the footer that names the runs a
figure was made from. Colours are never the only cue: lines differ in marker or dash too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from eqr.analysis.bench import Bench
from eqr.experiments import Trained
from eqr.files import write_file
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
        ax.set_title(f"D = {depth}\nresidual {solution.residuals[depth - 1]:.3f}", fontsize=9)
    return fig


def residual_traces(ax: Axes, residuals: np.ndarray, right: np.ndarray | None = None) -> None:
    """Residual of each restart, (D, B), by iteration; ``right`` (B,) splits the colours."""
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
    ax.set(xlabel="outer iteration", ylabel="residual (RMS change of a latent)", yscale="log")


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
