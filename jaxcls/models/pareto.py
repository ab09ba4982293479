"""The picture of `python -m jaxcls.models --plot`: published accuracy over multiply-adds."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls import scatter

ATTENTION = {  # families whose networks have it, some beside convolutions
    *("vision_transformer", "swin_transformer", "swin_transformer_v2", "twins", "tnt", "levit"),
    *("pvt_v2", "cswin_transformer", "cvt", "foundation_vit", "mobilevit", "nextvit", "uniformer"),
}
KINDS = ("convolutions alone", "with attention")
STEP = 0.3  # percent: where the best is better by less, it has no name in the picture
UP = ((-1, 0), (-0.8, 0.8), (-0.4, 0.9), (0, 1))  # where few marks are
Rows = Sequence[Mapping[str, Any]]  # of the table of models


def best(rows: Rows) -> list[Mapping[str, Any]]:
    """Returns the rows that no other is as cheap and as accurate as, the cheapest first."""
    found: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["macs"], -row["top1"])):
        if not found or row["top1"] > found[-1]["top1"]:
            found.append(row)
    return found


def draw(rows: Rows, path: Path) -> int:
    """Writes the picture; returns how many networks are in it.

    Args:
      rows: of the table of models; those without an accuracy are left out.
      path: .svg, .png or .pdf.

    Raises:
      ValueError: none has an accuracy.
    """
    rows = [row for row in rows if row["top1"] is not None]
    if not rows:
        raise ValueError("no accuracy was published of any of these: choose other models")
    scatter.save(lambda: figure(rows), path, "models")
    return len(rows)


def figure(rows: Rows) -> Any:
    """Returns the figure: a mark for each row, and the names of the `best` but for small steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    front = best(rows)
    place = lambda row: (row["macs"] / 1e9, row["top1"])
    found = Figure(figsize=(9.0, 6.0), layout="constrained")
    FigureCanvasAgg(found)
    axes = found.subplots()
    axes.set_xscale("log")
    scatter.grid(axes, "x")
    for i, kind in enumerate(KINDS):
        its = [place(row) for row in rows if (row["family"] in ATTENTION) == bool(i)]
        if its:
            axes.scatter(*zip(*its), s=14, color=scatter.COLOURS[i], marker=scatter.MARKERS[i],
                         alpha=0.55, label=kind, zorder=3, linewidth=0)  # fmt: skip
    axes.step(*zip(*map(place, front)), where="post", color="#8a94a0", lw=1, zorder=2,
              label="best for its cost")  # fmt: skip
    x, y = zip(*map(place, rows))
    room = 0.06 * (max(y) - min(y)) or 1.0
    axes.set_xlim(min(x) / 8, max(x) * 1.35)
    axes.set_ylim(min(y) - room, max(y) + 2 * room)
    axes.set_xlabel("multiply-adds of an image, G")
    axes.set_ylabel("top-1 of PaddleClas's weights on ImageNet, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    found.draw_without_rendering()
    found.set_layout_engine("none")  # names are placed where the axes are now
    anchors, least = {}, 0.0
    for row in front:
        if row["top1"] >= least:
            anchors[row["name"]] = [place(row)]
            least = row["top1"] + STEP
    others = [place(row) for row in rows if row["name"] not in anchors]
    for (left, low), (right, high) in itertools.pairwise(map(place, front)):  # the line
        others += [(x, low) for x in np.geomspace(left, right, 9)]
        others += [(right, y) for y in np.arange(low, high, 0.5)]
    scatter.write_names(axes, anchors, found.dpi / 72, others=others, directions=UP)
    return found
