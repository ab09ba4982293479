"""Pictures of a sweep: history.png, slice.png, parallel.png and importance.png."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from jaxcls.sweep import space as spaces
from jaxcls.sweep.propose import values
from jaxcls.sweep.study import Study

COLOURS = "viridis"
GREY = "#b0b0b0"  # of trials that were given up
ACCENT = "#c8442c"  # of the best
WIDE = 60.0  # a loss this many times the median, which would press all others into a line
CURVES = 400  # drawn at most


def draw(study: Study) -> None:
    """Writes the pictures into the directory of the sweep; none without a trial that has a result.

    Importance needs 4 complete trials that differ.
    """
    trials = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    if not trials:
        return
    pictures = {"history": _history, "slice": _slice, "parallel": _parallel}
    for name, picture in pictures.items():
        _save(picture(study, trials), study.workdir / f"{name}.png")
    if importances := study.importances():
        _save(_importance(study, importances), study.workdir / "importance.png")


def _save(figure: Figure, path: Path) -> None:
    # whole or not at all, as another process may draw it too; without pyplot, which has a state
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _value_axis(study: Study, axes: Axes, found: Sequence[float]) -> None:
    """Labels the axis of the metric; where a few are far out, shows the others."""
    axes.set_ylabel(study.metric)
    if study.direction == "minimize" and max(found) > WIDE * _median(found) > 0:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _median(numbers: Sequence[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]


def _best(study: Study, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    pick = min if study.direction == "minimize" else max
    return pick(trials, key=lambda t: t.value)


def _history(study: Study, trials: Sequence[FrozenTrial]) -> Figure:
    """Returns results in the order of trials with the best so far; curves of all trials beside."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    pick = min if study.direction == "minimize" else max
    so_far, best = [], None
    for trial in trials:
        best = trial.value if best is None else pick(best, trial.value)
        so_far.append(best)
    numbers, found = [t.number for t in trials], [t.value for t in trials]
    left.scatter(numbers, found, s=22, color="#3b6ea5", label="trial", zorder=3)
    left.step(numbers, so_far, where="post", color=ACCENT, label="best so far")
    left.set_xlabel("trial")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=9)
    left.set_title("results", fontsize=11)
    _value_axis(study, left, found)
    others = [t for t in study.trials() if t.state != TrialState.COMPLETE]
    winner = _best(study, trials)
    for trial in [*others, *trials][-CURVES:]:
        there = sorted((k, v) for k, v in trial.intermediate_values.items() if not math.isnan(v))
        if not there:
            continue
        complete = trial.state == TrialState.COMPLETE
        colour = ACCENT if trial is winner else "#3b6ea5" if complete else GREY
        width, alpha = (2.0, 1.0) if trial is winner else (1.0, 0.55)
        x, y = zip(*there)
        right.plot(x, y, color=colour, linewidth=width, alpha=alpha, zorder=3 - (not complete))
        if not complete:
            right.plot(x[-1], y[-1], "x", color=GREY, markersize=5)
    right.set_xlabel("evaluation")
    right.xaxis.get_major_locator().set_params(integer=True)
    given_up = f", {len(others)} given up (grey)" if others else ""
    right.set_title(f"evaluations of every trial{given_up}", fontsize=11)
    _value_axis(study, right, found)
    right.set_ylabel("")
    return figure


