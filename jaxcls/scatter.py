"""Pictures of networks as marks with names: how they look, and names that lie over nothing."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".svg", ".png", ".pdf")
# Of Okabe and Ito 2008, which colour-blind people tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#333333")
MARKERS = "osD^vP*X"
SOFT, LINE = "#5b6470", "#dfe3e8"
FONT = 8.0  # points, of names
DISTANCES = (5, 12, 20, 30, 42, 56, 72)  # points of a name from its mark
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))

STYLE = {"font.size": 9, "text.parse_math": False, "svg.fonttype": "none",
         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT,
         "xtick.color": SOFT, "ytick.color": SOFT, "axes.labelcolor": SOFT}  # fmt: skip
Anchors = dict[str, list[tuple[float, float]]]  # where the marks of a network are
Box = tuple[float, float, float, float]  # left, bottom, right, top


def save(draw: Callable[[], Any], path: Path, salt: str) -> None:
    """Writes the figure that `draw` returns, whole or not at all, the same bytes each time.

    Args:
      draw: is called where `STYLE` holds.
      path: .svg, .png or .pdf.
      salt: of what an .svg calls its parts.
    """
    import matplotlib as mpl

    style = STYLE | {"svg.hashsalt": salt}
    with mpl.rc_context(style), warnings.catch_warnings(action="ignore"):
        temporary = path.with_name(f".{path.name}.tmp")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        draw().savefig(
            temporary, format=path.suffix[1:], dpi=160, metadata=metadata, facecolor="white"
        )
        temporary.replace(path)


def grid(axes: Any, logarithmic: Sequence[str]) -> None:
    """Gives axes their lines and, of those named ("x", "y"), round numbers.

    Their scale is set before anything is drawn.
    """
    from matplotlib import ticker

    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for name in logarithmic:
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(ticker.NullLocator())


def write_names(
    axes: Any,
    anchors: Anchors,
    point: float,
    *,
    others: Sequence[tuple[float, float]] = (),
    directions: Sequence[tuple[float, float]] = DIRECTIONS,
) -> None:
    """Writes the names of networks beside their marks, none over another or a mark.

    Args:
      axes: where the marks are, with their final place and limits.
      anchors: of the names.
      point: pixels of 1/72 inch.
      others: marks without a name.
      directions: where a name may lie, from its mark.
    """
    inside, radius = tuple(axes.get_window_extent().extents), 3.5 * point
    pixels = lambda at: tuple(axes.transData.transform(at))
    back = axes.transData.inverted().transform
    mark = lambda x, y: (x - radius, y - radius, x + radius, y + radius)
    taken: list[Box] = [mark(*pixels(at)) for at in others]
    for its in anchors.values():
        (left, y), (right, _) = pixels(min(its)), pixels(max(its))
        taken.append((left, y - point, right, y + point))
        taken += [mark(*pixels(at)) for at in its]
    for name, its in sorted(anchors.items(), key=lambda item: -item[1][0][1]):
        text = axes.text(0, 0, name, fontsize=FONT, ha="center", va="center", zorder=4,
                         color="#20262e", transform=None)  # fmt: skip
        _, _, *size = text.get_window_extent().bounds
        size = size[0], 1.1 * FONT * point
        best, least = None, np.inf
        for far, way, end in itertools.product(DISTANCES, directions, {max(its), min(its)}):
            if (way == (1, 0) and end != max(its)) or (way == (-1, 0) and end != min(its)):
                continue
            box = _box(pixels(end), way, far * point, size)
            cost = sum(_overlap(box, other) for other in taken) + 10 * _outside(box, inside)
            cost += 0.05 * far * point * FONT * point
            if cost < least:
                best, least = (box, pixels(end), far), cost
        box, at, far = best
        text.set_transform(axes.transData)
        text.set_position(back(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)))
        if far > DISTANCES[1]:  # a line to the nearest edge of the name
            edge = np.clip(at[0], box[0], box[2]), np.clip(at[1], box[1], box[3])
            axes.plot(*back([at, edge]).T, color="#8a94a0", lw=0.6, zorder=2)
        taken.append(box)


def _box(at: Sequence[float], way: Sequence[float], far: float, size: Sequence[float]) -> Box:
    """Returns where a text of this size is when it lies so far from a place, that way."""
    (x, y), (dx, dy), (width, height) = at, way, size
    x, y = x + dx * far, y + dy * far
    left = x - (0 if dx > 0 else width if dx < 0 else width / 2)
    bottom = y - (height / 2 if dy == 0 else 0 if dy > 0 else height)
    return left, bottom, left + width, bottom + height


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, inside: Sequence[float]) -> float:
    """Returns how much of a box is not in the axes, as an area."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, tuple(inside))
