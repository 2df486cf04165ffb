"""The plots of the book, in one style: colour-blind-safe, with intervals, units and a trace.

Every function draws on the axes it is given; :func:`finish` adds the footer that names the runs a
figure was made from. Colours are never the only cue: lines differ in marker or dash too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from eqr.analysis.bench import Benched, Growth
from eqr.experiments import Evaluated, HaltingRun, Measured, Trained
from eqr.solve import Solution
from eqr.store import Run, commit
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
    runs: Sequence[Run | Trained | Evaluated | Measured | HaltingRun | Results | Benched],
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
    found = [run if isinstance(run, Run) else run.run for run in runs]
    used = dict.fromkeys(run.manifest["config"].get("data", "") for run in found)
    data = data or " ".join(filter(None, used)) or None
    facts = {"profile": profile, "β": noise, "n": n, "seed": seed, "data": data}
    parts = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in facts.items()
        if v is not None
    ]
    parts += [f"commit {commit()}"]
    lines = [" · ".join(parts)]
    ids = [*(run.id for run in found), *studies]
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


def training_curves(axes: Sequence[Axes], model: Trained, index: int = 0) -> None:
    """Token loss, held-out accuracy at the training depth, and ACT steps, against the step.

    Accuracy carries its Wilson interval; losses and ACT steps are means over training batches.
    """
    from eqr.stats import wilson

    log, held = model.log("log"), model.log("eval")
    name, color = model.recipe.name, sns.color_palette(PALETTE)[index % 10]
    line = {
        "color": color,
        "label": name,
        "linestyle": DASHES[index % len(DASHES)],
    }
    axes[0].plot(log.step, log.token_loss, **line)
    depth = model.recipe.train.eval_depth
    exact = held[f"exact_{depth}"]
    axes[1].plot(held.step, exact, marker=MARKERS[index % len(MARKERS)], markersize=4, **line)
    bounds = [wilson(e * n, int(n)) for e, n in zip(exact, held.problems, strict=True)]
    axes[1].fill_between(held.step, *zip(*bounds, strict=True), color=color, alpha=0.15, lw=0)
    axes[2].plot(log.step, log.halt_steps.astype(float), **line)
    axes[0].set(xlabel="optimizer step", ylabel="token cross-entropy (nats)", yscale="log")
    axes[1].set(xlabel="optimizer step", ylabel="held-out exact accuracy", ylim=(-0.02, 1.02))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[2].set(xlabel="optimizer step", ylabel="iterations until a sample halts")


def residual_accuracy(ax: Axes, table: pd.DataFrame, label: str, index: int = 0) -> None:
    """Mean residual against exact accuracy, one point a depth (the paper's Fig. 1)."""
    table = table.sort_values("depth")
    color = sns.color_palette(PALETTE)[index % 10]
    errors = np.clip([table.exact - table.low, table.high - table.exact], 0, None)
    ax.errorbar(
        table.residual,
        table.exact,
        yerr=errors,
        marker=MARKERS[index % len(MARKERS)],
        linestyle=":",
        color=color,
        label=label,
        capsize=2,
    )
    # The later points lie too close together to be named.
    for _, row in table[table.depth <= 16].iterrows():
        ax.annotate(
            f"D={row.depth:g}", (row.residual, row.exact), xytext=(4, -9),
            textcoords="offset points", fontsize=7, color="0.3",
        )  # fmt: skip
    ax.set(xlabel="mean residual (last 3 iterations)", ylabel="exact accuracy", xscale="log")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def answer_colours(answer: np.ndarray, right: np.ndarray) -> list:
    """A colour for each of (n,) answers: blue where ``right``, else darker the more frequent."""
    wrong, counts = np.unique(answer[~right], return_counts=True)
    order = wrong[np.argsort(-counts, kind="stable")].tolist()
    others = sns.color_palette("YlOrBr", 8)[::-1]
    return [
        sns.color_palette(PALETTE)[0] if ok else others[min(order.index(number), 7)]
        for number, ok in zip(answer.tolist(), right.tolist(), strict=True)
    ]


def basin_map(ax: Axes, found: Mapping[str, np.ndarray]) -> None:
    """The answers of a latent slice as a map; ``found`` holds the fields of a ``Slice``."""
    answer, exact = found["answer"], found["exact"]
    colours = answer_colours(answer.ravel(), exact.ravel())
    u, v = found["u"], found["v"]
    image = np.array(colours).reshape(*answer.shape, 3)
    extent = (u[0], u[-1], v[0], v[-1])
    ax.imshow(image, origin="lower", extent=extent, interpolation="nearest", aspect="equal")
    ax.grid(False)
    ax.set(xlabel="along start 2 − start 1", ylabel="along start 3 − start 1")


def final_from(answers: np.ndarray) -> np.ndarray:
    """The iteration, from 1, from which on each token of (D, S) answers stays as it ends, (S,).

    >>> final_from(np.array([[1, 5], [2, 5], [2, 5]]))
    array([2, 1])
    """
    differs = answers != answers[-1]
    last = len(answers) - np.argmax(differs[::-1], axis=0)
    return np.where(differs.any(0), last + 1, 1)


def study_dots(ax: Axes, study: Results, rows: Sequence[str]) -> None:
    """Accuracy of rows of a study, one line a row: seeds, mean with t interval, paper's value."""
    for place, name in enumerate(rows):
        row = study.study.row(name)
        pick = Pick(name, row.depth)
        values = [study.outcomes(pick, seed).mean() for seed in study.seeds(name)]
        ax.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markersize=5)
        found = study.accuracy(pick)
        half = np.nan_to_num(found.high - found.mean)
        ax.errorbar(found.mean, place, xerr=half, fmt="k|", markersize=12, capsize=3)
        for figure in row.paper[:1]:
            ax.plot(figure.value / 100, place, "D", color="C1", markerfacecolor="none")
    ax.set_yticks(range(len(rows)), [study.study.row(name).title for name in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="exact accuracy", xlim=(-0.02, 1.02))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def heat_map(ax: Axes, grid: pd.DataFrame, lowest: float = 0.0) -> None:
    """Accuracy over depth (columns) and breadth (rows), with lines of equal NFE = D · B.

    Below and left of a line the NFE is at most what it says.

    Args:
        grid: accuracies in [0, 1]; index and columns are powers of two.
        lowest: where the colours begin.
    """
    grid = grid.sort_index()
    depths, breadths = np.log2(grid.columns.to_numpy(float)), np.log2(grid.index.to_numpy(float))
    edges = (depths[0] - 0.5, depths[-1] + 0.5, breadths[0] - 0.5, breadths[-1] + 0.5)
    shown = {"cmap": "cividis", "vmin": lowest, "vmax": 1, "origin": "lower", "aspect": "auto"}
    ax.imshow(grid, extent=edges, **shown)
    for b, row in zip(breadths, grid.to_numpy(), strict=True):
        for d, value in zip(depths, row, strict=True):
            colour = "black" if value > (1 + lowest) / 2 else "white"
            ax.text(d, b, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    for cost in range(int(breadths[-1]), int(depths[-1] + breadths[-1]), 2):
        ax.axline((cost + 0.5, 0), slope=-1, color="white", linestyle=":", linewidth=1)
        ax.annotate(f"≤ {2**cost}", (cost + 0.5 - edges[3], edges[3]), xytext=(0, 2), fontsize=7,
                    textcoords="offset points", color="0.3", ha="center")  # fmt: skip
    ax.grid(False)
    ax.set_xticks(depths, grid.columns)
    ax.set_yticks(breadths, grid.index)
    ax.set(xlim=edges[:2], ylim=edges[2:], xlabel="depth D", ylabel="breadth B")


def growth(ax: Axes, found: Growth, index: int = 0) -> None:
    """Time against one quantity on logarithmic axes, with the fitted line and its exponent."""
    values, times = np.array(found.values, float), np.array(found.milliseconds)
    colour = sns.color_palette(PALETTE)[index % 10]
    ax.plot(values, times, MARKERS[index % len(MARKERS)], color=colour, label="measured")
    for slope, style, name in ((found.exponent, "-", "fitted"), (found.theory, ":", "operations")):
        middle = np.exp(np.log(times / values**slope).mean())
        label = f"{name}: exponent {slope:.2f}"
        if name == "fitted":
            label += f" [{found.low:.2f}, {found.high:.2f}]"
        ax.plot(values, middle * values**slope, style, color=colour if style == "-" else "0.4",
                label=label)  # fmt: skip
    ax.set(yscale="log", xlabel=found.quantity, ylabel="milliseconds")
    log2_axis(ax, found.values)
    ax.legend(fontsize="x-small")


#: How the lines of :func:`level_curve` are told apart: place in the palette and name.
LEVEL_LINES = {
    "base": (2, "base (16, 1)"),
    "deep": (0, "depth (128, 1)"),
    "wide": (1, "breadth (16, 8)"),
    "depth": (0, "depth"),
    "breadth": (1, "breadth"),
    "coverage": (4, "coverage, pass@8"),
    "selector": (3, "selector efficiency"),
    "signal": (5, "AUROC of the residual"),
}


def level_curve(
    ax: Axes,
    found: pd.DataFrame,
    measures: Sequence[str],
    ylim: tuple[float, float] = (-0.05, 1.05),
) -> None:
    """Measures of :func:`eqr.studies.verdicts.curve` against its levels, with their intervals."""
    places = np.arange(len(found))
    for offset, name in enumerate(measures):
        index, label = LEVEL_LINES[name]
        low, high = found[name] - found[f"{name}_low"], found[f"{name}_high"] - found[name]
        ax.errorbar(
            places + 0.08 * (offset - (len(measures) - 1) / 2),
            found[name],
            [np.nan_to_num(low), np.nan_to_num(high)],
            color=f"C{index}",
            marker=MARKERS[index],
            linestyle=DASHES[index % len(DASHES)],
            markersize=5,
            capsize=2,
            label=label,
        )
    ax.set_xticks(places, found.title, fontsize=7)
    ax.set(xlim=(-0.4, len(found) - 0.6), ylim=ylim)


def level_panels(
    curves: Mapping[str, pd.DataFrame],
    measures: Sequence[str],
    ylabel: str,
    ylim: tuple[float, float] = (-0.05, 1.05),
) -> tuple[Figure, list[Axes]]:
    """A :func:`level_curve` for each of up to 15 families, by name; the figure and their axes."""
    fig, axes = plt.subplots(3, 5, figsize=(12, 8), sharey=True)
    used = list(axes.flat)[: len(curves)]
    for ax, (name, found) in zip(used, curves.items(), strict=True):
        level_curve(ax, found, measures, ylim)
        ax.set_title(name, fontsize=9)
    for ax in axes.flat[len(curves) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    fig.legend(*used[0].get_legend_handles_labels(), loc="lower right", fontsize="small")
    return fig, used