def _slice(study: Study, trials: Sequence[FrozenTrial]) -> Figure:
    """Returns the results over each key; the later a trial, the darker."""
    keys = list(study.space)
    columns = min(len(keys), 4)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(max(3.2 * columns, 5), 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    found = [t.value for t in trials]
    shades = [0.25 + 0.75 * t.number / max(1, trials[-1].number) for t in trials]
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    for i, (key, axes) in enumerate(zip(keys, grid.flat)):
        places, ticks, labels = _scale(study.space[key])
        x = [places(values(study.space, t.params)[key]) for t in trials]
        axes.scatter(x, found, c=shades, cmap="Blues", vmin=0, vmax=1, s=24, edgecolor="#24456b",
                     linewidth=0.4, zorder=3)  # fmt: skip
        _ticks(axes, ticks, labels)
        edge = 0.08 * (max(ticks) - min(ticks)) or 0.5
        axes.set_xlim(min(ticks) - edge, max(ticks) + edge)
        axes.set_xlabel(key)
        _value_axis(study, axes, found)
        if i % columns:
            axes.set_ylabel("")
    return figure


def _parallel(study: Study, trials: Sequence[FrozenTrial]) -> Figure:
    """Returns a line for each trial across the keys, which ends at its result."""
    keys = list(study.space)
    figure = Figure(figsize=(max(2.1 * (len(keys) + 1), 6), 4.6), layout="constrained")
    axes = figure.subplots()
    found = [t.value for t in trials]
    low, high = min(found), max(found)
    span = (high - low) or 1.0
    sign = -1 if study.direction == "minimize" else 1
    colours = matplotlib.colormaps[COLOURS]
    scales = [_scale(study.space[key]) for key in keys]
    winner = _best(study, trials)
    for trial in sorted(trials, key=lambda t: sign * t.value):  # the best is drawn last
        its = values(study.space, trial.params)
        heights = [_share(scale, its[key]) for key, scale in zip(keys, scales)]
        share = (trial.value - low) / span
        good = share if sign > 0 else 1 - share
        best = trial is winner
        axes.plot(
            range(len(keys) + 1),
            [*heights, share],
            color=ACCENT if best else colours(0.95 * good),
            linewidth=2.4 if best else 1.1,
            alpha=1.0 if best else 0.35 + 0.5 * good,
            zorder=4 if best else 2,
        )
    for x, (_, ticks, labels) in enumerate(scales):
        axes.axvline(x, color="#606060", linewidth=0.9, zorder=3)
        for place, text in zip(ticks, labels):
            height = _share(scales[x], None, place)
            axes.annotate(text, (x, height), (-5, 0), textcoords="offset points", ha="right",
                          va="center", fontsize=8, color="#303030", zorder=5,
                          bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none",
                                "alpha": 0.75})  # fmt: skip
    axes.axvline(len(keys), color="#606060", linewidth=0.9)
    for share in (0, 0.25, 0.5, 0.75, 1):
        axes.annotate(f"{low + share * span:.4g}", (len(keys), share), (6, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_xticks(range(len(keys) + 1), [*keys, study.metric])
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.35, len(keys) + 0.35)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{len(trials)} trials, the best in red", fontsize=11)
    return figure


def _importance(study: Study, importances: dict[str, float]) -> Figure:
    """Returns bars of the share that each key has in the differences."""
    names = list(importances)[::-1]
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [importances[name] for name in names], color="#3b6ea5", height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axes.set_xlim(0, max(importances.values()) * 1.15)
    axes.set_xlabel(f"share in the variance of {study.metric}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- Scales ----------------------------------------------------------------------------------------


def _scale(dimension: spaces.Dimension) -> tuple[Any, list[float], list[str]]:
    """Returns value -> place on an axis, and the places and names of its ticks."""
    if isinstance(dimension, spaces.Choices):
        labels = [spaces.label(value) for value in dimension.values]
        order = sorted(range(len(labels)), key=lambda i: labels[i]) if dimension.ordered else None
        places = {i: place for place, i in enumerate(order or range(len(labels)))}
        names = [spaces.short_number(dimension.values[i]) for i in (order or range(len(labels)))]
        names = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
        return (
            lambda value: places[labels.index(spaces.label(value))],
            list(range(len(labels))),
            names,
        )
    place = math.log10 if dimension.log else float
    low, high = place(dimension.low), place(dimension.high)
    if dimension.log:
        whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        ticks = sorted({low, *map(float, whole), high})
    else:
        ticks = [low + (high - low) * i / 4 for i in range(5)]
        ticks = sorted({float(round(t)) for t in ticks}) if dimension.step else ticks
    names = [f"{10**t if dimension.log else t:.3g}" for t in ticks]
    return place, ticks, names


def _share(scale: tuple[Any, list[float], list[str]], value: Any, place: Any = None) -> float:
    """Returns where a value is between the lowest and the highest tick, in [0, 1]."""
    places, ticks, _ = scale
    place = places(value) if place is None else place
    low, high = min(ticks), max(ticks)
    return (place - low) / (high - low) if high > low else 0.5


def _ticks(axes: Axes, ticks: Sequence[float], labels: Sequence[str]) -> None:
    long = sum(map(len, labels)) > 26
    axes.set_xticks(ticks, labels, rotation=45 if long else 0, ha="right" if long else "center")
